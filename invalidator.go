package nearcache

import (
	"cmp"
	"context"
	"fmt"
	"strings"
)

// Invalidator evicts items of a cache that lives in other processes: for a job or
// an admin tool that changes what a service has cached. It has neither loader nor
// memory. Its methods may be called from any number of goroutines.
//
// Call it after the source was changed, as one calls Cache.Remove.
type Invalidator[K comparable] struct {
	announcer[K]
}

// NewInvalidator makes an invalidator of the caches with that name, on the
// backplane's channel. There may be any number of one name; nothing has to be
// closed. If the same backplane has a cache of that name it is invalidated too, as
// if by its own methods, and at once.
//
// K is the key type of those caches, or one with the same form in messages, see
// [New]: a key that a cache's own type cannot read clears that cache.
//
// The error wraps ErrInvalidOptions, if the name or K is none that a cache can have or bp
// is nil, or ErrClosed if bp is closed.
func NewInvalidator[K comparable](bp *Backplane, name string) (*Invalidator[K], error) {
	var wrong optionErrors
	wrong.checkName("name", name)
	if err := wrong.err(); err != nil {
		return nil, err
	}
	announces, err := newAnnouncer[K](bp, name)
	if err != nil {
		return nil, err
	}
	if bp.closing.Load() {
		return nil, announces.refusal()
	}
	return &Invalidator[K]{announces}, nil
}

// Remove evicts items in every instance. It is [Cache.Remove], with the same
// errors, for a cache that need not be here: nil when Redis has accepted the
// message, an error that wraps ErrUnconfirmed when it has not yet (it is queued,
// and nothing is to be repeated), ErrInvalidKey if a key does not survive encoding (the
// cache is cleared instead), or ErrClosed after the backplane's Close. No keys:
// nothing happens.
func (i *Invalidator[K]) Remove(ctx context.Context, keys ...K) error {
	if i.backplane.closing.Load() {
		return i.refusal()
	}
	inv, keyErr := i.removal(keys...) // first: it calls MarshalText, which may call Close
	if err := i.enter(); err != nil {
		return err
	}
	defer i.backplane.leave()
	if len(keys) == 0 {
		return nil
	}
	return joinErrors(keyErr, i.publish(ctx, inv))
}

// ClearRegion evicts every item of the regions, in every instance. The errors are
// those of Remove. No regions: nothing happens.
func (i *Invalidator[K]) ClearRegion(ctx context.Context, regions ...string) error {
	if err := i.enter(); err != nil {
		return err
	}
	defer i.backplane.leave()
	if len(regions) == 0 {
		return nil
	}
	return i.publish(ctx, invalidation{cache: i.name, regions: regions})
}

// Clear evicts every item of the cache, in every instance. The errors are those
// of Remove.
func (i *Invalidator[K]) Clear(ctx context.Context) error {
	if err := i.enter(); err != nil {
		return err
	}
	defer i.backplane.leave()
	return i.publish(ctx, invalidation{cache: i.name, clear: true})
}

// publish does the local part of a write, if there is a cache here, tells the
// other instances, and waits for Redis to accept it.
//
//  1. the cache here loads version 1   2. version 2 is written, and its key removed
//  3. the message comes back as one of this instance's own, and is passed over as
//     work that was done before it was queued: so it has to be done now.
func (i *Invalidator[K]) publish(ctx context.Context, inv invalidation) error {
	return i.backplane.publish(ctx, inv, func() { i.backplane.applyHere(inv) })
}

// announcer is the part of a write that Cache and Invalidator share: which cache
// is meant, and how its keys are named to others.
type announcer[K comparable] struct {
	backplane *Backplane
	name      string // of the cache
	keys      keyCodec[K]
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

// enter refuses a write on a closed backplane. Each success is paired with one
// backplane.leave, before which the backplane closes only if its time is up.
func (a *announcer[K]) enter() error {
	if !a.backplane.enter() {
		return a.refusal()
	}
	return nil
}

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

// joined returns one error that wraps those of its two that are not nil.
func joinErrors(keyErr, published error) error {
	if keyErr != nil && published != nil {
		return fmt.Errorf("%w: %w", keyErr, published)
	}
	return cmp.Or(keyErr, published)
}
