// Package redistest starts a real Redis for the tests of the examples.
package redistest

import (
	"cmp"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// Start starts a redis-server on a socket in a directory of its own, and returns its
// connection string. It ends with the test. Where there is no redis-server, the test
// is skipped, or fails if NEARCACHE_REQUIRE_REDIS is 1.
func Start(t testing.TB) string {
	t.Helper()
	binary, err := exec.LookPath(cmp.Or(os.Getenv("NEARCACHE_REDIS_SERVER"), "redis-server"))
	switch {
	case err == nil:
	case os.Getenv("NEARCACHE_REQUIRE_REDIS") == "1":
		t.Fatal(err)
	default:
		t.Skip(err)
	}
	dir, err := os.MkdirTemp("", "redis") // t.TempDir is too long for the path of a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, "redis.sock")
	server := exec.Command(binary, "--port", "0", "--unixsocket", socket, "--save", "", "--appendonly", "no", "--dir", dir)
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = server.Process.Kill()
		_ = server.Wait()
	})
	for began := time.Now(); time.Since(began) < 20*time.Second; time.Sleep(10 * time.Millisecond) {
		if c, err := net.Dial("unix", socket); err == nil {
			_ = c.Close()
			return "unix://" + socket
		}
	}
	t.Fatal("redis-server does not start")
	return ""
}
