// Package transport is what a backplane needs of Redis, as interfaces. There are two
// implementations: Redis itself, and the simulated one of package fakebus.
package transport

import (
	"context"
	"errors"
)

// Bus is one instance's access to Redis.
type Bus interface {
	// First makes attempts until one succeeds, ctx ends, or another attempt would be
	// pointless.
	First(ctx context.Context, attempt func(context.Context) error) error

	// Subscribe makes one attempt to subscribe to the channel, and to the own channel of an
	// identity.
	Subscribe(ctx context.Context, as Identity) (Subscription, error)

	// Publish makes one attempt to publish one invalidation, over a connection that it
	// keeps until Redial or Close. In the same step, the invalidation's changes are applied
	// to the values in Redis. The end of ctx ends the attempt. Only one goroutine may call
	// it at a time.
	//
	// If there are values in Redis and more than MostChanges changes, it does nothing and
	// returns ErrTooManyChanges.
	Publish(ctx context.Context, m Message) error

	// Redial closes the connection that Publish keeps, even while an attempt waits on it.
	// The next attempt resolves the address and dials again.
	Redial()

	// Values returns the access to the values in Redis.
	Values() Values

	// Close is called last, when nothing else is under way except requests for values. It
	// ends those.
	Close()
}

// MostChanges bounds how many changes one message makes to the values in Redis, since
// Redis does nothing else meanwhile.
const MostChanges = 256

// ErrTooManyChanges is the error of Publish for a message that has to be split.
var ErrTooManyChanges = errors.New("too many changes for one message")

// Identity identifies an instance in one subscription. A bus puts the given heads before
// messages, so it need not know the wire format.
type Identity struct {
	ID   [16]byte // names the instance's own channel
	Echo string   // the head of its echoes, up to the positions
}

// Message is an invalidation.
type Message struct {
	Head    string // its beginning, up to the positions
	Nonce   string // its position is computed from this and from the position before
	Body    string
	Changes []Change
}

// Subscription is one confirmed subscription, to the channel and to this instance's own
// channel, over one connection. Any error ends it, and the instance subscribes again. It
// is never repaired, since messages may have been missed meanwhile.
type Subscription interface {
	// Probe makes one attempt to send a probe, over a connection of its own. Receive
	// returns its echo.
	Probe(ctx context.Context, nonce string) error

	// Receive waits for the next payload, and reports whether it came on the
	// instance's own channel.
	Receive() (payload string, own bool, err error)

	// Close ends the subscription, and a Probe and a Receive under way. Any goroutine may
	// call it.
	Close()
}

// StandIn replaces Redis for one backplane.
type StandIn struct {
	// Bus is the instance's access to it.
	Bus Bus

	// Instance is the seed of the backplane's identities. It is unique on the bus, unless
	// two instances are to look like one.
	Instance [16]byte

	// Random returns a number from 0 to n-1. All of the backplane's jitter and its nonces
	// come from it.
	Random func(n int64) int64

	// FullStaleness makes the backplane's caches use their whole MaxStaleness for every
	// key. Otherwise it is shortened for some keys. Which keys depends on a hash that
	// differs from process to process, so no run could be repeated.
	FullStaleness bool

	// NoBreaker makes the backplane's caches use the shared level however often it fails.
	// Otherwise a breaker bypasses it after some failures, and then admits one request. If
	// there are two at one instant, it may admit either, so no run could be repeated.
	NoBreaker bool
}

type standInKey struct{}

// WithStandIn returns a context with which nearcache.Connect connects to s, whatever its
// options say about Redis. It is for package nearcachetest: other modules cannot import
// this package.
//
// An exported function of nearcache with a parameter of a type from here would work as
// well. But it would be in the documentation of nearcache, and no user could call it. A
// variable that one package sets and another calls would be a global. The standard library
// uses a context too: net/http/httptrace gets calls from package net through a context
// whose key is internal.
func WithStandIn(ctx context.Context, s StandIn) context.Context {
	return context.WithValue(ctx, standInKey{}, s)
}

// StandInOf returns the stand-in that WithStandIn has set in ctx. It reports false if
// there is none.
func StandInOf(ctx context.Context) (s StandIn, ok bool) {
	s, ok = ctx.Value(standInKey{}).(StandIn)
	return s, ok
}
