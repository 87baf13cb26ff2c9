// Package redistest starts redis-server processes for tests, examples and benchmarks.
package redistest

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Patience bounds how long anything here waits. It bounds a failure, and says nothing
// about how fast anything is.
const Patience = 20 * time.Second

// Server is a redis-server process on the loopback interface. It stores nothing unless
// its arguments say so: a server that is killed has lost all that it knew.
type Server struct {
	Addr string   // host and port, the same after a restart
	Args []string // of the next Restart

	binary string
	cmd    *exec.Cmd
	exited chan struct{} // closed when cmd has ended
	output *output
}

// Binary returns the path of redis-server, or of the binary that NEARCACHE_REDIS_SERVER
// names. The error wraps exec.ErrNotFound if there is none.
func Binary() (string, error) {
	return exec.LookPath(cmp.Or(os.Getenv("NEARCACHE_REDIS_SERVER"), "redis-server"))
}

// Launch starts a server on a free port and returns when it accepts connections. It keeps
// its files, if any, in dir. The error wraps exec.ErrNotFound where redis-server is not
// installed, and errBadDirective if the server does not know one of the arguments.
func Launch(dir string, args ...string) (*Server, error) {
	return launch(dir, func(port int) []string { return append([]string{"--port", strconv.Itoa(port)}, args...) })
}

var (
	errBadDirective = errors.New("it does not know an option")
	errNotReady     = errors.New("it does not accept connections")
)

func launch(dir string, args func(port int) []string) (*Server, error) {
	binary, err := Binary()
	if err != nil {
		return nil, err
	}
	s := &Server{binary: binary}
	common := []string{"--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", dir}
	for range 5 { // another process can take the port before the server does
		port, err := FreePort()
		if err != nil {
			return nil, err
		}
		s.Addr = net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
		s.Args = append(args(port), common...)
		if err = s.Restart(); err == nil || !errors.Is(err, errNotReady) {
			return s, err
		}
		if strings.Contains(s.Output(), "Bad directive") {
			return nil, fmt.Errorf("%w: %s", errBadDirective, s.Output())
		}
	}
	return nil, fmt.Errorf("redis-server does not start: %s", s.Output())
}

// FreePort returns a port of the loopback interface on which nothing listens.
func FreePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// Restart starts the process, which is not running, and returns when it accepts
// connections. The process's own output says so: an answer at the port could be another
// server's.
func (s *Server) Restart() error {
	out := &output{ready: make(chan struct{})}
	cmd := exec.Command(s.binary, s.Args...)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		return err
	}
	exited := make(chan struct{})
	go func() {
		_ = cmd.Wait() // it is ended by a signal
		close(exited)
	}()
	s.cmd, s.exited, s.output = cmd, exited, out
	select {
	case <-out.ready:
		return nil
	case <-exited:
	case <-time.After(Patience):
		s.Kill()
	}
	return fmt.Errorf("%w: %s", errNotReady, s.Output())
}

// Kill ends the process with a signal that it cannot handle, and waits until it is gone.
func (s *Server) Kill() {
	_ = s.cmd.Process.Kill()
	<-s.exited
}

// Signal sends the process a signal.
func (s *Server) Signal(signal os.Signal) error { return s.cmd.Process.Signal(signal) }

// Output returns what the process has written since its last start.
func (s *Server) Output() string { return s.output.String() }

// output keeps what a server writes.
type output struct {
	ready chan struct{} // closed when the server says that it accepts connections

	mu   sync.Mutex // guards everything below
	buf  bytes.Buffer
	said bool // ready is closed
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	_, _ = o.buf.Write(p)
	if !o.said && bytes.Contains(bytes.ToLower(o.buf.Bytes()), []byte("ready to accept connections")) {
		o.said = true
		close(o.ready)
	}
	return len(p), nil
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}
