//go:build unix

package systemtest

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/nearcache/nearcache"
)

// TestMutePath makes the path between an instance and Redis mute, while all of
// its connections look alive. The instance loses its lease, serves nothing that
// is older than MaxStaleness, and dials afresh; whether it missed anything
// meanwhile decides whether its memory stays.
func TestMutePath(t *testing.T) {
	t.Parallel()
	ways := map[string]direction{"towards Redis": toRedis, "from Redis": fromRedis, "both ways": bothWays}
	for name, way := range ways {
		for _, missed := range []bool{false, true} {
			if missed {
				name += ", with a message missed"
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				ctx := context.Background()
				loads, server := newCountedLoads(), startRedis(t)
				path := startProxy(t, server.addr)
				var log lockedBuffer
				a := join(t, newSource().load, server.addr)
				b := joinWith(t, loads.load, nearcache.BackplaneOptions{
					RedisConnectionString: path.addr + impatient, MaxStaleness: brief,
					Logger: slog.New(slog.NewTextHandler(&log, nil)),
				})
				b.get(t, "/1", "/other")
				before := b.bp.Stats()

				path.mute(way)
				inState(t, b, nearcache.StateNoLease)
				eventually(t, "the subscription is given up", func() bool {
					return strings.Contains(log.String(), "subscription lost")
				})
				loads.write("/1") // nobody is told yet
				eventually(t, "the item lapses", func() bool { return !b.held("/1") })
				v, err := b.items.Get(ctx, "/1")
				require.NoError(t, err)
				assert.Equal(t, 2, v)
				if missed {
					require.NoError(t, a.items.Remove(ctx, "/nothing"))
				}

				path.resume()
				eventually(t, "it subscribes again", func() bool { return b.bp.Stats().Subscribed > before.Subscribed })
				s := b.bp.Stats()
				assert.Positive(t, s.Lease.Lost)
				assert.Positive(t, s.Lease.Regained)
				if missed {
					assert.Positive(t, s.Clears.Position)
					assert.False(t, b.held("/other"))
				} else {
					assert.Zero(t, s.Clears.Gaps())
					assert.Greater(t, s.SubscribedWarm, before.SubscribedWarm)
					eventually(t, "memory is served again", func() bool { return b.held("/other") })
					assert.Equal(t, 1, loads.count("/other"))
				}
				live(t, b)
			})
		}
	}
}

// TestDeadConnections makes all connections of an instance dead while they look
// alive, and lets new ones through; no time limit ends what waits on the old. The
// loss of the lease does, for the subscription, for the probes, and for a writer.
func TestDeadConnections(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	src, server := newSource(), startRedis(t)
	path := startProxy(t, server.addr)
	a := join(t, src.load, server.addr)
	b := joinWith(t, src.load, nearcache.BackplaneOptions{
		RedisConnectionString: path.addr + forever, MaxStaleness: brief,
	})
	require.NoError(t, b.items.Remove(ctx, "/2")) // it has a connection to publish over
	a.get(t, "/1")

	path.holdAfter(1_000_000)
	err := within(t, "Remove returns", func() error { return b.items.Remove(ctx, "/1") })
	require.ErrorIs(t, err, nearcache.ErrUnconfirmed)
	require.NoError(t, within(t, "Flush returns", func() error { return b.bp.Flush(ctx) }))
	eventually(t, "the message arrives", func() bool { return !a.held("/1") })
	live(t, b)
	assert.Positive(t, b.bp.Stats().Lease.Lost)

	b.get(t, "/1")
	src.write("/1")
	require.NoError(t, a.items.Remove(ctx, "/1"))
	eventually(t, "it hears of changes", func() bool { return !b.held("/1") })
}

// TestAddressLeadsElsewhere stops Redis with all connections open, and has its
// address lead to another one. The instance finds that, and so does what it had
// published: all caches are cleared, since nobody knows what became of it.
func TestAddressLeadsElsewhere(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	src, old, other := newSource(), startRedis(t), startRedis(t)
	path := startProxy(t, old.addr)
	a := join(t, src.load, other.addr)
	b := joinWith(t, src.load, nearcache.BackplaneOptions{
		RedisConnectionString: path.addr + impatient, MaxStaleness: brief,
	})
	require.NoError(t, b.items.Remove(ctx, "/2"))
	a.get(t, "/1")
	b.get(t, "/1")

	old.freeze()
	path.leadTo(other.addr)
	src.write("/1")
	require.NoError(t, a.items.Remove(ctx, "/1"))
	eventually(t, "it subscribes again", func() bool { return b.bp.Stats().Subscribed > 1 })
	assert.Positive(t, b.bp.Stats().Clears.Gaps())
	v, err := b.items.Get(ctx, "/1")
	require.NoError(t, err)
	assert.Equal(t, 2, v)

	eventually(t, "the others are told to clear", func() bool {
		return a.bp.Stats().Caches[0].Invalidations.Clears > 0
	})
	require.NoError(t, within(t, "Flush returns", func() error { return b.bp.Flush(ctx) }))
	a.get(t, "/1")
	_ = b.items.Remove(ctx, "/1")
	eventually(t, "it publishes there", func() bool { return !a.held("/1") })
}

// TestProcessStopped stops an instance for longer than MaxStaleness. Its next
// read waits for it already: it begins as soon as the process goes on, before
// anything that the process missed can be heard. And one of its goroutines reads
// all the time, so that the process is stopped right after it has read the clock.
func TestProcessStopped(t *testing.T) {
	t.Parallel()
	src, server := newSource(), startRedis(t)
	a := join(t, src.load, server.addr)
	c, connected := startChild(t, src.serve(t), server.addr, stalenessVariable+"="+brief.String())
	require.Empty(t, connected.Error)
	require.Empty(t, c.do("watch", "/1").Error)
	for round := range 10 {
		require.Empty(t, c.do("get", "/1").Error)
		require.NoError(t, c.cmd.Process.Signal(syscall.SIGSTOP))
		src.write("/1")
		require.NoError(t, a.items.Remove(context.Background(), "/1"))
		time.Sleep(brief + brief/10) // it takes a while to stop, too
		for _, op := range []string{"peek", "get"} {
			require.NoError(t, c.ask.Encode(command{op, []string{"/1"}}))
		}
		require.NoError(t, c.cmd.Process.Signal(syscall.SIGCONT))
		assert.False(t, c.answer("peek").Held, "round %d", round)
		assert.Equal(t, src.version("/1"), c.answer("get").Version, "round %d", round)
	}
	watched := c.do("watched")
	t.Logf("%d of the pauses fell between two reads", watched.Pauses)
	assert.Zero(t, watched.ServedOld)
}

// TestConnectHasALease loses Redis as soon as Connect has returned: what is
// loaded then is served all the same, with a lease and without.
func TestConnectHasALease(t *testing.T) {
	t.Parallel()
	loads, server := newCountedLoads(), startRedis(t)
	in := join(t, loads.load, server.addr)
	assert.True(t, in.bp.Stats().Lease.Held)
	assert.Equal(t, nearcache.StateLive, in.bp.State())
	server.kill()
	in.get(t, "/1", "/1", "/1")
	assert.Equal(t, 1, loads.count("/1"))
}

// TestDisconnectedStartHasNoLease serves, without Redis ever reached, each item
// for MaxStaleness after its load.
func TestDisconnectedStartHasNoLease(t *testing.T) {
	t.Parallel()
	loads := newCountedLoads()
	in := joinWith(t, loads.load, nearcache.BackplaneOptions{
		RedisConnectionString: unusedAddr(t), AllowDisconnectedStart: true, MaxStaleness: brief,
	})
	assert.Equal(t, nearcache.StateConnecting, in.bp.State())
	assert.False(t, in.bp.Stats().Lease.Held)
	began := time.Now()
	in.get(t, "/1")
	loads.write("/1")
	eventually(t, "the item lapses", func() bool { return !in.held("/1") })
	assert.GreaterOrEqual(t, time.Since(began), leastBrief)
	v, err := in.items.Get(context.Background(), "/1")
	require.NoError(t, err)
	assert.Equal(t, 2, v)
	assert.Equal(t, nearcache.StateConnecting, in.bp.State(), "no lease was lost")
}

// TestReloadsWithoutRedis reads two items all the time while Redis is gone: each
// is loaded once in the time for which it is served, however many read it.
func TestReloadsWithoutRedis(t *testing.T) {
	t.Parallel()
	loads, server := newCountedLoads(), startRedis(t)
	in := joinWith(t, loads.load, nearcache.BackplaneOptions{
		RedisConnectionString: server.addr, MaxStaleness: brief,
	})
	server.kill()
	inState(t, in, nearcache.StateNoLease)

	keys := []string{"/1", "/2"}
	began := time.Now()
	var readers sync.WaitGroup
	var stop atomic.Bool
	for range 4 {
		readers.Go(func() {
			for !stop.Load() {
				for _, key := range keys {
					_, err := in.items.Get(context.Background(), key)
					assert.NoError(t, err)
				}
				time.Sleep(100 * time.Microsecond)
			}
		})
	}
	t.Cleanup(func() { stop.Store(true) })
	eventually(t, "each item is loaded a few times", func() bool {
		return loads.count("/1") > 3 && loads.count("/2") > 3
	})
	stop.Store(true)
	readers.Wait()
	for _, key := range keys {
		assert.LessOrEqual(t, loads.count(key), int(time.Since(began)/leastBrief)+1, key)
	}
}

// TestUnboundedOutlastsAnOutage has caches with different bounds lose Redis.
func TestUnboundedOutlastsAnOutage(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	src, server := newSource(), startRedis(t)
	in := joinWith(t, src.load, nearcache.BackplaneOptions{RedisConnectionString: server.addr, MaxStaleness: brief})
	forever, err := nearcache.New(in.bp, nearcache.Options[string, int]{
		Name: "forever", Load: src.load, MaxStaleness: nearcache.Unbounded,
	})
	require.NoError(t, err)
	_, err = forever.Get(ctx, "/1")
	require.NoError(t, err)
	in.get(t, "/1")
	held := func() bool {
		_, held := forever.Peek("/1")
		return held
	}

	server.kill()
	inState(t, in, nearcache.StateNoLease)
	eventually(t, "the item lapses", func() bool { return !in.held("/1") })
	time.Sleep(3 * brief)
	assert.True(t, held(), "an unbounded cache serves on")

	server.restart()
	live(t, in)
	assert.False(t, held(), "what was missed clears it all the same")
}

// TestLocalNeverLapses has nobody to hear of.
func TestLocalNeverLapses(t *testing.T) {
	t.Parallel()
	bp := nearcache.Local()
	loads := newCountedLoads()
	items, err := nearcache.New(bp, nearcache.Options[string, int]{
		Name: "items", Load: loads.load, MaxStaleness: 100 * time.Millisecond,
	})
	require.NoError(t, err)
	for range 3 {
		_, err = items.Get(context.Background(), "/1")
		require.NoError(t, err)
		time.Sleep(150 * time.Millisecond)
	}
	assert.Equal(t, 1, loads.count("/1"))
	assert.Equal(t, nearcache.StateLocal, bp.State())
	require.NoError(t, bp.Close())
}

// TestCloseWithoutALease closes an instance that has lost its lease for one reason
// or another. Like TestCloseLeavesNoGoroutine it runs alone.
func TestCloseWithoutALease(t *testing.T) {
	tests := []struct {
		name string
		lose func(t *testing.T, server *redisProcess, path *proxy)
	}{
		{"path mute towards Redis", func(_ *testing.T, _ *redisProcess, path *proxy) { path.mute(toRedis) }},
		{"path mute from Redis", func(_ *testing.T, _ *redisProcess, path *proxy) { path.mute(fromRedis) }},
		{"Redis stopped", func(_ *testing.T, server *redisProcess, _ *proxy) { server.freeze() }},
		{"Redis killed", func(_ *testing.T, server *redisProcess, _ *proxy) { server.kill() }},
		{"channel forbidden", func(t *testing.T, server *redisProcess, _ *proxy) {
			allow(t, server.client(), "resetchannels &{nearcache}:*")
		}},
		{"own channel forbidden", func(t *testing.T, server *redisProcess, _ *proxy) {
			allow(t, server.client(), "resetchannels &nearcache")
		}},
		{"out of memory", func(t *testing.T, server *redisProcess, _ *proxy) {
			require.NoError(t, server.client().ConfigSet(context.Background(), "maxmemory", "1").Err())
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			server := startRedis(t, redisUser()...)
			path := startProxy(t, server.addr)
			old := goleak.IgnoreCurrent()
			in, err := newInstance(context.Background(), newSource().load, nearcache.BackplaneOptions{
				RedisConnectionString: path.addr + asRealityUser + ",asyncTimeout=600000",
				Logger:                discard,
				MaxStaleness:          brief,
				CloseTimeout:          20 * time.Millisecond,
			})
			require.NoError(t, err)
			in.get(t, "/1")
			test.lose(t, server, path)
			inState(t, in, nearcache.StateNoLease)
			_ = within(t, "Close returns", in.bp.Close)
			path.cut() // its goroutines are not meant
			goleak.VerifyNone(t, old)
		})
	}
}
