package nearcache

import (
	"cmp"
	"context"
	"fmt"
	"strings"
)

// Set keeps value under key here, and evicts every other instance's copy. Call it after
// value was written to the source, and only if nothing else writes the same item. Two
// writers may race: the one whose write the source took first may call Set last. Then its
// value stays until the TTL. Update has no such race, and Remove is always right. Set is
// not for filling a cache: every call evicts the item from all other instances.
//
// Set calls Expiry, Weigh and Regions, and then takes effect in one moment. A clear of the
// cache, or of one of the item's regions, makes the item invalid if it comes after the call
// began. Another write to the item does so if it comes after that moment. The errors are
// those of Remove.
func (c *Cache[K, V]) Set(ctx context.Context, key K, value V) error {
	if c.isClosed() {
		return c.refusal()
	}
	// All callbacks come before the write counts as one that Close waits for: Close may be
	// called from a callback.
	var inv invalidation
	alone := c.alone()
	if !alone {
		var err error
		if inv, key, err = c.removalOf(key); err != nil {
			return joinErrors(err, c.Clear(ctx))
		}
	}
	key = c.local.own(key)
	hash := c.local.hash(key)
	sh := c.local.shard(hash)
	start := c.local.beginWork(sh)
	defer c.local.endWork(sh)
	var o outcome[V]
	c.decideSet(key, value, inv, &o)
	if err := c.enter(); err != nil {
		return err
	}
	defer c.backplane.leave()
	if !alone {
		return c.publish(ctx, inv, func() { c.local.put(hash, key, start, &o) })
	}
	c.local.put(hash, key, start, &o)
	if c.local.closed.Load() {
		c.tellSuccessorOf(key)
	}
	return nil
}

// decideSet decides what is kept of value, and says it in o. If a callback panics, or ends
// the goroutine, the item is evicted everywhere.
func (c *Cache[K, V]) decideSet(key K, value V, inv invalidation, o *outcome[V]) {
	decided := false
	defer func() {
		if !decided && c.enter() == nil {
			defer c.backplane.leave()
			c.enqueue(inv, func() { c.removeLocal(key) })
		}
	}()
	c.keeper.of(key, value, nil, o)
	decided = true
}

// alone reports whether no other instance is to be told of a write, and every key can be
// encoded. Then the key need not be encoded.
func (c *Cache[K, V]) alone() bool {
	return c.backplane.publisher == nil && c.keys.exact
}

// Update runs write, keeps the value that it returns here, and evicts every other
// instance's copy. write has to change the item at the source and return its new value.
//
// The value is kept only if nothing invalidated the item while write ran. Another Update of
// the item invalidates it too: of two that overlap, neither value is kept, since it is not
// known which of them the source took last.
//
// write runs in the caller's goroutine, with ctx. It must not call Backplane.Close, which
// waits for it. If write fails or panics, the item is evicted everywhere, since it is not
// known what reached the source. Update then returns write's own error as it is. If write
// succeeded, the value is valid even if there is an error. The errors are those of Remove.
// After Close, write is not called.
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
	var w *pendingWrite // nil: the key cannot be fenced, so the cache is cleared at the end
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
		if !returned { // by a panic: a caller that recovers from it expects no wait
			c.enqueue(inv, localPart)
			return
		}
		if published := c.publish(ctx, inv, localPart); err == nil {
			err = joinErrors(keyErr, published)
		}
	}()
	value, err = write(ctx)
	if err == nil && w != nil {
		var decided outcome[V] // becomes o only if nothing panics
		c.keeper.of(key, value, nil, &decided)
		o = decided
	}
	returned = true
	return value, err
}

// publish does the local part of a write, tells the other instances, and waits until Redis
// has accepted the message.
func (c *Cache[K, V]) publish(ctx context.Context, inv invalidation, local func()) error {
	return c.backplane.publish(ctx, inv, func() {
		local()
		c.tellSuccessor(inv)
	})
}

// enqueue is publish without the wait.
func (c *Cache[K, V]) enqueue(inv invalidation, local func()) {
	c.backplane.enqueue(inv, func() {
		local()
		c.tellSuccessor(inv)
	})
}

// tellSuccessor does the local part of a write on the cache that has this one's name now.
//
//  1. an Update begins   2. its cache is closed, and another one of its name is made
//  3. a Get on the new cache loads version 1   4. the Update writes version 2. This
//     instance does not apply its own message again, so version 1 would stay.
func (c *Cache[K, V]) tellSuccessor(inv invalidation) {
	if c.local.closed.Load() {
		c.backplane.applyHere(inv)
	}
}

// tellSuccessorOf is tellSuccessor for one key, which was not encoded before.
func (c *Cache[K, V]) tellSuccessorOf(key K) {
	inv, _, _ := c.removalOf(key)
	c.tellSuccessor(inv)
}

// The methods of a cache that its announcer calls, see memory.

func (c *Cache[K, V]) closedHere() bool { return c.local.closed.Load() }

func (c *Cache[K, V]) applyLocal(inv invalidation, keys []K) {
	switch {
	case inv.clear:
		c.clearLocal()
	case len(inv.regions) > 0:
		c.clearRegionsLocal(inv.regions)
	default:
		c.removeLocal(keys...)
	}
	c.tellSuccessor(inv)
}

// announcer tells all instances of invalidations, this one included. Cache and Invalidator
// share it.
type announcer[K comparable] struct {
	backplane *Backplane
	name      string // the cache's
	keys      keyCodec[K]
	memory    memory[K]
}

// memory is what an announcer's own invalidations do to the memory of this instance.
type memory[K comparable] interface {
	closedHere() bool // reports whether the cache is closed: then writes are refused

	// applyLocal evicts what inv is about. keys are the keys of inv before they were
	// encoded, if it has any.
	applyLocal(inv invalidation, keys []K)
}

func newAnnouncer[K comparable](bp *Backplane, name string) (a announcer[K], err error) {
	switch {
	case bp == nil:
		return a, fmt.Errorf("%w: the backplane of cache %q is nil; use Connect, or Local for none", ErrInvalidOptions, name)
	case bp.lease == nil:
		return a, fmt.Errorf("%w: the backplane of cache %q is a zero Backplane; use Connect, or Local", ErrInvalidOptions, name)
	}
	keys, err := newKeyCodec[K]()
	if err != nil {
		return a, fmt.Errorf("%w: cache %q: %w", ErrInvalidOptions, name, err)
	}
	return announcer[K]{backplane: bp, name: strings.Clone(name), keys: keys}, nil
}

// Remove evicts items here and in every other instance. Call it after the source was
// changed.
//
// The local part is done when Remove returns, whatever it returns, and even if ctx has
// ended. ctx bounds only the wait for Redis. That wait also ends when the attempt to send
// the message fails. While attempts fail there is no wait. Backplane.Flush waits longer.
//
// An attempt waits for an answer at most for the command timeout: asyncTimeout in the
// connection string, else syncTimeout, else Redis.ReadTimeout, else 5 seconds. It may have
// to connect first. A write may also have to wait for the attempt before its own.
//
// Remove returns nil when Redis has accepted the message. It returns an error that wraps
// ErrUnconfirmed when Redis has not accepted it yet: the message is queued, and nothing
// needs to be repeated. The error wraps ErrInvalidKey if a key does not survive encoding:
// the cache is cleared everywhere instead. After Close it wraps ErrClosed. Without keys,
// nothing happens. Other instances are told to clear the cache if there are more than 65
// 536 keys.
func (a *announcer[K]) Remove(ctx context.Context, keys ...K) error {
	if a.isClosed() {
		return a.refusal()
	}
	inv, keyErr := a.removal(keys...) // first: it calls MarshalText, which may call Close
	if len(keys) == 0 {
		return a.invalidate(ctx, nil, nil)
	}
	return joinErrors(keyErr, a.invalidate(ctx, &inv, keys))
}

// ClearRegion evicts every item of the regions, here and in every other instance. The time
// that it takes does not depend on how many items there are. An item's regions are those
// that Regions returned for the copy in memory. The errors are those of Remove. Without
// regions, nothing happens.
func (a *announcer[K]) ClearRegion(ctx context.Context, regions ...string) error {
	if len(regions) == 0 {
		return a.invalidate(ctx, nil, nil)
	}
	return a.invalidate(ctx, &invalidation{cache: a.name, regions: regions}, nil)
}

// Clear evicts every item of this cache, here and in every other instance. The time that it
// takes does not depend on how many items there are. The errors are those of Remove.
func (a *announcer[K]) Clear(ctx context.Context) error {
	return a.invalidate(ctx, &invalidation{cache: a.name, clear: true}, nil)
}

// invalidate evicts what inv is about, here and in every other instance. If inv is nil, it
// evicts nothing.
func (a *announcer[K]) invalidate(ctx context.Context, inv *invalidation, keys []K) error {
	if err := a.enter(); err != nil {
		return err
	}
	defer a.backplane.leave()
	if inv == nil {
		return nil
	}
	return a.backplane.publish(ctx, *inv, func() { a.memory.applyLocal(*inv, keys) })
}

// enter counts a write, or refuses it if the cache or the backplane is closed. Each success
// is paired with one backplane.leave. Until then the backplane does not close, unless its
// time is up. So no callback is called in between, except those of Update: it has written
// the source by then.
func (a *announcer[K]) enter() error {
	if a.memory.closedHere() || !a.backplane.enter() {
		return a.refusal()
	}
	return nil
}

// isClosed reports whether a write would be refused now.
func (a *announcer[K]) isClosed() bool { return a.memory.closedHere() || a.backplane.closing.Load() }

// refusal is the error of a write after Close.
func (a *announcer[K]) refusal() error { return fmt.Errorf("%w: cache %q", ErrClosed, a.name) }

// removal returns the invalidation of keys. If one of them cannot be encoded, that is a
// clear of the cache, and removal returns an error that says so.
func (a *announcer[K]) removal(keys ...K) (invalidation, error) {
	wires := make([]string, len(keys))
	for i, key := range keys {
		wire, err := a.keys.wire(key)
		if err != nil {
			return a.unnamed(key, err)
		}
		wires[i] = wire
	}
	return invalidation{cache: a.name, keys: wires}, nil
}

// removalOf is removal for one key. It also returns the key to continue with, see
// keyCodec.name.
func (a *announcer[K]) removalOf(key K) (invalidation, K, error) {
	wire, again, err := a.keys.name(key)
	if err != nil {
		inv, err := a.unnamed(key, err)
		return inv, key, err
	}
	return invalidation{cache: a.name, keys: []string{wire}}, again, nil
}

// unnamed is the removal of a key that cannot be encoded, because of cause.
func (a *announcer[K]) unnamed(key K, cause error) (invalidation, error) {
	return invalidation{cache: a.name, clear: true}, fmt.Errorf(
		"%w: cache %q, key %v: %w; the whole cache was cleared", ErrInvalidKey, a.name, key, cause)
}

// joinErrors returns an error that wraps those of its arguments that are not nil.
func joinErrors(keyErr, published error) error {
	if keyErr != nil && published != nil {
		return fmt.Errorf("%w: %w", keyErr, published)
	}
	return cmp.Or(keyErr, published)
}
