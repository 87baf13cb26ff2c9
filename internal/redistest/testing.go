package redistest

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Start starts a server that ends with the test. Where there is no redis-server, the
// test is skipped, or fails if NEARCACHE_REQUIRE_REDIS is 1.
func Start(t testing.TB, args ...string) *Server {
	t.Helper()
	s, err := Launch(t.TempDir(), args...)
	return started(t, s, err)
}

// StartWith is Start for a server that does not listen on a port in the usual way: args
// returns its arguments.
func StartWith(t testing.TB, args func(port int) []string) *Server {
	t.Helper()
	s, err := launch(t.TempDir(), args)
	return started(t, s, err)
}

// StartOnSocket is Start for a server on a Unix socket, whose path it returns.
func StartOnSocket(t testing.TB) (path string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "redis") // t.TempDir is too long for the path of a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path = filepath.Join(dir, "redis.sock")
	StartWith(t, func(int) []string { return []string{"--port", "0", "--unixsocket", path} })
	return path
}

// started registers the server's end, or ends the test.
func started(t testing.TB, s *Server, err error) *Server {
	t.Helper()
	switch {
	case errors.Is(err, exec.ErrNotFound), errors.Is(err, errBadDirective):
		SkipOrFail(t, err.Error())
	case err != nil:
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.Kill()
		if t.Failed() {
			t.Logf("redis-server at %s said:\n%s", s.Addr, s.Output())
		}
	})
	return s
}

// SkipOrFail ends a test that needs a real Redis which is not there.
func SkipOrFail(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("NEARCACHE_REQUIRE_REDIS") == "1" {
		t.Fatal("NEARCACHE_REQUIRE_REDIS=1, but " + why)
	}
	t.Skip("needs a real Redis, but " + why + " (NEARCACHE_REQUIRE_REDIS=1 makes this a failure)")
}
