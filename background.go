package nearcache

import (
	"sync/atomic"
	"time"
)

// longestRefresh is how long a refresh of an item that never expires may take, unless
// RefreshAfter is longer. Without a limit, a refresh that hangs would keep its slot for
// ever.
const longestRefresh = 5 * time.Minute

// background is the state of a load that continues although no caller waits for it: a
// refresh that a hit began, or a load whose callers have waited for SoftTimeout.
//
// Such a load ends with its item at the latest. Otherwise:
//
//  1. a refresh hangs   2. its item expires   3. callers join the refresh, and leave at
//     their deadlines. The refresh continues, and no caller is ever served.
//
// If callers wait for the load when its item ends, it becomes an ordinary load, which ends
// when its last waiter leaves. Otherwise it is cancelled, and its refresh slot becomes free
// even if the loader ignores its context. A Get that comes before the timer has fired finds
// that the load's time is over, and begins another.
type background struct {
	until int64        // on the lease's clock; never: the item does not expire
	timer *time.Timer  // fires at until; nil: never
	slot  *refreshSlot // nil: the load is no refresh
}

// refreshSlot is one of the slots that bound refreshes, see refreshesAtOnce.
type refreshSlot struct {
	taken *atomic.Int64 // slots that are taken, of all
	users atomic.Int64  // refreshes in this slot: several, if they are one batch load
}

// newRefreshSlot takes a slot for that many refreshes. It returns nil if none is free.
func newRefreshSlot(taken *atomic.Int64, users int) *refreshSlot {
	if taken.Add(1) > refreshesAtOnce {
		taken.Add(-1)
		return nil
	}
	s := &refreshSlot{taken: taken}
	s.users.Store(int64(users))
	return s
}

// leave is called when one of the slot's refreshes no longer needs it.
func (s *refreshSlot) leave() {
	if s != nil && s.users.Add(-1) == 0 {
		s.taken.Add(-1)
	}
}

// detachLocked has f continue in the background, at most until the given time. If f is in
// the background already, the later time counts.
func (l *loader[K, V]) detachLocked(f *flight[K, V], until int64, slot *refreshSlot) {
	f.detached++
	x := f.extraLocked()
	if b := x.background; b != nil {
		b.until = max(b.until, until) // the timer looks at it when it fires
		return
	}
	b := &background{until: until, slot: slot}
	x.background = b
	if until != never {
		b.timer = time.AfterFunc(time.Duration(until-l.local.lease.now()), func() { l.onBackgroundTimer(f) })
	}
}

// backgroundLocked returns the state of f in the background. Nil: f continues only for its
// waiters.
func (f *flight[K, V]) backgroundLocked() *background {
	if f.extra == nil {
		return nil
	}
	return f.extra.background
}

// leaveBackgroundLocked takes f out of the background, if it is there.
func (f *flight[K, V]) leaveBackgroundLocked() {
	b := f.backgroundLocked()
	if b == nil {
		return
	}
	f.extra.background = nil
	if b.timer != nil {
		b.timer.Stop()
	}
	b.slot.leave()
}

// onBackgroundTimer ends f's time in the background, unless it was extended.
func (l *loader[K, V]) onBackgroundTimer(f *flight[K, V]) {
	sh := l.local.shard(f.hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	b := f.backgroundLocked()
	if b == nil { // f has ended, or has become an ordinary load
		return
	}
	if left := b.until - l.local.lease.now(); left > 0 {
		if b.until != never {
			b.timer.Reset(time.Duration(left))
		}
		return
	}
	l.endBackgroundLocked(sh, f)
}

// endBackgroundLocked ends the time of f in the background. f is registered.
func (l *loader[K, V]) endBackgroundLocked(sh *shard[K, V], f *flight[K, V]) {
	if f.waiters > f.detached {
		f.waiters -= f.detached
		f.detached = 0
		f.leaveBackgroundLocked()
		return
	}
	sh.unregisterLocked(f, f.older)
	f.abandonLocked()
	if f.refreshOf != nil {
		l.local.unmarkRefreshing(f.refreshOf) // it may still be in memory, if it never expires
	}
}

// backgroundOverLocked reports whether a read that began at m finds that f's time in the
// background is over, and that no caller waits for f. held is the fate of the key's entry.
func (f *flight[K, V]) backgroundOverLocked(m moment, held fate) bool {
	b := f.backgroundLocked()
	return b != nil && f.waiters == f.detached && (held == absent || held.dead() || m.at >= b.until)
}

// refreshUntil returns when a refresh of e ends at the latest, if it begins now.
func (l *loader[K, V]) refreshUntil(e *entry[K, V], now int64) int64 {
	if until := e.Item.expires.Load(); until != never {
		return until
	}
	return deadline(now, max(time.Duration(l.local.refreshAfter), longestRefresh))
}

// lastUse returns the time until which e may be served at all.
func (l *loader[K, V]) lastUse(e *entry[K, V]) int64 {
	return deadline(e.Item.expires.Load(), l.local.staleIfError)
}
