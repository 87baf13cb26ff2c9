package systemtest

import (
	"context"
	"log/slog"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache"
)

// TestWarmReconnect closes an instance's connections while nothing is published:
// it finds that it has missed nothing, and its memory stays.
func TestWarmReconnect(t *testing.T) {
	t.Parallel()
	loads, server := newCountedLoads(), startRedis(t)
	raw := server.client()
	in := join(t, loads.load, server.addr+",name=in")
	in.get(t, "/1")
	for range 10 {
		before := in.bp.Stats()
		require.Equal(t, 1, killConnections(t, raw, "pubsub", "in"))
		killConnections(t, raw, "normal", "in")
		eventually(t, "it subscribes again", func() bool { return in.bp.Stats().Subscribed > before.Subscribed })
		s := in.bp.Stats()
		assert.Equal(t, before.Subscribed+1, s.Subscribed)
		assert.Equal(t, before.SubscribedWarm+1, s.SubscribedWarm)
		in.get(t, "/1")
	}
	assert.Equal(t, 1, loads.count("/1"))
	assert.EqualValues(t, 1, in.bp.Stats().Clears.Total(), "that of the start")
	assert.Zero(t, in.bp.Stats().Lease.Lost)
}

// TestRestartWithData kills Redis and starts it again with the data it had. The
// channel's position is what it was, and yet everything may have been missed.
func TestRestartWithData(t *testing.T) {
	t.Parallel()
	for _, published := range []bool{false, true} {
		name := "by one who has published nothing"
		if published {
			name = "by one who has published"
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx := context.Background()
			server := startRedis(t)
			raw := server.client()
			in := join(t, newSource().load, server.addr)
			if published {
				require.NoError(t, in.items.Remove(ctx, "/other"))
				barrier(t, raw, in)
			}
			in.get(t, "/1")
			sent := in.bp.Stats().Published
			require.NoError(t, raw.Save(ctx).Err())
			position := raw.Get(ctx, defaultPosition).Val()

			server.kill()
			server.restart()
			if !published { // else it has moved on already
				require.Equal(t, position, raw.Get(ctx, defaultPosition).Val())
			}
			eventually(t, "it subscribes again", func() bool { return in.bp.Stats().Subscribed > 1 })
			s := in.bp.Stats()
			assert.EqualValues(t, 1, s.Clears.History)
			assert.EqualValues(t, 1, s.Clears.Gaps())
			assert.Zero(t, s.SubscribedWarm)
			assert.False(t, in.held("/1"))

			// What it published may have been lost with the old history, for others who
			// saw the new one first.
			if published {
				eventually(t, "it tells all others to clear", func() bool { return in.bp.Stats().Published > sent })
			}
			require.NoError(t, within(t, "Flush returns", func() error { return in.bp.Flush(ctx) }))
			require.NoError(t, in.items.Remove(ctx, "/1"))
			want := sent + 1
			if published {
				want++
			}
			assert.Equal(t, want, in.bp.Stats().Published)
		})
	}
}

// TestFailoverWithTheSamePosition promotes a replica that lacks the one message
// that an instance has missed too: by the channel's position nothing is missing.
//
//  1. a message is accepted, and neither the replica nor the instance has it
//  2. the replica is promoted   3. the instance connects to it, and both are at the
//     position before 1. Only the history tells.
func TestFailoverWithTheSamePosition(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	src, pair := newSource(), startRedisPair(t)
	path := startProxy(t, pair.master.addr)
	a, b := join(t, src.load, pair.master.addr), join(t, src.load, path.addr)
	b.get(t, "/1", "/other")
	pair.holdReplication()
	position := pair.raw.Get(ctx, defaultPosition).Val()

	path.cut()
	eventually(t, "the loss is noticed", func() bool { return b.bp.State() == nearcache.StateConnecting })
	src.write("/1")
	require.NoError(t, a.items.Remove(ctx, "/1"))
	pair.failOver()
	require.Equal(t, position, pair.raw.Get(ctx, defaultPosition).Val(), "the replica lacks the message")
	path.leadTo(pair.master.addr)
	path.resume()

	eventually(t, "it subscribes again", func() bool { return b.bp.Stats().Subscribed > 1 })
	s := b.bp.Stats()
	assert.EqualValues(t, 1, s.Clears.History)
	assert.EqualValues(t, 1, s.Clears.Gaps(), "the position is the same")
	assert.False(t, b.held("/1"))
	assert.False(t, b.held("/other"))
}

// TestPublisherMeetsANewHistory has an instance stay behind: it clears on its way
// to the promoted replica, loads an item, and hears only then of the writer whose
// message the replica never had, and who has come late to the replica himself.
func TestPublisherMeetsANewHistory(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	src, pair := newSource(), startRedisPair(t)
	writers, readers := startProxy(t, pair.master.addr), startProxy(t, pair.master.addr)
	a, b := join(t, src.load, writers.addr), join(t, src.load, readers.addr)
	pair.holdReplication()
	require.NoError(t, a.items.Remove(ctx, "/1"))

	writers.cut()
	pair.failOver()
	readers.leadTo(pair.master.addr)
	eventually(t, "it subscribes again", func() bool { return b.bp.Stats().Subscribed > 1 })
	b.get(t, "/1")
	before := b.bp.Stats().Caches[0].Invalidations.Clears

	writers.leadTo(pair.master.addr)
	writers.resume()
	eventually(t, "all is cleared", func() bool { return b.bp.Stats().Caches[0].Invalidations.Clears > before })
	assert.False(t, b.held("/1"))
}

// TestHistoryForbidden takes the right to INFO away and gives it back. Without it
// nobody knows whether the Redis of a new connection is the same, so each clears.
func TestHistoryForbidden(t *testing.T) {
	t.Parallel()
	server := startRedis(t, redisUser()...)
	raw := server.client()
	var log lockedBuffer
	in := joinWith(t, newSource().load, nearcache.BackplaneOptions{
		RedisConnectionString: server.addr + asRealityUser + ",name=in",
		Logger:                slog.New(slog.NewTextHandler(&log, nil)),
	})
	reconnect := func() (before, after nearcache.BackplaneStats) {
		in.get(t, "/1")
		before = in.bp.Stats()
		require.Equal(t, 1, killConnections(t, raw, "pubsub", "in"))
		eventually(t, "it subscribes again", func() bool { return in.bp.Stats().Subscribed > before.Subscribed })
		return before, in.bp.Stats()
	}
	in.get(t, "/1")

	allow(t, raw, "-info")
	eventually(t, "a probe finds out", func() bool { return in.bp.Stats().Clears.History == 1 })
	assert.False(t, in.held("/1"))
	for range 3 {
		before, after := reconnect()
		assert.Equal(t, before.Clears.NoHistory+1, after.Clears.NoHistory)
		assert.Equal(t, before.SubscribedWarm, after.SubscribedWarm)
		assert.False(t, in.held("/1"))
	}
	assert.Equal(t, 1, strings.Count(log.String(), "+info"), "the log says once what to grant")

	allow(t, raw, "+info")
	eventually(t, "a probe finds out", func() bool { return in.bp.Stats().Clears.History == 2 })
	before, after := reconnect()
	assert.Equal(t, before.Clears, after.Clears)
	assert.Equal(t, before.SubscribedWarm+1, after.SubscribedWarm)
	assert.True(t, in.held("/1"))
	assert.NotContains(t, log.String(), realityPassword)
}
