package nearcache

import (
	"context"
	"time"
)

// refreshesAtOnce bounds a cache's loads that nobody waits for.
const refreshesAtOnce = 16

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
	key, held := c.holds(key)
	if !held {
		value, err := c.options.Load(ctx, key)
		return value, c.marked(ctx, err)
	}
	j := c.local.anew(ctx, key, c.loader, c.launch(ctx))
	if j.conditional {
		if _, err := c.local.waitFor(ctx, &j, nil); err != nil {
			var zero V
			return zero, err
		}
		c.local.leave(ctx, &j)
		c.local.follow(ctx, key, &j, c.loader, c.launch(ctx))
	}
	if j.launched || j.hurried {
		c.fly(ctx, j.flight, false)
	}
	if _, err := c.local.wait(ctx, j.flight, nil); err != nil {
		var zero V
		return zero, err
	}
	value, err, _ := j.flight.result(c.loader)
	return value, c.marked(ctx, err)
}

// attend does what a hit on e has to do with the item's times: it notes the hit, and
// has the item loaded anew if that is due.
func (c *Cache[K, V]) attend(ctx context.Context, e *entry[K, V], at int64) {
	l := c.local
	l.hit(e, at)
	if !l.due(e, at) || !l.claim(e) {
		return
	}
	f, placed := l.ahead(ctx, e, c.loader)
	if f == nil {
		l.disclaim(e) // for a later hit
		return
	}
	c.stats.refreshes.Add(1)
	if placed {
		go l.flyPlaced(f, c.loader)
	} else {
		go l.flyNow(f, c.loader)
	}
}

// ahead returns a flight that is to replace e in time, or nil if there is no need or
// no room for one. Loads that callers wait for have precedence: it takes a place only
// if there is one, and reports whether it has. A loader's hit needs one for it, too:
// unlike what a loader waits for, it goes on when the loader has ended.
func (l *local[K, V]) ahead(ctx context.Context, e *entry[K, V], ld *loader[K, V]) (f *flight[K, V], placed bool) {
	place := newRefreshPlace(&ld.refreshes, 1)
	if place == nil {
		return nil, false
	}
	placed = ld.places != nil
	if placed && !ld.places.tryTake() {
		place.leave()
		return nil, false
	}
	if f = l.launchAhead(ctx, e, ld, launch{}, place); f == nil {
		place.leave()
		if placed {
			ld.places.give()
		}
		return nil, false
	}
	return f, placed
}

// launchAhead registers a flight that is to replace e in time, or returns nil if there is
// no need for one.
func (l *local[K, V]) launchAhead(
	ctx context.Context, e *entry[K, V], ld *loader[K, V], how launch, place *refreshPlace,
) *flight[K, V] {
	hash := l.hash(e.Item.key)
	sh := l.shard(hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	m := l.lease.read()
	if l.closed.Load() || sh.table.Load().find(hash, e.Item.key) != e || m.at >= e.Item.expires.Load() ||
		l.waitableLocked(sh.flights[e.Item.key], m) || m.at < sh.failures[e.Item.key].until {
		return nil
	}
	f := l.launchLocked(sh, ctx, hash, e.Item.key, ld, how)
	f.ahead = e
	l.detachLocked(f, l.refreshUntil(e, m.at), place)
	return f
}

// refreshed ends a refresh. If it failed, the next one waits.
func (l *local[K, V]) refreshed(f *flight[K, V], pause time.Duration) {
	if pause > 0 {
		// It keeps the entry alive for as long, at most, which we accept.
		time.AfterFunc(pause, func() { l.disclaim(f.ahead) })
	} else {
		l.disclaim(f.ahead)
	}
}
