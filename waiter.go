package nearcache

import "time"

// A conditional waiter is a caller that finds a load under way from before a region was
// cleared. The load's own regions are not known yet, so the caller may not simply have its
// result. It waits for the load all the same. So callers share loads even if other regions
// are cleared all the time.
//
//  1. a load begins   2. a region is cleared   3. a Get begins, and waits for the load
//  4. the load ends. If none of its own regions was cleared since 1, its result might as
//     well have been loaded after 2. The result is proven, and the Get returns it.
//
// If it is not proven, all conditional waiters of the load share the next one. That load
// began after each of them began to wait. So they may have its result, whatever was cleared
// in between, and no caller waits for more than two loads. A call of Refresh is a
// conditional waiter for which no result is ever proven.
//
// An invalidation that overtakes the load does not end it, for callers that may have its
// result. But it wakes the conditional waiters, which continue at once.

// waitableLocked reports whether a caller that began at m may wait for f, if only as a
// conditional waiter: since f began, nothing but regions was cleared.
func (l *loader[K, V]) waitableLocked(f *flight[K, V], m moment) bool {
	switch {
	case f == nil:
		return false
	case !f.begun:
		return true
	}
	return f.start.generation == l.local.current.Load() && l.local.lease.covers(m, f.start.since, l.local.staleness)
}

// waitConditionallyLocked makes lk's caller a conditional waiter of its flight.
func (lk *lookup[K, V]) waitConditionallyLocked() {
	f := lk.flight
	x := f.extraLocked()
	f.waiters++
	x.conditional++
	if x.overtaken == nil {
		x.overtaken = make(chan struct{})
	}
	lk.conditional, lk.overtaken = true, x.overtaken
}

// waitFor is wait, for a lookup. A conditional waiter's wait also ends when its flight is
// overtaken, cancelled, or panics. That is no error.
func (l *loader[K, V]) waitFor(from *caller, lk *lookup[K, V], soft <-chan time.Time) (ended bool, err error) {
	if !lk.conditional {
		return l.wait(from, lk.flight, soft)
	}
	select {
	case <-lk.flight.ctx.ending():
	case <-lk.overtaken:
	case <-soft:
		return false, nil
	case <-from.done:
		l.leave(from, lk)
		return false, from.ctx.Err()
	}
	return true, nil
}

// proven reports whether a conditional waiter may have its flight's result.
func (lk *lookup[K, V]) proven() bool {
	return !lk.forRefresh && lk.flight.state.Load()&flightProven != 0
}

// provenLocked reports whether nothing has overtaken the result of f since f began. Whether
// the result is kept does not matter. f is registered, and is about to end. The critical
// section that decides it also unregisters f. Otherwise:
//
//  1. the result counts as proven   2. a region of f is cleared   3. a Get begins, and waits
//     for f. It would get what was read before 2.
func (l *loader[K, V]) provenLocked(f *flight[K, V]) bool {
	o := &f.outcome
	return o.known && f.start.generation == l.local.current.Load() &&
		(f.start.clears == l.local.clears.count.Load() || o.hasRegions && !l.local.clears.overtook(f.start.clears, o.regions))
}

// askForRegions is called before the outcome of f is decided. If regions were cleared since
// f began, f's own regions have to be known, even if the result is not to be kept.
func (l *local[K, V]) askForRegions(f *flight[K, V]) {
	f.outcome.needsRegions = l.regional && f.start.clears != l.clears.count.Load()
}

// follow is called for a conditional waiter that has left its flight, and looks up what the
// caller gets instead: an entry that is in memory now, or the load that all such waiters
// share.
func (l *loader[K, V]) follow(from *caller, key K, lk *lookup[K, V], how startOptions) {
	f := lk.flight
	sh := l.local.shard(f.hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	lk.conditional = false
	m := l.local.lease.read() // first
	if e := sh.table.Load().find(f.hash, key); e != nil && !lk.forRefresh && l.local.fate(e, m) == alive {
		lk.entry, lk.fate = e, alive
		return
	}
	next := f.extra.next
	if !lk.mayFollowLocked(next, l) {
		// A load that was registered after f began also began after all waiters of f began
		// to wait. But the registered load may be one that is older than f.
		if next = sh.flights[key]; f.hasOlderLocked(next) || !lk.mayFollowLocked(next, l) {
			next = l.registerLocked(sh, &from.origin, f.hash, key, how)
			next.skipShared = f.extra.nextSkipsShared
			next.waiters, lk.mustStart = 0, true
		}
		f.extra.next = next
	}
	next.waiters++
	if lk.forRefresh && !next.begun {
		next.skipShared = true
	}
	if !lk.mustStart {
		lk.jumpsQueue = next.jumpQueueLocked(&from.origin, l)
	}
	lk.flight = next
}

// hasOlderLocked reports whether o was registered before f, and still was when f began.
func (f *flight[K, V]) hasOlderLocked(o *flight[K, V]) bool {
	at := f.older
	for at != nil && at != o {
		at = at.older
	}
	return at != nil
}

// mayFollowLocked reports whether lk's caller may have the result of next, which began
// after the caller did. next may be nil, or done.
func (lk *lookup[K, V]) mayFollowLocked(next *flight[K, V], ld *loader[K, V]) bool {
	return next != nil && !next.abandoned && (!lk.forRefresh || next.skipShared || !next.begun || ld.shared == nil)
}
