package fakebus

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache/internal/transport"
)

// Every message begins as its sender says.
func TestBusWritesHeads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := New(Options{Instances: 2})
		defer b.Close()
		from := b.Instance(0).Bus()
		to := b.Instance(1).Bus()
		var s transport.Subscription
		err := to.First(t.Context(), func(ctx context.Context) (err error) {
			s, err = to.Subscribe(ctx, transport.Identity{ID: [16]byte{1}, Echo: "echo1,"})
			return err
		})
		require.NoError(t, err)
		require.NoError(t, from.Publish(t.Context(), transport.Message{Head: "from0,", Body: "body"}))
		require.NoError(t, s.Probe(t.Context(), "nonce"))
		for _, head := range []string{"from0,", "echo1,"} {
			payload, own, err := s.Receive()
			require.NoError(t, err)
			require.Equal(t, head, payload[:len(head)])
			require.Equal(t, head == "echo1,", own)
		}
		s.Close()
		_, _, err = s.Receive()
		require.ErrorIs(t, err, ErrReset)
		from.Close()
		to.Close()
		for i := range 2 {
			require.Empty(t, b.Instance(i).open)
		}
	})
}

// A deployment that is gone ends the first attempt: there is no other.
func TestBusMakesOneAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := New(Options{})
		defer b.Close()
		b.Stop()
		bus, attempts := b.Instance(0).Bus(), 0
		err := bus.First(t.Context(), func(ctx context.Context) error {
			attempts++
			_, err := bus.Subscribe(ctx, transport.Identity{})
			return err
		})
		require.ErrorIs(t, err, ErrReset)
		require.Equal(t, 1, attempts)
	})
}

func TestJitter(t *testing.T) {
	draw := func(seed uint64, instance int) (drawn []int64) {
		synctest.Test(t, func(t *testing.T) {
			in := New(Options{Seed: seed, Instances: 2}).Instance(instance)
			for range 100 {
				n := in.Jitter(1000)
				require.Equal(t, n, in.Jitter(1000), "at one instant")
				require.GreaterOrEqual(t, n, int64(0))
				require.Less(t, n, int64(1000))
				drawn = append(drawn, n)
				time.Sleep(time.Nanosecond)
			}
		})
		return drawn
	}
	first := draw(1, 0)
	require.Equal(t, first, draw(1, 0))
	require.NotEqual(t, first, draw(2, 0))
	require.NotEqual(t, first, draw(1, 1))
	distinct := map[int64]bool{}
	for _, n := range first {
		distinct[n] = true
	}
	require.Greater(t, len(distinct), 80)
}
