package systemtest

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache/internal/redistest"
)

// onEachRedis runs a test against miniredis, which is always there, and against
// a real Redis.
func onEachRedis(t *testing.T, test func(t *testing.T, addr string)) {
	t.Run("miniredis", func(t *testing.T) {
		t.Parallel()
		test(t, miniredis.RunT(t).Addr())
	})
	t.Run("redis", func(t *testing.T) {
		t.Parallel()
		test(t, startRedis(t).addr)
	})
}

// redisProcess is a redis-server that a test has started for itself.
type redisProcess struct {
	*redistest.Server
	t    *testing.T
	addr string
}

// startRedis starts a redis-server that ends with the test. It skips the test where
// there is none.
func startRedis(t *testing.T, args ...string) *redisProcess {
	t.Helper()
	return newRedisProcess(t, redistest.Start(t, args...))
}

func newRedisProcess(t *testing.T, s *redistest.Server) *redisProcess {
	return &redisProcess{Server: s, t: t, addr: s.Addr}
}

// kill ends the server the hard way, and waits until it is gone.
func (s *redisProcess) kill() { s.Kill() }

// restart starts the server again, on the same port.
func (s *redisProcess) restart() {
	s.t.Helper()
	require.NoError(s.t, s.Restart())
}

// client returns a client of the server for the test's own commands.
func (s *redisProcess) client() *redis.Client { return rawClient(s.t, s.addr) }

func rawClient(t *testing.T, addr string) *redis.Client {
	return rawClientWith(t, &redis.Options{Addr: addr})
}

func rawClientWith(t *testing.T, options *redis.Options) *redis.Client {
	c := redis.NewClient(options)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// killConnections has the server close the connections of a kind ("pubsub",
// "normal") that bear a client name, and returns how many there were.
func killConnections(t *testing.T, raw *redis.Client, kind, name string) int {
	t.Helper()
	ctx := context.Background()
	list, err := raw.Do(ctx, "CLIENT", "LIST", "TYPE", kind).Text()
	require.NoError(t, err)
	killed := 0
	for line := range strings.Lines(list) {
		fields := map[string]string{}
		for field := range strings.FieldsSeq(line) {
			k, v, _ := strings.Cut(field, "=")
			fields[k] = v
		}
		if fields["name"] == name {
			// It may have gone by itself since; that is as good.
			if err := raw.ClientKillByFilter(ctx, "ID", fields["id"]).Err(); err == nil {
				killed++
			}
		}
	}
	return killed
}

// lockedBuffer is a buffer that one goroutine writes while another reads.
type lockedBuffer struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// clientLog is what go-redis itself has logged so far, in all tests.
var clientLog redisLogger

type redisLogger struct{ lockedBuffer }

func (l *redisLogger) Printf(_ context.Context, format string, args ...any) {
	_, _ = fmt.Fprintf(l, format+"\n", args...)
}
