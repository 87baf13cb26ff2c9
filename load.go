package nearcache

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/nearcache/nearcache/internal/backoff"
)

// loader calls a cache's Load, for one item, and LoadMany, for many. It bounds how many
// calls run at a time, and how long callers wait for each call.
type loader[K comparable, V any] struct {
	local *local[K, V] // where results are kept and flights are registered

	load     func(context.Context, K) (V, error)
	loadMany func(context.Context, []K) (map[K]V, error) // may be nil
	keeper   *keeper[K, V]
	random   backoff.Random

	timeout    time.Duration // LoadTimeout; 0: none
	errTimeout error         // what callers get when it has passed

	shared *shared[K, V] // nil: there is no shared level

	slots     slots
	refreshes atomic.Int64 // slots of refreshes that are taken, see refreshSlot
	gathered  gathering[K, V]
}

func newLoader[K comparable, V any](c *Cache[K, V]) *loader[K, V] {
	o := c.options
	return &loader[K, V]{
		local: c.local, load: o.Load, loadMany: o.LoadMany, keeper: c.keeper,
		random: c.backplane.random, slots: newSlots(o.MaxConcurrentLoads), timeout: o.LoadTimeout,
		errTimeout: fmt.Errorf("nearcache: cache %q: the load took longer than LoadTimeout, %v: %w",
			o.Name, o.LoadTimeout, context.DeadlineExceeded),
	}
}

// start runs a load in a goroutine of its own. If the load needs a slot, that goroutine
// waits for one.
func (l *loader[K, V]) start(from *caller, f *flight[K, V]) {
	if l.slots.needed(from.load) {
		go l.runInSlot(f)
	} else {
		go l.run(f) // directly: each frame takes stack, see keeper.of
	}
}

// startInline does the same as start in the caller's goroutine.
func (l *loader[K, V]) startInline(from *caller, f *flight[K, V]) {
	if l.slots.needed(from.load) {
		l.runInSlot(f)
	} else {
		l.run(f)
	}
}

// runInSlot waits for a slot, and then does the same as run.
func (l *loader[K, V]) runInSlot(f *flight[K, V]) {
	if l.slots.acquire(&f.ctx) {
		l.runHoldingSlot(f)
	} else {
		l.run(f) // it was cancelled, and only has to finish
	}
}

// runHoldingSlot does the same as run for a load that has a slot. It releases the slot.
func (l *loader[K, V]) runHoldingSlot(f *flight[K, V]) {
	defer l.slots.release()
	l.run(f)
}

// run runs a load, unless another goroutine has begun it. It hands the result to the
// callers, and keeps it unless an invalidation has overtaken the load.
func (l *loader[K, V]) run(f *flight[K, V]) {
	if !l.begin(f, nil) {
		return
	}
	if f.ctx.Err() != nil {
		l.finishUnwanted(f)
		return
	}
	if l.shared != nil {
		l.runSharedLookup(f)
		return
	}
	l.runLoad(f)
}

// lookUpInline looks for f's value in Redis, in the goroutine of f's first caller. To
// start another goroutine would take as long as the rest of the lookup. If the value is
// not in Redis, the load continues in a goroutine of its own.
func (l *loader[K, V]) lookUpInline(ctx context.Context, f *flight[K, V]) {
	var sl *sharedLookup[K, V]
	finished := false
	defer func() { // also if a codec ends the goroutine
		if !finished {
			go l.runShared(f, sl)
		}
	}()
	sl = l.shared.lookup(f)
	if sl != nil && !l.shared.lookOnce(ctx, sl) {
		sl = nil
	}
	if finished = sl != nil && sl.found; finished {
		l.finish(f, 1)
	}
}

// runSharedLookup is the part of run for a cache with a shared level. It makes the
// lookup, which is nil if f may not use that level.
func (l *loader[K, V]) runSharedLookup(f *flight[K, V]) {
	named := false
	defer func() { // also if MarshalText ends the goroutine
		if !named {
			l.finishGoexit(f, 1)
		}
	}()
	sl := l.shared.lookup(f)
	named = true
	l.runShared(f, sl)
}

// runShared is the rest of run, from the question to the shared level on. If sl is nil,
// runShared does not ask it.
func (l *loader[K, V]) runShared(f *flight[K, V], sl *sharedLookup[K, V]) {
	if sl != nil {
		defer l.shared.endClaims([]*sharedLookup[K, V]{sl})
		fetched := false
		defer func() { // also if a codec ends the goroutine
			if !fetched {
				l.finishGoexit(f, 1)
			}
		}()
		l.shared.resolve(&f.ctx, sl)
		fetched = true
	}
	if !l.finishLookup(f, sl) {
		l.runLoad(f)
	}
}

// finishLookup finishes f if the shared lookup has found its value, or if f was cancelled
// meanwhile. It reports whether it has finished f. If it has not, f has to load from the
// source.
func (l *loader[K, V]) finishLookup(f *flight[K, V], sl *sharedLookup[K, V]) bool {
	switch {
	case sl != nil && sl.found:
		l.finish(f, 1)
	case f.ctx.Err() != nil:
		l.finishUnwanted(f)
	default:
		l.leaveShared(f)
		return false
	}
	return true
}

// runLoad calls the loader and finishes the flight, even if the loader ends the
// goroutine.
func (l *loader[K, V]) runLoad(f *flight[K, V]) {
	f.ran = true
	returned := false
	defer func() {
		if !returned {
			l.finishGoexit(f, 1)
		}
	}()
	l.callLoad(f)
	returned = true
	l.finish(f, 1)
}

// finishGoexit finishes a flight whose goroutine runtime.Goexit has ended. parts is
// that of finish.
func (l *loader[K, V]) finishGoexit(f *flight[K, V], parts int) {
	var zero V
	f.value, f.err, f.outcome = zero, errGoexit, outcome[V]{}
	f.state.And(^uint32(flightPanicked))
	l.finish(f, parts)
}

// errGoexit is the error of a load whose goroutine was ended.
var errGoexit = errors.New("nearcache: the loader, or another function of the cache's options, called runtime.Goexit")

// finishUnwanted finishes a flight that was cancelled before it ran.
func (l *loader[K, V]) finishUnwanted(f *flight[K, V]) {
	f.err = context.Canceled
	l.finish(f, 1)
}

// callLoad calls the user's Load, and decides what to keep of its result.
func (l *loader[K, V]) callLoad(f *flight[K, V]) {
	defer f.recoverPanic()
	if l.timeout == 0 {
		f.value, f.err = l.load(&f.ctx, f.key)
	} else {
		l.callLoadInTime(f)
	}
	l.local.askForRegions(f)
	l.keeper.of(f.key, f.value, f.err, &f.outcome)
}

// callLoadInTime calls the user's Load if there is a LoadTimeout. When that has passed,
// f's callers no longer wait.
func (l *loader[K, V]) callLoadInTime(f *flight[K, V]) {
	ctx, cancel := context.WithTimeoutCause(&f.ctx, l.timeout, l.errTimeout)
	defer cancel()
	defer onTimeout(ctx, func() { l.timeOut(f) })()
	f.value, f.err = l.load(ctx, f.key)
}

// recoverPanic makes a panic the flight's result. It is deferred.
func (f *flight[K, V]) recoverPanic() {
	if r := recover(); r != nil {
		f.fail(&loaderPanic{value: r, stack: debug.Stack()})
	}
}

// fail makes a panic the flight's result.
func (f *flight[K, V]) fail(p *loaderPanic) {
	var zero V
	f.value, f.err, f.outcome = zero, p, outcome[V]{}
	f.state.Or(flightPanicked)
}

// loaderPanic is what a panic in a loader becomes. Each caller that waits for the load
// panics with it.
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

// onTimeout calls f in a goroutine of its own if ctx's deadline passes. After stop, f
// is no longer called.
func onTimeout(ctx context.Context, f func()) (stop func() bool) {
	return context.AfterFunc(ctx, func() {
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			f()
		}
	})
}

// slots bounds the loads that run at a time, see MaxConcurrentLoads. Each load acquires a
// slot and releases it. Nil slots bound nothing.
//
// A load with a slot may wait for another load, of this cache or of any other. That other
// load then needs no slot. Otherwise all slots could be held by loads that wait for loads
// without one, and no slot would ever become free.
type slots chan struct{}

func newSlots(n int) slots {
	if n == 0 {
		return nil
	}
	return make(slots, n)
}

// needed reports whether a load has to acquire a slot. parent is the load whose loader
// begins it. A nil parent means that no loader does.
func (s slots) needed(parent *loadContext) bool { return s != nil && !hasSlot(parent, false) }

// hasSlot reports whether a load has a slot of its own, as own says, or needs none since
// its parent has one.
func hasSlot(parent *loadContext, own bool) bool { return own || parent != nil && parent.hasSlot }

// acquire waits for a slot, and reports whether it got one before ctx ended.
func (s slots) acquire(ctx context.Context) bool {
	if ctx.Err() != nil {
		return false
	}
	select {
	case s <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

// tryAcquire acquires a slot if one is free, and reports whether it did.
func (s slots) tryAcquire() bool {
	select {
	case s <- struct{}{}:
		return true
	default:
		return false
	}
}

// release gives a slot back.
func (s slots) release() { <-s }

// jittered takes a random part of up to a tenth off ttl, unless ttl is NoExpiry.
func (bp *Backplane) jittered(ttl time.Duration) time.Duration {
	if ttl == NoExpiry {
		return ttl
	}
	return backoff.Less(bp.random, ttl, 10)
}
