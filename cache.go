package nearcache

import (
	"context"
	"iter"
	"time"
)

// Cache holds items of one kind in this process's memory. A backplane keeps it coherent
// with the caches of the same name in all other instances. Its methods may be called from
// any number of goroutines.
//
// Values are shared between callers and must not be changed. To change an item, write it to
// the source, then call Remove.
type Cache[K comparable, V any] struct {
	announcer[K]
	options Options[K, V]
	local   *local[K, V]
	loader  *loader[K, V]
	stats   *cacheCounters
	keeper  *keeper[K, V]
	hints   hints
}

// New makes a cache on a backplane.
//
// K is a string or integer kind, or a type with MarshalText, and with UnmarshalText on its
// pointer. These two, of [encoding.TextMarshaler] and [encoding.TextUnmarshaler], then make
// the form of its keys in messages. Pointers, and types that hold interfaces, cannot be
// keys.
//
// A key may not survive being encoded and decoded, such as a time.Time with a monotonic
// part. The item of such a key is never kept, and a write to it clears the whole cache.
//
// The error wraps ErrInvalidOptions, and names every field that is wrong. If the backplane
// is closed, it wraps ErrClosed.
func New[K comparable, V any](bp *Backplane, options Options[K, V]) (*Cache[K, V], error) {
	o, err := options.withDefaults()
	if err != nil {
		return nil, err
	}
	announces, err := newAnnouncer[K](bp, o.Name)
	if err != nil {
		return nil, err
	}
	if o.MaxStaleness == 0 {
		o.MaxStaleness = bp.staleness
	}
	stats := newCacheCounters()
	c := &Cache[K, V]{
		announcer: announces,
		options:   o,
		local:     newLocal(o, bp.lease),
		stats:     stats,
		hints:     hints{logger: bp.logger, cache: o.Name},
	}
	if bp.fullStaleness {
		c.local.freshLeaseAge = c.local.staleness
	}
	c.memory = c
	c.keeper = newKeeper(c)
	c.loader = newLoader(c)
	if o.Shared != nil && bp.bus != nil {
		c.loader.shared = newShared(c)
	}
	if err := bp.register(o.Name, c); err != nil {
		return nil, err
	}
	o.warn(c.hints.warn)
	bp.warnOfShortBound(o.Name, o.MaxStaleness)
	return c, nil
}

// Get returns the item of key: from memory, or from Load. All callers that ask meanwhile
// share that one load.
//
// Get returns the loader's own error, or ErrNotFound for a not-found that is kept. A loader
// that calls Get receives an error that wraps the not-found instead, see
// Options.IsNotFound. If ctx ends before the load does, Get returns ctx's error. A hit
// ignores ctx.
//
// While a load fails or is slow, an expired item may be returned, see Options.StaleIfError.
//
// If the loader panics, Get panics in every caller, with an error. Its text has the panic's
// value and the loader's stack. It wraps the value if that is an error. A loader that ends
// its goroutine makes Get return an error, but see Load. After Close, Get calls Load each
// time.
func (c *Cache[K, V]) Get(ctx context.Context, key K) (V, error) {
	if e, at := c.local.peek(key); e != nil {
		value, err := c.serveHit(ctx, e, at)
		if err != nil {
			err = c.marked(ctx, err)
		}
		return value, err
	}
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
	lk := c.loader.join(&from, key, c.startOptions(&from.origin))
	if lk.conditional {
		value, err := c.getAfter(&from, key, lk)
		return value, c.marked(ctx, err)
	}
	c.startLookup(&from, &lk)
	value, _, err := c.await(&from, key, &lk, 0)
	return value, c.marked(ctx, err)
}

// Peek returns the item of key if it is in memory, and reports whether it is. It loads
// nothing, counts as neither hit nor miss, and does not keep the item from being evicted. A
// not-found that is kept is not an item.
func (c *Cache[K, V]) Peek(key K) (V, bool) {
	if e, _ := c.local.peek(key); e != nil {
		value, err := c.local.result(e)
		return value, err == nil
	}
	var zero V
	return zero, false
}

// All yields the items in memory that a Get would return, in no order. It loads nothing,
// and counts as no hit. It is for debugging and for tools, since it looks at every item
// there is.
//
// Each item comes with the value that is in memory when it is yielded. An item that was
// removed, cleared or replaced before the loop came to it is not yielded as it was, even if
// the loop's body did that. Items that are added meanwhile may be yielded or not. One that
// is evicted and added again may be yielded twice.
func (c *Cache[K, V]) All() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		l := c.local
		for i := range l.tables {
			for passed := range l.tables[i].Load().all() {
				// The table may have been replaced since the loop began. It no longer
				// changes then, and only its keys are of use.
				//
				//  1. the loop takes an entry from the table   2. the entry is removed, or its value
				//  replaced   3. the loop decides whether to yield it. The entry does not show 2.
				//
				// So 3 is a new read. Like a Get it reads the lease first, then looks for
				// the key, and reads the value last.
				e, _ := l.peek(passed.Item.key)
				if e == nil {
					continue
				}
				if value, err := l.result(e); err == nil && !yield(e.Item.key, value) {
					return
				}
			}
		}
	}
}

// Keys yields the keys of All.
func (c *Cache[K, V]) Keys() iter.Seq[K] {
	return func(yield func(K) bool) {
		for key := range c.All() {
			if !yield(key) {
				return
			}
		}
	}
}

// Len returns the number of items in memory. It is 0 after Clear. Items that expired within
// the last minute or so may count.
func (c *Cache[K, V]) Len() int { return c.local.len() }

// Stats returns a snapshot of the cache's counters.
func (c *Cache[K, V]) Stats() CacheStats {
	weight, regions, shards := c.local.count()
	s := c.stats.snapshot(&shards)
	s.Name = c.options.Name
	s.Entries = c.local.len()
	s.Capacity = c.options.Capacity
	s.Weight = weight
	s.MaxWeight = c.options.MaxWeight
	s.Regions = regions + c.local.clears.size()
	return s
}

// Close empties the cache and gives its name back. Loads that are under way continue for
// the callers that wait for them. Loads in the background are cancelled. Close always
// returns nil, and may be called again.
func (c *Cache[K, V]) Close() error {
	c.closeLocal()
	if c.loader.shared != nil {
		c.loader.shared.close()
	}
	return nil
}

// getAfter is the part of Get for conditional waiters.
func (c *Cache[K, V]) getAfter(from *caller, key K, lk lookup[K, V]) (V, error) {
	began := time.Now()
	value, again, err := c.await(from, key, &lk, 0)
	if !again {
		return value, err
	}
	c.loader.follow(from, key, &lk, c.startOptions(&from.origin))
	c.startLookup(from, &lk)
	value, _, err = c.await(from, key, &lk, time.Since(began))
	return value, err
}

// startLookup starts the flight that a lookup has found, if that is the caller's task.
func (c *Cache[K, V]) startLookup(from *caller, lk *lookup[K, V]) {
	switch {
	case lk.mustStart && c.looksUpInline(from, lk):
		c.loader.lookUpInline(from.ctx, lk.flight)
	case lk.mustStart || lk.jumpsQueue:
		c.startFlight(from, lk.flight, lk.fallback)
	}
}

// startFlight starts a load: in its own goroutine if the caller may leave early, otherwise
// inline.
//
// The caller may leave early if its context can end, or if there is a LoadTimeout. It may
// also leave after SoftTimeout, if it has a fallback. Inline is faster: to hand a load over
// and be woken takes several times as long as the rest of a miss. With a shared level, every
// load has a goroutine of its own: a load is rare there, and a goroutine
// costs little beside it.
func (c *Cache[K, V]) startFlight(from *caller, f *flight[K, V], fallback bool) {
	leaves := from.done != nil || c.options.LoadTimeout > 0 || fallback && c.options.SoftTimeout > 0
	if leaves || c.loader.shared != nil {
		c.loader.start(from, f)
	} else {
		c.loader.startInline(from, f)
	}
}

// looksUpInline reports whether the caller that has to start a flight looks for its value
// at the shared level in its own goroutine. It does so if its deadline allows
// Shared.Timeout, and if it has nothing else to wait for.
func (c *Cache[K, V]) looksUpInline(from *caller, lk *lookup[K, V]) bool {
	if lk.flight.awaitsSlot || !lk.flight.mayShare || lk.fallback && c.options.SoftTimeout > 0 { // in this order: if it awaits a slot, others write mayShare
		return false
	}
	return !from.limited || time.Until(from.deadline) >= c.options.Shared.Timeout
}

// serveHit returns the item of a live entry, for a read that began at that time.
func (c *Cache[K, V]) serveHit(ctx context.Context, e *entry[K, V], at int64) (V, error) {
	c.local.use(e)
	c.stats.hits.Inc()
	if c.local.tracksHits {
		value, err := c.local.result(e) // first: a refresh may replace the value at once
		c.afterHit(ctx, e, at)
		return value, err
	}
	return c.local.result(e)
}

// keepable reports whether an item of that key may be in memory. It may not if no message
// could evict it, or if the cache is closed. Such an item is loaded every time. keepable
// also returns the key to continue with: if the key has a MarshalText, a copy that shares
// no memory with it.
func (c *Cache[K, V]) keepable(key K) (again K, ok bool) {
	again, ok = c.keys.keepable(key)
	return again, ok && !c.local.closed.Load()
}

// startOptions says how a load begins that a call from o starts.
func (c *Cache[K, V]) startOptions(o *origin) startOptions {
	return startOptions{awaitsSlot: c.loader.slots.needed(o.load)}
}

// await returns the result of a lookup: its entry, or the result of its flight, for which
// it waits. waited is how long the call has waited for another flight before. If the load
// fails or is slow, an expired item may be returned instead. again reports that a
// conditional waiter may not have the result, and has to follow.
func (c *Cache[K, V]) await(
	from *caller, key K, lk *lookup[K, V], waited time.Duration,
) (value V, again bool, err error) {
	switch {
	case lk.entry != nil && lk.fate == alive:
		c.stats.hits.Inc()
		value, err = c.local.result(lk.entry)
		return value, false, err
	case lk.entry != nil:
		value, err = c.serveStale(lk.entry)
		return value, false, err
	}
	var soft <-chan time.Time
	if lk.fallback && c.options.SoftTimeout > 0 {
		timer := time.NewTimer(c.options.SoftTimeout - waited)
		defer timer.Stop()
		soft = timer.C
	}
	ended, err := c.loader.waitFor(from, lk, soft)
	if !ended && err == nil { // SoftTimeout has passed
		if e := c.local.lastResort(key); e != nil {
			c.loader.leaveDetached(from, lk, e)
			value, err = c.serveStale(e)
			return value, false, err
		}
		_, err = c.loader.waitFor(from, lk, nil)
	}
	if err != nil {
		return value, false, err
	}
	if lk.conditional && !lk.proven() {
		c.loader.leave(from, lk)
		return value, true, nil
	}
	value, err, failed := lk.flight.result(c.loader)
	if failed && c.local.servesStale {
		if e := c.local.lastResort(key); e != nil {
			value, err = c.serveStale(e)
		}
	}
	return value, false, err
}

// serveStale returns the item of e instead of the result of a load that fails or is slow.
func (c *Cache[K, V]) serveStale(e *entry[K, V]) (V, error) {
	c.stats.stale.Add(1)
	c.local.noteHit(e, c.local.lease.read().at)
	return c.local.result(e)
}

// The local parts of the writes: they serve this instance's own calls and the messages of
// other instances. Each is counted when it is done.

func (c *Cache[K, V]) removeLocal(keys ...K) {
	c.local.remove(keys...)
}

func (c *Cache[K, V]) clearRegionsLocal(regions []string) {
	c.local.clearRegions(regions)
	c.stats.regionsCleared.Add(uint64(len(regions)))
}

func (c *Cache[K, V]) clearLocal() {
	c.local.clear()
	c.stats.clears.Add(1)
}

// The methods that the backplane calls, see the interface member.

func (c *Cache[K, V]) stopServing() { c.local.stopServing() }

func (c *Cache[K, V]) closeLocal() {
	c.local.close() // first: once it hears no messages, it must serve nothing
	c.backplane.unregister(c.options.Name, c)
}

func (c *Cache[K, V]) removeWire(wire string) bool {
	decoded := false
	defer func() { // also if UnmarshalText ends the goroutine
		if !decoded {
			c.clearLocal()
		}
	}()
	key, err := c.keys.decode(wire)
	decoded = true
	if err != nil {
		c.stats.undecodable.Add(1)
		c.clearLocal() // it is not known which key was meant
		c.backplane.note(Event{Kind: EventCleared, Cause: ClearCauseUndecodable, Cache: c.options.Name, Err: errForeignKey})
		return false
	}
	c.removeLocal(key)
	return true
}

func (c *Cache[K, V]) staleness() time.Duration { return c.options.MaxStaleness }

func (c *Cache[K, V]) missedMessages() {
	c.local.clear()
	c.stats.missedMessages.Add(1)
}
