// Package measure holds what the measurements share: a Redis of their own, and a
// way to print what several runs found.
package measure

import (
	"cmp"
	"fmt"
	"net"
	"os"
	"os/exec"
	"time"
)

// Server is a redis-server process on a port of its own on the loopback
// interface. Nothing is stored: a server that is killed has lost all it knew.
type Server struct {
	Address string // host and port, the same after a restart

	program string
	command *exec.Cmd // nil: not running
}

// StartServer starts a server and returns once it accepts connections. The error
// wraps exec.ErrNotFound where redis-server is not installed.
func StartServer() (*Server, error) {
	program, err := exec.LookPath(cmp.Or(os.Getenv("NEARCACHE_REDIS_SERVER"), "redis-server"))
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &Server{Address: l.Addr().String(), program: program}
	_ = l.Close()
	return s, s.Start()
}

// Start starts the server again after Kill.
func (s *Server) Start() error {
	host, port, _ := net.SplitHostPort(s.Address)
	s.command = exec.Command(s.program, "--bind", host, "--port", port, "--save", "", "--appendonly", "no")
	if err := s.command.Start(); err != nil {
		s.command = nil
		return err
	}
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if c, err := net.Dial("tcp", s.Address); err == nil {
			_ = c.Close()
			return nil
		}
	}
	s.Kill()
	return fmt.Errorf("redis-server does not accept connections at %s", s.Address)
}

// Kill ends the process the hard way, stopped or not, and waits until it is gone.
func (s *Server) Kill() {
	if s.command != nil {
		_ = s.command.Process.Kill()
		_ = s.command.Wait() // it was ended by a signal
		s.command = nil
	}
}

// Signal sends the process a signal.
func (s *Server) Signal(signal os.Signal) error { return s.command.Process.Signal(signal) }
