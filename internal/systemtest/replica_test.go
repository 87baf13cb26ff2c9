package systemtest

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache"
)

// replicaRights are those of users that can tell a replica from a master, and of one that
// cannot.
var replicaRights = map[string]string{"INFO": "+@all -role", "ROLE": "+@all -info", "neither": "+@all -info -role"}

// startWritableReplica is startRedisPair with a replica that takes writes, to which
// replication has stalled.
func startWritableReplica(t *testing.T, rights string) *redisPair {
	t.Helper()
	p := &redisPair{t: t, master: startRedis(t, pairArgs()...)}
	p.raw = p.master.client()
	p.replication = startProxy(t, p.master.addr)
	host, port, _ := strings.Cut(p.replication.addr, ":")
	p.replica = startRedis(t, append(pairArgs(), "--replica-read-only", "no", "--replicaof", host, port)...)
	for _, server := range []*redisProcess{p.master, p.replica} {
		allow(t, server.client(), rights)
	}
	require.NoError(t, p.raw.Set(context.Background(), defaultPosition, strings.Repeat("a", 40), 0).Err())
	p.holdReplication()
	return p
}

// TestWritableReplica has an instance's address lead to a replica that takes writes, and
// to which replication has stalled: it shows its master's history, and the position of
// then. Where it says what it is, no lease is held there, nothing is accepted, and no read
// is older than the bound allows. Later the address leads to the master again.
func TestWritableReplica(t *testing.T) {
	t.Parallel()
	for _, told := range []string{"INFO", "ROLE"} {
		t.Run(told, func(t *testing.T) {
			t.Parallel()
			ctx := context.Background()
			src, pair := newSource(), startWritableReplica(t, replicaRights[told])
			path := startProxy(t, pair.master.addr)
			options := nearcache.BackplaneOptions{
				RedisConnectionString: path.addr + asRealityUser + impatient, MaxStaleness: brief,
			}
			a, b := join(t, src.load, pair.master.addr), joinWith(t, src.load, options)
			job := startJob(t, nearcache.BackplaneOptions{RedisConnectionString: path.addr + asRealityUser + impatient})
			b.get(t, "/1", "/2")
			require.NoError(t, b.items.Remove(ctx, "/2"))

			replica := pair.replica.client()
			before := replica.Get(ctx, defaultPosition).Val()
			path.cut()
			path.leadTo(pair.replica.addr)
			path.resume()
			inState(t, b, nearcache.StateNoLease)
			subscribed := b.bp.Stats().Subscribed
			for version := 2; version < 6; version++ {
				src.write("/1")
				require.NoError(t, a.items.Remove(ctx, "/1"))
				accepted := time.Now()
				eventually(t, "what was accepted is effective", func() bool {
					began := time.Now()
					v, err := b.items.Get(ctx, "/1")
					require.NoError(t, err)
					require.False(t, v < version && began.Sub(accepted) > brief, "version %d of %d", v, version)
					return v == version
				})
			}
			err := b.items.Remove(ctx, "/2")
			require.ErrorIs(t, err, nearcache.ErrUnconfirmed)
			eventually(t, "the job is told", func() bool {
				err = job.items.Remove(ctx, "/2")
				return strings.Contains(err.Error(), "READONLY nearcache: this server is a replica")
			})
			require.ErrorIs(t, err, nearcache.ErrUnconfirmed)
			assert.Equal(t, subscribed, b.bp.Stats().Subscribed)
			assert.Equal(t, before, replica.Get(ctx, defaultPosition).Val(), "nothing was published there")
			for _, publishOnly := range []bool{true, false} {
				o := options
				o.RedisConnectionString, o.PublishOnly = pair.replica.addr+asRealityUser+",connectTimeout=2000", publishOnly
				assert.ErrorContains(t, connectError(t, o), "READONLY nearcache: this server is a replica")
			}

			a.get(t, "/2")
			path.cut()
			path.leadTo(pair.master.addr)
			path.resume()
			live(t, b)
			require.NoError(t, within(t, "Flush returns", func() error { return b.bp.Flush(ctx) }))
			require.NoError(t, within(t, "Flush returns", func() error { return job.bp.Flush(ctx) }))
			eventually(t, "what was queued is told", func() bool { return !a.held("/2") })
			b.get(t, "/1")
			src.write("/1")
			require.NoError(t, a.items.Remove(ctx, "/1"))
			eventually(t, "it hears of changes", func() bool { return !b.held("/1") })
		})
	}
}

// TestReplicaUnknown shows where the promise ends: a user that may ask neither INFO nor
// ROLE takes a replica that takes writes for a master. On a master all works for it.
func TestReplicaUnknown(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	src, pair := newSource(), startWritableReplica(t, replicaRights["neither"])
	a, b := join(t, src.load, pair.master.addr+asRealityUser), join(t, src.load, pair.master.addr)
	b.get(t, "/1")
	require.NoError(t, a.items.Remove(ctx, "/1"))
	eventually(t, "it is told", func() bool { return !b.held("/1") })

	job := startJob(t, nearcache.BackplaneOptions{RedisConnectionString: pair.replica.addr + asRealityUser})
	assert.NoError(t, job.items.Remove(ctx, "/1"))
}

// TestMasterIsDemoted makes a master a replica, with all connections open. Neither the
// instance nor the job, which never hears of anything, goes on as if it were one, nor do
// they stay with it: their address leads to the new master by then.
func TestMasterIsDemoted(t *testing.T) {
	t.Parallel()
	for _, readOnly := range []string{"yes", "no"} {
		t.Run("replica-read-only "+readOnly, func(t *testing.T) {
			t.Parallel()
			ctx := context.Background()
			src, old, fresh := newSource(), startRedis(t), startRedis(t)
			path := startProxy(t, old.addr)
			in := joinWith(t, src.load, nearcache.BackplaneOptions{
				RedisConnectionString: path.addr + impatient, MaxStaleness: brief,
			})
			job := startJob(t, nearcache.BackplaneOptions{RedisConnectionString: path.addr + impatient})
			require.NoError(t, job.items.Remove(ctx, "/1"))
			in.get(t, "/1")

			path.leadTo(fresh.addr)
			raw := old.client()
			require.NoError(t, raw.ConfigSet(ctx, "replica-read-only", readOnly).Err())
			require.NoError(t, raw.Do(ctx, "REPLICAOF", "127.0.0.1", "1").Err()) // which leads nowhere
			position := raw.Get(ctx, defaultPosition).Val()
			err := job.items.Remove(ctx, "/1")
			if err != nil { // else the next attempt was made before the write began to wait
				assert.ErrorContains(t, err, "READONLY")
			}
			require.NoError(t, within(t, "Flush returns", func() error { return job.bp.Flush(ctx) }))
			eventually(t, "the instance is with the new master", func() bool {
				s := in.bp.Stats()
				return s.Subscribed > 1 && s.State == nearcache.StateLive
			})
			assert.Equal(t, position, raw.Get(ctx, defaultPosition).Val(), "the old one has taken nothing")
			in.get(t, "/1")
			require.NoError(t, job.items.Remove(ctx, "/1"))
			eventually(t, "the job is too", func() bool { return !in.held("/1") })
		})
	}
}
