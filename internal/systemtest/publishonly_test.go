package systemtest

import (
	"context"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/nearcache/nearcache"
)

// job is a process that only publishes.
type job struct {
	bp    *nearcache.Backplane
	items *nearcache.Invalidator[string]
}

func startJob(t *testing.T, options nearcache.BackplaneOptions) *job {
	t.Helper()
	options.PublishOnly = true
	if options.Logger == nil {
		options.Logger = discard
	}
	if options.CloseTimeout == 0 {
		options.CloseTimeout = 100 * time.Millisecond
	}
	bp, err := nearcache.Connect(context.Background(), options)
	require.NoError(t, err)
	t.Cleanup(func() { _ = within(t, "Close returns", bp.Close) })
	items, err := nearcache.NewInvalidator[string](bp, "items")
	require.NoError(t, err)
	return &job{bp, items}
}

// becomes waits for a state.
func (j *job) becomes(t *testing.T, state nearcache.State) {
	t.Helper()
	eventually(t, "the job's state is "+state.String(), func() bool { return j.bp.State() == state })
}

func TestPublishOnly(t *testing.T) {
	t.Parallel()
	onEachRedis(t, func(t *testing.T, addr string) {
		ctx := context.Background()
		src, raw := newSource(), rawClient(t, addr)
		a := join(t, src.load, addr)
		a.get(t, "red/1", "blue/2", "/3", "/4")
		j := startJob(t, nearcache.BackplaneOptions{RedisConnectionString: addr})
		assert.Equal(t, nearcache.StateLive, j.bp.State())
		_, err := nearcache.New(j.bp, nearcache.Options[string, int]{Name: "items", Load: src.load})
		require.ErrorIs(t, err, nearcache.ErrInvalidOptions)
		require.ErrorContains(t, err, "NewInvalidator")

		require.NoError(t, j.items.Remove(ctx, "/3"))
		barrier(t, raw, a) // which sees that it alone is subscribed
		assert.False(t, a.held("/3"))
		require.NoError(t, j.items.ClearRegion(ctx, "red"))
		barrier(t, raw, a)
		assert.False(t, a.held("red/1"))
		assert.True(t, a.held("blue/2"))
		require.NoError(t, j.items.Clear(ctx))
		barrier(t, raw, a)
		assert.False(t, a.held("blue/2"))
		a.get(t, "/4")
		_ = a.do("get-number", "7")
		require.NoError(t, j.bp.ClearAll(ctx))
		require.NoError(t, j.bp.Flush(ctx))
		barrier(t, raw, a)
		assert.False(t, a.held("/4"))
		assert.False(t, a.do("peek-number", "7").Held)
		assert.Zero(t, a.bp.Stats().Clears.Gaps(), "nothing was missed")

		s := j.bp.Stats()
		assert.Equal(t, nearcache.StateLive, s.State)
		assert.Equal(t, "nearcache", s.Channel)
		assert.EqualValues(t, 4, s.Published)
		assert.Zero(t, s.Subscribed+s.Received+s.Echoes)
		assert.Zero(t, s.Lease)
		assert.Empty(t, s.Caches)
		require.NoError(t, j.bp.Close())
		assert.Equal(t, nearcache.StateClosed, j.bp.State())
		assert.ErrorIs(t, j.items.Clear(ctx), nearcache.ErrClosed)
	})
}

// A job has one connection to Redis, which outlives Connect's context.
func TestPublishOnlyHasOneConnection(t *testing.T) {
	t.Parallel()
	server := startRedis(t)
	raw := server.client()
	j := startJob(t, nearcache.BackplaneOptions{RedisConnectionString: server.addr + ",name=job"})
	connections := func() (ids []string) {
		for line := range strings.Lines(raw.ClientList(context.Background()).Val()) {
			if strings.Contains(line, " name=job ") {
				ids = append(ids, strings.Fields(line)[0])
			}
		}
		return ids
	}
	before := connections()
	require.Len(t, before, 1)
	require.NoError(t, j.items.Clear(context.Background()))
	require.Equal(t, before, connections())
}

func TestPublishOnlyNeedsRedis(t *testing.T) {
	t.Parallel()
	t.Run("a wrong password", func(t *testing.T) {
		server := startRedis(t, "--requirepass", "correct-horse")
		err := connectError(t, nearcache.BackplaneOptions{
			RedisConnectionString: server.addr + ",password=battery-staple" + forever, PublishOnly: true,
		})
		assert.ErrorContains(t, err, "WRONGPASS")
		assert.NotContains(t, err.Error(), "battery-staple")
	})
	t.Run("no server", func(t *testing.T) {
		err := connectError(t, nearcache.BackplaneOptions{
			RedisConnectionString: unusedAddr(t) + ",connectTimeout=3000", PublishOnly: true,
		})
		assert.ErrorContains(t, err, "refused")
		assert.ErrorContains(t, err, "AllowDisconnectedStart")
	})
	t.Run("one that takes no writes", func(t *testing.T) {
		server := startRedis(t, "--replicaof", "127.0.0.1", "1", "--replica-serve-stale-data", "yes")
		err := connectError(t, nearcache.BackplaneOptions{
			RedisConnectionString: server.addr + ",connectTimeout=3000", PublishOnly: true,
		})
		assert.ErrorContains(t, err, "READONLY")
	})
	t.Run("its context", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
		err := within(t, "Connect returns", func() error {
			_, err := nearcache.Connect(ctx, nearcache.BackplaneOptions{
				RedisConnectionString: unusedAddr(t) + forever, PublishOnly: true,
			})
			return err
		})
		assert.ErrorIs(t, err, context.DeadlineExceeded)
	})
	t.Run("as many attempts as connectRetry says", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		defer l.Close()
		var attempts atomic.Int64
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				attempts.Add(1)
				_ = c.Close()
			}
		}()
		_ = connectError(t, nearcache.BackplaneOptions{
			RedisConnectionString: l.Addr().String() + ",connectRetry=2,connectTimeout=600000", PublishOnly: true,
		})
		assert.EqualValues(t, 3, attempts.Load())
	})
}

// TestPublishOnlyDisconnectedStart starts without Redis, and is there when Redis is,
// whether there is anything to tell by then or not.
func TestPublishOnlyDisconnectedStart(t *testing.T) {
	t.Parallel()
	for _, queued := range []bool{true, false} {
		name := map[bool]string{true: "with a queue", false: "with nothing to tell"}[queued]
		t.Run(name, func(t *testing.T) {
			onEachRedis(t, func(t *testing.T, addr string) {
				ctx := context.Background()
				src, raw, path := newSource(), rawClient(t, addr), startProxy(t, addr)
				a := join(t, src.load, addr)
				a.get(t, "/1", "/other")
				path.cut()
				j := startJob(t, nearcache.BackplaneOptions{RedisConnectionString: path.addr + ",abortConnect=false"})
				assert.Equal(t, nearcache.StateConnecting, j.bp.State())
				if queued {
					require.ErrorIs(t, j.items.Remove(ctx, "/1"), nearcache.ErrUnconfirmed)
				}
				path.resume()
				j.becomes(t, nearcache.StateLive)
				require.NoError(t, within(t, "Flush returns", func() error { return j.bp.Flush(ctx) }))
				barrier(t, raw, a)
				assert.Equal(t, !queued, a.held("/1"))
				assert.True(t, a.held("/other"))
				assert.Zero(t, a.bp.Stats().Clears.Gaps())
			})
		})
	}
}

// TestPublishOnlyLosesRedis loses it, notices when it has something to tell, and
// delivers that when Redis is back.
func TestPublishOnlyLosesRedis(t *testing.T) {
	t.Parallel()
	onEachRedis(t, func(t *testing.T, addr string) {
		ctx := context.Background()
		src, raw, path := newSource(), rawClient(t, addr), startProxy(t, addr)
		a := join(t, src.load, addr)
		a.get(t, "/1")
		j := startJob(t, nearcache.BackplaneOptions{RedisConnectionString: path.addr})
		path.cut()
		require.ErrorIs(t, j.items.Remove(ctx, "/1"), nearcache.ErrUnconfirmed)
		assert.Equal(t, nearcache.StateConnecting, j.bp.State())
		err := within(t, "another write returns", func() error { return j.items.Remove(ctx, "/2") })
		assert.ErrorIs(t, err, nearcache.ErrUnconfirmed)
		path.resume()
		require.NoError(t, within(t, "Flush returns", func() error { return j.bp.Flush(ctx) }))
		assert.Equal(t, nearcache.StateLive, j.bp.State())
		barrier(t, raw, a)
		assert.False(t, a.held("/1"))

		path.cut()
		require.ErrorIs(t, j.items.Remove(ctx, "/secret-key"), nearcache.ErrUnconfirmed)
		err = within(t, "Close returns", j.bp.Close)
		assert.ErrorIs(t, err, nearcache.ErrUnconfirmed)
		assert.ErrorContains(t, err, "1 key(s) of items")
		assert.NotContains(t, err.Error(), "secret-key")
	})
}

// TestPublishOnlyLeavesNoGoroutine runs alone, as TestCloseLeavesNoGoroutine does.
func TestPublishOnlyLeavesNoGoroutine(t *testing.T) {
	tests := []struct {
		name   string
		before func(*proxy) // Connect
	}{
		{"live", func(*proxy) {}},
		{"without Redis", (*proxy).cut},
		{"with a silent Redis", (*proxy).hold},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			path := startProxy(t, startRedis(t).addr)
			old := goleak.IgnoreCurrent()
			test.before(path)
			bp, err := nearcache.Connect(context.Background(), nearcache.BackplaneOptions{
				RedisConnectionString: path.addr + ",asyncTimeout=600000,abortConnect=false",
				Logger:                discard, PublishOnly: true,
				CloseTimeout: 10 * patience, // there is nothing to deliver, and so nothing to wait for
			})
			require.NoError(t, err)
			require.NoError(t, within(t, "Close returns", bp.Close))
			path.cut()
			goleak.VerifyNone(t, old)
		})
	}
}

// TestPublishOnlyACL gives a user the rights that docs/redis.md names for a job, sees
// that they suffice, and that without any one of them Connect fails.
func TestPublishOnlyACL(t *testing.T) {
	t.Parallel()
	acl := documentedRights(t, "job")

	sufficient := []struct{ name, acl, options string }{
		{"database 0", acl, ""},
		{"database 2", acl + " &nearcache@2 +select", ",defaultDatabase=2"},
		{"with a client name", acl + " +client|setname", ",name=job"},
		{"with a prefix", strings.ReplaceAll(acl, "nearcache", "shop.nearcache"), ",channelPrefix=shop."},
	}
	for _, test := range sufficient {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			ctx := context.Background()
			src, server := newSource(), startRedis(t)
			grant(t, server.client(), test.acl)
			a := join(t, src.load, server.addr+test.options)
			a.get(t, "red/1", "blue/2", "/3")
			j := startJob(t, nearcache.BackplaneOptions{
				RedisConnectionString: server.addr + ",user=job,password=password" + test.options,
			})
			require.NoError(t, j.items.Remove(ctx, "/3"))
			require.NoError(t, j.items.ClearRegion(ctx, "red"))
			eventually(t, "both are applied", func() bool { return !a.held("/3") && !a.held("red/1") })
			assert.True(t, a.held("blue/2"))
			assert.Zero(t, a.bp.Stats().Clears.Gaps())
		})
	}

	// Left out are +info, without which all works, and +del, which is needed only after a message that may not be
	// published, where there was no position before.
	server := startRedis(t)
	raw := server.client()
	for _, right := range []string{"&nearcache", "~{nearcache}:*", "+publish", "+get", "+set", "+hget", "+eval", "+evalsha"} {
		t.Run("without "+right, func(t *testing.T) {
			require.Contains(t, strings.Fields(acl), right)
			require.NoError(t, raw.Do(context.Background(), "ACL", "DELUSER", "job").Err())
			require.NoError(t, raw.ScriptFlush(context.Background()).Err()) // or EVALSHA would do
			grant(t, raw, strings.ReplaceAll(acl+" ", " "+right+" ", " "))
			err := connectError(t, nearcache.BackplaneOptions{
				RedisConnectionString: server.addr + ",user=job,password=password" + forever, PublishOnly: true,
			})
			assert.ErrorContains(t, err, "refuses")
			assert.ErrorContains(t, err, "an empty message was not accepted")
			assert.NotContains(t, err.Error(), "password=")
		})
	}
}
