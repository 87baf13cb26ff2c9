package nearcache

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync/atomic"
	"time"
)

// errGoexit is what callers get from a loader that ended its goroutine.
var errGoexit = errors.New("nearcache: the loader called runtime.Goexit")

// flight is a load under way. While it is registered in its shard, callers may
// join it and its result may be kept. An invalidation of its key takes it out:
// whoever waits for it still gets its result, and nobody else ever does.
//
// A clear of a region makes all flights unjoinable, as none knows its regions
// yet, and so does a lost lease; the next Get of the key starts a newer one. The
// older stays registered behind it, because its result may be kept: if its regions
// were not among those, if the lease comes back and nothing was missed, and if it
// ends before the newer one is kept.
type flight[K comparable, V any] struct {
	key    K
	start  start
	ctx    loadContext
	cancel context.CancelFunc // of ctx

	waiters int           // guarded by the shard's mu
	older   *flight[K, V] // guarded by the shard's mu

	// landed says that everything below was set. Then ctx is cancelled, for which
	// the callers wait: it saves a channel. It is also cancelled when all of them
	// have gone.
	landed atomic.Bool
	value  V
	err    error
	panic  *loaderPanic
}

// loadContext is a loader's context. It is cancelled with its flight alone, and
// has the values of the context of the flight's first caller. It also answers to
// the flight itself, so that a loader which asks for the key that it is loading
// can be told from other callers, however many loads lie in between, if each of
// them was begun by the one before. We accept that a circle which two callers
// began from different ends is not noticed: such a loader never returns anyway.
type loadContext struct {
	context.Context
	values context.Context
	flight any
}

func (c *loadContext) Value(key any) any {
	if key == c.flight {
		return true
	}
	if v := c.Context.Value(key); v != nil {
		return v
	}
	return c.values.Value(key)
}

// loaderPanic is what a panic in a loader is raised with again, in each caller
// that waits for the load.
type loaderPanic struct {
	value any
	stack []byte
}

func (p *loaderPanic) Error() string {
	return fmt.Sprintf("nearcache: the loader panicked: %v\n\n%s", p.value, p.stack)
}

func (p *loaderPanic) Unwrap() error {
	err, _ := p.value.(error)
	return err
}

// loader calls a cache's functions for one item.
type loader[K comparable, V any] struct {
	load    func(context.Context, K) (V, error)
	outcome func(K, V, error) outcome[V] // what to keep of a load's result
}

// join returns the entry of key if another caller has just put it there, or else
// the flight to wait for: the one that is registered, if this caller may have
// its result, or a new one.
func (l *local[K, V]) join(ctx context.Context, key K, ld *loader[K, V]) (*entry[K, V], *flight[K, V]) {
	hash := l.hash(key)
	sh := l.shard(hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()

	m := l.lease.read() // first
	miss := absent
	if e := sh.table.Load().find(hash, key); e != nil {
		if miss = l.fate(e, m); miss == alive {
			return e, nil
		}
		if miss.dead() { // else the lease may come back for it
			l.dropLocked(sh, hash, e)
			sh.counters.evictions[miss]++
		}
	}
	sh.counters.misses[miss]++

	// 1. a load begins   2. the cache or a region is cleared, or the lease is lost
	// and a message is missed   3. a Get begins. It must not get what was read before
	// 2, so it joins the load only if it might have the entry that results.
	newest := sh.flights[key]
	if f := newest; f != nil && l.holds(f.start) && l.lease.covers(m, f.start.at, l.staleness) {
		// A loader that asks for the key it is loading waits for its own context;
		// were it counted as a waiter, that context would never be cancelled.
		if ctx.Value(f) == nil {
			f.waiters++
		}
		return nil, f
	}
	f := &flight[K, V]{key: key, start: l.begin(sh), waiters: 1, older: newest}
	f.ctx = loadContext{values: ctx, flight: f}
	f.ctx.Context, f.cancel = context.WithCancel(context.Background())
	sh.flights[key] = f
	go l.fly(f, hash, ld)
	return nil, f
}

// wait returns the flight's result, or ctx's error if that ends first.
func (l *local[K, V]) wait(ctx context.Context, f *flight[K, V]) (V, error) {
	var zero V
	select {
	case <-f.ctx.Done():
	case <-ctx.Done():
		l.leave(ctx, f)
		return zero, ctx.Err()
	}
	if !f.landed.Load() {
		// Everyone who was counted has gone; this is the loader, which asked for its own
		// key, or who has its context.
		return zero, context.Canceled
	}
	if f.panic != nil {
		panic(f.panic)
	}
	return f.value, f.err
}

// leave takes a caller off the flight. The last one out cancels the load, and
// a Get from here on starts a new one.
func (l *local[K, V]) leave(ctx context.Context, f *flight[K, V]) {
	if ctx.Value(f) != nil {
		return // it was not counted
	}
	sh := l.shard(l.hash(f.key))
	sh.mu.Lock()
	defer sh.mu.Unlock()
	f.waiters--
	if f.waiters > 0 {
		return
	}
	if sh.registeredLocked(f) {
		sh.unregisterLocked(f, f.older)
	}
	f.cancel()
}

// registeredLocked reports whether f is one of its key's flights.
func (sh *shard[K, V]) registeredLocked(f *flight[K, V]) bool {
	at := sh.flights[f.key]
	for at != nil && at != f {
		at = at.older
	}
	return at == f
}

// unregisterLocked takes f, which is registered, out of its key's flights, and
// leaves those of the older ones that are given.
func (sh *shard[K, V]) unregisterLocked(f, older *flight[K, V]) {
	at := sh.flights[f.key]
	if at == f {
		if older == nil {
			delete(sh.flights, f.key)
		} else {
			sh.flights[f.key] = older
		}
		return
	}
	for at.older != f {
		at = at.older
	}
	at.older = older
}

// fly runs the load in its own goroutine, keeps its result if nothing overtook
// it, and hands it to the callers.
func (l *local[K, V]) fly(f *flight[K, V], hash uint64, ld *loader[K, V]) {
	var o outcome[V]
	landed := false
	defer func() {
		if !landed { // runtime.Goexit
			var zero V
			f.value, f.err = zero, errGoexit
			l.land(f, hash, &outcome[V]{})
		}
	}()
	ld.run(f, &o)
	l.land(f, hash, &o)
	landed = true
}

// run calls the loader, and turns a panic into a part of the flight's result.
func (ld *loader[K, V]) run(f *flight[K, V], o *outcome[V]) {
	defer func() {
		if r := recover(); r != nil {
			var zero V
			f.panic = &loaderPanic{value: r, stack: debug.Stack()}
			f.value, f.err, *o = zero, f.panic, outcome[V]{}
		}
	}()
	f.value, f.err = ld.load(&f.ctx, f.key)
	*o = ld.outcome(f.key, f.value, f.err)
}

// land takes the flight out of its shard, keeps its outcome, and lets the callers
// go.
func (l *local[K, V]) land(f *flight[K, V], hash uint64, o *outcome[V]) {
	sh := l.shard(hash)
	l.commit(f, sh, hash, o)
	l.end(sh)
	f.landed.Store(true)
	f.cancel()
}

// commit takes the flight out of its shard, keeps its outcome if nothing overtook
// it, and counts it.
func (l *local[K, V]) commit(f *flight[K, V], sh *shard[K, V], hash uint64, o *outcome[V]) {
	kept := false
	now := l.lease.read().at
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.registeredLocked(f) {
		kept = l.keepLocked(sh, hash, now, f.key, f.start, o)
		older := f.older
		if kept {
			// 1. load A begins   2. a region is cleared that turns out to be none of its
			// own, or the lease is lost   3. load B of the same key begins, since A may not be
			// joined   4. B is kept   5. A ends, and may be older.
			older = nil
		}
		sh.unregisterLocked(f, older)
	}
	sh.counters.loaded(time.Duration(now-f.start.at), f.err, o.notFound, !kept && o.ttl > 0)
}
