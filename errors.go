package nearcache

import "errors"

// The errors of this package, for use with [errors.Is]. An operation returns an error
// that wraps one of them, and that adds what it concerns and the cause.
var (
	// ErrNotFound reports that the item does not exist in the source. A loader returns it,
	// or an error that wraps it. A hit on a kept not-found (Options.NotFoundTTL) returns
	// ErrNotFound itself, whatever error the loader returned.
	//
	// A loader may get an error that wraps ErrNotFound from a Get for another item. If the
	// loader returns that error, it does not count as a not-found of the item that is
	// being loaded, see Options.IsNotFound.
	ErrNotFound = errors.New("nearcache: not found")

	// ErrClosed reports a write to a cache or backplane that is closed, or a call of New or
	// NewInvalidator on such a backplane. Nothing was invalidated or queued.
	//
	// If the error wraps ErrUnconfirmed too, the write began before Close and lasted
	// longer. Then it is done on this instance, and other instances were not told.
	ErrClosed = errors.New("nearcache: closed")

	// ErrUnconfirmed reports that Redis has not confirmed an invalidation: Redis is
	// unreachable, it refused the message, or the caller's context ended first. The
	// invalidation is done on this instance. Its message is queued, and will be sent until
	// Redis accepts it or the backplane is closed. So the caller need not repeat the call;
	// Flush waits for the message. The error also wraps the cause.
	ErrUnconfirmed = errors.New("nearcache: invalidation not confirmed")

	// ErrInvalidKey reports a write to a key that is not the same after encoding and
	// decoding, so other instances could not know which item is meant. Instead, the whole
	// cache was cleared, on this instance and on all others.
	ErrInvalidKey = errors.New("nearcache: key does not survive encoding")

	// ErrInvalidOptions reports options that cannot be used. Nothing was started. The
	// error's text names every option that is wrong.
	ErrInvalidOptions = errors.New("nearcache: invalid options")
)
