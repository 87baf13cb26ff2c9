package nearcache

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// Event is something that happened to a backplane, as BackplaneOptions.OnEvent is
// told of it. Hits, loads and single invalidations are no events; [BackplaneStats]
// counts them. An event shows no key, no value and no password.
type Event struct {
	Time time.Time
	Kind EventKind

	// State is the backplane's state when the event was queued: it may be told of a
	// change that was undone by then. The last EventState has the state that the
	// backplane is in.
	State State

	// Cause is why something was cleared, with EventCleared. Otherwise ClearCauseNone.
	Cause ClearCause

	// Cache is the cache that an event is about: with EventCleared the one that was
	// cleared, with EventCollapsed the one whose queue was, with EventSharedFailed and
	// EventSharedResumed the one that is shared. Empty: all of them, or no
	// cache in particular.
	Cache string

	// Err is the error behind the event, nil if there was none: what ended the
	// connection or the attempt, why a message could not be understood.
	Err error

	// Lost is how many events before this one OnEvent was not told of, since it was
	// too slow.
	Lost uint64
}

// EventKind is what kind of event an [Event] is. The log has one line a minute at most for
// each kind of trouble, for all caches of a backplane together, and one that says that it is
// over; OnEvent is told each time.
type EventKind int

const (
	// EventState: the backplane is in another state than before, or in its first.
	EventState EventKind = iota + 1

	// EventConnectFailed: an attempt at a subscription failed, the first one since
	// Redis was lost or the first of all. Others follow until one succeeds.
	EventConnectFailed

	// EventProbeFailed: Redis did not take a probe, and had taken the one before. If
	// it takes none for MaxStaleness, the state becomes StateNoLease.
	EventProbeFailed

	// EventCleared: this instance cleared all its caches, or the one that Cache names,
	// because it had missed something, or may have. Cause says what. A cache that is
	// cleared by its own methods, or by those of other instances, is no event.
	EventCleared

	// EventPublishFailed: Redis did not accept a message, and had accepted the one
	// before. Writes return ErrUnconfirmed from now on, and are queued.
	EventPublishFailed

	// EventPublishResumed: Redis accepts messages again, and has accepted what was
	// queued when it last did not.
	EventPublishResumed

	// EventCollapsed: there is no room for all that is queued, and other instances
	// will clear the whole cache, or all of them if Cache is empty.
	EventCollapsed

	// EventSharedFailed: the shared level of Cache has failed several times in a row,
	// and is left alone for a second at a time. Items are loaded from the source.
	EventSharedFailed

	// EventSharedResumed: Redis has answered the shared level of Cache again.
	EventSharedResumed
)

// String returns the kind's name in lower case.
func (k EventKind) String() string {
	switch k {
	case EventState:
		return "state"
	case EventConnectFailed:
		return "connect failed"
	case EventProbeFailed:
		return "probe failed"
	case EventCleared:
		return "cleared"
	case EventPublishFailed:
		return "publish failed"
	case EventPublishResumed:
		return "publish resumed"
	case EventCollapsed:
		return "collapsed"
	case EventSharedFailed:
		return "shared failed"
	case EventSharedResumed:
		return "shared resumed"
	}
	return "unknown"
}

// MarshalText returns the kind's name, for logs and JSON. Its error is nil.
func (k EventKind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// ClearCause is why an instance cleared its caches without having been asked to.
// [ClearStats] counts clears by cause.
type ClearCause int

const (
	ClearCauseNone        ClearCause = iota // nothing was cleared
	ClearCauseStart                         // the first echo: what was loaded before is not vouched for
	ClearCauseMessage                       // a message did not follow the last one
	ClearCausePosition                      // an echo showed that messages were missed, or that the position was lost
	ClearCauseHistory                       // an echo showed another server history: a failover, or a restart
	ClearCauseNoHistory                     // a reconnect to a Redis that does not tell its history
	ClearCauseUndecodable                   // a message, or a key in it, could not be understood
	causes                                  // how many there are
)

// String returns the cause's name in lower case.
func (c ClearCause) String() string {
	switch c {
	case ClearCauseNone:
		return "none"
	case ClearCauseStart:
		return "start"
	case ClearCauseMessage:
		return "message"
	case ClearCausePosition:
		return "position"
	case ClearCauseHistory:
		return "history"
	case ClearCauseNoHistory:
		return "no history"
	case ClearCauseUndecodable:
		return "undecodable"
	}
	return "unknown"
}

// MarshalText returns the cause's name, for logs and JSON. Its error is nil.
func (c ClearCause) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// sentence says it to a reader of the log.
func (c ClearCause) sentence() string {
	switch c {
	case ClearCauseStart:
		return "this is the first echo"
	case ClearCauseMessage:
		return "a message did not follow the last one"
	case ClearCausePosition:
		return "an echo showed messages that were missed"
	case ClearCauseHistory:
		return "Redis has another history: it failed over or restarted"
	case ClearCauseNoHistory:
		return "Redis may have failed over meanwhile, and its history cannot be read"
	case ClearCauseUndecodable:
		return "a message could not be understood"
	}
	return "nothing was missed"
}

// tell logs what e is about, and has OnEvent told. The line shows e's error, its
// cause, and the state of an EventState as the caller knows it, besides args. An
// event without a kind is for the log alone.
func (bp *Backplane) tell(level slog.Level, line string, e Event, args ...any) {
	bp.log(level, line, e, args...)
	bp.note(e)
}

// tellIf is tell, and note if nothing is to be logged.
func (bp *Backplane) tellIf(logged bool, level slog.Level, line string, e Event, args ...any) {
	if logged {
		bp.log(level, line, e, args...)
	}
	bp.note(e)
}

// log is the part of tell that logs.
func (bp *Backplane) log(level slog.Level, line string, e Event, args ...any) {
	if e.Cause != ClearCauseNone {
		args = append(args, "because", e.Cause.sentence())
	}
	if e.Kind == EventState {
		args = append(args, "state", e.State)
	}
	if e.Err != nil {
		args = append(args, "error", e.Err)
	}
	bp.logger.Log(context.Background(), level, line, args...)
}

// note has OnEvent told of e. No lock may be held that State takes.
func (bp *Backplane) note(e Event) { bp.events.add(e) }

const (
	// maxEvents is how many events wait for OnEvent.
	maxEvents = 256

	// leastEventTime is how long Close waits for OnEvent at least.
	leastEventTime = 100 * time.Millisecond
)

// events hands events to OnEvent, in one goroutine. A nil *events takes them and
// does nothing.
type events struct {
	onEvent func(Event)
	state   func() State // the backplane's

	added chan struct{} // one token: something was queued, or closing was set
	done  chan struct{} // closed when run has returned

	// mu guards everything below. State is read under it, so that the states come in
	// the order in which they were.
	mu      sync.Mutex
	queue   []Event
	lost    uint64 // events dropped since the last that was handed over
	told    State  // of the last EventState; -1: there was none
	closing bool
}

func newEvents(onEvent func(Event), state func() State) *events {
	if onEvent == nil {
		return nil
	}
	return &events{onEvent: onEvent, state: state, told: -1, added: make(chan struct{}, 1), done: make(chan struct{})}
}

// start begins to hand over what was queued.
func (q *events) start() {
	if q != nil {
		go q.run()
	}
}

// add queues e, with the time and the state that are now. It waits for nothing.
//
//  1. the lease is lost   2. Redis answers, and the lease is regained   3. that is
//     told   4. the loss is told, by another goroutine that was slower. So no one's
//     word is taken for the state: whoever comes last tells what it is by then, and
//     whoever finds that told already tells nothing.
//
// Only Close tells that it was called, at its end and with its error.
func (q *events) add(e Event) {
	if q == nil || e.Kind == 0 {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	claimed := e.State
	e.State = q.state()
	if q.closing {
		return
	}
	if e.Kind == EventState {
		if e.State == q.told || e.State == StateClosed && claimed != StateClosed {
			return
		}
		q.told = e.State
	}
	if len(q.queue) == maxEvents {
		// The oldest: the newest say how things are.
		q.queue = slices.Delete(q.queue, 0, 1)
		q.lost++
	}
	e.Time = time.Now()
	q.queue = append(q.queue, e)
	signal(q.added)
}

func (q *events) run() {
	over := false
	defer func() {
		if over {
			close(q.done)
		} else {
			go q.run() // OnEvent has ended the goroutine
		}
	}()
	for {
		e, ok := q.next()
		if !ok {
			over = true
			return
		}
		q.onEvent(e)
	}
}

// next waits for an event. It reports false when there is none and never will be.
func (q *events) next() (Event, bool) {
	for {
		q.mu.Lock()
		if len(q.queue) > 0 {
			e := q.queue[0]
			q.queue = slices.Delete(q.queue, 0, 1)
			e.Lost, q.lost = q.lost, 0
			q.mu.Unlock()
			return e, true
		}
		closing := q.closing
		q.mu.Unlock()
		if closing {
			return Event{}, false
		}
		<-q.added
	}
}

// close takes no more events, waits for at most timeout until those that are queued
// were handed over, and reports whether they were. Others are dropped; if a call of
// OnEvent is under way, its goroutine ends when that returns, if ever.
func (q *events) close(timeout time.Duration) bool {
	if q == nil {
		return true
	}
	q.mu.Lock()
	q.closing = true
	q.mu.Unlock()
	signal(q.added)
	limit := time.NewTimer(timeout)
	defer limit.Stop()
	select {
	case <-q.done:
		return true
	case <-limit.C:
	}
	q.mu.Lock()
	q.queue = nil
	q.mu.Unlock()
	return false
}
