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
	load     func(context.Context, K) (V, error)
	loadMany func(context.Context, []K) (map[K]V, error) // may be nil
	outcome  func(K, V, error, *outcome[V])              // what to keep of a load's result
	timedOut func(K, error) outcome[V]                   // and of one that took longer than timeout
	slow     func(*outcome[V], time.Duration)            // is told of a result that came too late to be kept
	unheard  func(error)                                 // is told of a panic that reaches no caller
	random   backoff.Random

	timeout    time.Duration // of a call; 0: none
	errTimeout error         // what callers get then

	shared *shared[K, V] // nil: there is none

	places    places
	refreshes atomic.Int64 // calls in the background, under way
	due       gathering[K, V]
}

func newLoader[K comparable, V any](c *Cache[K, V]) *loader[K, V] {
	o := c.options
	return &loader[K, V]{
		load: o.Load, loadMany: o.LoadMany, outcome: c.outcome, timedOut: c.outcomeOfTimeout, slow: c.hintSlow, unheard: c.hintUnheard,
		random: c.backplane.random, places: newPlaces(o.MaxConcurrentLoads), timeout: o.LoadTimeout,
		errTimeout: fmt.Errorf("nearcache: cache %q: the load took longer than LoadTimeout, %v: %w",
			o.Name, o.LoadTimeout, context.DeadlineExceeded),
	}
}

// outcome decides what to keep of a load, or of a write that succeeded, and says it in
// o, which is zero. If one of the cache's functions panics o is of no use.
//
// Here and in addLocked a load's goroutine is at its deepest, but for the loader. It
// keeps to the stack that goroutines begin with, of which a good thousand bytes are
// theirs: to grow it takes longer than the rest of a miss.
func (c *Cache[K, V]) outcome(key K, value V, err error, o *outcome[V]) {
	o.weight = 1
	if err != nil {
		c.outcomeOfError(key, err, o)
		return
	}
	o.known, o.value = true, value
	if c.options.Expiry != nil {
		o.ttl = c.options.Expiry(key, value)
	} else {
		o.ttl = c.backplane.jittered(c.options.TTL)
	}
	o.life = o.ttl
	if o.ttl > 0 && c.options.Weigh != nil {
		c.weighed(o, c.options.Weigh(key, value))
	}
	if o.ttl <= 0 && !o.cleared {
		return
	}
	o.placed = true
	if c.options.Regions != nil {
		o.regions = namesOf(c.options.Regions(key, value))
	}
}

func (c *Cache[K, V]) outcomeOfError(key K, err error, o *outcome[V]) {
	switch {
	case c.isNotFound(err):
		o.known, o.err, o.ttl, o.life = true, ErrNotFound, c.options.NotFoundTTL, c.options.NotFoundTTL
		if c.options.NotFoundRegions != nil && (o.ttl > 0 || o.cleared) {
			o.placed, o.regions = true, namesOf(c.options.NotFoundRegions(key))
		}
	default:
		// Also context.DeadlineExceeded and context.Canceled: a load's context has no
		// caller's deadline, so they are the source's own. When all callers have gone the
		// load's context is cancelled too, but then the load is no longer registered, and
		// nothing of it is kept.
		o.err, o.ttl = err, c.options.ErrorTTL
	}
	if o.ttl > 0 && c.options.MaxWeight > 0 {
		c.weighed(o, c.weighError(key, o.err))
	}
}

// outcomeOfTimeout decides what to keep of a load that LoadTimeout has ended. It is
// called by a goroutine in which a panic of WeighNotFound would reach no caller: then
// nothing is kept.
func (c *Cache[K, V]) outcomeOfTimeout(key K, err error) (o outcome[V]) {
	defer func() {
		if r := recover(); r != nil {
			o = outcome[V]{}
			c.hintUnheard(&loaderPanic{value: r, stack: debug.Stack()})
		}
	}()
	o.weight, o.err, o.ttl = 1, err, c.options.ErrorTTL
	if o.ttl > 0 && c.options.MaxWeight > 0 {
		c.weighed(&o, c.weighError(key, err))
	}
	return o
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
type places chan struct{}

func newPlaces(n int) places {
	if n == 0 {
		return nil
	}
	return make(places, n)
}

// needed reports whether a load that the loader of parent begins, or that none does, has
// to take a place.
func (p places) needed(parent *loadContext) bool { return p != nil && !placed(parent, false) }

// placed reports whether a load that the loader of parent begins has a place, or needs
// none, if that is what own says of the load itself.
func placed(parent *loadContext, own bool) bool { return own || parent != nil && parent.placed }

// take waits for a place, and reports whether there was one before ctx ended.
func (p places) take(ctx context.Context) bool {
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
func (p places) tryTake() bool {
	select {
	case p <- struct{}{}:
		return true
	default:
		return false
	}
}

// give gives a place back.
func (p places) give() { <-p }

// fly runs a load in a goroutine of its own, when there is a place if one that a caller
// begins needs it.
func (l *local[K, V]) fly(from *caller, f *flight[K, V], ld *loader[K, V]) {
	if ld.places.needed(from.load) {
		go l.flyInPlace(f, ld)
	} else {
		go l.flyNow(f, ld) // no deeper than needs be, see Cache.outcome
	}
}

// flyHere is fly in the caller's goroutine.
func (l *local[K, V]) flyHere(from *caller, f *flight[K, V], ld *loader[K, V]) {
	if ld.places.needed(from.load) {
		l.flyInPlace(f, ld)
	} else {
		l.flyNow(f, ld)
	}
}

// flyInPlace is flyNow as soon as there is a place.
func (l *local[K, V]) flyInPlace(f *flight[K, V], ld *loader[K, V]) {
	if ld.places.take(&f.ctx) {
		l.flyPlaced(f, ld)
	} else {
		l.flyNow(f, ld) // nobody waits for it any more
	}
}

// flyPlaced is flyNow with a place, and gives it back.
func (l *local[K, V]) flyPlaced(f *flight[K, V], ld *loader[K, V]) {
	defer ld.places.give()
	l.flyNow(f, ld)
}

// flyNow runs a load that nobody else has run, keeps its result if nothing overtook
// it, and hands it to the callers.
func (l *local[K, V]) flyNow(f *flight[K, V], ld *loader[K, V]) {
	if !l.takeOff(f, ld, nil) {
		return
	}
	if f.ctx.Err() != nil {
		l.landUnwanted(f, ld)
		return
	}
	if ld.shared != nil {
		l.flyToShared(f, ld)
		return
	}
	l.runAndLand(f, ld)
}

// lookHere has a flight's first caller look for its value in Redis, in its own
// goroutine: another one would take as long as the rest of it. If it is not there,
// the flight goes on in one.
func (l *local[K, V]) lookHere(ctx context.Context, f *flight[K, V], ld *loader[K, V]) {
	var e *errand[K, V]
	landed := false
	defer func() { // a codec can end the goroutine
		if !landed {
			go l.flyShared(f, ld, e)
		}
	}()
	e = ld.shared.errand(f)
	if e != nil && !ld.shared.look(ctx, e) {
		e = nil
	}
	if landed = e != nil && e.found; landed {
		l.land(f, ld, 1)
	}
}

// flyToShared is flyNow, for a flight that may ask the shared level.
func (l *local[K, V]) flyToShared(f *flight[K, V], ld *loader[K, V]) {
	named := false
	defer func() { // MarshalText can end the goroutine
		if !named {
			l.landEnded(f, ld, 1)
		}
	}()
	e := ld.shared.errand(f)
	named = true
	l.flyShared(f, ld, e)
}

// flyShared is flyNow from where the shared level is asked, for e; nil: it is not.
func (l *local[K, V]) flyShared(f *flight[K, V], ld *loader[K, V], e *errand[K, V]) {
	if e != nil {
		defer ld.shared.settle([]*errand[K, V]{e})
		fetched := false
		defer func() { // a codec can end the goroutine
			if !fetched {
				l.landEnded(f, ld, 1)
			}
		}()
		ld.shared.fetch(&f.ctx, e)
		fetched = true
	}
	if !l.landSought(f, ld, e) {
		l.runAndLand(f, ld)
	}
}

// landSought lands a flight whose value e has found at the shared level, or that nobody
// waits for any more. It reports whether it did; else the flight goes on to the source.
func (l *local[K, V]) landSought(f *flight[K, V], ld *loader[K, V], e *errand[K, V]) bool {
	switch {
	case e != nil && e.found:
		l.land(f, ld, 1)
	case f.ctx.Err() != nil:
		l.landUnwanted(f, ld)
	default:
		l.leaveShared(f)
		return false
	}
	return true
}

// runAndLand calls the loader, whatever becomes of it.
func (l *local[K, V]) runAndLand(f *flight[K, V], ld *loader[K, V]) {
	f.ran = true
	returned := false
	defer func() {
		if !returned {
			l.landEnded(f, ld, 1)
		}
	}()
	l.run(f, ld)
	returned = true
	l.land(f, ld, 1)
}

// landEnded lands a flight whose goroutine was ended by runtime.Goexit. So many flights
// share the time that it took.
func (l *local[K, V]) landEnded(f *flight[K, V], ld *loader[K, V], share int) {
	var zero V
	f.value, f.err, f.outcome = zero, errGoexit, outcome[V]{}
	f.state.And(^uint32(flightPanicked))
	l.land(f, ld, share)
}

// landUnwanted lands a flight that nobody waits for any more.
func (l *local[K, V]) landUnwanted(f *flight[K, V], ld *loader[K, V]) {
	f.err = context.Canceled
	l.land(f, ld, 1)
}

// run calls the loader.
func (l *local[K, V]) run(f *flight[K, V], ld *loader[K, V]) {
	defer f.catch()
	if ld.timeout == 0 {
		f.value, f.err = ld.load(&f.ctx, f.key)
	} else {
		l.runInTime(f, ld)
	}
	l.noteCleared(f)
	ld.outcome(f.key, f.value, f.err, &f.outcome)
}

// runInTime calls the loader, and does not have callers wait for it longer than
// LoadTimeout.
func (l *local[K, V]) runInTime(f *flight[K, V], ld *loader[K, V]) {
	ctx, cancel := context.WithTimeoutCause(&f.ctx, ld.timeout, ld.errTimeout)
	defer cancel()
	defer onTimeout(ctx, func() { l.giveUp(f, ld) })()
	f.value, f.err = ld.load(ctx, f.key)
}

// catch turns a panic into the flight's result. It is deferred.
func (f *flight[K, V]) catch() {
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
