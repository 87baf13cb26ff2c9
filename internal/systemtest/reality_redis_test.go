package systemtest

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
)

// The Redis user of the instances of a reality run, and what it may do.
const (
	realityUser     = "instance"
	realityPassword = "c0rrect/horse"
	realityRights   = "resetchannels &{nearcache}:* &nearcache +@all"
)

// asRealityUser is the end of a connection string.
const asRealityUser = ",user=" + realityUser + ",password=" + realityPassword

// redisUser makes a redis-server know that user from its start.
func redisUser() []string {
	return append([]string{"--user", realityUser, "on", ">" + realityPassword, "~*"}, strings.Fields(realityRights)...)
}

// allow changes what the user may do.
func allow(t *testing.T, raw *redis.Client, rights string) {
	t.Helper()
	command := []any{"ACL", "SETUSER", realityUser}
	for right := range strings.FieldsSeq(rights) {
		command = append(command, right)
	}
	require.NoError(t, raw.Do(context.Background(), command...).Err())
}

// redisPair is a Redis and a replica of it, behind a path that a test can hold.
type redisPair struct {
	t               *testing.T
	master, replica *redisProcess
	raw             *redis.Client // of the master
	replication     *proxy        // what the replica hears of the master
}

// pairArgs has a replica follow at once.
func pairArgs() []string {
	return append(redisUser(), "--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0")
}

func startRedisPair(t *testing.T) *redisPair {
	t.Helper()
	p := &redisPair{t: t, master: startRedis(t, pairArgs()...)}
	p.raw = p.master.client()
	p.startReplica()
	return p
}

func (p *redisPair) startReplica() {
	p.t.Helper()
	p.replication = startProxy(p.t, p.master.addr)
	host, port, _ := strings.Cut(p.replication.addr, ":")
	p.replica = startRedis(p.t, append(pairArgs(), "--replicaof", host, port)...)
}

// awaitReplica waits until the replica follows the master.
func (p *redisPair) awaitReplica() {
	p.t.Helper()
	follower := p.replica.client()
	eventually(p.t, "the replica follows", func() bool {
		return strings.Contains(follower.Info(context.Background(), "replication").Val(), "master_link_status:up")
	})
}

// holdReplication waits until the replica has what the master has, and keeps from
// it what follows.
func (p *redisPair) holdReplication() {
	p.t.Helper()
	ctx := context.Background()
	follower := p.replica.client()
	eventually(p.t, "the replica follows", func() bool {
		info := follower.Info(ctx, "replication").Val()
		return strings.Contains(info, "master_link_status:up") &&
			follower.Get(ctx, defaultPosition).Val() == p.raw.Get(ctx, defaultPosition).Val()
	})
	p.replication.hold()
}

// failOver kills the master and promotes the replica, whatever it has.
func (p *redisPair) failOver() {
	p.t.Helper()
	p.master.kill()
	p.master, p.raw = p.replica, p.replica.client()
	if i := slices.Index(p.master.Args, "--replicaof"); i >= 0 { // not after a restart either
		p.master.Args = slices.Delete(p.master.Args, i, i+3)
	}
	require.NoError(p.t, p.raw.Do(context.Background(), "REPLICAOF", "NO", "ONE").Err())
	p.replication.cut()
}

// persist saves the server's data for its next start.
func (s *redisProcess) persist(raw *redis.Client) {
	s.t.Helper()
	require.NoError(s.t, raw.Save(context.Background()).Err())
}

// forget removes what persist saved.
func (s *redisProcess) forget() {
	s.t.Helper()
	for i, arg := range s.Args {
		if arg == "--dir" {
			err := os.RemoveAll(filepath.Join(s.Args[i+1], "dump.rdb"))
			require.NoError(s.t, err)
		}
	}
}
