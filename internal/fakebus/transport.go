package fakebus

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/nearcache/nearcache/internal/transport"
)

// way is an instance's end of the network as a transport.Bus.
type way struct {
	*Instance
	values *values
}

// Bus returns the instance's end of the network as a transport.Bus, for one backplane at a
// time.
func (in *Instance) Bus() transport.Bus {
	return &way{in, &values{in: in}}
}

// First makes one attempt. A test that needs more starts with AllowDisconnectedStart.
func (w *way) First(ctx context.Context, attempt func(context.Context) error) error {
	return attempt(ctx)
}

func (w *way) Subscribe(ctx context.Context, as transport.Identity) (transport.Subscription, error) {
	s, err := w.Instance.Subscribe(ctx, as)
	if err != nil {
		return nil, err
	}
	return s, nil
}

func (w *way) Values() transport.Values { return w.values }

func (w *way) Close() {
	w.Redial()
	w.values.drop(true)
}

// Jitter returns a number from 0 to n-1. It depends only on the seed, the instance and the
// time. So it does not depend on the order of goroutines that run at one instant.
func (in *Instance) Jitter(n int64) int64 {
	now := uint64(time.Now().UnixNano())
	return rand.New(rand.NewPCG(in.bus.options.Seed, now^uint64(in.number+1)<<56)).Int64N(n)
}
