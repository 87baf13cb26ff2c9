package nearcache

import (
	"context"
	"runtime/debug"
	"sync/atomic"
	"time"
)

// loadsAtOnce bounds the loads under way for one GetMany without a LoadMany.
const loadsAtOnce = 16

// KeysError says for which keys GetMany has no answer, and why. If there are several, the
// error of GetMany has them all, by its method Unwrap() []error.
type KeysError[K comparable] struct {
	Cache string // its name
	Keys  []K    // in the order in which they were asked for
	Err   error  // the loader's own, or the context's
}

// Error names the first of the keys, and says how many more there are.
func (e *KeysError[K]) Error() string {
	return notLoaded(e.Cache, e.Keys[:min(len(e.Keys), mostNamed)], len(e.Keys), e.Err.Error())
}

// Unwrap returns Err.
func (e *KeysError[K]) Unwrap() error { return e.Err }

// GetMany returns the items of keys: from memory, and what is missing from LoadMany,
// in one call. An item whose load is under way already is waited for and not loaded
// once more, and a Get or GetMany that comes meanwhile waits for this one's. Without
// LoadMany it calls Load for each, up to 16 at a time.
//
// An item that does not exist is not in the map, which is no error. If others cannot
// be had, the map has the rest, and the error wraps one [KeysError] for each cause;
// ctx may be one. Errors have one cause if they are equal, or wrap equal errors in the
// same way; [errors.Is] finds each. A loader that panics makes GetMany panic as Get does.
// The map is never nil, and the caller's own.
func (c *Cache[K, V]) GetMany(ctx context.Context, keys ...K) (map[K]V, error) {
	m := getMany[K, V]{cache: c, got: make(map[K]V, len(keys))}
	var missing []K
	asked := map[K]struct{}{} // what is missing
	for _, key := range keys {
		if e, at := c.local.peek(key); e != nil {
			value, err := c.serveHit(ctx, e, at)
			m.add(e.Item.key, value, err)
		} else if _, again := asked[key]; !again {
			asked[key] = struct{}{}
			missing = append(missing, key)
		}
	}
	c.refreshGatheredNow() // what is due of the hits is loaded together, and need not wait for more
	if len(missing) > 0 {
		m.load(ctx, missing)
	}
	return m.got, m.failed.err(c.options.Name)
}

// many is a GetMany under way.
type getMany[K comparable, V any] struct {
	cache  *Cache[K, V]
	got    map[K]V
	failed keyFailures[K]
}

// add takes in what became of a key. The key is one of the cache's own: both the map and
// the error outlive the call.
func (m *getMany[K, V]) add(key K, value V, err error) {
	switch {
	case err == nil:
		m.got[key] = value
	case err == ErrNotFound || m.cache.keeper.isNotFound(err):
	default:
		m.failed.add(key, err)
	}
}

// load gets what is not in memory.
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
	held := make([]bool, len(keys))
	for i, key := range keys {
		keys[i], held[i] = c.keepable(key) // of all first: a MarshalText may panic, and whoever joins a load relies on it
	}
	found := make([]lookup[K, V], len(keys))
	for i, key := range keys {
		if held[i] {
			found[i] = c.loader.join(&from, key, how)
		} else {
			found[i] = lookup[K, V]{flight: c.loader.newUnsharedFlight(&from.origin, key, how), mustStart: true}
		}
	}
	again, waited := m.round(&from, keys, found, how, began)
	if len(again) == 0 {
		return
	}
	// What was waited for and may not be had is loaded together, too, and waited for once.
	how = m.startOptions(&from.origin)
	for i := range waited {
		c.loader.follow(&from, again[i], &waited[i], how)
	}
	m.round(&from, again, waited, how, began)
}

// launch says how the loads begin.
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

// round begins what was launched and takes in what becomes of all, which have been waited
// for since began. It returns the keys that have to be looked up once more, see follow.
func (m *getMany[K, V]) round(
	from *caller, keys []K, found []lookup[K, V], how startOptions, began time.Time,
) (again []K, waited []lookup[K, V]) {
	c := m.cache
	var launched []*flight[K, V]
	for i := range found {
		switch {
		case found[i].mustStart:
			launched = append(launched, found[i].flight)
		case found[i].jumpsQueue:
			c.loader.start(from, found[i].flight)
		}
	}
	switch {
	case len(launched) == 0:
	case how.batch != nil:
		go c.loader.runBatch(launched, how.batch)
	default:
		go c.loader.runQueue(launched)
	}
	awaited := 0
	defer func() { // if a loader has panicked, the others are no longer waited for
		for _, j := range found[awaited:] {
			if j.entry == nil {
				c.loader.leave(from, &j)
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

// apart returns a flight that nobody else joins, and whose result is not kept.
func (l *loader[K, V]) newUnsharedFlight(o *origin, key K, how startOptions) *flight[K, V] {
	hash := l.local.hash(key)
	return l.newFlight(l.local.shard(hash), o, hash, key, how)
}

// flyInTurn flies flights, some at a time, in their order.
func (l *loader[K, V]) runQueue(flights []*flight[K, V]) {
	atOnce := newSlots(loadsAtOnce)
	for _, f := range flights {
		atOnce <- struct{}{}
		placed := l.slots.needed(f.ctx.parent) && l.slots.acquire(&f.ctx)
		go func() {
			defer atOnce.release()
			if placed {
				l.runHoldingSlot(f)
			} else {
				l.run(f)
			}
		}()
	}
}

// bulk is one call of LoadMany, for several flights.
type batchLoad struct {
	ctx    loadContext  // the loader's
	wanted atomic.Int64 // flights that someone waits for
}

func newBatchLoad(o *origin, hasPlace bool) *batchLoad {
	return &batchLoad{ctx: loadContext{values: o.ctx, parent: o.load, hasSlot: hasSlot(o.load, hasPlace)}}
}

// leave is called when nobody waits for one of the flights any longer.
func (b *batchLoad) leave() {
	if b != nil && b.wanted.Add(-1) == 0 {
		b.ctx.end()
	}
}

// flyTogether has LoadMany load all flights of a bulk, when there is a place if it needs
// one.
func (l *loader[K, V]) runBatch(flights []*flight[K, V], b *batchLoad) {
	if l.slots.needed(b.ctx.parent) && l.slots.acquire(&b.ctx) {
		defer l.slots.release()
	}
	l.runBatchNow(flights, b)
}

// flyTogetherPlaced is flyTogether with a place, and gives it back.
func (l *loader[K, V]) runBatchHoldingSlot(flights []*flight[K, V], b *batchLoad) {
	defer l.slots.release()
	l.runBatchNow(flights, b)
}

func (l *loader[K, V]) runBatchNow(flights []*flight[K, V], b *batchLoad) {
	defer b.ctx.end()
	var wanted []*flight[K, V]
	for _, f := range flights {
		if !l.begin(f, b) {
			continue // somebody was in a hurry
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

// flySharedTogether is flyTogether from where the shared level is asked first. What is
// found lands at once, and what nobody else loads is loaded; the others are waited for.
func (l *loader[K, V]) runBatchShared(flights []*flight[K, V], b *batchLoad) {
	s := l.shared
	left := flights // that have not landed
	var lookups []*sharedLookup[K, V]
	defer func() {
		for _, f := range left { // the goroutine has ended in the middle
			l.finishGoexit(f, 1)
		}
		s.endClaims(lookups)
	}()
	lookups = s.lookups(flights)
	of := make(map[*flight[K, V]]*sharedLookup[K, V], len(lookups))
	for _, e := range lookups {
		of[e.flight] = e
	}
	began := time.Now()
	s.readAndClaim(&b.ctx, lookups)
	for {
		var wanted []*flight[K, V]
		sought := left
		left = nil
		for _, f := range sought {
			if e := of[f]; e != nil && e.claimedElsewhere {
				left = append(left, f)
			} else if !l.finishLookup(f, e) {
				wanted = append(wanted, f)
			}
		}
		l.callLoadMany(wanted, b)
		s.endClaims(lookups) // those that others load have no claim
		if len(left) == 0 {
			return
		}
		s.retry(&b.ctx, lookups, began)
	}
}

// runTogether calls LoadMany, whatever becomes of it.
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
	defer forEach(wanted, func(f *flight[K, V]) { l.finishPart(f, &r, len(wanted)) }) // also after runtime.Goexit
	r.load(b, l, keys, func() {
		forEach(wanted, func(f *flight[K, V]) { l.timeOut(f) })
	})
}

// landPart lands a flight with its part of the results, of which there are so many.
func (l *loader[K, V]) finishPart(f *flight[K, V], r *results[K, V], parts int) {
	given := false
	defer func() { // Expiry, for instance, can end the goroutine: the other flights are not concerned
		if !given {
			l.finishGoexit(f, parts)
		}
	}()
	l.local.noteCleared(f)
	r.give(f, l)
	given = true
	l.finish(f, parts)
}

// results is what LoadMany returned, or how it ended else.
type results[K comparable, V any] struct {
	values map[K]V
	err    error
	panic  *loaderPanic
}

func (r *results[K, V]) load(b *batchLoad, ld *loader[K, V], keys []K, giveUp func()) {
	defer func() {
		if p := recover(); p != nil {
			r.panic = &loaderPanic{value: p, stack: debug.Stack()}
		}
	}()
	ctx := context.Context(&b.ctx)
	if ld.timeout > 0 {
		limited, cancel := context.WithTimeoutCause(ctx, ld.timeout, ld.errTimeout)
		defer cancel()
		defer onTimeout(limited, giveUp)()
		ctx = limited
	}
	r.values, r.err = ld.loadMany(ctx, keys)
}

// give makes a flight's part of the results its own. A key that is not there is not
// found, if nothing else was wrong.
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

// loadOne makes a Load of a LoadMany.
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
