package redistest_test

import (
	"net"
	"testing"

	"github.com/nearcache/nearcache/internal/redistest"
)

func accepts(network, addr string) bool {
	conn, err := net.Dial(network, addr)
	if err == nil {
		_ = conn.Close()
	}
	return err == nil
}

func TestServer(t *testing.T) {
	s := redistest.Start(t)
	if !accepts("tcp", s.Addr) {
		t.Fatal("it does not accept connections")
	}
	s.Kill()
	if accepts("tcp", s.Addr) {
		t.Fatal("it accepts connections after Kill")
	}
	if err := s.Restart(); err != nil {
		t.Fatal(err)
	}
	if !accepts("tcp", s.Addr) {
		t.Fatal("it does not accept connections after Restart, at the same address")
	}
}

func TestServerOnSocket(t *testing.T) {
	if path := redistest.StartOnSocket(t); !accepts("unix", path) {
		t.Fatal("it does not accept connections")
	}
}

func TestServerThatDoesNotStart(t *testing.T) {
	if _, err := redistest.Binary(); err != nil {
		redistest.SkipOrFail(t, err.Error())
	}
	if _, err := redistest.Launch(t.TempDir(), "--no-such-option", "1"); err == nil {
		t.Fatal("a server with an unknown option has started")
	}
}
