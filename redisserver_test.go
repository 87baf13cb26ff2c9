package nearcache_test

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
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
	addr string

	t      *testing.T
	binary string
	args   []string
	cmd    *exec.Cmd
	exited chan struct{} // closed when cmd has ended
	output *lockedBuffer
}

// startRedis starts a redis-server on a free port of the loopback interface and
// ends it with the test. It skips the test where there is none.
func startRedis(t *testing.T, args ...string) *redisProcess {
	t.Helper()
	return startRedisWith(t, func(port int) []string { return append([]string{"--port", strconv.Itoa(port)}, args...) })
}

// startRedisWith is startRedis for a server that does not listen the usual way.
func startRedisWith(t *testing.T, args func(port int) []string) *redisProcess {
	t.Helper()
	// Another server binary can be named, to run the tests on another version.
	binary, err := exec.LookPath(cmp.Or(os.Getenv("NEARCACHE_REDIS_SERVER"), "redis-server"))
	if err != nil {
		skipOrFail(t, "redis-server is not on PATH")
	}
	s := &redisProcess{t: t, binary: binary}
	t.Cleanup(s.stop)

	common := []string{"--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", t.TempDir()}
	for range 5 { // another process can take the port before the server does
		port := freePort(t)
		s.addr = net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
		s.args = append(args(port), common...)
		if s.run() {
			return s
		}
		if strings.Contains(s.output.String(), "Bad directive") {
			skipOrFail(t, "redis-server does not know an option that this test needs: "+s.output.String())
		}
	}
	t.Fatalf("redis-server does not start: %s", s.output)
	return nil
}

// skipOrFail ends a test that needs a real Redis which is not there.
func skipOrFail(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("NEARCACHE_REQUIRE_REDIS") == "1" {
		t.Fatal("NEARCACHE_REQUIRE_REDIS=1, but " + why)
	}
	t.Skip("needs a real Redis, but " + why + " (NEARCACHE_REQUIRE_REDIS=1 makes this a failure)")
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).Port
}

// run starts the process and reports whether it accepts connections. Its own
// output says so; an answer at the port could be another server's.
func (s *redisProcess) run() bool {
	s.t.Helper()
	s.output = &lockedBuffer{}
	s.cmd = exec.Command(s.binary, s.args...)
	s.cmd.Stdout, s.cmd.Stderr = s.output, s.output
	require.NoError(s.t, s.cmd.Start())
	cmd, exited := s.cmd, make(chan struct{})
	s.exited = exited
	go func() {
		_ = cmd.Wait() // it is ended by a signal
		close(exited)
	}()

	ready, gone := false, false
	eventually(s.t, "redis-server accepts connections or gives up", func() bool {
		select {
		case <-exited:
			gone = true
		default:
			ready = strings.Contains(strings.ToLower(s.output.String()), "ready to accept connections")
		}
		return ready || gone
	})
	return ready
}

// kill ends the server the hard way, and waits until it is gone.
func (s *redisProcess) kill() {
	_ = s.cmd.Process.Kill()
	<-s.exited
}

// restart starts the server again, on the same port.
func (s *redisProcess) restart() {
	s.t.Helper()
	eventually(s.t, "redis-server runs again", s.run)
}

func (s *redisProcess) stop() {
	if s.cmd == nil {
		return
	}
	s.kill()
	if s.t.Failed() {
		s.t.Logf("redis-server at %s said:\n%s", s.addr, s.output)
	}
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
