package nearcache

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/nearcache/nearcache/internal/barrier"
)

// logInterval is the least time between two lines about the same kind of thing.
const logInterval = barrier.LogInterval

// logLimit allows one line in each logInterval. If one message, one load or one broken
// connection causes a line, every one of them may. Only the log is limited: events and
// counters are not. The zero value is ready to use.
type logLimit struct {
	mu    sync.Mutex // guards everything below
	until time.Time  // no line is allowed before
}

// allow reports whether a line may be logged now.
func (l *logLimit) allow() bool {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	if now.Before(l.until) {
		return false
	}
	l.until = now.Add(logInterval)
	return true
}

// logOnce allows one line. The zero value is ready to use. It is not a sync.Once: a log
// handler may use the cache and so reach the same line again, and would then wait for
// itself.
type logOnce struct{ said atomic.Bool }

// allow reports whether the line may be logged. It is true once.
func (l *logOnce) allow() bool { return !l.said.Load() && l.said.CompareAndSwap(false, true) }

// outageLog decides which lines to log about something that fails and works again: at
// most one of each kind in logInterval. The zero value is ready to use.
//
//  1. it fails: a line   2. it works: a line   3. it fails again soon: no line   4. it
//     keeps failing. So failing is called for each failure, and 4 gets its line once the
//     interval is over.
//
// A line of 2 is only logged after one of 1, and each line of 1 is followed by one of 2. So
// the last line never says that something fails although it works.
type outageLog struct {
	limit logLimit

	mu   sync.Mutex // guards said
	said bool       // the last line said that it fails
}

// failing is called for each failure. It reports whether to log the failure.
func (o *outageLog) failing() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.said || !o.limit.allow() {
		return false
	}
	o.said = true
	return true
}

// works is called for each success. It reports whether to log that it works again, which
// is so only if the failure was logged.
func (o *outageLog) works() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	said := o.said
	o.said = false
	return said
}
