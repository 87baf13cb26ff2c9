package nearcache

import (
	"context"
	"fmt"
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

// Set keeps value under key here and evicts every other instance's copy. Call it
// after writing value to the source, and only if no one else writes the same
// item: of two writers that race, the one whose write the source took first can
// be the one that Set last, and its value stays until the TTL. Update has no such
// race, and Remove is right whenever in doubt. Set is not for filling a cache:
// every call evicts the item from all other instances.
//
// Set takes effect in one moment, after it has called Expiry, Weigh and Regions.
// A clear of the cache or of one of the item's regions counts against the item from
// the call on, another write to the item from that moment on. The errors are those
// of Remove.
func (c *Cache[K, V]) Set(ctx context.Context, key K, value V) error {
	if c.isClosed() {
		return c.refusal()
	}
	// All callbacks come before the write is counted as one that Close waits for: it may
	// be called from them.
	var inv invalidation
	var keyErr error
	if !c.alone() {
		inv, key, keyErr = c.removalOf(key)
	}
	key = c.local.own(key)
	hash := c.local.hash(key)
	sh := c.local.shard(hash)
	start := c.local.beginWork(sh)
	defer c.local.endWork(sh)
	var o outcome[V]
	if keyErr == nil {
		decided := false
		defer func() {
			if !decided && c.enter() == nil { // a callback panicked
				defer c.backplane.leave()
				c.enqueue(inv, func() { c.removeLocal(key) })
			}
		}()
		c.keeper.of(key, value, nil, &o)
		decided = true
	}
	if err := c.enter(); err != nil {
		return err
	}
	defer c.backplane.leave()
	switch {
	case keyErr != nil:
		return joinErrors(keyErr, c.publish(ctx, inv, c.clearLocal))
	case c.alone():
		c.local.put(hash, key, start, &o)
		return nil
	}
	return c.publish(ctx, inv, func() { c.local.put(hash, key, start, &o) })
}

// alone reports whether nobody is to hear of a write, and its key cannot be at
// fault: then the key need not be put into the form that it has in messages.
func (c *Cache[K, V]) alone() bool {
	return c.backplane.publisher == nil && c.keys.exact && !c.local.closed.Load()
}

// Update runs write, which is to change the item at the source and return its
// new value, keeps that value here, and evicts every other instance's copy. It
// takes care of the order: the value is kept only if nothing invalidated the
// item while write ran, another Update of it included; neither of two that
// overlap is kept, since nobody knows which of them the source took last.
//
// write runs in the caller's goroutine, with ctx. It must not call Backplane.Close, which
// waits for it. If it fails or panics, the item
// is evicted everywhere, since what reached the source is unknown; Update returns
// write's own error as it is. If write succeeded, the value is valid whatever the
// error; the errors are those of Remove. After Close write is not called.
func (c *Cache[K, V]) Update(
	ctx context.Context, key K, write func(context.Context) (V, error),
) (value V, err error) {
	if write == nil {
		return value, fmt.Errorf("%w: cache %q: Update's write is nil", ErrInvalidOptions, c.options.Name)
	}
	if c.isClosed() {
		return value, c.refusal()
	}
	inv, key, keyErr := c.removalOf(key) // first: it calls MarshalText
	if err := c.enter(); err != nil {
		return value, err
	}
	defer c.backplane.leave()
	key = c.local.own(key)
	var w *pendingWrite // nil: the key cannot be fenced, so everything is cleared at the end
	if keyErr == nil {
		w = c.local.beginWrite(key)
	}
	var o outcome[V]
	returned := false
	localPart := func() {
		if w != nil {
			c.local.endWrite(key, w, &o)
		} else {
			c.clearLocal()
		}
	}
	defer func() {
		if !returned { // by a panic: whoever recovers it expects no wait
			c.enqueue(inv, localPart)
			return
		}
		if published := c.publish(ctx, inv, localPart); err == nil {
			err = joinErrors(keyErr, published)
		}
	}()
	value, err = write(ctx)
	if err == nil && w != nil {
		var decided outcome[V] // to be o only if nothing panics
		c.keeper.of(key, value, nil, &decided)
		o = decided
	}
	returned = true
	return value, err
}

// Remove evicts items here and in every other instance. Call it after the source
// was changed. The local part is done when it returns, whatever it returns, and
// even if ctx has ended: ctx bounds only the wait for Redis. That wait also ends
// when the attempt to send the message fails, and there is none while attempts
// fail; Backplane.Flush waits longer. An attempt waits for an answer for the
// command timeout at most (asyncTimeout, else syncTimeout, in the connection
// string, Redis.ReadTimeout, or 5 seconds), after connecting anew if it has to; a
// write may also have to wait for the attempt before its own.
//
// It returns nil when Redis has accepted the message, an error that wraps
// ErrUnconfirmed when it has not yet (nothing is to be repeated: it is queued),
// ErrInvalidKey if a key does not survive encoding (the cache is cleared everywhere
// instead), or ErrClosed. No keys: nothing happens. More than 65 536 keys are told
// to other instances as a clear of the cache.
func (c *Cache[K, V]) Remove(ctx context.Context, keys ...K) error {
	if c.isClosed() {
		return c.refusal()
	}
	inv, keyErr := c.removal(keys...) // first: it calls MarshalText
	if err := c.enter(); err != nil {
		return err
	}
	defer c.backplane.leave()
	if len(keys) == 0 {
		return nil
	}
	return joinErrors(keyErr, c.publish(ctx, inv, func() {
		if inv.clear {
			c.clearLocal()
		} else {
			c.removeLocal(keys...)
		}
	}))
}

// ClearRegion evicts every item of the regions, here and in every other
// instance, in a time that does not depend on how many there are. An item's
// regions are those that Regions returned for the copy that is held. The errors
// are those of Remove. No regions: nothing happens.
func (c *Cache[K, V]) ClearRegion(ctx context.Context, regions ...string) error {
	if err := c.enter(); err != nil {
		return err
	}
	defer c.backplane.leave()
	if len(regions) == 0 {
		return nil
	}
	return c.publish(ctx, invalidation{cache: c.options.Name, regions: regions},
		func() { c.clearRegionsLocal(regions) })
}

// Clear evicts every item of this cache, here and in every other instance, in a
// time that does not depend on how many there are. The errors are those of
// Remove.
func (c *Cache[K, V]) Clear(ctx context.Context) error {
	if err := c.enter(); err != nil {
		return err
	}
	defer c.backplane.leave()
	return c.publish(ctx, invalidation{cache: c.options.Name, clear: true}, c.clearLocal)
}

// enter refuses a write to a closed cache, and is the announcer's otherwise. From here
// until backplane.leave Close waits, so no callback is called in between but those of
// Update, which has written the source by then.
func (c *Cache[K, V]) enter() error {
	if c.local.closed.Load() {
		return c.refusal()
	}
	return c.announcer.enter()
}

// isClosed reports whether a write would be refused now.
func (c *Cache[K, V]) isClosed() bool { return c.local.closed.Load() || c.backplane.closing.Load() }

// publish does the local part of a write, tells the other instances, and waits for
// Redis to accept it.
func (c *Cache[K, V]) publish(ctx context.Context, inv invalidation, local func()) error {
	return c.backplane.publish(ctx, inv, func() {
		local()
		c.tellSuccessor(inv)
	})
}

// enqueue is publish, and waits for nothing.
func (c *Cache[K, V]) enqueue(inv invalidation, local func()) {
	c.backplane.enqueue(inv, func() {
		local()
		c.tellSuccessor(inv)
	})
}

// tellSuccessor does the local part of a write for the cache that has this one's
// name now.
//
//  1. an Update begins   2. its cache is closed, and made anew   3. a Get on the new
//     one loads version 1   4. the Update writes version 2. Its own message comes
//     back as work that was done.
func (c *Cache[K, V]) tellSuccessor(inv invalidation) {
	if c.local.closed.Load() {
		c.backplane.applyHere(inv)
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
