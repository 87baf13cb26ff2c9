package nearcache

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// Event is something that happened to a backplane, for BackplaneOptions.OnEvent. Hits,
// loads and single invalidations are not events; [BackplaneStats] counts them. An event
// contains no key, no value and no password.
type Event struct {
	Time time.Time // when the event was queued
	Kind EventKind

	// State is the backplane's state when the event was queued. A change that was undone
	// by then may not show. The last EventState always has the current state.
	State State

	// Cause is why something was cleared, for EventCleared. Otherwise it is
	// ClearCauseNone.
	Cause ClearCause

	// Cache names the cache that the event is about. It is empty if the event is about
	// all caches, or about none in particular. It is set for EventCleared,
	// EventCollapsed, EventSharedFailed and EventSharedResumed alone.
	Cache string

	// Err is the error behind the event: why the connection or the attempt ended, or why
	// a message could not be decoded. It is nil if there was none.
	Err error

	// Lost is how many events before this one were dropped, because OnEvent was too slow.
	Lost uint64
}

// EventKind is the kind of an [Event]. OnEvent gets every event. The log is more frugal:
// for each kind of failure it has at most one line a minute, for all caches of a backplane
// together, and one line when the failure is over.
type EventKind int

const (
	// EventState: the backplane has entered another state, or its first one.
	EventState EventKind = iota + 1

	// EventConnectFailed: an attempt to subscribe failed. It is the first such attempt
	// since the last subscription ended, or the first of all. Others follow until one
	// succeeds, without an event of their own.
	EventConnectFailed

	// EventProbeFailed: Redis did not accept a probe, and had accepted the one before. If
	// it accepts none for MaxStaleness, the state becomes StateNoLease.
	EventProbeFailed

	// EventCleared: this instance cleared all its caches, or the one that Cache names,
	// because it had missed messages, or may have. Cause says how that was found. A clear
	// that this or another instance asked for is not an event.
	EventCleared

	// EventPublishFailed: Redis did not accept a message, and had accepted the one
	// before. From now on writes are queued and return ErrUnconfirmed.
	EventPublishFailed

	// EventPublishResumed: Redis accepts messages again. It has accepted what was queued
	// when it last did not.
	EventPublishResumed

	// EventCollapsed: the queue has no room left for single keys and regions. Other
	// instances will clear the whole cache instead, or all caches if Cache is empty.
	EventCollapsed

	// EventSharedFailed: the shared level of Cache has failed several times in a row. It
	// is now bypassed for a second at a time, and items are loaded from the source.
	EventSharedFailed

	// EventSharedResumed: the shared level of Cache gets answers from Redis again.
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

// ClearCause is why an instance cleared its caches although no call asked for it.
// [ClearStats] counts such clears by cause.
type ClearCause int

const (
	ClearCauseNone        ClearCause = iota // nothing was cleared
	ClearCauseStart                         // the first echo: what was loaded before it may be stale
	ClearCauseMessage                       // a message did not follow the last one
	ClearCausePosition                      // an echo showed that messages were missed, or that the position was lost
	ClearCauseHistory                       // an echo showed another server history: a failover, or a restart
	ClearCauseNoHistory                     // a reconnect to a Redis that does not show its history
	ClearCauseUndecodable                   // a message, or a key in it, could not be decoded
	causes                                  // the number of causes
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

// sentence returns the cause as the log says it.
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

// tell logs line and queues e for OnEvent. Besides args, the line shows e's error, its
// cause and, for an EventState, the state that the caller has set. An event without a
// kind is for the log alone.
func (bp *Backplane) tell(level slog.Level, line string, e Event, args ...any) {
	bp.log(level, line, e, args...)
	bp.note(e)
}

// tellIf is tell if logged, and note otherwise.
func (bp *Backplane) tellIf(logged bool, level slog.Level, line string, e Event, args ...any) {
	if logged {
		bp.log(level, line, e, args...)
	}
	bp.note(e)
}

// log writes the line of tell.
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

// note queues e for OnEvent. The caller must not hold a lock that State takes.
func (bp *Backplane) note(e Event) { bp.events.add(e) }

const (
	// maxEvents bounds how many events are queued for OnEvent.
	maxEvents = 256

	// leastEventTime is the least time for which Close waits for OnEvent.
	leastEventTime = 100 * time.Millisecond
)

// events is the queue of events for OnEvent, and the goroutine that calls it. A nil
// *events ignores what is added.
type events struct {
	onEvent func(Event)
	state   func() State // of the backplane

	added chan struct{} // one token: something was queued, or closing was set
	done  chan struct{} // closed when run has returned

	// mu guards everything below. State is read under it, so that events show the states
	// in their order.
	mu      sync.Mutex
	queue   []Event
	lost    uint64 // events dropped since the last one that was delivered
	told    State  // of the last EventState; -1: none yet
	closing bool
}

func newEvents(onEvent func(Event), state func() State) *events {
	if onEvent == nil {
		return nil
	}
	return &events{onEvent: onEvent, state: state, told: -1, added: make(chan struct{}, 1), done: make(chan struct{})}
}

// start begins to deliver what was queued.
func (q *events) start() {
	if q != nil {
		go q.run()
	}
}

// add queues e with the current time and state. It does not block.
//
//  1. the lease is lost   2. Redis answers, and the lease is regained   3. an EventState
//     is added for that   4. a slower goroutine adds one for the loss.
//
// So e.State is ignored, and the state is read here. The last EventState then has the
// state of that time. One that repeats the state of the one before it is dropped.
//
// Only Close adds an EventState with StateClosed, at its end and with its error. Others
// that find the backplane closed are dropped.
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
		// Drop the oldest: the newest events show the current situation.
		q.queue = slices.Delete(q.queue, 0, 1)
		q.lost++
	}
	e.Time = time.Now()
	q.queue = append(q.queue, e)
	signal(q.added)
}

func (q *events) run() {
	ended := false
	defer func() {
		if ended {
			close(q.done)
		} else {
			go q.run() // OnEvent has called runtime.Goexit
		}
	}()
	for {
		e, ok := q.next()
		if !ok {
			ended = true
			return
		}
		q.onEvent(e)
	}
}

// next waits for an event. It reports false once the queue is closed and empty.
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

// close ends the queue: events that are added from now on are dropped. It waits for at
// most timeout until the queued ones were delivered, and reports whether they were. If
// not, the rest is dropped, and the goroutine ends when the call of OnEvent returns.
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
