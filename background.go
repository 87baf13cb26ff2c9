package nearcache

import (
	"sync/atomic"
	"time"
)

// longestRefresh is how long a refresh of an item that never expires may take, if
// RefreshAfter is not longer. It would otherwise keep its place for ever if it hangs.
const longestRefresh = 5 * time.Minute

// background is what a load has that goes on though nobody waits for it: a refresh that
// a hit began, or a load whose callers have waited for SoftTimeout.
//
// Such a load ends with its item at the latest:
//
//  1. a refresh hangs   2. its item expires   3. callers join the refresh, and leave at
//     their deadlines. It goes on, and none of them is ever served.
//
// If somebody waits for it at that moment it becomes an ordinary load, which ends when
// its last waiter leaves. If nobody does it is cancelled, and its place among the
// refreshes is free even if the loader does not heed its context. A Get that comes
// before the timer has fired finds the load outlived, and begins another.
type background struct {
	until int64        // lease.now; never: the item does not expire
	timer *time.Timer  // fires then; nil: never
	slot  *refreshSlot // nil: it is no refresh
}

// refreshPlace is one of the places of refreshesAtOnce.
type refreshSlot struct {
	taken *atomic.Int64 // places that are taken
	users atomic.Int64  // refreshes in this one: several, if one call loads them
}

// newRefreshPlace takes a place for so many refreshes, or returns nil if there is none.
func newRefreshSlot(taken *atomic.Int64, users int) *refreshSlot {
	if taken.Add(1) > refreshesAtOnce {
		taken.Add(-1)
		return nil
	}
	p := &refreshSlot{taken: taken}
	p.users.Store(int64(users))
	return p
}

// leave is called when one of the place's refreshes needs it no longer.
func (p *refreshSlot) leave() {
	if p != nil && p.users.Add(-1) == 0 {
		p.taken.Add(-1)
	}
}

// detachLocked has f go on in the background until a time, or until a later one if it is
// there already.
func (l *loader[K, V]) detachLocked(f *flight[K, V], until int64, place *refreshSlot) {
	f.detached++
	x := f.extraLocked()
	if b := x.background; b != nil {
		b.until = max(b.until, until) // the timer finds out
		return
	}
	b := &background{until: until, slot: place}
	x.background = b
	if until != never {
		b.timer = time.AfterFunc(time.Duration(until-l.local.lease.now()), func() { l.lastMoment(f) })
	}
}

// backgroundLocked returns what f has in the background; nil: it goes on for its waiters
// alone.
func (f *flight[K, V]) backgroundLocked() *background {
	if f.extra == nil {
		return nil
	}
	return f.extra.background
}

// attachLocked has f no longer go on in the background.
func (f *flight[K, V]) attachLocked() {
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

// lastMoment ends f's time in the background, when that is over.
func (l *loader[K, V]) lastMoment(f *flight[K, V]) {
	sh := l.local.shard(f.hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	b := f.backgroundLocked()
	if b == nil { // it has ended, or callers wait for it
		return
	}
	if left := b.until - l.local.lease.now(); left > 0 {
		if b.until != never {
			b.timer.Reset(time.Duration(left))
		}
		return
	}
	l.outliveLocked(sh, f)
}

// outliveLocked ends the time in the background of f, which is registered.
func (l *loader[K, V]) outliveLocked(sh *shard[K, V], f *flight[K, V]) {
	if f.waiters > f.detached {
		f.waiters -= f.detached
		f.detached = 0
		f.attachLocked()
		return
	}
	sh.unregisterLocked(f, f.older)
	f.abandonLocked()
	if f.refreshOf != nil {
		l.local.disclaim(f.refreshOf) // which may be held still, if it never expires
	}
}

// outlivedLocked reports whether a read that began at m finds f outlived: nobody waits
// for it, and its last moment has come. What is held of the key has that fate.
func (f *flight[K, V]) outlivedLocked(m moment, held fate) bool {
	b := f.backgroundLocked()
	return b != nil && f.waiters == f.detached && (held == absent || held.dead() || m.at >= b.until)
}

// refreshUntil returns when a refresh of e ends that begins now.
func (l *loader[K, V]) refreshUntil(e *entry[K, V], now int64) int64 {
	if until := e.Item.expires.Load(); until != never {
		return until
	}
	return deadline(now, max(time.Duration(l.local.refreshAfter), longestRefresh))
}

// lastUse returns until when e may be served at all.
func (l *loader[K, V]) lastUse(e *entry[K, V]) int64 {
	return deadline(e.Item.expires.Load(), l.local.staleIfError)
}
