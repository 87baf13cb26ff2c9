package nearcache

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache/internal/barrier"
	"github.com/nearcache/nearcache/internal/fakebus"
	"github.com/nearcache/nearcache/internal/transport"
)

// faultyBus panics in whatever method is named.
type faultyBus struct {
	transport.Bus
	in atomic.Value // a string
}

func (f *faultyBus) trip(method string) {
	if f.in.Load() == method {
		var nothing []int
		_ = nothing[len(method)]
	}
}

func (f *faultyBus) First(ctx context.Context, attempt func(context.Context) error) error {
	f.trip("First")
	return f.Bus.First(ctx, attempt)
}

func (f *faultyBus) Subscribe(ctx context.Context, as transport.Identity) (transport.Subscription, error) {
	f.trip("Subscribe")
	sub, err := f.Bus.Subscribe(ctx, as)
	return &faultySubscription{sub, f}, err
}

func (f *faultyBus) Publish(ctx context.Context, m transport.Message) error {
	f.trip("Publish")
	return f.Bus.Publish(ctx, m)
}

func (f *faultyBus) Redial() {
	f.Bus.Redial()
	f.trip("Redial")
}

func (f *faultyBus) Close() {
	f.Bus.Close()
	f.trip("Close")
}

func (f *faultyBus) Values() transport.Values { return &faultyValues{f.Bus.Values(), f} }

type faultySubscription struct {
	transport.Subscription
	bus *faultyBus
}

func (f *faultySubscription) Probe(ctx context.Context, nonce string) error {
	f.bus.trip("Probe")
	return f.Subscription.Probe(ctx, nonce)
}

func (f *faultySubscription) Receive() (string, bool, error) {
	payload, own, err := f.Subscription.Receive()
	f.bus.trip("Receive")
	return payload, own, err
}

func (f *faultySubscription) Close() {
	f.Subscription.Close()
	f.bus.trip("Subscription.Close")
}

type faultyValues struct {
	transport.Values
	bus *faultyBus
}

func (f *faultyValues) Read(
	ctx context.Context, cache string, keys, regions []string, most int,
) (transport.Reading, error) {
	f.bus.trip("Read")
	r, err := f.Values.Read(ctx, cache, keys, regions, most)
	if f.bus.in.Load() == "a short Read" {
		r.Values = nil
	}
	return r, err
}

func (f *faultyValues) Claim(
	ctx context.Context, cache, history string, life time.Duration, claims []transport.Claim,
) (transport.Claimed, error) {
	f.bus.trip("Claim")
	c, err := f.Values.Claim(ctx, cache, history, life, claims)
	if f.bus.in.Load() == "a short Claim" {
		c.States = nil
	}
	return c, err
}

func (f *faultyValues) Put(ctx context.Context, cache string, puts []transport.Put) ([]bool, error) {
	f.bus.trip("Put")
	s, err := f.Values.Put(ctx, cache, puts)
	if f.bus.in.Load() == "a short Put" {
		s = nil
	}
	return s, err
}

func (f *faultyValues) Redial() {
	f.Values.Redial()
	f.bus.trip("Values.Redial")
}

// lockedLog is a log that is read while it is written.
type lockedLog struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (l *lockedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lockedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// A panic in any method on the way to Redis ends no process: Gets are answered, writes
// are queued, it is counted and logged, and all recovers.
func TestPanicsOnTheWayToRedis(t *testing.T) {
	methods := []string{
		"Subscribe", "Publish", "Redial", "Probe", "Receive", "Subscription.Close", "Read", "Claim", "Put", "Values.Redial", "Close",
		"a short Read", "a short Claim", "a short Put",
	}
	for _, method := range methods {
		t.Run(method, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				network := fakebus.New(fakebus.Options{Instances: 1})
				defer network.Close()
				in, log := network.Instance(0), &lockedLog{}
				bus := &faultyBus{Bus: in.Bus()}
				bus.in.Store("")
				bp, err := Connect(transport.WithStandIn(t.Context(), transport.StandIn{
					Bus:      bus,
					Instance: [16]byte{1}, Random: in.Jitter,
				}), BackplaneOptions{Logger: slog.New(slog.NewTextHandler(log, nil)), MaxStaleness: time.Second})
				require.NoError(t, err)
				defer func() { _ = bp.Close() }()
				items := sharedNumbers(t, bp, itself)
				next := 0
				get := func() {
					t.Helper()
					next++
					v, err := items.Get(t.Context(), next)
					require.NoError(t, err)
					require.Equal(t, next, v)
				}
				get()
				synctest.Wait()
				require.Zero(t, bp.Stats().Panics)

				bus.in.Store(method)
				for range 10 {
					get()
					_ = items.Remove(t.Context(), next)
					time.Sleep(50 * time.Millisecond)
				}
				in.Cut()
				time.Sleep(2 * time.Second)
				get()
				in.Partition() // until the lease is lost
				time.Sleep(3 * time.Second)
				in.Heal(true)
				get()
				bus.in.Store("")

				for deadline := time.Now().Add(time.Minute); bp.State() != StateLive; time.Sleep(10 * time.Millisecond) {
					require.True(t, time.Now().Before(deadline), "it is %v", bp.State())
				}
				require.NoError(t, bp.Flush(t.Context()))
				time.Sleep(2 * time.Second) // the shared level may be left alone for a while
				stored := items.Stats().Shared.Stored
				for deadline := time.Now().Add(time.Minute); items.Stats().Shared.Stored == stored; time.Sleep(time.Second) {
					require.True(t, time.Now().Before(deadline), "nothing is stored")
					get()
				}
				if method == "Close" {
					bus.in.Store(method)
				}
				require.NoError(t, bp.Close())
				if method[0] == 'a' {
					require.Zero(t, bp.Stats().Panics)
					require.NotZero(t, items.Stats().Shared.Errors)
					return
				}
				require.NotZero(t, bp.Stats().Panics)
				require.Equal(t, 1, strings.Count(log.String(), "panic on the way to Redis became an error"), "one line a minute")
				require.Contains(t, log.String(), "index out of range")
				require.Contains(t, log.String(), "barrier_test.go")
			})
		})
	}
}

// A panic of what Connect waits for is its error.
func TestPanicInConnect(t *testing.T) {
	for _, method := range []string{"First", "Subscribe", "Probe", "Receive"} {
		synctest.Test(t, func(t *testing.T) {
			network := fakebus.New(fakebus.Options{Instances: 1})
			defer network.Close()
			in := network.Instance(0)
			bus := &faultyBus{Bus: in.Bus()}
			bus.in.Store(method)
			_, err := Connect(transport.WithStandIn(t.Context(), transport.StandIn{
				Bus:    bus,
				Random: in.Jitter,
			}), BackplaneOptions{Logger: slog.New(slog.DiscardHandler)})
			require.ErrorIs(t, err, barrier.ErrPanic, method)
		})
	}
}

// A message whose application panics was not applied, so nothing of what it was about
// may be served: the subscription is made again, and everything is cleared.
func TestPanicWhileApplying(t *testing.T) {
	s, r := newTestSubscriber(t)
	s.panics = &barrier.Panics{Logger: slog.New(slog.DiscardHandler)}
	s.last = "position"
	r.onClear = func() { panic("in a cache") }
	payload := head(kindInvalidation, instanceID{9}) + "\x00" + string(byte(positionLength)) + strings.Repeat("a", positionLength)
	require.ErrorIs(t, s.hear(payload, false), barrier.ErrPanic)
	require.Empty(t, s.last)
	require.EqualValues(t, 1, s.panics.Count())
}
