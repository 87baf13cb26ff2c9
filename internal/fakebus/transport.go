package fakebus

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/nearcache/nearcache/internal/transport"
)

// way is an instance's end of the network as a backplane wants it.
type way struct {
	*Instance
	heads  transport.Heads
	values *values
}

// Bus returns the instance's end of the network as a backplane wants it, for one
// backplane at a time.
func (in *Instance) Bus(heads transport.Heads) transport.Bus {
	return &way{in, heads, &values{in: in}}
}

// First makes one attempt: a test that wants more begins without a connection.
func (w *way) First(ctx context.Context, attempt func(context.Context) error) error {
	return attempt(ctx)
}

func (w *way) Subscribe(ctx context.Context) (transport.Subscription, error) {
	s, err := w.Instance.Subscribe(ctx)
	if err != nil {
		return nil, err
	}
	return &wayBack{s, w.heads}, nil
}

func (w *way) Publish(ctx context.Context, body string, changes []transport.Change) error {
	return w.Instance.Publish(ctx, w.heads.Invalidation, body, changes)
}

func (w *way) Values() transport.Values { return w.values }

func (w *way) Close() {
	w.Redial()
	w.values.drop(true)
}

type wayBack struct {
	*Subscription
	heads transport.Heads
}

func (w *wayBack) Probe(ctx context.Context, nonce string) error {
	return w.Subscription.Probe(ctx, w.heads.Echo, nonce)
}

// Jitter returns a number from 0 to n-1. It follows from the seed, the instance
// and the time, and not from who else has drawn one, so that goroutines that run
// at one instant do not depend on each other's order.
func (in *Instance) Jitter(n int64) int64 {
	now := uint64(time.Now().UnixNano())
	return rand.New(rand.NewPCG(in.bus.options.Seed, now^uint64(in.number+1)<<56)).Int64N(n)
}
