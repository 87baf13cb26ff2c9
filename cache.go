package nearcache

import (
	"context"
	"iter"
	"time"
)

// Cache holds items of one kind in this process's memory, in step with the
// caches of the same name in all other instances on its backplane. Its methods
// may be called from any number of goroutines.
//
// Values are shared between callers and must not be changed. The recipe for a
// change is: write the source, then call Remove.
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
// K is a string or integer kind, or a type with both MarshalText (of
// [encoding.TextMarshaler]) and UnmarshalText on its pointer, which then make its
// keys' form in messages. Pointers and types that hold interfaces are no keys. A
// key that does not survive being encoded and decoded, such as a time.Time with a
// monotonic part, is never kept, and a write to it clears the whole cache.
//
// The error wraps ErrInvalidOptions, and names every field that is wrong, or ErrClosed
// if the backplane is closed.
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

// Get returns the item of key: from memory, or from Load, once for all callers
// that ask meanwhile. It returns the loader's own error, ErrNotFound for a kept
// not-found (to a loader, an error that wraps it: see Options.IsNotFound), or ctx's error
// if ctx ends first; a hit ignores ctx. While a load fails,
// or is slow, an expired item may be returned, see Options.StaleIfError. If the loader
// panics, Get panics in every caller, with an error that has the panic's value
// and the loader's stack in its text and wraps the value if that is an error; a
// loader that ends its goroutine makes Get return an error, but see Load. After Close,
// Get calls Load each time.
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
	key, held := c.keepable(key)
	if !held {
		value, err := c.options.Load(ctx, key)
		return value, c.marked(ctx, err)
	}
	from := callerOf(ctx)
	j := c.loader.join(&from, key, c.startOptions(&from.origin))
	if j.conditional {
		value, err := c.getAfter(&from, key, j)
		return value, c.marked(ctx, err)
	}
	c.startLookup(&from, &j)
	value, _, err := c.await(&from, key, &j, 0)
	return value, c.marked(ctx, err)
}

// getAfter is Get from where it waits for a load whose result it may not have.
func (c *Cache[K, V]) getAfter(from *caller, key K, j lookup[K, V]) (V, error) {
	began := time.Now()
	value, again, err := c.await(from, key, &j, 0)
	if !again {
		return value, err
	}
	c.loader.follow(from, key, &j, c.startOptions(&from.origin))
	c.startLookup(from, &j)
	value, _, err = c.await(from, key, &j, time.Since(began))
	return value, err
}

// begin has the flight that a caller has found begin, if that is the caller's to do.
func (c *Cache[K, V]) startLookup(from *caller, j *lookup[K, V]) {
	switch {
	case j.mustStart && c.looksUpInline(from, j):
		c.loader.lookUpInline(from.ctx, j.flight)
	case j.mustStart || j.jumpsQueue:
		c.startFlight(from, j.flight, j.fallback)
	}
}

// fly has a flight flown for a caller who waits for it, and for SoftTimeout at most if
// he has a fallback: in a goroutine of its own, so that he can leave it. If nothing
// can end his wait sooner he flies it himself, since to pass a load on and to be woken
// takes several times as long as the rest of a miss; beside a look at the shared level
// it is nothing.
func (c *Cache[K, V]) startFlight(from *caller, f *flight[K, V], fallback bool) {
	leaves := from.done != nil || c.options.LoadTimeout > 0 || fallback && c.options.SoftTimeout > 0
	if leaves || c.loader.shared != nil {
		c.loader.start(from, f)
	} else {
		c.loader.startInline(from, f)
	}
}

// looksHere reports whether the caller who has launched a flight looks himself for its
// value at the shared level: if he has the time, and is to wait for nothing else.
func (c *Cache[K, V]) looksUpInline(from *caller, j *lookup[K, V]) bool {
	if j.flight.awaitsSlot || !j.flight.mayShare || j.fallback && c.options.SoftTimeout > 0 { // in this order: in its turn others write
		return false
	}
	return !from.limited || time.Until(from.deadline) >= c.options.Shared.Timeout
}

// hit returns what a live entry stands for, to a read that began at that time.
func (c *Cache[K, V]) serveHit(ctx context.Context, e *entry[K, V], at int64) (V, error) {
	c.local.use(e)
	c.stats.hits.Inc()
	if c.local.tracksHits {
		value, err := c.local.result(e) // first: a refresh may replace it at once
		c.afterHit(ctx, e, at)
		return value, err
	}
	return c.local.result(e)
}

// holds reports whether an item of that key may be in memory: if not, because no
// message could evict it or the cache is closed, it is loaded every time. It returns
// the key to go on with, which shares no memory with one that has a MarshalText.
func (c *Cache[K, V]) keepable(key K) (again K, held bool) {
	again, keepable := c.keys.keepable(key)
	return again, keepable && !c.local.closed.Load()
}

// launch says how a load begins that a call from o begins.
func (c *Cache[K, V]) startOptions(o *origin) startOptions {
	return startOptions{awaitsSlot: c.loader.slots.needed(o.load)}
}

// await returns what j came to: an entry, or the result of its flight, for which it
// waits, and has waited for others before. An item that has expired may stand in for a
// load that fails or is slow. It reports whether a conditional waiter may not have that
// result, and has to follow.
func (c *Cache[K, V]) await(
	from *caller, key K, j *lookup[K, V], waited time.Duration,
) (value V, again bool, err error) {
	switch {
	case j.entry != nil && j.fate == alive:
		c.stats.hits.Inc()
		value, err = c.local.result(j.entry)
		return value, false, err
	case j.entry != nil:
		value, err = c.serveStale(j.entry)
		return value, false, err
	}
	var soft <-chan time.Time
	if j.fallback && c.options.SoftTimeout > 0 {
		timer := time.NewTimer(c.options.SoftTimeout - waited)
		defer timer.Stop()
		soft = timer.C
	}
	ended, err := c.loader.waitFor(from, j, soft)
	if !ended && err == nil { // the load goes on, as if this caller waited for it
		if e := c.local.lastResort(key); e != nil {
			c.loader.leaveDetached(from, j, e)
			value, err = c.serveStale(e)
			return value, false, err
		}
		_, err = c.loader.waitFor(from, j, nil)
	}
	if err != nil {
		return value, false, err
	}
	if j.conditional && !j.proven() {
		c.loader.leave(from, j)
		return value, true, nil
	}
	value, err, failed := j.flight.result(c.loader)
	if failed && c.local.servesStale {
		if e := c.local.lastResort(key); e != nil {
			value, err = c.serveStale(e)
		}
	}
	return value, false, err
}

// standIn serves e in place of a load that fails or is slow.
func (c *Cache[K, V]) serveStale(e *entry[K, V]) (V, error) {
	c.stats.stale.Add(1)
	c.local.noteHit(e, c.local.lease.read().at)
	return c.local.result(e)
}

// Peek returns the item of key if it is in memory, and reports whether it is. It
// loads nothing, counts as neither hit nor miss, and does not keep the item from
// being evicted. A kept not-found is not an item.
func (c *Cache[K, V]) Peek(key K) (V, bool) {
	if e, _ := c.local.peek(key); e != nil {
		value, err := c.local.result(e)
		return value, err == nil
	}
	var zero V
	return zero, false
}

// All yields the items in memory that a Get would return, in no order, each with the
// value that is held when it is yielded: not what was removed, cleared or replaced
// before the loop came to it, by the loop's body for instance. It loads nothing and
// counts as no hit. Items that are added meanwhile may be yielded or not; one that is
// evicted and added again may be yielded twice. It is for debugging and for tools: it
// looks at every item there is.
func (c *Cache[K, V]) All() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		l := c.local
		for i := range l.tables {
			for passed := range l.tables[i].Load().all() {
				// The table may have been replaced since the loop began, and what it has is
				// changed no more: only its keys are of use.
				//
				//  1. the loop takes an entry from the table   2. the entry is removed, or its
				//  value replaced   3. the loop judges it. Nothing about the entry says so.
				//
				// A read that begins with 3 finds what is held then. It reads the lease before it
				// looks for the key, and the value last, as a Get does.
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

// Len returns the number of items in memory. It is 0 after Clear. Items that
// expired within the last minute or so may count.
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

// Close empties the cache and gives its name back. Loads that are under way go
// on for the callers that wait for them; those in the background are cancelled. It
// always returns nil and may be called again.
func (c *Cache[K, V]) Close() error {
	c.closeLocal()
	if c.loader.shared != nil {
		c.loader.shared.close()
	}
	return nil
}

// The local halves of the writes, which serve this instance's own calls and the
// messages of others. Each is counted when it is done.

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

// What the backplane asks of a cache, see the interface member.

func (c *Cache[K, V]) stopServing() { c.local.stopServing() }

func (c *Cache[K, V]) closeLocal() {
	c.local.close() // first: it must serve nothing once it hears no messages
	c.backplane.unregister(c.options.Name, c)
}

func (c *Cache[K, V]) removeWire(wire string) bool {
	decoded := false
	defer func() { // UnmarshalText can end the goroutine
		if !decoded {
			c.clearLocal()
		}
	}()
	key, err := c.keys.decode(wire)
	decoded = true
	if err != nil {
		c.stats.undecodable.Add(1)
		c.clearLocal() // which key was meant is unknown
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
