package nearcache

import (
	"sync"
	"sync/atomic"
	"time"
)

const (
	// sweepInterval is how long an expired entry may keep its memory.
	sweepInterval = time.Minute

	// sweepShare bounds what sweeping costs when regions are cleared all the time. After a
	// sweep, no other begins for this many times as long as it took.
	sweepShare = 10
)

// sweeper runs a cache's sweep in the background: soon after a clear, and at intervals
// while there are entries that can expire. It uses a timer instead of a goroutine that
// waits. So a cache that is empty or forgotten costs nothing.
type sweeper struct {
	sweep func(stopped func() bool)
	due   func() bool // reports whether there are entries that will expire

	// armed says that a sweep is scheduled, or running.
	armed atomic.Bool

	mu      sync.Mutex // guards everything below
	timer   *time.Timer
	next    time.Time // when timer fires
	rest    time.Time // no sweep begins before
	running bool
	again   bool // a clear came while a sweep was running
	closed  bool
	idle    sync.Cond // on mu: running became false
}

func newSweeper(sweep func(stopped func() bool), due func() bool) *sweeper {
	s := &sweeper{sweep: sweep, due: due}
	s.idle.L = &s.mu
	return s
}

// later ensures that a sweep is scheduled.
func (s *sweeper) later() {
	if s.armed.Load() {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.scheduleLocked(sweepInterval)
}

// soon schedules a sweep for as soon as sweepShare allows.
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
	s.armed.Store(false) // before due is asked: an entry that is added later arms the timer again
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

// close stops sweeping, and waits for a sweep that is running.
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
