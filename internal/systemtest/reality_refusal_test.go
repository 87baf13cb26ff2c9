package systemtest

import (
	"context"
	"log/slog"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache"
)

// TestRefusedProbes has Redis refuse what an instance needs for its lease, in
// mid-run, and then allow it again. Meanwhile reads go to the source; if nothing
// was published in the meantime, memory is served again afterwards.
func TestRefusedProbes(t *testing.T) {
	t.Parallel()
	memory := func(limit string) func(*testing.T, *redis.Client) {
		return func(t *testing.T, raw *redis.Client) {
			t.Helper()
			require.NoError(t, raw.ConfigSet(context.Background(), "maxmemory", limit).Err())
		}
	}
	rights := func(rights string) func(*testing.T, *redis.Client) {
		return func(t *testing.T, raw *redis.Client) {
			t.Helper()
			allow(t, raw, rights)
		}
	}
	tests := []struct {
		name          string
		refuse, allow func(*testing.T, *redis.Client)
		says          string
		writes        bool // are tried meanwhile, and refused too
	}{
		{"channel forbidden", rights("resetchannels &{nearcache}:*"), rights(realityRights), "NOPERM", true},
		{"own channel forbidden", rights("resetchannels &nearcache"), rights(realityRights), "NOPERM", false},
		{"all channels forbidden", rights("resetchannels"), rights(realityRights), "NOPERM", true},
		{"scripts forbidden", rights("-eval -evalsha"), rights(realityRights), "NOPERM", true},
		{"position forbidden", rights("resetkeys ~other"), rights(realityRights + " ~*"), "NOPERM", true},
		{"out of memory", memory("1"), memory("0"), "OOM", false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			ctx := context.Background()
			loads, server := newCountedLoads(), startRedis(t, redisUser()...)
			raw := server.client()
			var log lockedBuffer
			in := joinWith(t, loads.load, nearcache.BackplaneOptions{
				RedisConnectionString: server.addr + asRealityUser + impatient, MaxStaleness: brief,
				Logger: slog.New(slog.NewTextHandler(&log, nil)),
			})
			require.NoError(t, in.items.Remove(ctx, "/nothing"))
			in.get(t, "/1", "/other")
			before := in.bp.Stats()

			test.refuse(t, raw)
			inState(t, in, nearcache.StateNoLease)
			loads.write("/1")
			eventually(t, "reads go to the source", func() bool {
				v, err := in.items.Get(ctx, "/1")
				require.NoError(t, err)
				return v == 2
			})
			assert.GreaterOrEqual(t, loads.count("/1"), 2)
			if test.writes {
				err := in.items.Remove(ctx, "/nothing")
				require.ErrorIs(t, err, nearcache.ErrUnconfirmed)
				assert.NotContains(t, err.Error(), realityPassword)
			}
			eventually(t, "the log says why", func() bool { return strings.Contains(log.String(), test.says) })

			test.allow(t, raw)
			eventually(t, "it subscribes again", func() bool { return in.bp.Stats().Subscribed > before.Subscribed })
			live(t, in)
			require.NoError(t, within(t, "Flush returns", func() error { return in.bp.Flush(ctx) }))
			assert.Positive(t, in.bp.Stats().Lease.Lost)
			assert.Positive(t, in.bp.Stats().Lease.Regained)
			assert.NotContains(t, log.String(), realityPassword)
			if !test.writes {
				assert.Zero(t, in.bp.Stats().Clears.Gaps())
				eventually(t, "memory is served again", func() bool { return in.held("/other") })
				assert.Equal(t, 1, loads.count("/other"))
			}
		})
	}
}

// TestPositionLostInSilence takes the channel's position away while nobody
// publishes. A probe finds out and mints another; the lease goes on.
func TestPositionLostInSilence(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		lose func(ctx context.Context, raw *redis.Client) error
	}{
		{"FLUSHALL", func(ctx context.Context, raw *redis.Client) error { return raw.FlushAll(ctx).Err() }},
		{"DEL", func(ctx context.Context, raw *redis.Client) error { return raw.Del(ctx, defaultPosition).Err() }},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			onEachRedis(t, func(t *testing.T, addr string) {
				ctx := context.Background()
				raw := rawClient(t, addr)
				a, b := join(t, newSource().load, addr), join(t, newSource().load, addr)
				b.get(t, "/1")
				require.NoError(t, test.lose(ctx, raw))
				eventually(t, "a probe finds out", func() bool { return b.bp.Stats().Clears.Position == 1 })
				assert.False(t, b.held("/1"))

				require.NoError(t, a.items.Remove(ctx, "/other"))
				barrier(t, raw, a, b)
				b.get(t, "/1")
				require.NoError(t, a.items.Remove(ctx, "/other"))
				barrier(t, raw, a, b)
				s := b.bp.Stats()
				assert.True(t, b.held("/1"), "the chain goes on")
				assert.LessOrEqual(t, s.Clears.Gaps(), uint64(2))
				assert.EqualValues(t, 1, s.Subscribed)
				assert.Zero(t, s.Lease.Lost)
				assert.Equal(t, nearcache.StateLive, s.State)
			})
		})
	}
}
