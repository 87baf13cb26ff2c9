package nearcache

import (
	"context"
	"sync"
	"time"
)

const (
	// refreshesAtOnce bounds a cache's calls of Load and LoadMany for refreshes ahead of
	// expiry, which no caller waits for.
	refreshesAtOnce = 16

	// gatherPause is how long a refresh waits for others, if there is a LoadMany. Hits that
	// come close together then share one call. No caller waits for it.
	gatherPause = time.Millisecond

	// mostGathered bounds the keys of one such call.
	mostGathered = 256
)

// Refresh loads the item of key again and keeps it here, whether it is in memory or not. It
// never returns the result of a load that began before. While one is under way, Refresh
// waits for it, and then shares one load with all calls of Refresh that came meanwhile. If
// ctx has a deadline, Refresh does not wait for a load that has already lasted as long as
// ctx has left.
//
// Other instances are not told. So Refresh is for a change that they need not know of, or
// know of already. As with every load, an invalidation that overtakes it keeps the result
// out of memory. If the load fails, Refresh returns its error, and the item in memory
// stays. The errors are those of Get.
func (c *Cache[K, V]) Refresh(ctx context.Context, key K) (V, error) {
	if err := ctx.Err(); err != nil {
		var zero V
		return zero, err
	}
	key, keepable := c.keepable(key)
	if !keepable {
		value, err := c.options.Load(ctx, key)
		return value, c.marked(ctx, err)
	}
	from := callerOf(ctx)
	lk := c.loader.joinForRefresh(&from, key, c.startOptions(&from.origin))
	if lk.conditional {
		if _, err := c.loader.waitFor(&from, &lk, nil); err != nil {
			var zero V
			return zero, err
		}
		c.loader.leave(&from, &lk)
		c.loader.follow(&from, key, &lk, c.startOptions(&from.origin))
	}
	if lk.mustStart || lk.jumpsQueue {
		c.startFlight(&from, lk.flight, false)
	}
	if _, err := c.loader.wait(&from, lk.flight, nil); err != nil {
		var zero V
		return zero, err
	}
	value, err, _ := lk.flight.result(c.loader)
	return value, c.marked(ctx, err)
}

// afterHit notes a hit on e, and begins a refresh of e if one is due.
func (c *Cache[K, V]) afterHit(ctx context.Context, e *entry[K, V], at int64) {
	l := c.local
	l.noteHit(e, at)
	if l.isDue(e, at) && l.markRefreshing(e) {
		c.refreshDue(ctx, e)
	}
}

// refreshDue refreshes e in the background. The caller has marked e as refreshing.
func (c *Cache[K, V]) refreshDue(ctx context.Context, e *entry[K, V]) {
	asked := false
	defer func() { // the context is the user's, and may panic
		if !asked {
			c.local.unmarkRefreshing(e)
		}
	}()
	d := dueRefresh[K, V]{origin: originOf(ctx), entry: e}
	asked = true
	if c.options.LoadMany != nil {
		c.gather(d)
		return
	}
	c.refresh(&d)
}

// refresh loads an item again in the background, if a slot is free. The caller has marked
// its entry as refreshing.
func (c *Cache[K, V]) refresh(d *dueRefresh[K, V]) {
	l, e := c.local, d.entry
	f, acquired := c.loader.newRefresh(&d.origin, e)
	if f == nil {
		l.unmarkRefreshing(e) // so that a later hit may refresh it
		return
	}
	c.stats.refreshes.Add(1)
	if acquired {
		go c.loader.runHoldingSlot(f)
	} else {
		go c.loader.run(f)
	}
}

// gathering has the items that are to be refreshed together.
type gathering[K comparable, V any] struct {
	mu    sync.Mutex // guards items
	items []dueRefresh[K, V]
}

// dueRefresh is an entry that is due for a refresh and was marked as refreshing, and the
// origin of the hit that found it due.
type dueRefresh[K comparable, V any] struct {
	origin
	entry *entry[K, V]
}

// gather has an item refreshed after gatherPause, together with others.
func (c *Cache[K, V]) gather(d dueRefresh[K, V]) {
	g := &c.loader.gathered
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

// refreshGatheredNow refreshes the gathered items at once.
func (c *Cache[K, V]) refreshGatheredNow() {
	g := &c.loader.gathered
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

// refreshGathered begins the refreshes of the gathered items. There may be none left.
func (c *Cache[K, V]) refreshGathered() {
	g := &c.loader.gathered
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

// refreshBatch has LoadMany load items in the background, if a slot is free.
func (c *Cache[K, V]) refreshBatch(items []dueRefresh[K, V]) {
	l, ld := c.local, c.loader
	slot := newRefreshSlot(&ld.refreshes, 1) // this function counts as a user while it runs
	defer slot.leave()
	acquired := slot != nil && ld.slots != nil && ld.slots.tryAcquire()
	if slot == nil || ld.slots != nil && !acquired {
		for _, d := range items {
			l.unmarkRefreshing(d.entry) // so that later hits may refresh it
		}
		return
	}
	b := newBatchLoad(&items[0].origin, acquired)
	b.wanted.Add(1) // this function counts too: the first flight may be overtaken before the second is there
	var flights []*flight[K, V]
	for _, d := range items {
		slot.users.Add(1)
		if f := ld.registerRefresh(&d.origin, d.entry, startOptions{batch: b}, slot); f != nil {
			flights = append(flights, f)
		} else {
			slot.leave()
			l.unmarkRefreshing(d.entry)
		}
	}
	b.leave()
	c.stats.refreshes.Add(uint64(len(flights)))
	if acquired {
		go ld.runBatchHoldingSlot(flights, b)
	} else {
		go ld.runBatchNow(flights, b)
	}
}

// newRefresh returns a flight that refreshes e ahead of expiry. It returns nil if there is
// no need for one, or no free slot: loads that callers wait for come first. It reports
// whether it has acquired a slot of MaxConcurrentLoads. The refresh needs one even if a
// loader's hit has begun it: it continues after that loader has ended.
func (l *loader[K, V]) newRefresh(o *origin, e *entry[K, V]) (f *flight[K, V], acquired bool) {
	slot := newRefreshSlot(&l.refreshes, 1)
	if slot == nil {
		return nil, false
	}
	acquired = l.slots != nil
	if acquired && !l.slots.tryAcquire() {
		slot.leave()
		return nil, false
	}
	if f = l.registerRefresh(o, e, startOptions{}, slot); f == nil {
		slot.leave()
		if acquired {
			l.slots.release()
		}
		return nil, false
	}
	return f, acquired
}

// registerRefresh registers a flight that refreshes e ahead of expiry. It returns nil if
// there is no need for one.
func (l *loader[K, V]) registerRefresh(
	o *origin, e *entry[K, V], how startOptions, slot *refreshSlot,
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
	l.detachLocked(f, l.refreshUntil(e, m.at), slot)
	return f
}

// endRefresh ends a refresh. If it failed, the next one waits for that long.
func (l *loader[K, V]) endRefresh(f *flight[K, V], pause time.Duration) {
	if pause > 0 {
		// The timer keeps the entry in memory for that long at most. We accept that.
		time.AfterFunc(pause, func() { l.local.unmarkRefreshing(f.refreshOf) })
	} else {
		l.local.unmarkRefreshing(f.refreshOf)
	}
}
