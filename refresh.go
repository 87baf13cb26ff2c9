package nearcache

import (
	"context"
	"sync"
	"time"
)

const (
	// refreshesAtOnce bounds a cache's calls of Load and LoadMany that nobody waits for.
	refreshesAtOnce = 16

	// gatherPause is how long a refresh waits for others to be loaded with, if there is a
	// LoadMany: hits that come close together share one call, and nobody waits for it.
	gatherPause = time.Millisecond

	// mostGathered bounds the keys of one such call.
	mostGathered = 256
)

// Refresh loads the item of key anew and keeps it here, whether it is in memory or
// not. It never returns what a load brought that had begun before: while one is under
// way it waits for that, and then shares one load with all other calls of Refresh that
// came meanwhile. (If ctx has a deadline it does not wait for a load that has already
// lasted as long as ctx has left.) Nothing is told to
// other instances: it is for a change that they need not know of, or know of
// already. An invalidation that overtakes the load keeps the result out of memory,
// as ever. If the load fails, Refresh returns its error, and what was held stays. The
// errors are those of Get.
func (c *Cache[K, V]) Refresh(ctx context.Context, key K) (V, error) {
	if err := ctx.Err(); err != nil {
		var zero V
		return zero, err
	}
	key, held := c.keepable(key)
	if !held {
		value, err := c.options.Load(ctx, key)
		return value, c.marked(ctx, err)
	}
	from := callerOf(ctx)
	j := c.loader.joinForRefresh(&from, key, c.startOptions(&from.origin))
	if j.conditional {
		if _, err := c.loader.waitFor(&from, &j, nil); err != nil {
			var zero V
			return zero, err
		}
		c.loader.leave(&from, &j)
		c.loader.follow(&from, key, &j, c.startOptions(&from.origin))
	}
	if j.mustStart || j.jumpsQueue {
		c.startFlight(&from, j.flight, false)
	}
	if _, err := c.loader.wait(&from, j.flight, nil); err != nil {
		var zero V
		return zero, err
	}
	value, err, _ := j.flight.result(c.loader)
	return value, c.marked(ctx, err)
}

// attend does what a hit on e has to do with the item's times: it notes the hit, and
// has the item loaded anew if that is due.
func (c *Cache[K, V]) afterHit(ctx context.Context, e *entry[K, V], at int64) {
	l := c.local
	l.noteHit(e, at)
	if l.due(e, at) && l.claim(e) {
		c.refreshDue(ctx, e)
	}
}

// refreshDue has e, which the caller has claimed, loaded again in the background.
func (c *Cache[K, V]) refreshDue(ctx context.Context, e *entry[K, V]) {
	asked := false
	defer func() { // the context is the user's, and may panic
		if !asked {
			c.local.disclaim(e)
		}
	}()
	d := due[K, V]{origin: originOf(ctx), entry: e}
	asked = true
	if c.options.LoadMany != nil {
		c.gather(d)
		return
	}
	c.refresh(&d)
}

// refresh has an item, which the caller has claimed, loaded anew in the background, if
// there is room.
func (c *Cache[K, V]) refresh(d *due[K, V]) {
	l, e := c.local, d.entry
	f, placed := c.loader.newRefresh(&d.origin, e)
	if f == nil {
		l.disclaim(e) // for a later hit
		return
	}
	c.stats.refreshes.Add(1)
	if placed {
		go c.loader.runHoldingSlot(f)
	} else {
		go c.loader.run(f)
	}
}

// gathering has the items whose refreshes are to begin together.
type gathering[K comparable, V any] struct {
	mu    sync.Mutex // guards items
	items []due[K, V]
}

// due is an item that is due for a refresh, and was claimed for it, and the origin of
// the hit that found it so.
type due[K comparable, V any] struct {
	origin
	entry *entry[K, V]
}

// gather has an item refreshed in a moment, together with others.
func (c *Cache[K, V]) gather(d due[K, V]) {
	g := &c.loader.due
	g.mu.Lock()
	g.items = append(g.items, d)
	first, full := len(g.items) == 1, g.items
	if len(full) < mostGathered {
		full = nil
	} else {
		g.items = nil
	}
	g.mu.Unlock()
	switch {
	case first:
		time.AfterFunc(gatherPause, c.refreshGathered)
	case full != nil:
		go c.refreshBatch(full)
	}
}

// gathered has what was gathered refreshed at once.
func (c *Cache[K, V]) refreshGatheredNow() {
	g := &c.loader.due
	if c.local.refreshAfter == 0 || c.options.LoadMany == nil {
		return
	}
	g.mu.Lock()
	n := len(g.items)
	g.mu.Unlock()
	if n > 0 {
		go c.refreshGathered()
	}
}

// refreshGathered begins the refreshes of all that was gathered. Another call may have
// done so before.
func (c *Cache[K, V]) refreshGathered() {
	g := &c.loader.due
	g.mu.Lock()
	items := g.items
	g.items = nil
	g.mu.Unlock()
	switch len(items) {
	case 0:
	case 1:
		c.refresh(&items[0])
	default:
		c.refreshBatch(items)
	}
}

// refreshTogether has LoadMany load items in the background, if there is room for one
// call more.
func (c *Cache[K, V]) refreshBatch(items []due[K, V]) {
	l, ld := c.local, c.loader
	place := newRefreshSlot(&ld.refreshes, 1) // for this function, as long as it lasts
	defer place.leave()
	placed := place != nil && ld.slots != nil && ld.slots.tryAcquire()
	if place == nil || ld.slots != nil && !placed {
		for _, d := range items {
			l.disclaim(d.entry) // for later hits
		}
		return
	}
	b := newBatchLoad(&items[0].origin, placed)
	b.wanted.Add(1) // for this function too: the first flight may be overtaken before the second is there
	var flights []*flight[K, V]
	for _, d := range items {
		place.users.Add(1)
		if f := ld.registerRefresh(&d.origin, d.entry, startOptions{batch: b}, place); f != nil {
			flights = append(flights, f)
		} else {
			place.leave()
			l.disclaim(d.entry)
		}
	}
	b.leave()
	c.stats.refreshes.Add(uint64(len(flights)))
	if placed {
		go ld.runBatchHoldingSlot(flights, b)
	} else {
		go ld.runBatchNow(flights, b)
	}
}

// ahead returns a flight that is to replace e in time, or nil if there is no need or
// no room for one. Loads that callers wait for have precedence: it takes a place only
// if there is one, and reports whether it has. A loader's hit needs one for it, too:
// unlike what a loader waits for, it goes on when the loader has ended.
func (l *loader[K, V]) newRefresh(o *origin, e *entry[K, V]) (f *flight[K, V], placed bool) {
	place := newRefreshSlot(&l.refreshes, 1)
	if place == nil {
		return nil, false
	}
	placed = l.slots != nil
	if placed && !l.slots.tryAcquire() {
		place.leave()
		return nil, false
	}
	if f = l.registerRefresh(o, e, startOptions{}, place); f == nil {
		place.leave()
		if placed {
			l.slots.release()
		}
		return nil, false
	}
	return f, placed
}

// launchAhead registers a flight that is to replace e in time, or returns nil if there is
// no need for one.
func (l *loader[K, V]) registerRefresh(
	o *origin, e *entry[K, V], how startOptions, place *refreshSlot,
) *flight[K, V] {
	hash := l.local.hash(e.Item.key)
	sh := l.local.shard(hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	m := l.local.lease.read()
	if l.local.closed.Load() || sh.table.Load().find(hash, e.Item.key) != e || m.at >= e.Item.expires.Load() ||
		l.waitableLocked(sh.flights[e.Item.key], m) || m.at < sh.failedLoads[e.Item.key].until {
		return nil
	}
	f := l.registerLocked(sh, o, hash, e.Item.key, how)
	f.refreshOf = e
	l.detachLocked(f, l.refreshUntil(e, m.at), place)
	return f
}

// refreshed ends a refresh. If it failed, the next one waits.
func (l *loader[K, V]) endRefresh(f *flight[K, V], pause time.Duration) {
	if pause > 0 {
		// It keeps the entry alive for as long, at most, which we accept.
		time.AfterFunc(pause, func() { l.local.disclaim(f.refreshOf) })
	} else {
		l.local.disclaim(f.refreshOf)
	}
}
