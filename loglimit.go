package nearcache

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/nearcache/nearcache/internal/barrier"
)

// logInterval is how long the log is silent about one kind of thing after a line
// about it.
const logInterval = barrier.LogInterval

// logLimit lets one line through, and no other for logInterval: what one message, one
// load or one broken connection causes, each of them may. The zero value is ready.
// Only the log is limited. Events and counters are not.
type logLimit struct {
	mu    sync.Mutex // guards everything below
	until time.Time  // no line before
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

// logOnce lets one line through. The zero value is ready. It is no sync.Once, which is
// held while the line is logged: a handler that uses the cache may come to the same line.
type logOnce struct{ said atomic.Bool }

// allow reports whether the line may be logged now.
func (l *logOnce) allow() bool { return !l.said.Load() && l.said.CompareAndSwap(false, true) }

// outageLog says which lines there are about something that fails and works again: in
// logInterval at most one of each. The zero value is ready.
//
//  1. it fails: a line   2. it works: a line   3. it fails again soon: no line   4. it
//     goes on failing. So failing is called for each failure, and 4 has its line when the
//     interval is over.
//
// Each line of 2 follows one of 1, and each of 1 is followed by one of 2, so the last line
// never says that something fails that works.
type outageLog struct {
	limit logLimit

	mu   sync.Mutex // guards said
	said bool       // that it fails, and not yet that it works
}

// failing is called for a failure. It reports whether to log that something fails.
func (o *outageLog) failing() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.said || !o.limit.allow() {
		return false
	}
	o.said = true
	return true
}

// works reports whether to log that something works again: not if the log does not say
// that it failed.
func (o *outageLog) works() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	said := o.said
	o.said = false
	return said
}
