package nearcache

import (
	"cmp"
	"context"
	"fmt"
	"strings"
)

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
	alone := c.alone()
	if !alone {
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
	case alone:
		c.local.put(hash, key, start, &o)
		if c.local.closed.Load() {
			inv, _, _ = c.removalOf(key)
			c.tellSuccessor(inv)
		}
		return nil
	}
	return c.publish(ctx, inv, func() { c.local.put(hash, key, start, &o) })
}

// alone reports whether nobody is to hear of a write, and its key cannot be at
// fault: then the key need not be put into the form that it has in messages.
func (c *Cache[K, V]) alone() bool {
	return c.backplane.publisher == nil && c.keys.exact
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

// What an announcer asks of a cache, see memory.

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

// announcer tells the instances of invalidations, this one included. Cache and
// Invalidator share it.
type announcer[K comparable] struct {
	backplane *Backplane
	name      string // of the cache
	keys      keyCodec[K]
	memory    memory[K]
}

// memory is what this instance has to do for its own invalidations.
type memory[K comparable] interface {
	closedHere() bool // it is: a write is refused

	// applyLocal evicts what an invalidation is about. The keys are those of inv, if it
	// has any, before they were encoded.
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

// ClearRegion evicts every item of the regions, here and in every other
// instance, in a time that does not depend on how many there are. An item's
// regions are those that Regions returned for the copy that is held. The errors
// are those of Remove. No regions: nothing happens.
func (a *announcer[K]) ClearRegion(ctx context.Context, regions ...string) error {
	if len(regions) == 0 {
		return a.invalidate(ctx, nil, nil)
	}
	return a.invalidate(ctx, &invalidation{cache: a.name, regions: regions}, nil)
}

// Clear evicts every item of this cache, here and in every other instance, in a
// time that does not depend on how many there are. The errors are those of
// Remove.
func (a *announcer[K]) Clear(ctx context.Context) error {
	return a.invalidate(ctx, &invalidation{cache: a.name, clear: true}, nil)
}

// invalidate evicts what inv is about, here and in every other instance. Nil is about
// nothing.
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

// enter refuses a write on a closed cache or backplane. Each success is paired with one
// backplane.leave, before which the backplane closes only if its time is up. So no
// callback is called in between, except those of Update, which has written the source
// by then.
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

// removal returns the invalidation of keys: a clear of the cache, and an error
// that says so, if one of them cannot be named to others.
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

// removalOf is removal of one key, and returns the key to go on with, see keyCodec.name.
func (a *announcer[K]) removalOf(key K) (invalidation, K, error) {
	wire, again, err := a.keys.name(key)
	if err != nil {
		inv, err := a.unnamed(key, err)
		return inv, key, err
	}
	return invalidation{cache: a.name, keys: []string{wire}}, again, nil
}

// unnamed is the removal of a key that cannot be named to others, for that reason.
func (a *announcer[K]) unnamed(key K, cause error) (invalidation, error) {
	return invalidation{cache: a.name, clear: true}, fmt.Errorf(
		"%w: cache %q, key %v: %w; the whole cache was cleared", ErrInvalidKey, a.name, key, cause)
}

// joinErrors returns one error that wraps those of its two that are not nil.
func joinErrors(keyErr, published error) error {
	if keyErr != nil && published != nil {
		return fmt.Errorf("%w: %w", keyErr, published)
	}
	return cmp.Or(keyErr, published)
}
