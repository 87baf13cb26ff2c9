// Package transport is what a backplane needs of Redis, so that there can be two
// of it: Redis itself, and the simulated one of package fakebus.
package transport

import (
	"context"
	"errors"
)

// Bus is one instance's way to Redis.
type Bus interface {
	// First makes attempts until one succeeds, ctx ends, or there is no sense in
	// another.
	First(ctx context.Context, attempt func(context.Context) error) error

	// Subscribe makes one attempt at a subscription, to the channel and to that of an
	// identity.
	Subscribe(ctx context.Context, as Identity) (Subscription, error)

	// Publish makes one attempt at one invalidation, over a connection that it keeps
	// until Redial or Close. In the same step, its changes are made to the values in
	// Redis. The end of ctx ends the attempt. It is for one goroutine at a time.
	//
	// It returns ErrTooManyChanges, and has done nothing, if there are values in Redis
	// and more than MostChanges changes.
	Publish(ctx context.Context, m Message) error

	// Redial closes the connection that Publish keeps, under an attempt that waits
	// too. The next attempt dials, and resolves the address, anew.
	Redial()

	// Values returns the way to the values in Redis.
	Values() Values

	// Close is called last, when nothing else is under way, but for values: their
	// attempts end.
	Close()
}

// MostChanges bounds how many changes one message makes to the values in Redis, which
// does nothing else meanwhile.
const MostChanges = 256

// ErrTooManyChanges is why Publish has not published a message that is to be split.
var ErrTooManyChanges = errors.New("too many changes for one message")

// Identity is who an instance is in one subscription. A bus puts heads before messages,
// and so need not know the wire format.
type Identity struct {
	ID   [16]byte // of the instance's own channel
	Echo string   // what its echoes begin with, up to the positions
}

// Message is an invalidation.
type Message struct {
	Head    string // what it begins with, up to the positions
	Nonce   string // what its position is made of, together with the one before
	Body    string
	Changes []Change
}

// Subscription is one confirmed subscription, to the channel and to this
// instance's own, over one connection. Whatever goes wrong ends it for good and a
// new one is made; the old one is never mended, since messages may have been
// missed in between.
type Subscription interface {
	// Probe makes one attempt at a probe, over a connection of its own. Its echo
	// comes by Receive.
	Probe(ctx context.Context, nonce string) error

	// Receive waits for the next payload, and reports whether it came on the
	// instance's own channel.
	Receive() (payload string, own bool, err error)

	// Close ends the subscription, and a Probe and a Receive that wait, from any
	// goroutine.
	Close()
}

// StandIn is what takes the place of Redis for one backplane.
type StandIn struct {
	// Bus is the instance's way to it.
	Bus Bus

	// Instance is what the backplane's identities are made of. No other on the bus has
	// it, unless they are to be taken for one.
	Instance [16]byte

	// Random returns a number from 0 to n-1. All of the backplane's jitter is drawn
	// from it, and its nonces are made of it.
	Random func(n int64) int64

	// FullStaleness has the backplane's caches use all of their MaxStaleness for every
	// key. Otherwise a part of it is left out for some keys. Which keys those are depends
	// on a hash that differs from process to process, so no run could be repeated.
	FullStaleness bool

	// NoBreaker has the backplane's caches ask the shared level however often it fails.
	// Otherwise a breaker leaves it alone after some failures, and then admits one
	// request. Of two requests at one instant that may be either.
	NoBreaker bool
}

type standInKey struct{}

// WithStandIn returns a context by which nearcache.Connect connects to s, whatever
// its options say of Redis. Package nearcachetest gets in this way, and nobody
// else can: other modules cannot import this package.
//
// An exported function of nearcache with a parameter of a type from here would do,
// but stand in everybody's documentation and be of use to nobody; a variable that
// one package sets and another calls would be a global. The standard library does
// it this way too: net/http/httptrace hears from package net by a context, whose
// key is internal.
func WithStandIn(ctx context.Context, s StandIn) context.Context {
	return context.WithValue(ctx, standInKey{}, s)
}

// StandInOf returns what WithStandIn put into ctx, if it did.
func StandInOf(ctx context.Context) (s StandIn, ok bool) {
	s, ok = ctx.Value(standInKey{}).(StandIn)
	return s, ok
}
