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

// errGoexit is what callers get from a load whose goroutine was ended.
var errGoexit = errors.New("nearcache: the loader, or another function of the cache's options, called runtime.Goexit")

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

// loader calls a cache's functions, for one item or for many, and bounds how many
// calls there are at a time and how long each is waited for.
type loader[K comparable, V any] struct {
	local *local[K, V] // where results are kept, and loads under way are registered

	load     func(context.Context, K) (V, error)
	loadMany func(context.Context, []K) (map[K]V, error) // may be nil
	keeper   *keeper[K, V]
	random   backoff.Random

	timeout    time.Duration // of a call; 0: none
	errTimeout error         // what callers get then

	shared *shared[K, V] // nil: there is none

	slots     slots
	refreshes atomic.Int64 // calls in the background, under way
	due       gathering[K, V]
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

// jittered takes a random part of up to a tenth off ttl, unless it is endless.
func (bp *Backplane) jittered(ttl time.Duration) time.Duration {
	if ttl == NoExpiry {
		return ttl
	}
	return backoff.Less(bp.random, ttl, 10)
}

// places bounds the loads under way: each takes a place and gives it back. Nil has
// room for any number.
//
// A load that another one waits for, which has a place in this cache or in any other,
// needs none of its own: if all places were taken by loads that wait for others, none
// would ever be free.
type slots chan struct{}

func newSlots(n int) slots {
	if n == 0 {
		return nil
	}
	return make(slots, n)
}

// needed reports whether a load that the loader of parent begins, or that none does, has
// to take a place.
func (p slots) needed(parent *loadContext) bool { return p != nil && !hasSlot(parent, false) }

// placed reports whether a load that the loader of parent begins has a place, or needs
// none, if that is what own says of the load itself.
func hasSlot(parent *loadContext, own bool) bool { return own || parent != nil && parent.hasSlot }

// take waits for a place, and reports whether there was one before ctx ended.
func (p slots) acquire(ctx context.Context) bool {
	if ctx.Err() != nil {
		return false
	}
	select {
	case p <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

// tryTake reports whether there was a place.
func (p slots) tryAcquire() bool {
	select {
	case p <- struct{}{}:
		return true
	default:
		return false
	}
}

// give gives a place back.
func (p slots) release() { <-p }

// fly runs a load in a goroutine of its own, when there is a place if one that a caller
// begins needs it.
func (l *loader[K, V]) start(from *caller, f *flight[K, V]) {
	if l.slots.needed(from.load) {
		go l.runInSlot(f)
	} else {
		go l.run(f) // no deeper than needs be, see Cache.outcome
	}
}

// flyHere is fly in the caller's goroutine.
func (l *loader[K, V]) startInline(from *caller, f *flight[K, V]) {
	if l.slots.needed(from.load) {
		l.runInSlot(f)
	} else {
		l.run(f)
	}
}

// flyInPlace is flyNow as soon as there is a place.
func (l *loader[K, V]) runInSlot(f *flight[K, V]) {
	if l.slots.acquire(&f.ctx) {
		l.runHoldingSlot(f)
	} else {
		l.run(f) // nobody waits for it any more
	}
}

// flyPlaced is flyNow with a place, and gives it back.
func (l *loader[K, V]) runHoldingSlot(f *flight[K, V]) {
	defer l.slots.release()
	l.run(f)
}

// flyNow runs a load that nobody else has run, keeps its result if nothing overtook
// it, and hands it to the callers.
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

// lookHere has a flight's first caller look for its value in Redis, in its own
// goroutine: another one would take as long as the rest of it. If it is not there,
// the flight goes on in one.
func (l *loader[K, V]) lookUpInline(ctx context.Context, f *flight[K, V]) {
	var e *sharedLookup[K, V]
	landed := false
	defer func() { // a codec can end the goroutine
		if !landed {
			go l.runShared(f, e)
		}
	}()
	e = l.shared.lookup(f)
	if e != nil && !l.shared.lookOnce(ctx, e) {
		e = nil
	}
	if landed = e != nil && e.found; landed {
		l.finish(f, 1)
	}
}

// flyToShared is flyNow, for a flight that may ask the shared level.
func (l *loader[K, V]) runSharedLookup(f *flight[K, V]) {
	named := false
	defer func() { // MarshalText can end the goroutine
		if !named {
			l.finishGoexit(f, 1)
		}
	}()
	e := l.shared.lookup(f)
	named = true
	l.runShared(f, e)
}

// flyShared is flyNow from where the shared level is asked, for e; nil: it is not.
func (l *loader[K, V]) runShared(f *flight[K, V], e *sharedLookup[K, V]) {
	if e != nil {
		defer l.shared.endClaims([]*sharedLookup[K, V]{e})
		fetched := false
		defer func() { // a codec can end the goroutine
			if !fetched {
				l.finishGoexit(f, 1)
			}
		}()
		l.shared.resolve(&f.ctx, e)
		fetched = true
	}
	if !l.finishLookup(f, e) {
		l.runLoad(f)
	}
}

// landSought lands a flight whose value e has found at the shared level, or that nobody
// waits for any more. It reports whether it did; else the flight goes on to the source.
func (l *loader[K, V]) finishLookup(f *flight[K, V], e *sharedLookup[K, V]) bool {
	switch {
	case e != nil && e.found:
		l.finish(f, 1)
	case f.ctx.Err() != nil:
		l.finishUnwanted(f)
	default:
		l.leaveShared(f)
		return false
	}
	return true
}

// runAndLand calls the loader, whatever becomes of it.
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

// landEnded lands a flight whose goroutine was ended by runtime.Goexit. So many flights
// share the time that it took.
func (l *loader[K, V]) finishGoexit(f *flight[K, V], share int) {
	var zero V
	f.value, f.err, f.outcome = zero, errGoexit, outcome[V]{}
	f.state.And(^uint32(flightPanicked))
	l.finish(f, share)
}

// landUnwanted lands a flight that nobody waits for any more.
func (l *loader[K, V]) finishUnwanted(f *flight[K, V]) {
	f.err = context.Canceled
	l.finish(f, 1)
}

// run calls the loader.
func (l *loader[K, V]) callLoad(f *flight[K, V]) {
	defer f.recoverPanic()
	if l.timeout == 0 {
		f.value, f.err = l.load(&f.ctx, f.key)
	} else {
		l.callLoadInTime(f)
	}
	l.local.noteCleared(f)
	l.keeper.of(f.key, f.value, f.err, &f.outcome)
}

// runInTime calls the loader, and does not have callers wait for it longer than
// LoadTimeout.
func (l *loader[K, V]) callLoadInTime(f *flight[K, V]) {
	ctx, cancel := context.WithTimeoutCause(&f.ctx, l.timeout, l.errTimeout)
	defer cancel()
	defer onTimeout(ctx, func() { l.timeOut(f) })()
	f.value, f.err = l.load(ctx, f.key)
}

// catch turns a panic into the flight's result. It is deferred.
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

// onTimeout calls f, in a goroutine of its own, when ctx's time is over; stop keeps
// it from doing so later.
func onTimeout(ctx context.Context, f func()) (stop func() bool) {
	return context.AfterFunc(ctx, func() {
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			f()
		}
	})
}
