package nearcache

import (
	"bytes"
	"context"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache/internal/fakebus"
)

// counted is a cache of one item, and how often that was loaded.
type counted struct {
	*Cache[int, int]
	loads atomic.Int64
}

func newCounted(t *testing.T, bp *Backplane, name string, staleness time.Duration) *counted {
	t.Helper()
	c := &counted{}
	var err error
	c.Cache, err = New(bp, Options[int, int]{
		Name: name, MaxStaleness: staleness, TTL: time.Hour,
		Load: func(context.Context, int) (int, error) { return int(c.loads.Add(1)), nil },
	})
	require.NoError(t, err)
	return c
}

func slowBus(t *testing.T) *fakebus.Bus {
	t.Helper()
	bus := fakebus.New(fakebus.Options{Seed: 1, MinLatency: 74 * time.Millisecond, MaxLatency: 76 * time.Millisecond})
	t.Cleanup(bus.Close)
	return bus
}

// A cache with a bound shorter than the round trip is without a lease; the others,
// and the connection, are not concerned.
//
//  1. New of a cache with 100 ms, at a round trip of 150 ms   2. no echo is younger
//     than 100 ms when it comes   3. were that taken for silence, the connection
//     would be given up again and again, and no cache had a lease.
func TestOneShortBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := slowBus(t)
		bp := joinSimulated(t, bus, 0)
		defer bp.Close()
		long := newCounted(t, bp, "long", 5*time.Second)
		time.Sleep(time.Second)
		short := newCounted(t, bp, "short", 100*time.Millisecond)
		for range 1200 { // a minute
			time.Sleep(50 * time.Millisecond)
			for _, c := range []*counted{long, short} {
				_, err := c.Get(t.Context(), 1)
				require.NoError(t, err)
			}
			require.Equal(t, StateLive, bp.State())
		}
		s := bp.Stats()
		require.EqualValues(t, 1, s.Subscribed, "the connection is left alone")
		require.Zero(t, s.ProbeFailures)
		require.Zero(t, s.Lease.Lost)
		require.EqualValues(t, 1, long.loads.Load())
		require.Greater(t, short.loads.Load(), int64(300), "without a lease it is loaded again when it is 100 ms old")

		bus.Instance(0).Cut() // it is found again, too
		time.Sleep(5 * time.Second)
		require.Equal(t, StateLive, bp.State())
		require.EqualValues(t, 2, bp.Stats().Subscribed)
		loads := long.loads.Load()
		_, err := long.Get(t.Context(), 1)
		require.NoError(t, err)
		require.Equal(t, loads, long.loads.Load())

		bus.Instance(0).Mute(fakebus.Down) // and a connection that is dead is still given up
		time.Sleep(patientRoundTrips*160*time.Millisecond + time.Second)
		require.Equal(t, StateNoLease, bp.State())
		bus.Instance(0).Heal(true)
		time.Sleep(15 * time.Second)
		require.Equal(t, StateLive, bp.State())
	})
}

// The same for a cache that was there before Redis was reached.
func TestOneShortBoundFromTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := slowBus(t)
		o, err := BackplaneOptions{Logger: slog.New(slog.DiscardHandler), AllowDisconnectedStart: true}.withDefaults()
		require.NoError(t, err)
		in := bus.Instance(0)
		bp, err := joinBus(t.Context(), o, in.Bus(), simulatedIdentity(instanceID{1}, in.Jitter), in.Jitter)
		require.NoError(t, err)
		defer bp.Close()
		long := newCounted(t, bp, "long", 5*time.Second)
		newCounted(t, bp, "short", 100*time.Millisecond)
		time.Sleep(20 * time.Second)
		require.Equal(t, StateLive, bp.State())
		_, err = long.Get(t.Context(), 1)
		require.NoError(t, err)
		subscribed := bp.Stats().Subscribed
		for range 100 {
			time.Sleep(200 * time.Millisecond)
			_, ok := long.Peek(1)
			require.True(t, ok)
		}
		require.Equal(t, subscribed, bp.Stats().Subscribed)
	})
}

// One echo that was late, of a Redis that hung, does not make a slow Redis.
func TestALateEchoIsNotPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := startLease(t, time.Second)
		renew(t, l)
		require.Equal(t, time.Second, l.patience())
		nonce := l.probe()
		time.Sleep(10 * time.Second)
		l.echo(nonce)
		require.Equal(t, time.Second, l.patience())
		for range len(l.roundTrips) {
			nonce := l.probe()
			time.Sleep(10 * time.Second)
			l.echo(nonce)
		}
		require.Equal(t, maxLeaseLife, l.patience(), "many are")
		renew(t, l)
		require.Equal(t, time.Second, l.patience())
	})
}

// New says that a bound is too short, by the round trip that was measured.
func TestNewWarnsOfAShortBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		bp := joinSimulated(t, slowBus(t), 0)
		defer bp.Close()
		bp.logger = slog.New(slog.NewTextHandler(&log, nil))
		newCounted(t, bp, "long", 0)
		newCounted(t, bp, "unbounded", Unbounded)
		require.NotContains(t, log.String(), "MaxStaleness")
		newCounted(t, bp, "short", 500*time.Millisecond)
		require.Contains(t, log.String(), "cache=short maxStaleness=500ms roundTrip=1")
	})
}
