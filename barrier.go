package nearcache

import (
	"context"
	"errors"
	"time"

	"github.com/nearcache/nearcache/internal/barrier"
	"github.com/nearcache/nearcache/internal/transport"
)

// guardedBus is a bus that does not panic, and whose answers have as many parts as were
// asked for. A backplane has no other bus, so every request passes through it.
type guardedBus struct {
	bus    transport.Bus
	panics *barrier.Panics
	values guardedValues
}

var errMisshapen = errors.New("an answer of another shape than asked for")

func newGuardedBus(b transport.Bus, p *barrier.Panics) *guardedBus {
	g := &guardedBus{bus: b, panics: p}
	g.values = guardedValues{bus: b, panics: p}
	return g
}

func (g *guardedBus) First(ctx context.Context, attempt func(context.Context) error) (err error) {
	defer g.panics.Caught("First", &err)
	return g.bus.First(ctx, func(ctx context.Context) (err error) {
		defer g.panics.Caught("First", &err) // here too, so that another attempt can follow
		return attempt(ctx)
	})
}

func (g *guardedBus) Subscribe(ctx context.Context, as transport.Identity) (sub transport.Subscription, err error) {
	defer g.panics.Caught("Subscribe", &err)
	sub, err = g.bus.Subscribe(ctx, as)
	if err != nil {
		return nil, err
	}
	return &guardedSubscription{sub, g.panics}, nil
}

func (g *guardedBus) Publish(ctx context.Context, m transport.Message) (err error) {
	defer g.panics.Caught("Publish", &err)
	return g.bus.Publish(ctx, m)
}

func (g *guardedBus) Redial() {
	var err error
	defer g.panics.Caught("Redial", &err)
	g.bus.Redial()
}

func (g *guardedBus) Values() transport.Values { return &g.values }

func (g *guardedBus) Close() {
	var err error
	defer g.panics.Caught("Close", &err)
	g.bus.Close()
}

// guardedSubscription is a subscription that does not panic: it fails with an error.
type guardedSubscription struct {
	sub    transport.Subscription
	panics *barrier.Panics
}

func (g *guardedSubscription) Probe(ctx context.Context, nonce string) (err error) {
	defer g.panics.Caught("Probe", &err)
	return g.sub.Probe(ctx, nonce)
}

func (g *guardedSubscription) Receive() (payload string, own bool, err error) {
	defer g.panics.Caught("Receive", &err)
	return g.sub.Receive()
}

func (g *guardedSubscription) Close() {
	var err error
	defer g.panics.Caught("Subscription.Close", &err)
	g.sub.Close()
}

// guardedValues is access to the values in Redis that does not panic: the request fails
// with an error.
type guardedValues struct {
	bus    transport.Bus
	panics *barrier.Panics
}

func (g *guardedValues) Read(
	ctx context.Context, cache string, keys, regions []string, most int,
) (r transport.Reading, err error) {
	defer g.panics.Caught("Values.Read", &err)
	r, err = g.bus.Values().Read(ctx, cache, keys, regions, most)
	if err == nil && (len(r.Values) != len(keys) || len(r.Regions) != len(regions)) {
		err = errMisshapen
	}
	return r, err
}

func (g *guardedValues) Claim(
	ctx context.Context, cache, history string, life time.Duration, claims []transport.Claim,
) (claimed transport.Claimed, err error) {
	defer g.panics.Caught("Values.Claim", &err)
	claimed, err = g.bus.Values().Claim(ctx, cache, history, life, claims)
	if err == nil && len(claimed.States) != len(claims) {
		err = errMisshapen
	}
	return claimed, err
}

func (g *guardedValues) Put(ctx context.Context, cache string, puts []transport.Put) (stored []bool, err error) {
	defer g.panics.Caught("Values.Put", &err)
	stored, err = g.bus.Values().Put(ctx, cache, puts)
	if err == nil && len(stored) != len(puts) {
		err = errMisshapen
	}
	return stored, err
}

func (g *guardedValues) Keep(ctx context.Context, keeps []transport.Keep) (kept []bool, err error) {
	defer g.panics.Caught("Values.Keep", &err)
	kept, err = g.bus.Values().Keep(ctx, keeps)
	if err == nil && len(kept) != len(keeps) {
		err = errMisshapen
	}
	return kept, err
}

func (g *guardedValues) Redial() {
	var err error
	defer g.panics.Caught("Values.Redial", &err)
	g.bus.Values().Redial()
}
