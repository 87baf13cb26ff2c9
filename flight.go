package nearcache

import (
	"context"
	"sync/atomic"
	"time"
)

// flight is a load under way, or one that waits for its turn. While it is
// registered in its shard, callers may join it and its result may be kept. An
// invalidation of its key takes it out: whoever waits for it still gets its result,
// and nobody else ever does.
//
// After a clear of a region no caller may have its result unconditionally, as it does
// not know its own regions yet. Callers that come then wait for it all the same, as
// conditional waiters, see waiter.go.
//
// A lost lease or a clear of the cache makes all flights unjoinable; the next Get of the
// key starts a newer one. The older stays registered behind it, because its result may
// be kept: if the lease comes back and nothing was missed, and if it ends before the
// newer one is kept.
//
// A flight that has not begun has read nothing. No invalidation concerns it, and
// anyone may join it; it is always the newest of its key.
type flight[K comparable, V any] struct {
	key        K
	hash       uint64
	ctx        loadContext
	refreshOf  *entry[K, V] // the entry that it is to refresh in time, or nil
	awaitsSlot bool         // it does not begin at once, see takeOff
	ran        bool         // the loader was called; the flying goroutine's

	// Guarded by the shard's mu.
	begun      bool
	running    bool // some goroutine runs the load, or has
	skipShared bool // it asks the source, and does not take a value from the shared level
	mayShare   bool // it may ask the shared level, or has
	queued     bool // it waits behind others of one GetMany

	abandoned bool // it was cancelled since nobody waits for it

	waiters  int32 // those that wait, and those it goes on for though they do not
	detached int32 // the latter: a hit that had it begun, callers who waited for SoftTimeout
	start    start

	older *flight[K, V]
	batch *batchLoad // the load of many keys that it is a part of, or nil; nil when it needs that no longer
	extra *extra[K, V]

	// state is a set of the bits below. Landed says that everything below was set, by the
	// flying goroutine. Then ctx ends, for which the callers wait. It also ends when all of
	// them have gone, and when it is overdue.
	state   atomic.Uint32
	value   V
	err     error // a *loaderPanic, if it has panicked
	outcome outcome[V]
}

// The states of a flight.
const (
	flightDone     = 1 << iota
	flightTimedOut // LoadTimeout has passed: callers wait no longer
	flightPanicked // the loader, or one of the cache's functions
	flightProven   // conditional waiters may have the result
	flightUnheard  // it was cancelled, since everybody who waited had gone
)

// extra is what a flight has that most have not: it is made when it is needed, as each
// word of a flight makes a miss slower.
type extra[K comparable, V any] struct {
	background *background // of a load that goes on for others than its waiters; nil: it does not

	conditional     int32         // of waiters: those that have its result only if it is proven
	overtaken       chan struct{} // closed when an invalidation takes it out; nil: no conditional waiter
	next            *flight[K, V] // the load that its conditional waiters share after it
	nextSkipsShared bool          // that is not to take a value from the shared level
}

// extraLocked returns f's extra, which it makes if there is none.
func (f *flight[K, V]) extraLocked() *extra[K, V] {
	if f.extra == nil {
		f.extra = &extra[K, V]{}
	}
	return f.extra
}

// unwantedLocked reports whether nobody waits for f but those that it goes on for and, if
// its result cannot be proven any more, its conditional waiters.
func (f *flight[K, V]) unwantedLocked() bool {
	n := f.detached
	if f.extra != nil {
		n += f.extra.conditional
	}
	return f.waiters == n
}

// loads reports whether a caller is f's loader, or what that has called.
func (f *flight[K, V]) isOwnLoader(o *origin) bool { return o.load.begunBy(&f.ctx) }

// lookup is what a caller that found no live entry goes on with.
type lookup[K comparable, V any] struct {
	entry  *entry[K, V]  // nil: wait for flight
	flight *flight[K, V] // its load
	fate   fate          // of what is held

	mustStart  bool // the caller has to see to it that flight is flown
	jumpsQueue bool // the same, though somebody else does already, in its turn
	fallback   bool // what is held may be served in place of an error

	conditional bool            // the caller is a conditional waiter of flight
	forRefresh  bool            // it is a Refresh, which never has flight's result then
	overtaken   <-chan struct{} // then: flight's
}

// key returns the cache's own copy of the key.
func (j *lookup[K, V]) key() K {
	if j.entry != nil {
		return j.entry.Item.key
	}
	return j.flight.key
}

// launch says how a new flight begins.
type startOptions struct {
	batch      *batchLoad // which it is a part of, or nil
	awaitsSlot bool       // it does not begin yet, see takeOff
	queued     bool       // see flight
}

// join returns the entry of key, if another caller has just put it there or if it is
// to be served though its load fails, or else the flight to wait for: the one that is
// registered, if this caller may have its result, or a new one.
func (l *loader[K, V]) join(from *caller, key K, how startOptions) (j lookup[K, V]) {
	hash := l.local.hash(key)
	sh := l.local.shard(hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()

	m := l.local.lease.read() // first
	if e := sh.table.Load().find(hash, key); e != nil {
		j.fate = l.local.fate(e, m)
		switch {
		case j.fate == alive:
			j.entry = e
			return j
		case j.fate.dead(): // else it may be served yet
			l.local.dropLocked(sh, hash, e)
			sh.counters.evictions[j.fate]++
		default:
			j.fallback = l.local.servesOnError(e, m)
		}
		if j.fallback && (m.at < sh.failedLoads[key].until || l.isSlowLocked(sh, key, m)) {
			j.entry = e
			return j
		}
	}
	sh.counters.misses[j.fate]++
	if f := sh.flights[key]; f != nil && f.outlivedLocked(m, j.fate) {
		l.outliveLocked(sh, f)
	}
	j.flight = sh.flights[key]
	switch {
	case !l.waitableLocked(j.flight, m) || j.flight.outlasts(from, m):
	case l.joinableLocked(j.flight, m):
		// A loader that asks for the key it is loading waits for its own context;
		// were it counted as a waiter, that context would never be cancelled.
		if !j.flight.isOwnLoader(&from.origin) {
			j.flight.waiters++
		}
		j.jumpsQueue = j.flight.jumpQueueLocked(&from.origin, l)
		return j
	case !j.flight.isOwnLoader(&from.origin):
		j.waitLocked()
		return j
	}
	j.flight, j.mustStart = l.registerLocked(sh, &from.origin, hash, key, how), true
	return j
}

// joinableLocked reports whether a caller that began at m may have f's result.
//
//  1. a load begins   2. the cache or a region is cleared, or the lease is lost
//     and a message is missed   3. a Get begins. It must not get what was read before
//     2, so it joins the load only if it might have the entry that results.
func (l *loader[K, V]) joinableLocked(f *flight[K, V], m moment) bool {
	return l.waitableLocked(f, m) && (!f.begun || l.local.nothingClearedSince(f.start))
}

// outlasts reports whether f has already lasted as long as a caller can wait, or
// longer. Such a caller does not join it:
//
//  1. a load hangs   2. a caller joins it, and leaves at its deadline   3. another has
//     joined before, and so on. None is served, and the load never ends, since there
//     always is somebody who waits for it.
//
// It begins another load, which later callers join. The older one is cancelled when its
// last waiter leaves. The loader of f itself waits as it always does.
func (f *flight[K, V]) outlasts(from *caller, m moment) bool {
	return f.begun && from.limited && m.at-f.start.at >= int64(time.Until(from.deadline)) && !f.isOwnLoader(&from.origin)
}

// hurryLocked reports whether a caller has f flown at once, or as soon
// as there is a place.
//
//  1. load A takes the last place   2. a load of B waits for one   3. A asks for B. It
//     would wait for ever for its own place.
//
// The same with the queue of a GetMany, where others need not wait either.
func (f *flight[K, V]) jumpQueueLocked(o *origin, ld *loader[K, V]) bool {
	hurry := !f.begun && (f.queued || !ld.slots.needed(o.load))
	f.queued = f.queued && !hurry
	return hurry
}

// isSlowLocked reports whether callers need not wait for the load of key, since one
// already has.
func (l *loader[K, V]) isSlowLocked(sh *shard[K, V], key K, m moment) bool {
	f := sh.flights[key]
	if !l.waitableLocked(f, m) || f.outlivedLocked(m, stale) {
		return false
	}
	return f.detached > 1 || f.detached == 1 && f.refreshOf == nil // a refresh goes on for the hit
}

// launchLocked registers a new flight with one caller, who has to see to it that it
// is flown.
func (l *loader[K, V]) registerLocked(
	sh *shard[K, V], o *origin, hash uint64, key K, how startOptions,
) *flight[K, V] {
	f := l.newFlight(sh, o, hash, key, how)
	f.older = sh.flights[key]
	sh.flights[f.key] = f
	return f
}

// newFlight returns a flight with one caller. Unless it is registered, nobody joins
// it and its result is not kept.
func (l *loader[K, V]) newFlight(
	sh *shard[K, V], o *origin, hash uint64, key K, how startOptions,
) *flight[K, V] {
	f := &flight[K, V]{key: l.local.own(key), hash: hash, ctx: loadContext{values: o.ctx, parent: o.load, hasSlot: hasSlot(o.load, l.slots != nil)},
		start: l.local.beginWork(sh), waiters: 1, awaitsSlot: how.awaitsSlot, begun: !how.awaitsSlot, queued: how.queued, batch: how.batch}
	f.mayShare = l.shared != nil && f.begun && l.local.startFromLease(&f.start)
	if how.batch != nil {
		f.ctx.batch = &how.batch.ctx
		how.batch.wanted.Add(1)
	}
	return f
}

// anew returns a flight that has not begun before the call, or one that has, to be
// waited for as a conditional waiter.
func (l *loader[K, V]) joinForRefresh(from *caller, key K, how startOptions) lookup[K, V] {
	hash := l.local.hash(key)
	sh := l.local.shard(hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	m := l.local.lease.read()
	f := sh.flights[key]
	j := lookup[K, V]{flight: f, forRefresh: true}
	switch {
	case f == nil || f.isOwnLoader(&from.origin):
	case !f.begun:
		f.waiters++
		f.skipShared = true
		j.jumpsQueue = f.jumpQueueLocked(&from.origin, l)
		return j
	case l.waitableLocked(f, m) && !f.outlasts(from, m):
		j.waitLocked()
		f.extra.nextSkipsShared = true
		return j
	}
	j.flight, j.mustStart = l.registerLocked(sh, &from.origin, hash, key, how), true
	j.flight.skipShared = true
	return j
}

// wait waits for the flight's result, and reports whether there is one: the caller's
// context or soft, which may be nil, may end first. It panics if the loader did.
func (l *loader[K, V]) wait(from *caller, f *flight[K, V], soft <-chan time.Time) (landed bool, err error) {
	if f.ctx.Err() == nil {
		select {
		case <-f.ctx.ending():
		case <-soft:
			return false, nil
		case <-from.done:
			l.leave(from, &lookup[K, V]{flight: f})
			return false, from.ctx.Err()
		}
	}
	switch state := f.state.Load(); {
	case state&flightDone == 0 && state&flightTimedOut != 0:
		return true, nil
	case state&flightDone == 0:
		// Everyone who was counted has gone; this is the loader, which asked for its own
		// key, or who has its context.
		return false, context.Canceled
	case state&flightPanicked != 0:
		panic(f.err)
	}
	return true, nil
}

// result returns what a flight ended with, and whether it failed.
func (f *flight[K, V]) result(ld *loader[K, V]) (value V, err error, failed bool) {
	if f.state.Load()&flightDone == 0 {
		return value, ld.errTimeout, true
	}
	return f.value, f.err, !f.outcome.known
}

// letGo is called when a caller no longer waits, but the load is to go on, until the last
// use of e is over, which the caller serves instead. It spares others the wait, who have
// something else to serve.
//
//  1. a caller has waited for SoftTimeout, and finds what to serve   2. the item is
//     removed, or the cache closed: the caller is still counted   3. it lets the load
//     go, which will not be kept.
func (l *loader[K, V]) leaveDetached(from *caller, j *lookup[K, V], e *entry[K, V]) {
	f := j.flight
	if f.isOwnLoader(&from.origin) {
		return // it was not counted
	}
	sh := l.local.shard(f.hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if j.conditional {
		f.extra.conditional--
	}
	if sh.isRegisteredLocked(f) {
		l.detachLocked(f, l.lastUse(e), nil)
		return
	}
	f.detached++
	if f.unwantedLocked() {
		f.abandonLocked()
	}
}

// overtakenLocked ends the loads of f, and of all that are older, whose result
// nobody waits for and will not be kept. Conditional waiters have no use for it any more,
// and go on.
func (f *flight[K, V]) overtakenLocked() {
	for ; f != nil; f = f.older {
		if x := f.extra; x != nil && x.overtaken != nil {
			close(x.overtaken)
			x.overtaken = nil
		}
		if f.unwantedLocked() {
			f.abandonLocked()
		}
	}
}

// abandonLocked cancels f, for which nobody waits any more.
func (f *flight[K, V]) abandonLocked() {
	f.abandoned = true
	f.ctx.end()
	f.leaveBatchLocked()
	f.attachLocked()
}

// leaveBulkLocked is called when nobody waits for f as a part of a load of many keys any
// more, or f has its result.
func (f *flight[K, V]) leaveBatchLocked() {
	f.batch.leave()
	f.batch = nil
}

// leave takes a caller off the flight. The last one out cancels the load, and
// a Get from here on starts a new one.
func (l *loader[K, V]) leave(from *caller, j *lookup[K, V]) {
	f := j.flight
	if f.isOwnLoader(&from.origin) {
		return // it was not counted
	}
	sh := l.local.shard(f.hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	f.waiters--
	if j.conditional {
		f.extra.conditional--
	}
	registered := sh.isRegisteredLocked(f)
	if f.waiters > f.detached || f.detached > 0 && registered && !l.local.closed.Load() {
		return
	}
	if registered {
		sh.unregisterLocked(f, f.older)
	}
	f.abandonLocked()
}

// registeredLocked reports whether f is one of its key's flights.
func (sh *shard[K, V]) isRegisteredLocked(f *flight[K, V]) bool {
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
			forget(&sh.flights, &sh.mostFlights, f.key)
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

// takeOff begins a flight whose turn has come, as a part of b or alone, and reports
// whether it has not taken off before. All that was invalidated before is no concern
// of its.
func (l *loader[K, V]) begin(f *flight[K, V], b *batchLoad) bool {
	if !f.awaitsSlot {
		return true // nobody else flies it
	}
	sh := l.local.shard(f.hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if f.running {
		return false
	}
	f.running = true
	f.start, f.begun = l.local.startNow(), true
	f.mayShare = l.shared != nil && l.local.startFromLease(&f.start)
	if f.batch != b {
		f.leaveBatchLocked() // whose turn has not come
	}
	return true
}

// leaveShared has a flight go on to the source, alone.
func (l *loader[K, V]) leaveShared(f *flight[K, V]) {
	sh := l.local.shard(f.hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	f.start.since = f.start.at
}

// giveUp ends the wait for f, whose time is over. What it may still bring is not
// kept.
func (l *loader[K, V]) timeOut(f *flight[K, V]) {
	var o outcome[V]
	defer func() { // also if WeighNotFound ends the goroutine
		sh := l.local.shard(f.hash)
		sh.mu.Lock()
		if sh.isRegisteredLocked(f) {
			l.commitLocked(f, sh, l.local.lease.read().at, &o, nil)
		}
		f.attachLocked()
		sh.mu.Unlock()
		f.state.Or(flightTimedOut)
		f.ctx.end()
	}()
	o = l.keeper.ofTimeout(f.key, l.errTimeout)
}

// land takes the flight out of its shard, keeps its outcome if nothing overtook it,
// counts it, and lets the callers go. So many flights share the time that the load
// took.
func (l *loader[K, V]) finish(f *flight[K, V], share int) {
	o := &f.outcome
	now := l.local.lease.read().at
	fresh := l.local.prepare(o, f.hash, f.key, &f.start)
	kept, pause, state := false, time.Duration(0), uint32(flightDone)

	sh := l.local.shard(f.hash)
	sh.mu.Lock()
	if sh.isRegisteredLocked(f) {
		if f.extra != nil && f.extra.conditional > 0 && l.provenLocked(f) {
			state |= flightProven
		}
		kept, pause = l.commitLocked(f, sh, now, o, fresh)
	}
	if f.ran {
		sh.counters.loaded(time.Duration(now-f.start.at)/time.Duration(share), !o.known, !kept && o.known && o.ttl > 0)
	}
	if f.abandoned {
		state |= flightUnheard
	}
	heard := f.waiters > f.detached
	f.attachLocked()
	f.leaveBatchLocked()
	sh.mu.Unlock()

	l.local.endWork(sh)
	f.state.Or(state)
	f.ctx.end()
	if f.ran && o.ttl > 0 && deadline(f.start.at, o.ttl) <= now {
		l.keeper.slow(o, time.Duration(now-f.start.at))
	}
	if !heard && (f.state.Load()&flightPanicked != 0 || f.err == errGoexit) {
		l.keeper.hints.unheard(f.err)
	}
	if f.refreshOf != nil {
		l.endRefresh(f, pause)
	}
}

// settleLocked takes f, which is registered, out of its key's flights, and does to
// what is held what o says. It returns whether o was kept, and how long the next load
// should wait, if this one failed and there is something to serve meanwhile.
func (l *loader[K, V]) commitLocked(
	f *flight[K, V], sh *shard[K, V], now int64, o *outcome[V], fresh *entry[K, V],
) (kept bool, pause time.Duration) {
	older := f.older
	held := sh.table.Load().find(f.hash, f.key)
	switch {
	case !o.known && held != nil && !l.local.fate(held, vouched(now)).dead() && held.Item.scope.err == nil:
		pause = sh.noteFailureLocked(f.key, now, l.random) // the item says more than the error
	case l.local.storeLocked(sh, f.hash, now, f.key, &f.start, o, fresh):
		kept = true
		sh.forgetFailureLocked(f.key)
		// 1. load A begins   2. a region is cleared that turns out to be none of its
		// own, or the lease is lost   3. load B of the same key begins, since A may not be
		// joined   4. B is kept   5. A ends, and may be older.
		older.overtakenLocked()
		older = nil
	case o.known && o.ttl <= 0 && held != nil && held.Item.started.Load() <= f.start.since:
		// Nothing is to be kept of what the source says now: less so of what it said before.
		l.local.dropLocked(sh, f.hash, held)
	}
	sh.unregisterLocked(f, older)
	return kept, pause
}
