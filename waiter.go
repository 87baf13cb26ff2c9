package nearcache

import "time"

// A conditional waiter is a caller that finds a load under way whose result it may not
// have as it is, since a region was cleared after the load began, and the load's regions
// are not known yet. It waits for the load all the same: single flight holds though
// regions of others are cleared all the time.
//
//  1. a load begins   2. a region is cleared   3. a Get begins, and waits for the load
//  4. the load ends. If none of its own regions was cleared since 1 its result might as
//     well have been loaded after 2: it is proven, and the Get has it.
//
// Otherwise the Get shares the next load with all who have waited for this one. That
// began after each of them began to wait, so they may have its result whatever was
// cleared in between, and nobody waits for more than one load and one more. A call of
// Refresh is a conditional waiter for which no result is ever proven.
//
// An invalidation that takes the load out, which does not end it for those who may have
// its result, wakes its conditional waiters: they go on at once.

// waitableLocked reports whether a caller that began at m may join f, or wait for it as a
// conditional waiter: whether nothing but regions was cleared since f began.
func (l *loader[K, V]) waitableLocked(f *flight[K, V], m moment) bool {
	switch {
	case f == nil:
		return false
	case !f.begun:
		return true
	}
	return f.start.generation == l.local.current.Load() && l.local.lease.covers(m, f.start.since, l.local.staleness)
}

// waitLocked makes j's caller a conditional waiter of its flight.
func (j *lookup[K, V]) waitLocked() {
	f := j.flight
	x := f.extraLocked()
	f.waiters++
	x.conditional++
	if x.overtaken == nil {
		x.overtaken = make(chan struct{})
	}
	j.conditional, j.overtaken = true, x.overtaken
}

// waitFor is wait, for a lookup. A conditional waiter's wait also ends, without an error,
// when its flight is overtaken, was cancelled, or has panicked.
func (l *loader[K, V]) waitFor(from *caller, j *lookup[K, V], soft <-chan time.Time) (ended bool, err error) {
	if !j.conditional {
		return l.wait(from, j.flight, soft)
	}
	select {
	case <-j.flight.ctx.ending():
	case <-j.overtaken:
	case <-soft:
		return false, nil
	case <-from.done:
		l.leave(from, j)
		return false, from.ctx.Err()
	}
	return true, nil
}

// proven reports whether a conditional waiter may have its flight's result.
func (j *lookup[K, V]) proven() bool {
	return !j.forRefresh && j.flight.state.Load()&flightProven != 0
}

// provenLocked reports whether the result of f, which is registered and ends, was
// overtaken by nothing since f began, whether it is kept or not. It is decided in the
// critical section that takes f out:
//
//  1. it is decided   2. a region of f is cleared   3. a Get begins, and waits for f.
func (l *loader[K, V]) provenLocked(f *flight[K, V]) bool {
	o := &f.outcome
	return o.known && f.start.generation == l.local.current.Load() &&
		(f.start.clears == l.local.clears.count.Load() || o.hasRegions && !l.local.clears.overtook(f.start.clears, o.regions))
}

// noteCleared is called before the loader's outcome is decided: if regions were cleared
// since f began its own are to be known, even if it is not to be kept.
func (l *local[K, V]) noteCleared(f *flight[K, V]) {
	f.outcome.needsRegions = l.regional && f.start.clears != l.clears.count.Load()
}

// follow looks up what j's caller gets that was a conditional waiter and has left its
// flight: what is in memory now, or the load that all such waiters share.
func (l *loader[K, V]) follow(from *caller, key K, j *lookup[K, V], how startOptions) {
	f := j.flight
	sh := l.local.shard(f.hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	j.conditional = false
	m := l.local.lease.read() // first
	if e := sh.table.Load().find(f.hash, key); e != nil && !j.forRefresh && l.local.fate(e, m) == alive {
		j.entry, j.fate = e, alive
		return
	}
	next := f.extra.next
	if !j.mayShareLocked(next, l) {
		// A load that was registered after f began after all who wait for f began to wait.
		// What is older than f may be registered still.
		if next = sh.flights[key]; f.hasOlderLocked(next) || !j.mayShareLocked(next, l) {
			next = l.registerLocked(sh, &from.origin, f.hash, key, how)
			next.skipShared = f.extra.nextSkipsShared
			next.waiters, j.mustStart = 0, true
		}
		f.extra.next = next
	}
	next.waiters++
	if j.forRefresh && !next.begun {
		next.skipShared = true
	}
	if !j.mustStart {
		j.jumpsQueue = next.jumpQueueLocked(&from.origin, l)
	}
	j.flight = next
}

// hasOlderLocked reports whether o was registered before f, and was when f began.
func (f *flight[K, V]) hasOlderLocked(o *flight[K, V]) bool {
	at := f.older
	for at != nil && at != o {
		at = at.older
	}
	return at != nil
}

// mayShareLocked reports whether next, which may be nil or have landed, began after
// j's caller and may answer it.
func (j *lookup[K, V]) mayShareLocked(next *flight[K, V], ld *loader[K, V]) bool {
	return next != nil && !next.abandoned && (!j.forRefresh || next.skipShared || !next.begun || ld.shared == nil)
}
