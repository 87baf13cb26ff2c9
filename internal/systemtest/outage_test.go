package systemtest

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache"
)

// writes are all the ways to write.
var writes = []struct {
	name string
	run  func(ctx context.Context, in *instance) error
}{
	{"Remove", func(ctx context.Context, in *instance) error { return in.items.Remove(ctx, "red/1") }},
	{"Set", func(ctx context.Context, in *instance) error { return in.items.Set(ctx, "red/1", 1) }},
	{"Update", func(ctx context.Context, in *instance) error {
		v, err := in.items.Update(ctx, "red/1", func(context.Context) (int, error) { return 7, nil })
		if v != 7 {
			panic("Update lost what write returned")
		}
		return err
	}},
	{"ClearRegion", func(ctx context.Context, in *instance) error { return in.items.ClearRegion(ctx, "red") }},
	{"Clear", func(ctx context.Context, in *instance) error { return in.items.Clear(ctx) }},
	{"ClearAll", func(ctx context.Context, in *instance) error { return in.bp.ClearAll(ctx) }},
}

// assertUnconfirmed checks that each write is queued without waiting: ctx has no
// deadline, so one that waits for Redis does not return.
func assertUnconfirmed(t *testing.T, in *instance) {
	t.Helper()
	for _, write := range writes {
		err := within(t, write.name+" returns", func() error { return write.run(context.Background(), in) })
		assert.ErrorIs(t, err, nearcache.ErrUnconfirmed, write.name)
	}
}

// TestSubscriberCutOff closes an instance's subscription while another instance
// publishes what the first one then misses, or may miss.
func TestSubscriberCutOff(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	caughtUp := func(t *testing.T, b *instance, subscribed uint64) {
		t.Helper()
		eventually(t, "there is a new subscription", func() bool { return b.bp.Stats().Subscribed > subscribed })
		assert.False(t, b.held("/1"))
		v, err := b.items.Get(ctx, "/1")
		require.NoError(t, err)
		assert.Equal(t, 2, v)
	}

	// The path stays cut until the message is gone, so it is missed for certain.
	t.Run("by the network", func(t *testing.T) {
		onEachRedis(t, func(t *testing.T, addr string) {
			src, path := newSource(), startProxy(t, addr)
			a, b := join(t, src.load, addr), join(t, src.load, path.addr)
			b.get(t, "/1", "/other")
			subscribed := b.bp.Stats().Subscribed

			path.cut()
			eventually(t, "the loss is noticed", func() bool { return b.bp.State() == nearcache.StateConnecting })
			src.write("/1")
			require.NoError(t, a.items.Remove(ctx, "/1"))
			path.resume()
			caughtUp(t, b, subscribed)
			assert.False(t, b.held("/other"), "anything may have been missed")
		})
	})

	t.Run("by Redis", func(t *testing.T) {
		src, server := newSource(), startRedis(t)
		raw := server.client()
		a, b := join(t, src.load, server.addr+",name=a"), join(t, src.load, server.addr+",name=b")
		for range 20 {
			src.mu.Lock()
			clear(src.versions)
			src.mu.Unlock()
			require.NoError(t, b.items.Clear(ctx))
			barrier(t, raw, a, b)
			b.get(t, "/1")
			subscribed := b.bp.Stats().Subscribed

			require.Equal(t, 1, killConnections(t, raw, "pubsub", "b"))
			src.write("/1")
			require.NoError(t, a.items.Remove(ctx, "/1"))
			caughtUp(t, b, subscribed)
		}
		assert.EqualValues(t, 1, a.bp.Stats().Subscribed, "the other instance is not disturbed")
	})
}

// TestPublisherCutOff closes the connection that an instance publishes over. It
// makes a new one, and its writer does not notice.
func TestPublisherCutOff(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	src, server := newSource(), startRedis(t)
	raw := server.client()
	a, b := join(t, src.load, server.addr+",name=a"), join(t, src.load, server.addr)
	for range 20 {
		require.NoError(t, a.items.Remove(ctx, "/1"))
		barrier(t, raw, a, b)
		b.get(t, "/1", "/other")
		require.Positive(t, killConnections(t, raw, "normal", "a")) // that of the probes too
		require.NoError(t, a.items.Remove(ctx, "/1"))
		barrier(t, raw, a, b)
		assert.False(t, b.held("/1"))
		assert.True(t, b.held("/other"))
	}
	assert.Zero(t, b.bp.Stats().Clears.Gaps())
}

// TestLoadOvertakenByReconnect holds a load back while its instance misses the
// message that says that the item has changed.
func TestLoadOvertakenByReconnect(t *testing.T) {
	t.Parallel()
	onEachRedis(t, func(t *testing.T, addr string) {
		ctx := context.Background()
		path, loads := startProxy(t, addr), newHeldLoads()
		a, b := join(t, newSource().load, addr), join(t, loads.load, path.addr)
		for _, joinable := range []bool{false, true} {
			first := loads.startGet(t, b, "/1")
			path.cut()
			eventually(t, "the loss is noticed", func() bool { return b.bp.State() == nearcache.StateConnecting })
			require.NoError(t, a.items.Remove(ctx, "/1"))
			path.resume()
			live(t, b)

			if !joinable { // there is no load under way when the second Get starts
				first.end(t, 1)
				assert.False(t, b.held("/1"), "an overtaken load is kept")
			}
			second := loads.startGet(t, b, "/1")
			if joinable {
				first.end(t, 1)
				assert.False(t, b.held("/1"), "an overtaken load is kept")
			}
			second.end(t, 2)
			assert.True(t, b.held("/1"))
			require.NoError(t, b.items.Remove(ctx, "/1")) // for the next round
		}
	})
}

// TestRedisRestarts kills Redis and starts it again, with Gets under way all the
// time.
func TestRedisRestarts(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	src, server := newSource(), startRedis(t)
	raw := server.client()
	var log lockedBuffer
	a := joinWith(t, src.load, nearcache.BackplaneOptions{
		RedisConnectionString: server.addr,
		Logger:                slog.New(slog.NewTextHandler(&log, nil)),
	})
	b := join(t, src.load, server.addr)
	require.NoError(t, a.items.Remove(ctx, "/other")) // its publisher has a connection to lose
	a.get(t, "/held")
	b.get(t, "red/1", "/held")

	var readers sync.WaitGroup
	var stop atomic.Bool
	for _, in := range []*instance{a, b} {
		readers.Go(func() {
			for !stop.Load() {
				for _, key := range []string{"/held", "red/1", "/other"} {
					_, err := in.items.Get(ctx, key)
					assert.NoError(t, err, "a Get fails because of Redis")
				}
				time.Sleep(time.Millisecond) // leaves the others some of the processor
			}
		})
	}
	t.Cleanup(func() {
		stop.Store(true)
		readers.Wait()
	})

	server.kill()
	for _, in := range []*instance{a, b} {
		eventually(t, "the loss is noticed", func() bool { return in.bp.State() == nearcache.StateConnecting })
		assert.True(t, in.held("/held"), "memory serves on")
	}
	src.write("red/1")
	assertUnconfirmed(t, a)
	assert.Positive(t, a.bp.Stats().Queued)
	assert.Positive(t, a.bp.Stats().PublishFailures)
	short, cancel := context.WithTimeout(ctx, time.Millisecond)
	defer cancel()
	err := a.bp.Flush(short)
	assert.ErrorIs(t, err, nearcache.ErrUnconfirmed)
	assert.ErrorIs(t, err, context.DeadlineExceeded)

	server.restart()
	require.NoError(t, within(t, "Flush returns", func() error { return a.bp.Flush(ctx) }))
	live(t, a, b)
	// What A sends of its own accord, since Redis has another history, may come after that.
	eventually(t, "nothing is queued", func() bool { return a.bp.Stats().Queued == 0 })
	barrier(t, raw, a, b)
	for _, in := range []*instance{a, b} {
		v, err := in.items.Get(ctx, "red/1")
		require.NoError(t, err)
		assert.Equal(t, 2, v)
	}
	assert.Equal(t, 1, strings.Count(log.String(), "subscription lost"))
	assert.Equal(t, 1, strings.Count(log.String(), "publishing failed"))
	assert.Equal(t, 1, strings.Count(log.String(), "published again"))

	// From here on all is as it was: nothing but the item is evicted.
	stop.Store(true)
	readers.Wait()
	a.get(t, "red/1", "/held")
	b.get(t, "red/1", "/held")
	gaps := b.bp.Stats().Clears.Gaps()
	require.NoError(t, a.items.Remove(ctx, "red/1"))
	barrier(t, raw, a, b)
	assert.False(t, b.held("red/1"))
	assert.True(t, b.held("/held"))
	assert.Equal(t, gaps, b.bp.Stats().Clears.Gaps())
}

// TestWritesDoNotWaitForALostRedis makes Redis unreachable, and then the path to
// it one that swallows everything, with a time limit that is far away: once a
// message has failed, writes return at once all the same.
func TestWritesDoNotWaitForALostRedis(t *testing.T) {
	t.Parallel()
	onEachRedis(t, func(t *testing.T, addr string) {
		ctx := context.Background()
		src, path := newSource(), startProxy(t, addr)
		in := join(t, src.load, path.addr+",asyncTimeout=600000")
		require.NoError(t, in.items.Remove(ctx, "/1"))

		path.cut()
		assertUnconfirmed(t, in)
		path.hold()
		eventually(t, "a message is swallowed", func() bool { return path.held() > 1 })
		assertUnconfirmed(t, in)

		path.resume()
		require.NoError(t, within(t, "Flush returns", func() error { return in.bp.Flush(ctx) }))
		live(t, in)
		require.NoError(t, in.items.Remove(ctx, "/1"))
	})
}
