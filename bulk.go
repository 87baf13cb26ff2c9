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
	m := many[K, V]{cache: c, got: make(map[K]V, len(keys))}
	var missing []K
	asked := map[K]struct{}{} // what is missing
	for _, key := range keys {
		if e, at := c.local.peek(key); e != nil {
			value, err := c.hit(ctx, e, at)
			m.add(e.Item.key, value, err)
		} else if _, again := asked[key]; !again {
			asked[key] = struct{}{}
			missing = append(missing, key)
		}
	}
	c.gathered() // what is due of the hits is loaded together, and need not wait for more
	if len(missing) > 0 {
		m.load(ctx, missing)
	}
	return m.got, m.failed.err(c.options.Name)
}

// many is a GetMany under way.
type many[K comparable, V any] struct {
	cache  *Cache[K, V]
	got    map[K]V
	failed keyFailures[K]
}

// add takes in what became of a key. The key is one of the cache's own: both the map and
// the error outlive the call.
func (m *many[K, V]) add(key K, value V, err error) {
	switch {
	case err == nil:
		m.got[key] = value
	case err == ErrNotFound || m.cache.keeper.isNotFound(err):
	default:
		m.failed.add(key, err)
	}
}

// load gets what is not in memory.
func (m *many[K, V]) load(ctx context.Context, keys []K) {
	c := m.cache
	if err := ctx.Err(); err != nil {
		for _, key := range keys {
			key, _ = c.holds(key)
			m.failed.add(c.local.own(key), err)
		}
		return
	}
	began := time.Now()
	from := callerOf(ctx)
	how := m.launch(&from.origin)
	held := make([]bool, len(keys))
	for i, key := range keys {
		keys[i], held[i] = c.holds(key) // of all first: a MarshalText may panic, and whoever joins a load relies on it
	}
	found := make([]lookup[K, V], len(keys))
	for i, key := range keys {
		if held[i] {
			found[i] = c.loader.join(&from, key, how)
		} else {
			found[i] = lookup[K, V]{flight: c.loader.apart(&from.origin, key, how), launched: true}
		}
	}
	again, waited := m.round(&from, keys, found, how, began)
	if len(again) == 0 {
		return
	}
	// What was waited for and may not be had is loaded together, too, and waited for once.
	how = m.launch(&from.origin)
	for i := range waited {
		c.loader.follow(&from, again[i], &waited[i], how)
	}
	m.round(&from, again, waited, how, began)
}

// launch says how the loads begin.
func (m *many[K, V]) launch(o *origin) launch {
	c := m.cache
	how := c.launch(o)
	if c.options.LoadMany != nil {
		how.bulk = newBulk(o, c.loader.places != nil)
	} else {
		how.inTurn, how.queued = true, true
	}
	return how
}

// round begins what was launched and takes in what becomes of all, which have been waited
// for since began. It returns the keys that have to be looked up once more, see follow.
func (m *many[K, V]) round(
	from *caller, keys []K, found []lookup[K, V], how launch, began time.Time,
) (again []K, waited []lookup[K, V]) {
	c := m.cache
	var launched []*flight[K, V]
	for i := range found {
		switch {
		case found[i].launched:
			launched = append(launched, found[i].flight)
		case found[i].hurried:
			c.loader.fly(from, found[i].flight)
		}
	}
	switch {
	case len(launched) == 0:
	case how.bulk != nil:
		go c.loader.flyTogether(launched, how.bulk)
	default:
		go c.loader.flyInTurn(launched)
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
func (l *loader[K, V]) apart(o *origin, key K, how launch) *flight[K, V] {
	hash := l.local.hash(key)
	return l.newFlight(l.local.shard(hash), o, hash, key, how)
}

// flyInTurn flies flights, some at a time, in their order.
func (l *loader[K, V]) flyInTurn(flights []*flight[K, V]) {
	atOnce := newPlaces(loadsAtOnce)
	for _, f := range flights {
		atOnce <- struct{}{}
		placed := l.places.needed(f.ctx.parent) && l.places.take(&f.ctx)
		go func() {
			defer atOnce.give()
			if placed {
				l.flyPlaced(f)
			} else {
				l.flyNow(f)
			}
		}()
	}
}

// bulk is one call of LoadMany, for several flights.
type bulk struct {
	ctx    loadContext  // the loader's
	wanted atomic.Int64 // flights that someone waits for
}

func newBulk(o *origin, hasPlace bool) *bulk {
	return &bulk{ctx: loadContext{values: o.ctx, parent: o.load, placed: placed(o.load, hasPlace)}}
}

// leave is called when nobody waits for one of the flights any longer.
func (b *bulk) leave() {
	if b != nil && b.wanted.Add(-1) == 0 {
		b.ctx.end()
	}
}

// flyTogether has LoadMany load all flights of a bulk, when there is a place if it needs
// one.
func (l *loader[K, V]) flyTogether(flights []*flight[K, V], b *bulk) {
	if l.places.needed(b.ctx.parent) && l.places.take(&b.ctx) {
		defer l.places.give()
	}
	l.flyTogetherNow(flights, b)
}

// flyTogetherPlaced is flyTogether with a place, and gives it back.
func (l *loader[K, V]) flyTogetherPlaced(flights []*flight[K, V], b *bulk) {
	defer l.places.give()
	l.flyTogetherNow(flights, b)
}

func (l *loader[K, V]) flyTogetherNow(flights []*flight[K, V], b *bulk) {
	defer b.ctx.end()
	var wanted []*flight[K, V]
	for _, f := range flights {
		if !l.takeOff(f, b) {
			continue // somebody was in a hurry
		}
		if f.ctx.Err() != nil {
			l.landUnwanted(f)
			continue
		}
		wanted = append(wanted, f)
	}
	if l.shared != nil {
		l.flySharedTogether(wanted, b)
	} else {
		l.runTogether(wanted, b)
	}
}

// flySharedTogether is flyTogether from where the shared level is asked first. What is
// found lands at once, and what nobody else loads is loaded; the others are waited for.
func (l *loader[K, V]) flySharedTogether(flights []*flight[K, V], b *bulk) {
	s := l.shared
	left := flights // that have not landed
	var errands []*errand[K, V]
	defer func() {
		for _, f := range left { // the goroutine has ended in the middle
			l.landEnded(f, 1)
		}
		s.settle(errands)
	}()
	errands = s.errands(flights)
	of := make(map[*flight[K, V]]*errand[K, V], len(errands))
	for _, e := range errands {
		of[e.flight] = e
	}
	began := time.Now()
	s.seek(&b.ctx, errands)
	for {
		var wanted []*flight[K, V]
		sought := left
		left = nil
		for _, f := range sought {
			if e := of[f]; e != nil && e.busy {
				left = append(left, f)
			} else if !l.landSought(f, e) {
				wanted = append(wanted, f)
			}
		}
		l.runTogether(wanted, b)
		s.settle(errands) // those that others load have no claim
		if len(left) == 0 {
			return
		}
		s.again(&b.ctx, errands, began)
	}
}

// runTogether calls LoadMany, whatever becomes of it.
func (l *loader[K, V]) runTogether(wanted []*flight[K, V], b *bulk) {
	if len(wanted) == 0 {
		return
	}
	keys := make([]K, len(wanted))
	for i, f := range wanted {
		f.ran = true
		keys[i] = f.key
	}
	r := results[K, V]{err: errGoexit}
	defer forEach(wanted, func(f *flight[K, V]) { l.landPart(f, &r, len(wanted)) }) // also after runtime.Goexit
	r.load(b, l, keys, func() {
		forEach(wanted, func(f *flight[K, V]) { l.giveUp(f) })
	})
}

// landPart lands a flight with its part of the results, of which there are so many.
func (l *loader[K, V]) landPart(f *flight[K, V], r *results[K, V], parts int) {
	given := false
	defer func() { // Expiry, for instance, can end the goroutine: the other flights are not concerned
		if !given {
			l.landEnded(f, parts)
		}
	}()
	l.local.noteCleared(f)
	r.give(f, l)
	given = true
	l.land(f, parts)
}

// results is what LoadMany returned, or how it ended else.
type results[K comparable, V any] struct {
	values map[K]V
	err    error
	panic  *loaderPanic
}

func (r *results[K, V]) load(b *bulk, ld *loader[K, V], keys []K, giveUp func()) {
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
	defer f.catch()
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
