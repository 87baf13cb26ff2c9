package systemtest

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache"
)

// TestPasswordStaysSecret connects with a password given in every form, works,
// loses Redis, and closes; and it connects with the same password to a server
// that has another. Neither log nor error may show the password.
func TestPasswordStaysSecret(t *testing.T) {
	t.Parallel()
	const password = "c0rrect/horse+battery=staple"
	forms := []struct {
		name    string
		options func(addr string) nearcache.BackplaneOptions
	}{
		{"comma-separated", func(addr string) nearcache.BackplaneOptions {
			return nearcache.BackplaneOptions{RedisConnectionString: addr + ",password=" + password}
		}},
		{"comma-separated with a user", func(addr string) nearcache.BackplaneOptions {
			return nearcache.BackplaneOptions{RedisConnectionString: addr + ",user=default,password=" + password}
		}},
		{"URL", func(addr string) nearcache.BackplaneOptions {
			return nearcache.BackplaneOptions{RedisConnectionString: "redis://:" + url.QueryEscape(password) + "@" + addr}
		}},
		{"URL with a user", func(addr string) nearcache.BackplaneOptions {
			return nearcache.BackplaneOptions{
				RedisConnectionString: "redis://default:" + url.QueryEscape(password) + "@" + addr,
			}
		}},
		{"options", func(addr string) nearcache.BackplaneOptions {
			return nearcache.BackplaneOptions{Redis: &redis.UniversalOptions{Addrs: []string{addr}, Password: password}}
		}},
		{"options with a user", func(addr string) nearcache.BackplaneOptions {
			return nearcache.BackplaneOptions{
				Redis: &redis.UniversalOptions{Addrs: []string{addr}, Username: "default", Password: password},
			}
		}},
	}
	for _, form := range forms {
		t.Run(form.name, func(t *testing.T) {
			t.Parallel()
			ctx := context.Background()
			var shown lockedBuffer
			logger := slog.New(slog.NewTextHandler(&shown, &slog.HandlerOptions{Level: slog.LevelDebug}))
			show := func(v any) { _, _ = fmt.Fprintf(&shown, "%v %+v\n", v, v) }

			server := startRedis(t, "--requirepass", password)
			options := form.options(server.addr)
			options.Logger = logger
			options.OnEvent = func(e nearcache.Event) { show(e) }
			in := joinWith(t, newSource().load, options)
			require.NoError(t, in.items.Remove(ctx, "/1"))
			show(in.bp.Stats())
			server.kill()
			eventually(t, "the loss is noticed", func() bool { return in.bp.State() == nearcache.StateConnecting })
			show(in.items.Remove(ctx, "/1"))
			server.restart()
			require.NoError(t, within(t, "Flush returns", func() error { return in.bp.Flush(ctx) }))
			live(t, in)
			server.kill()
			show(in.items.Remove(ctx, "/1"))
			err := in.bp.Close()
			require.ErrorIs(t, err, nearcache.ErrUnconfirmed)
			show(err)
			show(in.bp) // closed: nothing of it changes any more

			other := startRedis(t, "--requirepass", "another")
			options = form.options(other.addr)
			err = connectError(t, options)
			require.ErrorContains(t, err, "WRONGPASS")
			show(err)
			options.AllowDisconnectedStart = true
			options.Logger = logger
			options.OnEvent = func(e nearcache.Event) { show(e) }
			in = joinWith(t, newSource().load, options)
			show(in.items.Remove(ctx, "/1"))
			eventually(t, "an attempt fails", func() bool { return in.bp.Stats().PublishFailures > 0 })
			show(in.items.Remove(ctx, "/1"))
			show(in.bp.Close())

			assert.Contains(t, shown.String(), "WRONGPASS")
			assert.Contains(t, shown.String(), "subscription lost")
			assert.Contains(t, shown.String(), nearcache.EventPublishFailed.String())
			for _, secret := range []string{password, url.QueryEscape(password), "c0rrect"} {
				assert.NotContains(t, shown.String(), secret)
				assert.NotContains(t, clientLog.String(), secret)
			}
		})
	}
}
