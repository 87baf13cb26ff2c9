package redisbus

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	defaultPoolSize     = 8
	defaultPoolIdleTime = time.Minute
	poolDialPause       = time.Second // after a failed dial, if there are other connections
	poolCloseTime       = time.Second // for dials that do not heed their context
)

// linkPool is a few connections for many requests. It differs from go-redis's pool in two
// ways. A connection is dialled and prepared apart from the request that wants it, within
// the connect timeout, and is kept even if that request has left. And a connection that is
// not used is closed after a while.
type linkPool struct {
	server    *Server
	size      int
	idleTime  time.Duration // 0: connections stay
	errClosed error         // of requests after the last drop

	mu       sync.Mutex // guards everything below
	lifetime context.Context
	end      context.CancelFunc // of all connections since the last drop, and of dials; nil: none yet
	open     map[*redisLink]struct{}
	idle     []idleLink    // the last used is at the end
	waiting  []chan pooled // requests that wait for a connection, in order
	dialing  int           // dials under way, also those that drop has ended
	ended    chan struct{} // closed when closed is set and dialing is 0; nil before
	pausing  time.Time     // no dial before then, unless there is no connection
	reaper   *time.Timer   // nil: nothing is idle
	closed   bool
}

type idleLink struct {
	link  *redisLink
	since time.Time
}

// pooled is what a request that waits is given: a connection or an error.
type pooled struct {
	link *redisLink
	err  error
}

// run runs command over a connection. If again is set and a connection that was kept turns
// out to be dead, command is run again over another.
func (p *linkPool) run(ctx context.Context, again bool, command func(context.Context, *redisLink) error) error {
	for {
		link, reused, err := p.get(ctx)
		if err != nil {
			return err
		}
		err = p.call(ctx, link, command)
		if again && reused && connectionLost(err) && ctx.Err() == nil && !p.dropped(link) {
			continue
		}
		if errors.Is(err, net.ErrClosed) {
			err = errGivenUp
		}
		return p.server.explain(inTime(ctx, err))
	}
}

// call runs command and returns the connection to the pool. It closes the connection if
// command panics, or fails in a way that leaves the connection useless.
func (p *linkPool) call(ctx context.Context, link *redisLink, command func(context.Context, *redisLink) error) (err error) {
	usable := false
	defer func() { p.put(link, usable) }()
	err = command(ctx, link)
	switch {
	case err == nil:
		usable = true
	case answered(err):
		switch code(err) {
		case "READONLY", "LOADING", "MASTERDOWN", "NOAUTH", "MOVED", "ASK": // the address may lead to another server by now
		default:
			usable = true
		}
	}
	return err
}

// get returns a connection, and whether it was in the pool already.
func (p *linkPool) get(ctx context.Context) (link *redisLink, reused bool, err error) {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil, false, p.errClosed
	}
	if n := len(p.idle); n > 0 {
		link = p.idle[n-1].link
		p.idle = p.idle[:n-1]
		p.mu.Unlock()
		return link, true, nil
	}
	answer := make(chan pooled, 1)
	p.waiting = append(p.waiting, answer)
	p.dialLocked()
	p.mu.Unlock()

	select {
	case a := <-answer:
		return a.link, false, a.err
	case <-ctx.Done():
	}
	if !p.leave(answer) {
		// 1. ctx ends   2. a connection is handed over   3. nothing would receive it.
		if a := <-answer; a.err == nil {
			p.put(a.link, true)
		}
	}
	return nil, false, fmt.Errorf("no connection to Redis was free or ready in time: %w", ctx.Err())
}

// leave removes a request from those that wait, and reports whether it was among them.
func (p *linkPool) leave(answer chan pooled) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, a := range p.waiting {
		if a == answer {
			p.waiting = append(p.waiting[:i], p.waiting[i+1:]...)
			return true
		}
	}
	return false
}

// dialLocked starts a dial for each request that waits, but no more than size allows.
func (p *linkPool) dialLocked() {
	if p.closed || len(p.open) > 0 && time.Now().Before(p.pausing) {
		return
	}
	if p.end == nil {
		p.lifetime, p.end = context.WithCancel(context.Background())
	}
	for p.dialing < len(p.waiting) && p.dialing+len(p.open) < p.size {
		p.dialing++
		go p.dial(p.lifetime)
	}
}

// dial makes one connection, for the request that has waited longest when it is ready.
func (p *linkPool) dial(lifetime context.Context) {
	link, err := p.tryDial(lifetime)
	p.mu.Lock()
	p.dialing--
	dropped := lifetime.Err() != nil // the address may no longer lead to that server
	switch {
	case dropped:
	case err != nil:
		p.pausing = time.Now().Add(poolDialPause)
		if len(p.open) == 0 { // else those that wait can get one that is in use
			p.failLocked(err)
		}
	default:
		p.open[link] = struct{}{}
		p.giveLocked(link)
	}
	p.dialLocked()
	if p.closed && p.dialing == 0 {
		defer close(p.ended)
	}
	p.mu.Unlock()
	if dropped && err == nil {
		link.close()
	}
}

func (p *linkPool) tryDial(lifetime context.Context) (link *redisLink, err error) {
	defer p.server.panics.Caught("dial", &err)
	if link, err = p.server.open(lifetime, lifetime); err == nil {
		link.loaded = map[*redis.Script]bool{}
	}
	return link, err
}

func (p *linkPool) failLocked(err error) {
	for _, answer := range p.waiting {
		answer <- pooled{err: err}
	}
	p.waiting = nil
}

// put takes back a connection that get returned.
func (p *linkPool) put(link *redisLink, usable bool) {
	p.mu.Lock()
	_, ours := p.open[link]
	if ours && usable {
		p.giveLocked(link)
	} else {
		delete(p.open, link)
		p.dialLocked() // there is room for another
	}
	p.mu.Unlock()
	if !ours || !usable {
		link.close()
	}
}

// giveLocked hands a connection to the request that has waited longest, or keeps it.
func (p *linkPool) giveLocked(link *redisLink) {
	if len(p.waiting) > 0 {
		p.waiting[0] <- pooled{link: link}
		p.waiting = p.waiting[1:]
		return
	}
	p.idle = append(p.idle, idleLink{link, time.Now()})
	if p.reaper == nil && p.idleTime > 0 {
		p.reaper = time.AfterFunc(p.idleTime, p.reap)
	}
}

// reap closes connections that were idle for idleTime.
func (p *linkPool) reap() {
	p.mu.Lock()
	var old []idleLink
	for len(p.idle) > 0 && time.Since(p.idle[0].since) >= p.idleTime {
		old = append(old, p.idle[0])
		delete(p.open, p.idle[0].link)
		p.idle = p.idle[1:]
	}
	p.reaper = nil
	if len(p.idle) > 0 && !p.closed {
		p.reaper = time.AfterFunc(p.idleTime-time.Since(p.idle[0].since), p.reap)
	}
	p.mu.Unlock()
	for _, o := range old {
		o.link.close()
	}
}

// dropped reports whether drop has closed link.
func (p *linkPool) dropped(link *redisLink) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.closed || link.dropped
}

// drop closes all connections, also those in use, and ends dials. Requests that wait get
// new connections, or errClosed if it is for good.
func (p *linkPool) drop(forGood bool) {
	p.mu.Lock()
	links, end := p.open, p.end
	p.open, p.idle, p.end = map[*redisLink]struct{}{}, nil, nil
	for link := range links {
		link.dropped = true
	}
	if forGood && !p.closed {
		p.closed, p.ended = true, make(chan struct{})
		p.failLocked(p.errClosed)
		if p.reaper != nil {
			p.reaper.Stop()
		}
		if p.dialing == 0 {
			close(p.ended)
		}
	}
	ended := p.ended
	p.pausing = time.Time{}
	p.dialLocked()
	p.mu.Unlock()
	if end != nil {
		end()
	}
	for link := range links {
		link.close()
	}
	if forGood {
		select {
		case <-ended:
		case <-time.After(poolCloseTime): // the user's own dialler does not heed its context
		}
	}
}
