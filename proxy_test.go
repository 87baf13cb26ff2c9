package nearcache_test

import (
	"net"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// proxy is a path to Redis that a test can cut, or hold up, for those that
// connect through it.
type proxy struct {
	addr     string
	target   string
	listener net.Listener
	running  sync.WaitGroup

	mu      sync.Mutex // guards everything below
	open    *sync.Cond // on mu: holding became false, or a connection was closed
	conns   map[net.Conn]bool
	holding bool              // bytes wait
	free    map[net.Conn]bool // but not on these
	exempt  int               // so many new connections will be free
	waiting int               // pieces of data that wait
	cutOff  bool              // connections are closed at once
}

// startProxy starts a proxy in front of a Redis. It ends with the test.
func startProxy(t *testing.T, target string) *proxy {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	p := &proxy{addr: listener.Addr().String(), target: target, listener: listener, conns: map[net.Conn]bool{}, free: map[net.Conn]bool{}}
	p.open = sync.NewCond(&p.mu)
	p.running.Go(p.accept)
	t.Cleanup(func() {
		_ = listener.Close()
		p.cut()
		p.running.Wait()
	})
	return p
}

// cut closes all connections, and from now on each new one as soon as it is made.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cutOff = true
	for c := range p.conns {
		p.dropLocked(c)
	}
}

// hold keeps whatever is sent in either direction until resume.
func (p *proxy) hold() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.holding, p.cutOff = true, false
}

// holdAfter is hold, but for the next n connections.
func (p *proxy) holdAfter(n int) {
	p.hold()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.exempt = n
}

// held returns how many connections have data waiting.
func (p *proxy) held() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.waiting
}

// resume ends cut and hold.
func (p *proxy) resume() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.holding, p.cutOff = false, false
	p.open.Broadcast()
}

func (p *proxy) accept() {
	for {
		near, err := p.listener.Accept()
		if err != nil {
			return
		}
		far, err := net.Dial("tcp", p.target)
		if err != nil {
			_ = near.Close()
			continue
		}
		p.mu.Lock()
		if p.cutOff {
			_ = near.Close()
			_ = far.Close()
		} else {
			p.conns[near], p.conns[far] = true, true
			if p.exempt > 0 {
				p.exempt--
				p.free[near], p.free[far] = true, true
			}
			p.running.Go(func() { p.copy(near, far) })
			p.running.Go(func() { p.copy(far, near) })
		}
		p.mu.Unlock()
	}
}

func (p *proxy) copy(to, from net.Conn) {
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.dropLocked(to)
		p.dropLocked(from)
	}()
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if err != nil || !p.pass(to) {
			return
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

// pass waits while data is held up, and reports whether to is still connected.
func (p *proxy) pass(to net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.waiting++
	for p.holding && p.conns[to] && !p.free[to] {
		p.open.Wait()
	}
	p.waiting--
	return p.conns[to]
}

func (p *proxy) dropLocked(c net.Conn) {
	_ = c.Close()
	delete(p.conns, c)
	delete(p.free, c)
	p.open.Broadcast()
}
