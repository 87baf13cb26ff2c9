package systemtest

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache"
	"github.com/nearcache/nearcache/internal/redistest"
)

// forever makes everything but a refusal last until the test loses
// patience: Connect would try again and again.
const forever = ",connectRetry=1000000,connectTimeout=600000,asyncTimeout=600000"

// connectError returns the error of a Connect that has to fail.
func connectError(t *testing.T, options nearcache.BackplaneOptions) error {
	t.Helper()
	options.Logger = discard
	err := within(t, "Connect returns", func() error {
		bp, err := nearcache.Connect(context.Background(), options)
		if err == nil {
			_ = bp.Close()
		}
		return err
	})
	require.Error(t, err)
	return err
}

func unusedAddr(t *testing.T) string {
	t.Helper()
	port, err := redistest.FreePort()
	require.NoError(t, err)
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
}

func TestConnectWithoutRedis(t *testing.T) {
	t.Parallel()

	t.Run("fails and says what to do", func(t *testing.T) {
		addr := unusedAddr(t)
		err := connectError(t, nearcache.BackplaneOptions{RedisConnectionString: addr + ",password=hunter2"})
		assert.ErrorContains(t, err, addr)
		assert.ErrorContains(t, err, "refused")
		assert.ErrorContains(t, err, "abortConnect=false")
		assert.ErrorContains(t, err, "AllowDisconnectedStart")
		assert.NotContains(t, err.Error(), "hunter2")
	})

	// The server is there as far as TCP goes and never says a word.
	silent := func(t *testing.T) (addr string, connected <-chan struct{}) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		t.Cleanup(func() { _ = l.Close() })
		accepted := make(chan struct{}, 1)
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				t.Cleanup(func() { _ = c.Close() })
				select {
				case accepted <- struct{}{}:
				default:
				}
			}
		}()
		return l.Addr().String(), accepted
	}

	t.Run("gives up on a silent server", func(t *testing.T) {
		addr, _ := silent(t)
		err := connectError(t, nearcache.BackplaneOptions{
			RedisConnectionString: addr + ",connectTimeout=50,asyncTimeout=600000,connectRetry=1000000",
		})
		assert.ErrorContains(t, err, addr)
	})

	t.Run("ends with its context", func(t *testing.T) {
		addr, connected := silent(t)
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		failed := make(chan error, 1)
		go func() {
			_, err := nearcache.Connect(ctx, nearcache.BackplaneOptions{RedisConnectionString: addr + forever})
			failed <- err
		}()
		receive(t, "Connect has a connection", connected)
		cancel()
		assert.ErrorIs(t, receive(t, "Connect returns", failed), context.Canceled)
	})

	t.Run("ends with its context between attempts", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
		err := within(t, "Connect returns", func() error {
			_, err := nearcache.Connect(ctx, nearcache.BackplaneOptions{RedisConnectionString: unusedAddr(t) + forever})
			return err
		})
		assert.ErrorIs(t, err, context.DeadlineExceeded)
	})
}

// TestDisconnectedStart starts without Redis: caches work, writes are queued, and
// both is made good when Redis comes.
func TestDisconnectedStart(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		options func(addr string) nearcache.BackplaneOptions
	}{
		{"abortConnect=false", func(addr string) nearcache.BackplaneOptions {
			return nearcache.BackplaneOptions{RedisConnectionString: addr + ",abortConnect=false"}
		}},
		{"AllowDisconnectedStart", func(addr string) nearcache.BackplaneOptions {
			return nearcache.BackplaneOptions{RedisConnectionString: addr, AllowDisconnectedStart: true}
		}},
		{"AllowDisconnectedStart with options", func(addr string) nearcache.BackplaneOptions {
			return nearcache.BackplaneOptions{
				Redis: &redis.UniversalOptions{Addrs: []string{addr}}, AllowDisconnectedStart: true,
			}
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			onEachRedis(t, func(t *testing.T, addr string) {
				ctx := context.Background()
				src, raw, path := newSource(), rawClient(t, addr), startProxy(t, addr)
				a := join(t, src.load, addr)
				a.get(t, "red/1", "/other")
				path.cut()

				b := joinWith(t, src.load, test.options(path.addr))
				assert.Equal(t, nearcache.StateConnecting, b.bp.State())
				b.get(t, "/1")
				assert.True(t, b.held("/1"))
				assertUnconfirmed(t, b)
				assert.True(t, a.held("red/1"))

				path.resume()
				require.NoError(t, within(t, "Flush returns", func() error { return b.bp.Flush(ctx) }))
				live(t, b)
				barrier(t, raw, a, b)
				assert.False(t, a.held("red/1"), "what was queued has arrived")
				assert.Zero(t, b.bp.Stats().Queued)
				require.NoError(t, b.items.Remove(ctx, "/1"))
			})
		})
	}
}

func TestWrongPassword(t *testing.T) {
	t.Parallel()
	server := startRedis(t, "--requirepass", "correct-horse")
	tests := []struct {
		name, connection, says string
	}{
		{"wrong", server.addr + ",password=battery-staple" + forever, "WRONGPASS"},
		{"missing", server.addr + forever, "NOAUTH"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			err := connectError(t, nearcache.BackplaneOptions{RedisConnectionString: test.connection})
			assert.ErrorContains(t, err, test.says)
			assert.ErrorContains(t, err, server.addr)
			assert.NotContains(t, err.Error(), "battery-staple")
		})
	}
}

// TestMissingPermission connects as users that lack one thing that the backplane
// needs.
func TestMissingPermission(t *testing.T) {
	t.Parallel()
	server := startRedis(t)
	raw := server.client()
	tests := []struct {
		user  string
		rules []any
		says  string
	}{
		{"nochannels", []any{"~*", "+@all", "resetchannels"}, "channel"},
		{"noscripts", []any{"~*", "&*", "+@all", "-@scripting"}, "eval"},
		{"nokeys", []any{"resetkeys", "&*", "+@all"}, "key"},
		{"nosubscribe", []any{"~*", "&*", "+@all", "-subscribe"}, "subscribe"},
	}
	for _, test := range tests {
		t.Run(test.user, func(t *testing.T) {
			rules := append([]any{"ACL", "SETUSER", test.user, "on", ">secret"}, test.rules...)
			require.NoError(t, raw.Do(context.Background(), rules...).Err())
			err := connectError(t, nearcache.BackplaneOptions{
				RedisConnectionString: fmt.Sprintf("%s,user=%s,password=secret%s", server.addr, test.user, forever),
			})
			assert.ErrorContains(t, err, "NOPERM")
			assert.ErrorContains(t, err, test.says)
			assert.NotContains(t, err.Error(), "secret")
		})
	}
}

// TestPublishDenied takes the permission to publish away from a writer and gives
// it back. What it could not publish leaves no trace in the chain of positions,
// so others miss nothing.
func TestPublishDenied(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	src, server := newSource(), startRedis(t)
	raw := server.client()
	acl := func(rules ...any) {
		t.Helper()
		rules = append([]any{"ACL", "SETUSER", "writer"}, rules...)
		require.NoError(t, raw.Do(ctx, rules...).Err())
	}
	acl("on", ">secret", "~*", "&*", "+@all")
	a, b := join(t, src.load, server.addr+",user=writer,password=secret"), join(t, src.load, server.addr)
	require.NoError(t, a.items.Remove(ctx, "/1"))
	barrier(t, raw, a, b)
	b.get(t, "/1", "/other")

	acl("-publish")
	err := a.items.Remove(ctx, "/1")
	assert.ErrorIs(t, err, nearcache.ErrUnconfirmed)
	// Redis before 7.2 does not say which right was missing, and words it in its own way.
	assert.Regexp(t, "can't run this command|no permissions|NOPERM", err.Error())
	require.NoError(t, b.items.Remove(ctx, "/2"))
	assert.True(t, b.held("/1"))

	acl("+publish")
	require.NoError(t, within(t, "Flush returns", func() error { return a.bp.Flush(ctx) }))
	barrier(t, raw, a, b)
	assert.False(t, b.held("/1"))
	assert.True(t, b.held("/other"))
	assert.Zero(t, b.bp.Stats().Clears.Gaps())
}

func TestUnixSocket(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "nc") // t.TempDir is too long for a socket
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	server := startRedis(t, "--unixsocket", socket)
	raw := server.client()

	src := newSource()
	a := join(t, src.load, "unix://"+socket)
	b := join(t, src.load, "!"+socket)
	c := joinWith(t, src.load, nearcache.BackplaneOptions{Redis: &redis.UniversalOptions{Addrs: []string{socket}}})
	b.get(t, "/1")
	c.get(t, "/1")
	require.NoError(t, a.items.Remove(context.Background(), "/1"))
	barrier(t, raw, a, b, c)
	assert.False(t, b.held("/1"))
	assert.False(t, c.held("/1"))
}
