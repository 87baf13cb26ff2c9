package nearcache

import (
	"sync"
	"sync/atomic"
	"time"
)

const (
	// sweepInterval is how long an expired entry may hold on to its memory.
	sweepInterval = time.Minute

	// sweepShare bounds what sweeping costs when regions are cleared without end:
	// after a sweep, nothing is swept for this many times as long as it took.
	sweepShare = 10
)

// sweeper runs a cache's sweep in the background: soon after a clear, and at
// intervals while there are entries that can expire. It is a timer and not a
// goroutine that waits, so a cache that is empty or forgotten costs nothing.
type sweeper struct {
	sweep func(stopped func() bool)
	due   func() bool // reports whether there are entries that will expire

	// armed reports whether a sweep is scheduled, sooner or later.
	armed atomic.Bool

	mu      sync.Mutex // guards everything below
	timer   *time.Timer
	next    time.Time // when timer fires
	rest    time.Time // no sweep starts before
	running bool
	again   bool // a clear came while running
	closed  bool
	idle    sync.Cond // on mu: running became false
}

func newSweeper(sweep func(stopped func() bool), due func() bool) *sweeper {
	s := &sweeper{sweep: sweep, due: due}
	s.idle.L = &s.mu
	return s
}

// later makes sure that a sweep will come at all.
func (s *sweeper) later() {
	if s.armed.Load() {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.scheduleLocked(sweepInterval)
}

// soon asks for a sweep as soon as the last one is far enough behind.
func (s *sweeper) soon() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running {
		s.again = true
		return
	}
	s.scheduleLocked(0)
}

func (s *sweeper) scheduleLocked(after time.Duration) {
	now := time.Now()
	at := now.Add(after)
	if at.Before(s.rest) {
		at = s.rest
	}
	switch {
	case s.closed || s.running:
		return
	case s.timer == nil:
		s.timer = time.AfterFunc(at.Sub(now), s.run)
	case !s.armed.Load() || at.Before(s.next):
		s.timer.Reset(at.Sub(now))
	default:
		return
	}
	s.next = at
	s.armed.Store(true)
}

func (s *sweeper) run() {
	s.mu.Lock()
	if s.closed || s.running {
		s.mu.Unlock()
		return
	}
	s.running, s.again = true, false
	s.armed.Store(true) // a clear or a new entry needs no timer while this runs
	s.mu.Unlock()

	began := time.Now()
	s.sweep(s.stopped)
	ended := time.Now()

	s.mu.Lock()
	defer s.mu.Unlock()
	s.running = false
	s.armed.Store(false) // before due is asked: who adds an entry later arms again
	s.rest = ended.Add(sweepShare * ended.Sub(began))
	if s.again {
		s.scheduleLocked(0)
	} else if s.due() {
		s.scheduleLocked(sweepInterval)
	}
	s.idle.Broadcast()
}

func (s *sweeper) stopped() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

// close stops sweeping and waits for a sweep that is running.
func (s *sweeper) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if s.timer != nil {
		s.timer.Stop()
	}
	for s.running {
		s.idle.Wait()
	}
}
