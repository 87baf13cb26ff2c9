// Package loglimit keeps a log readable: whatever happens, it says how often a line about
// it is logged.
package loglimit

import (
	"sync"
	"sync/atomic"
	"time"
)

// Interval is the least time between two lines about the same kind of thing.
const Interval = time.Minute

// Limit allows one line in each Interval. If one message, one load or one broken
// connection causes a line, every one of them may. Only the log is limited: events and
// counters are not. The zero value is ready to use.
type Limit struct {
	mu    sync.Mutex // guards everything below
	until time.Time  // no line is allowed before
}

// Allow reports whether a line may be logged now.
func (l *Limit) Allow() bool {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	if now.Before(l.until) {
		return false
	}
	l.until = now.Add(Interval)
	return true
}

// Once allows one line. The zero value is ready to use. It is not a sync.Once: a log
// handler may use the cache and so reach the same line again, and would then wait for
// itself.
type Once struct{ said atomic.Bool }

// Allow reports whether the line may be logged. It is true once.
func (l *Once) Allow() bool { return !l.said.Load() && l.said.CompareAndSwap(false, true) }

// Outage decides which lines to log about something that fails and works again: at
// most one of each kind in Interval. The zero value is ready to use.
//
//  1. it fails: a line   2. it works: a line   3. it fails again soon: no line   4. it
//     keeps failing. So Failing is called for each failure, and 4 gets its line once the
//     interval is over.
//
// A line of 2 is only logged after one of 1, and each line of 1 is followed by one of 2. So
// the last line never says that something fails although it works.
type Outage struct {
	limit Limit

	mu   sync.Mutex // guards said
	said bool       // the last line said that it fails
}

// Failing is called for each failure. It reports whether to log the failure.
func (o *Outage) Failing() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.said || !o.limit.Allow() {
		return false
	}
	o.said = true
	return true
}

// Works is called for each success. It reports whether to log that it works again, which
// is so only if the failure was logged.
func (o *Outage) Works() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	said := o.said
	o.said = false
	return said
}
