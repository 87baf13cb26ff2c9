package systemtest

import (
	"net"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// proxy is a path to Redis that a test can cut, slow down, make mute in either
// direction, or lead to another Redis, for those that connect through it.
type proxy struct {
	addr     string
	listener net.Listener
	running  sync.WaitGroup
	closed   chan struct{}

	mu      sync.Mutex // guards everything below
	target  string
	open    *sync.Cond // on mu: muted has changed, or a connection was closed
	conns   map[net.Conn]bool
	muted   direction         // bytes that go this way wait
	free    map[net.Conn]bool // but not on these
	exempt  int               // so many new connections will be free
	waiting int               // pieces of data that wait
	delay   time.Duration     // of each piece of data
	cutOff  bool              // connections are closed at once
}

// direction is where data goes, or both.
type direction int

const (
	toRedis direction = 1 << iota
	fromRedis
	bothWays = toRedis | fromRedis
)

// startProxy starts a proxy in front of a Redis. It ends with the test.
func startProxy(t *testing.T, target string) *proxy {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	p := &proxy{
		addr: listener.Addr().String(), target: target, listener: listener, closed: make(chan struct{}),
		conns: map[net.Conn]bool{}, free: map[net.Conn]bool{},
	}
	p.open = sync.NewCond(&p.mu)
	p.running.Go(p.accept)
	t.Cleanup(func() {
		_ = listener.Close()
		close(p.closed)
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
func (p *proxy) hold() { p.mute(bothWays) }

// mute keeps whatever is sent that way until resume. Nothing else tells the two
// ends: their connection looks alive, and new ones can be made.
func (p *proxy) mute(way direction) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.muted, p.cutOff = way, false
	p.open.Broadcast()
}

// slowDown delays each piece of data, until resume.
func (p *proxy) slowDown(delay time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delay = delay
}

// leadTo makes new connections go to another Redis. Those that there are stay.
func (p *proxy) leadTo(target string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = target
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

// resume ends cut, hold, mute and slowDown.
func (p *proxy) resume() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.muted, p.delay, p.cutOff = 0, 0, false
	p.open.Broadcast()
}

func (p *proxy) accept() {
	for {
		near, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.mu.Lock()
		target := p.target
		p.mu.Unlock()
		far, err := net.Dial("tcp", target)
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
			p.running.Go(func() { p.copy(near, far, fromRedis) })
			p.running.Go(func() { p.copy(far, near, toRedis) })
		}
		p.mu.Unlock()
	}
}

func (p *proxy) copy(to, from net.Conn, way direction) {
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.dropLocked(to)
		p.dropLocked(from)
	}()
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if err != nil || !p.pass(to, way) {
			return
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

// pass waits while data is held up, and reports whether to is still connected.
func (p *proxy) pass(to net.Conn, way direction) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if delay := p.delay; delay > 0 {
		p.mu.Unlock()
		select {
		case <-time.After(delay):
		case <-p.closed:
		}
		p.mu.Lock()
	}
	p.waiting++
	for p.muted&way != 0 && p.conns[to] && !p.free[to] {
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
