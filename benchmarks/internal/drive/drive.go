// Package drive has the one loop that every subject is measured with.
package drive

import (
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// A Ring is what a subject is asked for, in order and then again from the start.
// Its length is a power of two, so that a position costs one mask.
type Ring[T any] []T

// A Cursor is a place in a ring. All goroutines of a turn draw from one, block by
// block, so that they do not walk in step.
type Cursor = atomic.Uint64

// A Turn is what one subject did in one go.
type Turn struct {
	Ops     int64
	True    int64 // of these, those that returned true
	Elapsed time.Duration
}

// NsPerOp returns the wall time of an operation; with several goroutines, that of
// one operation of all of them together.
func (t Turn) NsPerOp() float64 { return float64(t.Elapsed.Nanoseconds()) / float64(t.Ops) }

// Run lets op have a turn of about d on so many goroutines. The clock is read once
// a block; the time is that until the last goroutine has finished its last block.
func Run[T any](op func(T) bool, ring Ring[T], at *Cursor, goroutines, block int, d time.Duration) Turn {
	if goroutines == 1 {
		start := time.Now()
		ops, yes := work(op, ring, at, block, start.Add(d))
		return Turn{ops, yes, time.Since(start)}
	}
	var ready, done sync.WaitGroup
	var ops, yes atomic.Int64
	var deadline time.Time
	begin := make(chan struct{})
	ready.Add(goroutines)
	for range goroutines {
		done.Go(func() {
			ready.Done()
			<-begin
			n, y := work(op, ring, at, block, deadline)
			ops.Add(n)
			yes.Add(y)
		})
	}
	ready.Wait()
	start := time.Now()
	deadline = start.Add(d)
	close(begin)
	done.Wait()
	return Turn{ops.Load(), yes.Load(), time.Since(start)}
}

// work runs whole blocks until the deadline has passed, and one at least.
func work[T any](op func(T) bool, ring Ring[T], at *Cursor, block int, deadline time.Time) (ops, yes int64) {
	for {
		from := at.Add(uint64(block)) - uint64(block)
		yes += run(op, ring, from, block)
		ops += int64(block)
		if !time.Now().Before(deadline) {
			return ops, yes
		}
	}
}

// run is the loop itself: an index, a mask, one call of a function value, and a
// count. It is the same code for every subject.
func run[T any](op func(T) bool, ring Ring[T], from uint64, n int) (yes int64) {
	mask := uint64(len(ring) - 1)
	for i := range uint64(n) {
		if op(ring[(from+i)&mask]) {
			yes++
		}
	}
	return yes
}

// Allocs returns what one operation allocates, in objects and bytes: the least of
// three tries, since what others allocate meanwhile counts as well.
func Allocs[T any](op func(T) bool, ring Ring[T], at *Cursor, ops int) (objects, bytes float64) {
	for try := range 3 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		run(op, ring, at.Add(uint64(ops))-uint64(ops), ops)
		runtime.ReadMemStats(&after)
		o := float64(after.Mallocs-before.Mallocs) / float64(ops)
		b := float64(after.TotalAlloc-before.TotalAlloc) / float64(ops)
		if try == 0 || o < objects {
			objects, bytes = o, b
		}
	}
	return objects, bytes
}
