package nearcache

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/nearcache/nearcache/internal/transport"
)

// panics turns panics on the way to Redis into errors: those of this library, of
// go-redis, and of the hooks that BackplaneOptions.Redis hands to it. Redis is optional for a
// read, so a fault there must not end the process. It counts them, and logs the first
// in each logInterval with its stack.
type panics struct {
	logger     *slog.Logger        // nil: slog.Default()
	scrub      func(string) string // takes secrets out of a text; nil: there are none
	count      atomic.Uint64
	quietUntil atomic.Int64 // no panic is logged before, in nanoseconds since 1970
}

// errPanic is wrapped by the errors that panics have become.
var errPanic = errors.New("panic on the way to Redis")

// caught is deferred by whatever must not panic. It sets err if there was a panic.
func (p *panics) caught(where string, err *error) {
	r := recover()
	if r == nil {
		return
	}
	text := fmt.Sprint(r)
	if p.scrub != nil {
		text = p.scrub(text)
	}
	*err = fmt.Errorf("%w: %s: %s", errPanic, where, text)
	p.count.Add(1)
	now, until := time.Now(), p.quietUntil.Load()
	if now.UnixNano() < until || !p.quietUntil.CompareAndSwap(until, now.Add(logInterval).UnixNano()) {
		return
	}
	logger := p.logger
	if logger == nil {
		logger = slog.Default()
	}
	// The stack holds no values but addresses and numbers.
	logger.Error("nearcache: a panic on the way to Redis became an error",
		"in", where, "panic", text, "stack", string(debug.Stack()))
}

// apart calls f, which calls functions of the user's, in a goroutine of its own, and waits
// for it: a dialler that panics or ends its goroutine has failed, and the backplane's own
// go on.
func (p *panics) apart(where string, f func() error) (err error) {
	err = fmt.Errorf("%s: a function in BackplaneOptions.Redis called runtime.Goexit", where)
	apart(func() {
		defer p.caught(where, &err)
		err = f()
	})
	return err
}

// guardedBus is a bus that does not panic, and whose answers have the shape that was
// asked for. It is the only kind that a backplane has, so nothing gets past it.
type guardedBus struct {
	bus    transport.Bus
	panics *panics
	values guardedValues
}

var errMisshapen = errors.New("an answer of another shape than asked for")

func newGuardedBus(b transport.Bus, p *panics) *guardedBus {
	g := &guardedBus{bus: b, panics: p}
	g.values = guardedValues{bus: b, panics: p}
	return g
}

func (g *guardedBus) First(ctx context.Context, attempt func(context.Context) error) (err error) {
	defer g.panics.caught("First", &err)
	return g.bus.First(ctx, func(ctx context.Context) (err error) {
		defer g.panics.caught("First", &err) // so that another attempt can follow
		return attempt(ctx)
	})
}

func (g *guardedBus) Subscribe(ctx context.Context, as transport.Identity) (sub transport.Subscription, err error) {
	defer g.panics.caught("Subscribe", &err)
	sub, err = g.bus.Subscribe(ctx, as)
	if err != nil {
		return nil, err
	}
	return &guardedSubscription{sub, g.panics}, nil
}

func (g *guardedBus) Publish(ctx context.Context, m transport.Message) (err error) {
	defer g.panics.caught("Publish", &err)
	return g.bus.Publish(ctx, m)
}

func (g *guardedBus) Redial() {
	var err error
	defer g.panics.caught("Redial", &err)
	g.bus.Redial()
}

func (g *guardedBus) Values() transport.Values { return &g.values }

func (g *guardedBus) Close() {
	var err error
	defer g.panics.caught("Close", &err)
	g.bus.Close()
}

// guardedSubscription is a subscription that does not panic: it is lost instead.
type guardedSubscription struct {
	sub    transport.Subscription
	panics *panics
}

func (g *guardedSubscription) Probe(ctx context.Context, nonce string) (err error) {
	defer g.panics.caught("Probe", &err)
	return g.sub.Probe(ctx, nonce)
}

func (g *guardedSubscription) Receive() (payload string, own bool, err error) {
	defer g.panics.caught("Receive", &err)
	return g.sub.Receive()
}

func (g *guardedSubscription) Close() {
	var err error
	defer g.panics.caught("Subscription.Close", &err)
	g.sub.Close()
}

// guardedValues is a way to the values in Redis that does not panic: the request fails.
type guardedValues struct {
	bus    transport.Bus
	panics *panics
}

func (g *guardedValues) Read(
	ctx context.Context, cache string, keys, regions []string, most int,
) (r transport.Reading, err error) {
	defer g.panics.caught("Values.Read", &err)
	r, err = g.bus.Values().Read(ctx, cache, keys, regions, most)
	if err == nil && (len(r.Values) != len(keys) || len(r.Regions) != len(regions)) {
		err = errMisshapen
	}
	return r, err
}

func (g *guardedValues) Claim(
	ctx context.Context, cache, history string, life time.Duration, claims []transport.Claim,
) (claimed transport.Claimed, err error) {
	defer g.panics.caught("Values.Claim", &err)
	claimed, err = g.bus.Values().Claim(ctx, cache, history, life, claims)
	if err == nil && len(claimed.States) != len(claims) {
		err = errMisshapen
	}
	return claimed, err
}

func (g *guardedValues) Put(ctx context.Context, cache string, puts []transport.Put) (stored []bool, err error) {
	defer g.panics.caught("Values.Put", &err)
	stored, err = g.bus.Values().Put(ctx, cache, puts)
	if err == nil && len(stored) != len(puts) {
		err = errMisshapen
	}
	return stored, err
}

func (g *guardedValues) Keep(ctx context.Context, keeps []transport.Keep) (kept []bool, err error) {
	defer g.panics.caught("Values.Keep", &err)
	kept, err = g.bus.Values().Keep(ctx, keeps)
	if err == nil && len(kept) != len(keeps) {
		err = errMisshapen
	}
	return kept, err
}

func (g *guardedValues) Redial() {
	var err error
	defer g.panics.caught("Values.Redial", &err)
	g.bus.Values().Redial()
}
