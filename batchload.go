package nearcache

import (
	"context"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/nearcache/nearcache/internal/barrier"
)

// loadsAtOnce bounds the loads that run at a time for one GetMany without LoadMany.
const loadsAtOnce = 16

// GetMany returns the items of keys. Items that are not in memory are loaded by one call of
// LoadMany. If the load of an item is under way already, GetMany waits for that load
// instead. Calls of Get and GetMany that come meanwhile wait for the loads of this one.
// Without LoadMany, GetMany calls Load for each key, up to 16 at a time.
//
// An item that does not exist is not in the map. That is no error. If other items cannot be
// loaded, the map has the rest. The error then wraps one [KeysError] for each cause, of
// which the end of ctx may be one. Two errors have one cause if they are equal, or if they
// wrap equal errors in the same way. [errors.Is] finds each. If a loader panics, GetMany
// panics as Get does. The map is never nil, and belongs to the caller.
func (c *Cache[K, V]) GetMany(ctx context.Context, keys ...K) (map[K]V, error) {
	m := getMany[K, V]{cache: c, got: make(map[K]V, len(keys))}
	var missing []K
	asked := map[K]struct{}{} // the keys that are in missing
	for _, key := range keys {
		if e, at := c.local.peek(key); e != nil {
			value, err := c.serveHit(ctx, e, at)
			m.add(e.Item.key, value, err)
		} else if _, again := asked[key]; !again {
			asked[key] = struct{}{}
			missing = append(missing, key)
		}
	}
	c.refreshGatheredNow() // the hits that are due are refreshed together, without the pause
	if len(missing) > 0 {
		m.load(ctx, missing)
	}
	return m.got, m.failed.err(c.options.Name)
}

// getMany is a call of GetMany.
type getMany[K comparable, V any] struct {
	cache  *Cache[K, V]
	got    map[K]V
	failed keyFailures[K]
}

// add adds the result for a key. The key is the cache's own copy, since the map and the
// error outlive the call.
func (m *getMany[K, V]) add(key K, value V, err error) {
	switch {
	case err == nil:
		m.got[key] = value
	case err == ErrNotFound || m.cache.keeper.isNotFound(err):
	default:
		m.failed.add(key, err)
	}
}

// load loads the items that are not in memory.
func (m *getMany[K, V]) load(ctx context.Context, keys []K) {
	c := m.cache
	if err := ctx.Err(); err != nil {
		for _, key := range keys {
			key, _ = c.keepable(key)
			m.failed.add(c.local.own(key), err)
		}
		return
	}
	began := time.Now()
	from := callerOf(ctx)
	how := m.startOptions(&from.origin)
	keepable := make([]bool, len(keys))
	for i, key := range keys {
		keys[i], keepable[i] = c.keepable(key) // before any load is registered, since MarshalText may panic
	}
	found := make([]lookup[K, V], len(keys))
	for i, key := range keys {
		if keepable[i] {
			found[i] = c.loader.join(&from, key, how)
		} else {
			found[i] = lookup[K, V]{flight: c.loader.newUnsharedFlight(&from.origin, key, how), mustStart: true}
		}
	}
	again, waited := m.round(&from, keys, found, how, began)
	if len(again) == 0 {
		return
	}
	// Some loads have had results that may not be returned. Their keys are loaded together,
	// and waited for once more.
	how = m.startOptions(&from.origin)
	for i := range waited {
		c.loader.follow(&from, again[i], &waited[i], how)
	}
	m.round(&from, again, waited, how, began)
}

// startOptions says how the loads begin.
func (m *getMany[K, V]) startOptions(o *origin) startOptions {
	c := m.cache
	how := c.startOptions(o)
	if c.options.LoadMany != nil {
		how.batch = newBatchLoad(o, c.loader.slots != nil)
	} else {
		how.awaitsSlot, how.queued = true, true
	}
	return how
}

// round starts the loads that this call has to start, and adds the results of all. began is
// when the call began to wait. round returns the keys that have to be looked up again, and
// their lookups, see follow.
func (m *getMany[K, V]) round(
	from *caller, keys []K, found []lookup[K, V], how startOptions, began time.Time,
) (again []K, waited []lookup[K, V]) {
	c := m.cache
	var toStart []*flight[K, V]
	for i := range found {
		switch {
		case found[i].mustStart:
			toStart = append(toStart, found[i].flight)
		case found[i].jumpsQueue:
			c.loader.start(from, found[i].flight)
		}
	}
	switch {
	case len(toStart) == 0:
	case how.batch != nil:
		go c.loader.runBatch(toStart, how.batch)
	default:
		go c.loader.runQueue(toStart)
	}
	awaited := 0
	defer func() { // if a loader panics, this call no longer waits for the others
		for _, lk := range found[awaited:] {
			if lk.entry == nil {
				c.loader.leave(from, &lk)
			}
		}
	}()
	for i, key := range keys {
		awaited++
		value, more, err := c.await(from, key, &found[i], time.Since(began))
		if more {
			again, waited = append(again, key), append(waited, found[i])
			continue
		}
		m.add(found[i].key(), value, err)
	}
	return again, waited
}

// newUnsharedFlight returns a flight that no other caller joins. Its result is not kept.
func (l *loader[K, V]) newUnsharedFlight(o *origin, key K, how startOptions) *flight[K, V] {
	hash := l.local.hash(key)
	return l.newFlight(l.local.shard(hash), o, hash, key, how)
}

// runQueue runs flights in their order, up to loadsAtOnce at a time.
func (l *loader[K, V]) runQueue(flights []*flight[K, V]) {
	atOnce := newSlots(loadsAtOnce)
	for _, f := range flights {
		atOnce <- struct{}{}
		acquired := l.slots.needed(f.ctx.parent) && l.slots.acquire(&f.ctx)
		go func() {
			defer atOnce.release()
			if acquired {
				l.runHoldingSlot(f)
			} else {
				l.run(f)
			}
		}()
	}
}

// batchLoad is one call of LoadMany, for several flights.
type batchLoad struct {
	ctx    loadContext  // the context of the call
	wanted atomic.Int64 // flights that still need the call
}

func newBatchLoad(o *origin, ownSlot bool) *batchLoad {
	return &batchLoad{ctx: loadContext{values: o.ctx, parent: o.load, hasSlot: hasSlot(o.load, ownSlot)}}
}

// leave is called when one of the flights no longer needs the call.
func (b *batchLoad) leave() {
	if b != nil && b.wanted.Add(-1) == 0 {
		b.ctx.end()
	}
}

// runBatch has LoadMany load all flights of b. If it needs a slot, it waits for one.
func (l *loader[K, V]) runBatch(flights []*flight[K, V], b *batchLoad) {
	if l.slots.needed(b.ctx.parent) && l.slots.acquire(&b.ctx) {
		defer l.slots.release()
	}
	l.runBatchNow(flights, b)
}

// runBatchHoldingSlot is runBatch with a slot, which it releases.
func (l *loader[K, V]) runBatchHoldingSlot(flights []*flight[K, V], b *batchLoad) {
	defer l.slots.release()
	l.runBatchNow(flights, b)
}

func (l *loader[K, V]) runBatchNow(flights []*flight[K, V], b *batchLoad) {
	defer b.ctx.end()
	var wanted []*flight[K, V]
	for _, f := range flights {
		if !l.begin(f, b) {
			continue // another caller has begun it, see jumpQueueLocked
		}
		if f.ctx.Err() != nil {
			l.finishUnwanted(f)
			continue
		}
		wanted = append(wanted, f)
	}
	if l.shared != nil {
		l.runBatchShared(wanted, b)
	} else {
		l.callLoadMany(wanted, b)
	}
}

// runBatchShared is runBatchNow, from where the shared level is asked. Flights whose values
// are found finish at once. Those that no other instance loads are loaded. The others wait.
func (l *loader[K, V]) runBatchShared(flights []*flight[K, V], b *batchLoad) {
	s := l.shared
	left := flights // those that are not done
	var lookups []*sharedLookup[K, V]
	defer func() {
		for _, f := range left { // the goroutine was ended by a callback
			l.finishGoexit(f, 1)
		}
		s.endClaims(lookups)
	}()
	lookups = s.lookups(flights)
	lookupOf := make(map[*flight[K, V]]*sharedLookup[K, V], len(lookups))
	for _, sl := range lookups {
		lookupOf[sl.flight] = sl
	}
	began := time.Now()
	s.readAndClaim(&b.ctx, lookups)
	for {
		var wanted []*flight[K, V]
		sought := left
		left = nil
		for _, f := range sought {
			if sl := lookupOf[f]; sl != nil && sl.claimedElsewhere {
				left = append(left, f)
			} else if !l.finishLookup(f, sl) {
				wanted = append(wanted, f)
			}
		}
		l.callLoadMany(wanted, b)
		s.endClaims(lookups) // a flight that another instance loads has no claim
		if len(left) == 0 {
			return
		}
		s.retry(&b.ctx, lookups, began)
	}
}

// callLoadMany calls the user's LoadMany, and finishes the flights, also if the goroutine
// ends.
func (l *loader[K, V]) callLoadMany(wanted []*flight[K, V], b *batchLoad) {
	if len(wanted) == 0 {
		return
	}
	keys := make([]K, len(wanted))
	for i, f := range wanted {
		f.ran = true
		keys[i] = f.key
	}
	r := results[K, V]{err: errGoexit}
	defer barrier.ForEach(wanted, func(f *flight[K, V]) { l.finishPart(f, &r, len(wanted)) }) // also after runtime.Goexit
	r.load(b, l, keys, func() {
		barrier.ForEach(wanted, func(f *flight[K, V]) { l.timeOut(f) })
	})
}

// finishPart finishes a flight with its part of the results. parts is as for finish.
func (l *loader[K, V]) finishPart(f *flight[K, V], r *results[K, V], parts int) {
	given := false
	defer func() { // also if Expiry, say, ends the goroutine: the other flights are not affected
		if !given {
			l.finishGoexit(f, parts)
		}
	}()
	l.local.askForRegions(f)
	r.give(f, l)
	given = true
	l.finish(f, parts)
}

// results are what LoadMany returned, or how else it ended.
type results[K comparable, V any] struct {
	values map[K]V
	err    error
	panic  *loaderPanic
}

// load calls the user's LoadMany. It turns a panic into a result. timeOut is called when
// LoadTimeout has passed.
func (r *results[K, V]) load(b *batchLoad, ld *loader[K, V], keys []K, timeOut func()) {
	defer func() {
		if p := recover(); p != nil {
			r.panic = &loaderPanic{value: p, stack: debug.Stack()}
		}
	}()
	ctx := context.Context(&b.ctx)
	if ld.timeout > 0 {
		limited, cancel := context.WithTimeoutCause(ctx, ld.timeout, ld.errTimeout)
		defer cancel()
		defer onTimeout(limited, timeOut)()
		ctx = limited
	}
	r.values, r.err = ld.loadMany(ctx, keys)
}

// give gives a flight its part of the results. A key without a value counts as not found,
// unless LoadMany failed.
func (r *results[K, V]) give(f *flight[K, V], ld *loader[K, V]) {
	defer f.recoverPanic()
	value, found := r.values[f.key]
	switch {
	case r.panic != nil:
		f.fail(r.panic)
		return
	case found:
		f.value = value
	case r.err != nil:
		f.err = r.err
	default:
		f.err = ErrNotFound
	}
	ld.keeper.of(f.key, f.value, f.err, &f.outcome)
}

// loadOne makes a Load out of a LoadMany.
func loadOne[K comparable, V any](loadMany func(context.Context, []K) (map[K]V, error)) func(context.Context, K) (V, error) {
	return func(ctx context.Context, key K) (V, error) {
		values, err := loadMany(ctx, []K{key})
		if value, found := values[key]; found || err != nil {
			if found {
				err = nil
			}
			return value, err
		}
		var zero V
		return zero, ErrNotFound
	}
}
