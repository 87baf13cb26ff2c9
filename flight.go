package nearcache

import (
	"context"
	"sync/atomic"
	"time"
)

// flight is a load that is under way, or that waits to begin. It is registered in the
// shard of its key. While it is registered, callers may join it and its result may be
// kept. An invalidation of the key unregisters it. Callers that wait for it still get its
// result, and no later caller does.
//
// A flight does not know its item's regions until its loader has returned. So after a
// clear of any region, no new caller may simply have the result of a flight that began
// before the clear. Such callers wait for it as conditional waiters, see waiter.go.
//
// After a lost lease or a clear of the cache, no caller may join a flight that began
// before. The next Get of the key begins a newer flight. The older one stays registered
// behind it. Its result may still be kept if the lease comes back with no message missed,
// and if the older flight ends before the newer one's result is kept.
//
// A flight that has not begun has read nothing, so no invalidation concerns it. Any
// caller may join it. It is always the newest of its key.
type flight[K comparable, V any] struct {
	key        K
	hash       uint64
	ctx        loadContext
	refreshOf  *entry[K, V] // the entry that it refreshes ahead of expiry, or nil
	awaitsSlot bool         // it begins only when it has a slot, or its turn in a queue: see begin
	ran        bool         // the loader was called; only the goroutine of the load uses this

	// Guarded by the shard's mu.
	begun      bool
	running    bool // a goroutine has taken the load on; only if awaitsSlot
	skipShared bool // it asks the source, and takes no value from the shared level
	mayShare   bool // it may ask the shared level, or has asked it
	queued     bool // it waits behind other loads of one GetMany

	abandoned bool // it was cancelled, since nothing waits for it

	waiters  int32 // callers that wait, plus detached
	detached int32 // callers that no longer wait, and for which the load continues: see leaveDetached
	start    start

	older *flight[K, V]
	batch *batchLoad // the batch load that it is a part of; nil: none, or it has left it
	extra *extra[K, V]

	// state is a set of the bits below. The goroutine of the load sets value, err and
	// outcome, then flightDone, and then ends ctx. Callers wait for the end of ctx. ctx
	// also ends when the last waiter leaves, and when LoadTimeout has passed.
	state   atomic.Uint32
	value   V
	err     error // a *loaderPanic if the loader panicked
	outcome outcome[V]
}

// The bits of a flight's state.
const (
	flightDone      = 1 << iota
	flightTimedOut  // LoadTimeout has passed: callers no longer wait
	flightPanicked  // the loader panicked, or one of the cache's functions did
	flightProven    // conditional waiters may have the result
	flightAbandoned // it was cancelled, since its last waiter had left
)

// extra has the fields that most flights do not need. It is allocated on first use,
// because each word of a flight makes a miss slower.
type extra[K comparable, V any] struct {
	background *background // nil: the load does not continue in the background

	conditional     int32         // conditional waiters, which waiters counts too
	overtaken       chan struct{} // closed when an invalidation overtakes the flight; nil: no conditional waiter yet
	next            *flight[K, V] // the load that the conditional waiters share if this one is not proven
	nextSkipsShared bool          // next must not take a value from the shared level
}

// lookup is what a caller gets when its first look into memory was a miss: an entry to
// serve, or a flight to wait for.
type lookup[K comparable, V any] struct {
	entry  *entry[K, V]  // to be served; nil: the caller waits for flight
	flight *flight[K, V] // the load of the key
	fate   fate          // of the entry in memory

	mustStart  bool // the caller has to start flight
	jumpsQueue bool // the caller has to start flight at once, although flight is in a queue
	fallback   bool // the entry in memory may be returned instead of an error

	conditional bool            // the caller is a conditional waiter of flight
	forRefresh  bool            // the call is a Refresh: as a conditional waiter it never gets flight's result
	overtaken   <-chan struct{} // flight's, if conditional
}

// key returns the cache's own copy of the key.
func (lk *lookup[K, V]) key() K {
	if lk.entry != nil {
		return lk.entry.Item.key
	}
	return lk.flight.key
}

// startOptions say how a new flight begins.
type startOptions struct {
	batch      *batchLoad // the batch load that it is a part of, or nil
	awaitsSlot bool       // see flight
	queued     bool       // see flight
}

// join finds an entry to serve, or a flight to wait for.
//
// The entry is one that has come into memory meanwhile, or one that may be served
// although its load fails or is slow. The flight is the registered one if this caller
// may wait for it. Otherwise it is a new one.
func (l *loader[K, V]) join(from *caller, key K, how startOptions) (lk lookup[K, V]) {
	hash := l.local.hash(key)
	sh := l.local.shard(hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()

	m := l.local.lease.read() // first
	if e := sh.table.Load().find(hash, key); e != nil {
		lk.fate = l.local.fate(e, m)
		switch {
		case lk.fate == alive:
			lk.entry = e
			return lk
		case lk.fate.dead():
			l.local.dropLocked(sh, hash, e)
			sh.counters.evictions[lk.fate]++
		default:
			lk.fallback = l.local.servesOnError(e, m)
		}
		if lk.fallback && (m.at < sh.failedLoads[key].until || l.isSlowLocked(sh, key, m)) {
			lk.entry = e
			return lk
		}
	}
	sh.counters.misses[lk.fate]++
	if f := sh.flights[key]; f != nil && f.backgroundOverLocked(m, lk.fate) {
		l.endBackgroundLocked(sh, f)
	}
	lk.flight = sh.flights[key]
	switch {
	case !l.waitableLocked(lk.flight, m) || lk.flight.outlasts(from, m):
	case l.joinableLocked(lk.flight, m):
		// A loader that asks for the key that it is loading waits for its own context. If
		// it counted as a waiter, that context would never be cancelled.
		if !lk.flight.isOwnLoader(&from.origin) {
			lk.flight.waiters++
		}
		lk.jumpsQueue = lk.flight.jumpQueueLocked(&from.origin, l)
		return lk
	case !lk.flight.isOwnLoader(&from.origin):
		lk.waitConditionallyLocked()
		return lk
	}
	lk.flight, lk.mustStart = l.registerLocked(sh, &from.origin, hash, key, how), true
	return lk
}

// joinableLocked reports whether a caller that began at m may have f's result.
//
//  1. a load begins   2. the cache or a region is cleared, or the lease is lost and a
//     message is missed   3. a Get begins. It must not return what was read before 2. So it
//     joins the load only if it could be served an entry that was loaded since 1.
func (l *loader[K, V]) joinableLocked(f *flight[K, V], m moment) bool {
	return l.waitableLocked(f, m) && (!f.begun || l.local.nothingClearedSince(f.start))
}

// outlasts reports whether f has already lasted for at least the time that the caller has
// left. Then the caller does not join f. Otherwise:
//
//  1. a load hangs   2. a caller joins it, and leaves at its deadline   3. another caller
//     has joined before that, and so on. No caller is ever served. The load never ends,
//     since it always has a waiter.
//
// So the caller begins another load, which later callers join. The older load is
// cancelled when its last waiter leaves. f's own loader is exempt from this rule.
func (f *flight[K, V]) outlasts(from *caller, m moment) bool {
	return f.begun && from.limited && m.at-f.start.at >= int64(time.Until(from.deadline)) && !f.isOwnLoader(&from.origin)
}

// isOwnLoader reports whether a call comes from f's loader, or from a load that f's loader
// has begun, however indirectly.
func (f *flight[K, V]) isOwnLoader(o *origin) bool { return o.load.begunBy(&f.ctx) }

// jumpQueueLocked reports whether a caller has to start f now, without the slot or the
// turn that f waits for.
//
//  1. load A takes the last slot   2. a load of B waits for a slot   3. A's loader asks
//     for B. It would wait for ever, since the slot that B needs is A's own.
//
// Likewise, a load that is queued behind other loads of a GetMany is started by the first
// other caller that needs it.
func (f *flight[K, V]) jumpQueueLocked(o *origin, ld *loader[K, V]) bool {
	jumps := !f.begun && (f.queued || !ld.slots.needed(o.load))
	f.queued = f.queued && !jumps
	return jumps
}

// isSlowLocked reports whether the load of key is known to be slow. It is if a caller has
// already waited for it for SoftTimeout. Other callers then need not wait.
func (l *loader[K, V]) isSlowLocked(sh *shard[K, V], key K, m moment) bool {
	f := sh.flights[key]
	if !l.waitableLocked(f, m) || f.backgroundOverLocked(m, stale) {
		return false
	}
	return f.detached > 1 || f.detached == 1 && f.refreshOf == nil // in a refresh, the hit that began it is one of detached
}

// registerLocked registers a new flight with one caller. That caller has to start it.
func (l *loader[K, V]) registerLocked(
	sh *shard[K, V], o *origin, hash uint64, key K, how startOptions,
) *flight[K, V] {
	f := l.newFlight(sh, o, hash, key, how)
	f.older = sh.flights[key]
	sh.flights[f.key] = f
	return f
}

// newFlight returns a flight with one caller, which is not registered yet. No caller
// joins a flight that is not registered, and its result is not kept.
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

// joinForRefresh finds a flight for a Refresh. If the registered flight has not begun,
// the caller joins it. If it has begun, the caller becomes a conditional waiter of it,
// where it may wait at all. In all other cases the flight is a new one.
func (l *loader[K, V]) joinForRefresh(from *caller, key K, how startOptions) lookup[K, V] {
	hash := l.local.hash(key)
	sh := l.local.shard(hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	m := l.local.lease.read()
	f := sh.flights[key]
	lk := lookup[K, V]{flight: f, forRefresh: true}
	switch {
	case f == nil || f.isOwnLoader(&from.origin):
	case !f.begun:
		f.waiters++
		f.skipShared = true
		lk.jumpsQueue = f.jumpQueueLocked(&from.origin, l)
		return lk
	case l.waitableLocked(f, m) && !f.outlasts(from, m):
		lk.waitConditionallyLocked()
		f.extra.nextSkipsShared = true
		return lk
	}
	lk.flight, lk.mustStart = l.registerLocked(sh, &from.origin, hash, key, how), true
	lk.flight.skipShared = true
	return lk
}

// begin begins f: as a part of the batch load b, or alone if b is nil. It reports false
// if another goroutine has begun f. A flight that has waited for a slot notes its start
// here. So nothing that was invalidated while it waited concerns it.
func (l *loader[K, V]) begin(f *flight[K, V], b *batchLoad) bool {
	if !f.awaitsSlot {
		return true // its start was noted when it was made, and no other goroutine begins it
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
		f.leaveBatchLocked() // f begins before its batch does
	}
	return true
}

// wait waits until f is over, the caller's context ends, or soft fires. soft may be
// nil. A flight is over if it is done or has timed out. wait reports whether f is over.
// If the loader has panicked, wait panics.
func (l *loader[K, V]) wait(from *caller, f *flight[K, V], soft <-chan time.Time) (over bool, err error) {
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
		// All counted waiters have left. This caller was not counted: it is the loader,
		// which asked for its own key, or another call with the loader's context.
		return false, context.Canceled
	case state&flightPanicked != 0:
		panic(f.err)
	}
	return true, nil
}

// result returns the result of a flight that is over, and reports whether the load failed.
func (f *flight[K, V]) result(ld *loader[K, V]) (value V, err error, failed bool) {
	if f.state.Load()&flightDone == 0 {
		return value, ld.errTimeout, true
	}
	return f.value, f.err, !f.outcome.known
}

// leave takes a caller off its flight. The last caller to leave cancels the load, unless
// the load continues in the background. After a cancelled load, the next Get begins a new
// one.
func (l *loader[K, V]) leave(from *caller, lk *lookup[K, V]) {
	f := lk.flight
	if f.isOwnLoader(&from.origin) {
		return // it was not counted
	}
	sh := l.local.shard(f.hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	f.waiters--
	if lk.conditional {
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

// leaveDetached ends a caller's wait for a slow load. The caller serves e instead. The
// load continues in the background until e may no longer be served. Later callers with
// an entry to serve do not wait for it at all, see isSlowLocked.
//
//  1. a caller has waited for SoftTimeout, and finds an entry to serve   2. the item is
//     removed, or the cache closed. The caller still counts as a waiter   3. the caller
//     leaves. The result will not be kept, so the load ends unless others wait for it.
func (l *loader[K, V]) leaveDetached(from *caller, lk *lookup[K, V], e *entry[K, V]) {
	f := lk.flight
	if f.isOwnLoader(&from.origin) {
		return // it was not counted
	}
	sh := l.local.shard(f.hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if lk.conditional {
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

// leaveShared is called when f has found nothing at the shared level and goes on to the
// source. The age of its result counts from its own start again.
func (l *loader[K, V]) leaveShared(f *flight[K, V]) {
	sh := l.local.shard(f.hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	f.start.since = f.start.at
}

// timeOut is called when LoadTimeout has passed. It ends the wait of f's callers. If f's
// loader returns later, its result is not kept.
func (l *loader[K, V]) timeOut(f *flight[K, V]) {
	var o outcome[V]
	defer func() { // also if WeighNotFound ends the goroutine
		sh := l.local.shard(f.hash)
		sh.mu.Lock()
		if sh.isRegisteredLocked(f) {
			l.commitLocked(f, sh, l.local.lease.read().at, &o, nil)
		}
		f.leaveBackgroundLocked()
		sh.mu.Unlock()
		f.state.Or(flightTimedOut)
		f.ctx.end()
	}()
	o = l.keeper.ofTimeout(f.key, l.errTimeout)
}

// finish ends f. It unregisters f, and keeps the result unless something overtook f. It
// counts the load, and wakes the callers. parts is how many flights were loaded by one
// call, and share the time that it took.
func (l *loader[K, V]) finish(f *flight[K, V], parts int) {
	o := &f.outcome
	now := l.local.lease.read().at
	prepared := l.local.prepare(o, f.hash, f.key, &f.start)
	kept, pause, state := false, time.Duration(0), uint32(flightDone)

	sh := l.local.shard(f.hash)
	sh.mu.Lock()
	if sh.isRegisteredLocked(f) {
		if f.extra != nil && f.extra.conditional > 0 && l.provenLocked(f) {
			state |= flightProven
		}
		kept, pause = l.commitLocked(f, sh, now, o, prepared)
	}
	if f.ran {
		sh.counters.loaded(time.Duration(now-f.start.at)/time.Duration(parts), !o.known, !kept && o.known && o.ttl > 0)
	}
	if f.abandoned {
		state |= flightAbandoned
	}
	hadWaiters := f.waiters > f.detached
	f.leaveBackgroundLocked()
	f.leaveBatchLocked()
	sh.mu.Unlock()

	l.local.endWork(sh)
	f.state.Or(state)
	f.ctx.end()
	if f.ran && o.ttl > 0 && deadline(f.start.at, o.ttl) <= now {
		l.keeper.slow(o, time.Duration(now-f.start.at))
	}
	if !hadWaiters && (f.state.Load()&flightPanicked != 0 || f.err == errGoexit) {
		l.keeper.hints.unheard(f.err)
	}
	if f.refreshOf != nil {
		l.endRefresh(f, pause)
	}
}

// commitLocked applies the outcome o of f to memory, and unregisters f. f has to be
// registered. commitLocked reports whether o was kept. If the load failed and memory
// has an item that is not dead, pause is how long the next load should wait.
func (l *loader[K, V]) commitLocked(
	f *flight[K, V], sh *shard[K, V], now int64, o *outcome[V], prepared *entry[K, V],
) (kept bool, pause time.Duration) {
	older := f.older
	held := sh.table.Load().find(f.hash, f.key)
	switch {
	case !o.known && held != nil && !l.local.fate(held, vouched(now)).dead() && held.Item.scope.err == nil:
		pause = sh.noteFailureLocked(f.key, now, l.random) // the entry is worth more than the error
	case l.local.storeLocked(sh, &pendingStore[K, V]{hash: f.hash, key: f.key, prepared: prepared, now: now}, &f.start, o):
		kept = true
		sh.forgetFailureLocked(f.key)
		// 1. load A begins   2. the lease is lost, or a region is cleared to which A's item
		// turns out not to belong   3. load B of the same key begins, since A may not be
		// joined   4. B is kept   5. A ends. Its result may be older than B's, so A is no
		// longer registered by then.
		older.overtakenLocked()
		older = nil
	case o.known && o.ttl <= 0 && held != nil && held.Item.started.Load() <= f.start.since:
		// Nothing is to be kept of the source's newest answer. So its older answer goes too.
		l.local.dropLocked(sh, f.hash, held)
	}
	sh.unregisterLocked(f, older)
	return kept, pause
}

// isRegisteredLocked reports whether f is among the flights of its key.
func (sh *shard[K, V]) isRegisteredLocked(f *flight[K, V]) bool {
	at := sh.flights[f.key]
	for at != nil && at != f {
		at = at.older
	}
	return at == f
}

// unregisterLocked takes f, which is registered, out of the flights of its key. older
// takes the place of f. If older is nil, all flights that are older than f are taken
// out too.
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

// overtakenLocked is called for f and all older flights of its key when their results can
// no longer be kept or proven. It wakes their conditional waiters, and cancels the flights
// that have no other waiters.
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

// unwantedLocked reports whether no caller waits for the result of f. It is called when
// that result can no longer be kept or proven. So detached callers and conditional
// waiters do not count.
func (f *flight[K, V]) unwantedLocked() bool {
	n := f.detached
	if f.extra != nil {
		n += f.extra.conditional
	}
	return f.waiters == n
}

// abandonLocked cancels f, since nothing waits for it.
func (f *flight[K, V]) abandonLocked() {
	f.abandoned = true
	f.ctx.end()
	f.leaveBatchLocked()
	f.leaveBackgroundLocked()
}

// leaveBatchLocked takes f out of its batch load. It is called when f is done, or when
// nothing waits for f as a part of that load.
func (f *flight[K, V]) leaveBatchLocked() {
	f.batch.leave()
	f.batch = nil
}

// extraLocked returns f's extra. It makes one if there is none.
func (f *flight[K, V]) extraLocked() *extra[K, V] {
	if f.extra == nil {
		f.extra = &extra[K, V]{}
	}
	return f.extra
}
