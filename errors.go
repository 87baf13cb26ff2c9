package nearcache

import "errors"

// The errors of this package, for use with [errors.Is]. What an operation
// returns wraps one of them and adds what it is about, and the cause.
var (
	// ErrNotFound reports that the source has no such item. A loader returns it,
	// or an error that wraps it, to say so; a hit on a kept not-found
	// (Options.NotFoundTTL) returns it bare, whatever error the loader had. A loader that
	// asks a cache for another item, with its own context, gets an error that wraps it:
	// passed on, that says nothing of the item being loaded, see Options.IsNotFound.
	ErrNotFound = errors.New("nearcache: not found")

	// ErrClosed reports a write to a cache or backplane that has been closed, or a
	// cache or an invalidator that was to be made on one. Nothing was invalidated or queued; unless
	// the error is ErrUnconfirmed too: then the write had begun before Close and
	// outlasted it, its local part is done, and nothing was queued.
	ErrClosed = errors.New("nearcache: closed")

	// ErrUnconfirmed reports that Redis has not confirmed an invalidation: it is
	// unreachable, it refused the message, or the caller's context ended first.
	// The local part is done, and the message is queued and will be sent until
	// Redis accepts it or the backplane is closed: there is nothing to repeat.
	// Flush waits for it. The error also wraps the cause.
	ErrUnconfirmed = errors.New("nearcache: invalidation not confirmed")

	// ErrInvalidKey reports a write to a key that does not survive encoding and decoding,
	// so that other instances could not tell which item is meant. The whole cache
	// was cleared instead, here and everywhere.
	ErrInvalidKey = errors.New("nearcache: key does not survive encoding")

	// ErrInvalidOptions reports options that cannot be used. Nothing was started.
	ErrInvalidOptions = errors.New("nearcache: invalid options")
)
