package systemtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache"
)

// These variables make the test binary an instance: they hold its connection
// string, the URL of the source it loads from, and its MaxStaleness unless that is
// the default.
const (
	childVariable     = "NEARCACHE_TEST_INSTANCE"
	sourceVariable    = "NEARCACHE_TEST_SOURCE"
	stalenessVariable = "NEARCACHE_TEST_MAX_STALENESS"
)

// command is what a child reads from its standard input; it answers each with an
// answer on its standard output. Its first answer says how connecting went.
type command struct {
	Op   string
	Args []string
}

// runChild is the main function of a child. It ends when its input does.
func runChild(connection string) (exitCode int) {
	if _, set := os.LookupEnv(realityVariable); set {
		return runRealityInstance(connection)
	}
	staleness, _ := time.ParseDuration(os.Getenv(stalenessVariable)) // zero: the default
	in, err := newInstance(context.Background(), loadFrom(os.Getenv(sourceVariable)), nearcache.BackplaneOptions{
		RedisConnectionString: connection,
		MaxStaleness:          staleness,
		Logger:                slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	answers := json.NewEncoder(os.Stdout)
	if err != nil {
		_ = answers.Encode(answer{Error: err.Error()})
		return 1
	}
	if err := answers.Encode(answer{}); err != nil {
		return 1
	}
	for commands := json.NewDecoder(os.Stdin); ; {
		var c command
		if err := commands.Decode(&c); err != nil {
			if errors.Is(err, io.EOF) {
				return 0
			}
			return 1
		}
		if err := answers.Encode(in.do(c.Op, c.Args...)); err != nil {
			return 1
		}
	}
}

// loadFrom loads from the source that serve has put at a URL.
func loadFrom(url string) loadFunc {
	return func(ctx context.Context, key string) (int, error) {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return 0, err
		}
		request.URL.RawQuery = "key=" + key
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			return 0, err
		}
		defer func() { _ = response.Body.Close() }()
		text, err := io.ReadAll(response.Body)
		if err != nil {
			return 0, err
		}
		return strconv.Atoi(string(text))
	}
}

// serve makes the source reachable for children and returns its URL.
func (s *source) serve(t *testing.T) string {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprint(w, s.version(r.URL.Query().Get("key")))
	}))
	t.Cleanup(server.Close)
	return server.URL
}

// child is an instance in a process of its own.
type child struct {
	t       *testing.T
	cmd     *exec.Cmd
	in      io.WriteCloser
	out     io.Closer
	ask     *json.Encoder
	answers *json.Decoder
	exited  chan struct{} // closed when cmd has ended
	log     *lockedBuffer
}

// startChild starts an instance in a process of its own, which ends with the
// test, and returns what it says of connecting.
func startChild(t *testing.T, sourceURL, connection string, env ...string) (*child, answer) {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	c := &child{t: t, cmd: exec.Command(self), exited: make(chan struct{}), log: &lockedBuffer{}}
	c.cmd.Env = append(os.Environ(), childVariable+"="+connection, sourceVariable+"="+sourceURL)
	c.cmd.Env = append(c.cmd.Env, env...)
	c.cmd.Stderr = c.log
	in, err := c.cmd.StdinPipe()
	require.NoError(t, err)
	// Not StdoutPipe: Wait would close it under the decoder.
	out, childOut, err := os.Pipe()
	require.NoError(t, err)
	c.cmd.Stdout = childOut
	require.NoError(t, c.cmd.Start())
	_ = childOut.Close()
	c.in, c.out, c.ask, c.answers = in, out, json.NewEncoder(in), json.NewDecoder(out)
	go func() {
		_ = c.cmd.Wait()
		close(c.exited)
	}()
	t.Cleanup(func() {
		c.kill()
		_ = c.out.Close()
		if t.Failed() {
			t.Logf("the child said:\n%s", c.log)
		}
	})
	return c, c.answer("connect")
}

// kill ends the process the hard way, and waits until it is gone.
func (c *child) kill() {
	_ = c.cmd.Process.Kill()
	<-c.exited
}

// exit ends the process by ending its input, and returns its exit code.
func (c *child) exit() int {
	c.t.Helper()
	require.NoError(c.t, c.in.Close())
	receive(c.t, "the child ends", c.exited)
	return c.cmd.ProcessState.ExitCode()
}

func (c *child) do(op string, args ...string) answer {
	c.t.Helper()
	require.NoError(c.t, c.ask.Encode(command{op, args}))
	return c.answer(op)
}

func (c *child) answer(to string) answer {
	c.t.Helper()
	type result struct {
		answer
		err error
	}
	r := within(c.t, "the child answers "+to, func() (r result) {
		r.err = c.answers.Decode(&r.answer)
		return r
	})
	require.NoError(c.t, r.err, "the answer of the child to %s", to)
	return r.answer
}

// startChildren starts instances that connect, in processes of their own.
func startChildren(t *testing.T, n int, src *source, connection string) []member {
	t.Helper()
	url := src.serve(t)
	var children []member
	for range n {
		c, connected := startChild(t, url, connection)
		require.Empty(t, connected.Error)
		children = append(children, c)
	}
	return children
}

func TestProcessKilled(t *testing.T) {
	t.Parallel()
	onEachRedis(t, func(t *testing.T, addr string) {
		src := newSource()
		raw := rawClient(t, addr)
		children := startChildren(t, 3, src, addr)
		for _, c := range children {
			require.Empty(t, c.do("get", "/1").Error)
		}

		children[0].(*child).kill()
		rest := children[1:]
		src.write("/1")
		require.Empty(t, rest[0].do("remove", "/1").Error)
		barrier(t, raw, rest...)
		for _, c := range rest {
			assert.False(t, c.do("peek", "/1").Held)
			assert.Equal(t, 2, c.do("get", "/1").Version)
			assert.Zero(t, c.do("stats").Stats.Clears.Gaps(), "the others have missed nothing")
		}
	})
}

func TestProcessCloses(t *testing.T) {
	t.Parallel()
	onEachRedis(t, func(t *testing.T, addr string) {
		src := newSource()
		raw := rawClient(t, addr)
		children := startChildren(t, 2, src, addr)
		require.Empty(t, children[1].do("get", "/1").Error)

		require.Empty(t, children[0].do("remove", "/1").Error)
		require.Empty(t, children[0].do("close").Error)
		assert.Contains(t, children[0].do("remove", "/1").Error, "nearcache: closed")
		assert.Zero(t, children[0].(*child).exit())

		barrier(t, raw, children[1])
		assert.False(t, children[1].do("peek", "/1").Held)
	})
}
