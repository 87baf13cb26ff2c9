package nearcache

import (
	"context"
)

// A loader that asks a cache for another item may get a not-found, and wrap it in its own
// error.
//
//  1. the load of product 7 asks the cache of categories for its category   2. that category
//     does not exist: ErrNotFound   3. the load returns "category of product 7: %w"
//  4. product 7, which does exist, is kept as missing.
//
// So a not-found that goes to a loader is marked. It has the same text, and wraps the error
// that other callers get. An error that wraps a marked one counts as a failure of the load.

// markedNotFound is a not-found that a loader got from a cache.
type markedNotFound struct {
	cache string // the cache that it came from
	err   error
}

func (e *markedNotFound) Error() string { return e.err.Error() }

func (e *markedNotFound) Unwrap() error { return e.err }

// marked returns err in the form for a caller with that context: marked, if the caller is a
// loader and err is a not-found.
func (c *Cache[K, V]) marked(ctx context.Context, err error) error {
	if err == nil || originOf(ctx).load == nil {
		return err
	}
	if err != ErrNotFound && !c.keeper.isNotFound(err) {
		return err
	}
	return &markedNotFound{cache: c.options.Name, err: err}
}
