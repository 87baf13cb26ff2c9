package systemtest

import (
	"context"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache"
)

// What TestOneShortBound shows of a simulated Redis, on real connections, through a
// proxy that is slow.
func TestOneShortBoundOnASlowPath(t *testing.T) {
	const roundTrip = 150 * time.Millisecond
	path := startProxy(t, startRedis(t).addr)
	bp, err := nearcache.Connect(t.Context(), nearcache.BackplaneOptions{
		RedisConnectionString: path.addr, Logger: slog.New(slog.DiscardHandler), CloseTimeout: time.Second,
	})
	require.NoError(t, err)
	defer bp.Close()
	var loads atomic.Int64
	open := func(name string, staleness time.Duration, load func(context.Context, int) (int, error)) *nearcache.Cache[int, int] {
		c, err := nearcache.New(bp, nearcache.Options[int, int]{Name: name, MaxStaleness: staleness, TTL: time.Hour, Load: load})
		require.NoError(t, err)
		return c
	}
	long := open("long", 5*time.Second, func(context.Context, int) (int, error) { return int(loads.Add(1)), nil })

	path.slowDown(roundTrip / 2)
	for slow, seen := 0, uint64(0); slow < 5; time.Sleep(10 * time.Millisecond) { // it is known to be slow
		if s := bp.Stats(); s.Echoes > seen && s.Lease.RoundTrip >= roundTrip {
			slow, seen = slow+1, s.Echoes
		}
	}
	before := bp.Stats()
	open("short", 100*time.Millisecond, func(context.Context, int) (int, error) { return 1, nil })
	for echoes := before.Echoes + 30; bp.Stats().Echoes < echoes; time.Sleep(10 * time.Millisecond) {
		_, err := long.Get(t.Context(), 1)
		require.NoError(t, err)
		require.Equal(t, nearcache.StateLive, bp.State())
	}
	after := bp.Stats()
	require.Equal(t, before.Subscribed, after.Subscribed, "the connection is left alone")
	require.Equal(t, before.Lease.Lost, after.Lease.Lost)
	require.EqualValues(t, 1, loads.Load())
}
