package nearcache

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nearcache/nearcache/internal/backoff"
	"github.com/nearcache/nearcache/internal/barrier"
	"github.com/nearcache/nearcache/internal/loglimit"
)

// Backplane joins this process's caches with those of all other instances on a Redis
// channel. A process needs only one: any number of caches share its subscription. Its
// methods are safe for concurrent use. Connect and Local return a Backplane; the zero
// value is not usable.
type Backplane struct {
	// The options are not kept: they contain a password, and a Backplane may be printed.
	closeTimeout time.Duration
	logger       *slog.Logger
	events       *events       // nil without OnEvent
	staleness    time.Duration // BackplaneOptions.MaxStaleness
	lease        *lease
	random       backoff.Random
	closed       atomic.Bool
	publishOnly  bool
	claims       *claims // of all its caches, at the shared level

	// Settings of a stand-in for Redis, see transport.StandIn.
	fullStaleness, noBreaker bool

	// Limits of the log.
	publishLines  loglimit.Outage
	outlivedLines loglimit.Limit
	noHistory     loglimit.Once // the shared level is bypassed because Redis shows no history
	sharedOutage  sharedOutage
	oversized     loglimit.Limit // values in Redis that are too large

	unpacking room // for values of the shared level

	// Nil, or empty, in a process-local backplane.
	bus       *guardedBus
	panics    *barrier.Panics
	channel   string // its name in Redis
	publisher *publisher

	// The subscriber is nil in a backplane that only publishes, too.
	subscriber *subscriber
	following  sync.WaitGroup     // waits for the subscriber's goroutine
	unfollow   context.CancelFunc // ends that goroutine

	mu      sync.RWMutex // guards everything below
	members map[string]member

	// writers counts the writes under way, which close waits for. A write first
	// increments writers and then reads closing, and close first sets closing and then
	// reads writers. So if the two race, at least one of them sees the other.
	writers     atomic.Int64
	closing     atomic.Bool
	writersGone chan struct{} // one token: writers became 0 after closing was set

	closeOnce atomic.Bool
	closeDone chan struct{} // closed once closeErr is set
	closeErr  error
}

// ClearAll evicts every item of every cache on the channel, on this instance and on all
// others. The errors are those of Cache.Remove.
func (bp *Backplane) ClearAll(ctx context.Context) error {
	if !bp.enter() {
		return fmt.Errorf("%w: backplane", ErrClosed)
	}
	defer bp.leave()
	return bp.publish(ctx, invalidation{all: true}, func() {
		for _, m := range bp.snapshotMembers() {
			m.clearLocal()
		}
	})
}

// Flush waits until Redis has accepted all invalidations that were queued when it was
// called, however long Redis is away. If ctx ends first, or Close gives up, its error
// wraps ErrUnconfirmed and says what is left. After a Close that delivered everything,
// and on a process-local backplane, it returns nil.
func (bp *Backplane) Flush(ctx context.Context) error {
	if bp.publisher == nil {
		return nil
	}
	return bp.publisher.flush(ctx)
}

// State returns the current state.
func (bp *Backplane) State() State {
	s, _ := bp.stateAndLease()
	return s
}

func (bp *Backplane) stateAndLease() (State, LeaseStats) {
	lease, ever := bp.lease.snapshot()
	switch {
	case bp.closed.Load():
		return StateClosed, lease
	case bp.bus == nil:
		return StateLocal, lease
	case ever && !lease.Held:
		return StateNoLease, lease
	case bp.publishOnly && bp.publisher.accepts(), !bp.publishOnly && bp.subscriber.connected.Load():
		return StateLive, lease
	}
	return StateConnecting, lease
}

// Stats returns a snapshot of the counters of the backplane and of its caches.
func (bp *Backplane) Stats() BackplaneStats {
	var s BackplaneStats
	s.State, s.Lease = bp.stateAndLease()
	if bp.bus != nil {
		s.Channel = bp.channel
		bp.publisher.snapshot(&s)
		s.Panics = bp.panics.Count()
	}
	if bp.subscriber != nil {
		bp.subscriber.snapshot(&s)
	}
	for _, m := range bp.snapshotMembers() {
		s.Caches = append(s.Caches, m.Stats())
	}
	slices.SortFunc(s.Caches, func(a, b CacheStats) int { return strings.Compare(a.Name, b.Name) })
	return s
}

// Close closes the caches, waits for writes under way, delivers what is queued, releases
// the claims of loads under way (see SharedOptions), and leaves the channel. It does so
// in this order, and all within CloseTimeout.
//
// If something could not be delivered, Close returns an error that wraps ErrUnconfirmed
// and says what. Other instances may then serve the old items until their time to live
// ends. A write that still waits for Redis returns ErrUnconfirmed. Close may be called
// again, and returns the same.
//
// Close may be called from a callback, but see these cases:
//
//   - Loads, Set and Remove: Close does not wait for them while they run a callback. A
//     write that Close overtakes there returns ErrClosed.
//   - Update: Close waits for it once its write was called, since the source may have
//     changed. So a Close in write, or in the Expiry, Weigh or Regions that follow, waits
//     for CloseTimeout. Its error says that the write was not delivered.
//   - OnEvent, a log handler, UnmarshalText of a key in a message, or a function in
//     BackplaneOptions.Redis: Close waits for CloseTimeout here too, but returns no error
//     for it.
//
// In the last two cases, use "go bp.Close()".
func (bp *Backplane) Close() error {
	if bp.closeOnce.Swap(true) {
		<-bp.closeDone
		return bp.closeErr
	}
	deadline := time.Now().Add(bp.closeTimeout)
	bp.closeErr = bp.close(deadline)
	close(bp.closeDone) // before the event: OnEvent and log handlers may call Close
	switch {
	case bp.bus == nil:
		bp.note(Event{Kind: EventState, State: StateClosed})
	case bp.closeErr != nil:
		bp.tell(slog.LevelWarn, "nearcache: closed with invalidations undelivered",
			Event{Kind: EventState, State: StateClosed, Err: bp.closeErr})
	default:
		bp.tell(slog.LevelInfo, "nearcache: closed", Event{Kind: EventState, State: StateClosed})
	}
	bp.endEvents(deadline)
	return bp.closeErr
}

func (bp *Backplane) close(deadline time.Time) error {
	bp.closing.Store(true) // before the members are listed, see register
	// From here on writes are refused, so nothing may be served from memory that such a
	// write would have evicted. Therefore all caches stop before close waits for anything.
	members := bp.snapshotMembers()
	for _, m := range members {
		m.stopServing()
	}
	for _, m := range members {
		m.closeLocal()
	}

	// 1. an Update begins   2. Close   3. the Update changes the source. So its message
	// still has to be published, or the other instances would not hear of the change.
	writers := bp.writers.Load() // a write that is refused may be counted too, for a moment
	for writers > 0 && time.Now().Before(deadline) {
		select {
		case <-bp.writersGone:
		case <-time.After(time.Until(deadline)):
		}
		writers = bp.writers.Load()
	}
	bp.closed.Store(true)
	if bp.bus == nil {
		return nil
	}
	err := bp.publisher.close(time.Until(deadline))
	if writers > 0 {
		err = errors.Join(err, fmt.Errorf("%w: %d write(s) still under way, whose invalidations will not be sent",
			ErrUnconfirmed, writers))
	}
	// Claims at the shared level are released last, all together, in the time that is left.
	//
	//  1. Redis hangs   2. there are invalidations in the queue, and loads under way in many
	//  caches   3. if the claims were released first, no time would be left for the queue.
	//
	// An invalidation that is not delivered makes other instances serve an old item. A
	// claim that is not released only makes them wait.
	bp.claims.close()
	ctx, cancel := context.WithDeadline(context.Background(), deadline)
	bp.claims.release(ctx, nil)
	cancel()
	// These goroutines run functions of the user, and Close may have been called from one
	// of them. That goroutine then ends after Close, so the wait is bounded.
	bp.unfollow()
	within(deadline, bp.following.Wait)
	within(deadline, bp.lease.close)
	bp.bus.Close()
	within(deadline, bp.claims.wait)
	return err
}

// closeGrace is how long Close waits, after CloseTimeout, for goroutines that only have
// to end.
const closeGrace = 100 * time.Millisecond

// within waits until wait returns, but not past the deadline plus closeGrace.
func within(deadline time.Time, wait func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		wait()
	}()
	timer := time.NewTimer(max(time.Until(deadline), 0) + closeGrace)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	}
}

// endEvents waits until all events were delivered, until the deadline. It has at least
// leastEventTime, even if the queue of invalidations has used up all the time.
func (bp *Backplane) endEvents(deadline time.Time) {
	if !bp.events.close(max(time.Until(deadline), leastEventTime)) {
		bp.logger.Warn("nearcache: closed while OnEvent has not returned; what else it was to be told is lost")
	}
}

// enter reports whether a write may begin. If so, the caller calls leave at its end.
// Without a publisher writes are not counted, since close has nothing to deliver.
func (bp *Backplane) enter() bool {
	if bp.closing.Load() {
		return false // not counted: close waits only for writes that may begin
	}
	if bp.publisher == nil {
		return true
	}
	bp.writers.Add(1)
	if bp.closing.Load() {
		bp.leave()
		return false
	}
	return true
}

func (bp *Backplane) leave() {
	if bp.publisher == nil {
		return
	}
	if bp.writers.Add(-1) == 0 && bp.closing.Load() {
		signal(bp.writersGone)
	}
}

// publish does the local part of a write, queues inv for the other instances, and waits
// until Redis accepts it.
func (bp *Backplane) publish(ctx context.Context, inv invalidation, local func()) error {
	if bp.publisher == nil {
		local()
		return nil
	}
	return bp.publisher.publish(ctx, inv, local)
}

// enqueue is publish without the wait.
func (bp *Backplane) enqueue(inv invalidation, local func()) {
	if bp.publisher == nil {
		local()
		return
	}
	_, _ = bp.publisher.enqueue(inv, local) // no caller waits for the outcome
}

// silence is called when no echo has come for the life of a lease. The connections may
// look alive and be dead, or lead to a server that is no longer the master. The
// subscription ends by itself.
func (bp *Backplane) silence() {
	bp.redial()
	bp.tellIf(bp.subscriber.leaseLines.Failing(), slog.LevelWarn, "nearcache: lease lost; items are served for MaxStaleness after their load began, until Redis is heard again",
		Event{Kind: EventState, State: StateNoLease})
}

// redial makes the next invalidation, and the next request for values, use a new
// connection.
func (bp *Backplane) redial() {
	bp.bus.Redial()
	bp.bus.Values().Redial()
}

// afterRound is called by the publisher after each round. Its parameters are the errors
// of the round before and of this one; nil: Redis accepted the messages.
func (bp *Backplane) afterRound(before, now error) {
	wasFailing := before != nil && !isNotReached(before)
	var state []any
	if bp.publishOnly && (before == nil) != (now == nil) { // without a subscription, this is the state
		state = []any{"state", bp.State()}
		defer bp.note(Event{Kind: EventState, Err: now})
	}
	switch {
	case now != nil:
		e := Event{Kind: EventPublishFailed, Err: now}
		if wasFailing {
			e.Kind = 0 // not another event; only the log may still need its line
		}
		bp.tellIf(bp.publishLines.Failing(), slog.LevelWarn,
			"nearcache: publishing failed; invalidations are queued until Redis accepts them", e, state...)
	case wasFailing:
		bp.tellIf(bp.publishLines.Works(), slog.LevelInfo, "nearcache: invalidations are published again",
			Event{Kind: EventPublishResumed}, state...)
	case state != nil:
		bp.logger.Info("nearcache: live", state...)
	}
}

// collapsed is called by the publisher when the queue has outgrown its bound. The queue
// then has a clear of the cache instead of its keys and regions, or a clear of all caches
// if cache is empty. It is not logged: a Remove of too many keys causes it too, and
// every Remove may have that many.
func (bp *Backplane) collapsed(cache string) {
	bp.note(Event{Kind: EventCollapsed, Cache: cache})
}

// outlived is called when a load takes longer than its claim at the shared level lasts.
func (bp *Backplane) outlived(h *heldClaim) {
	if bp.outlivedLines.Allow() {
		bp.logger.Warn("nearcache: a load takes longer than its claim at the shared level is kept; from now on other instances "+
			"load the item too, and what this one brings may not be stored (LoadTimeout ends loads that hang)",
			"cache", h.cache, "kept for", h.most)
	}
}

// reached is called by the subscriber when Redis answers.
func (bp *Backplane) reached() { bp.publisher.reached() }

// notReached is called by the subscriber after an attempt that failed.
func (bp *Backplane) notReached(err error) { bp.publisher.notReached(err) }

// newHistory is called by the subscriber when Redis has another history than before: a
// replica was promoted, or Redis restarted.
//
//  1. this instance publishes a message, and a server accepts it that is cut off from
//     the others or about to fail   2. another server takes over, and never had it.
//
// Every instance that sees the new history clears everything, but some may have done so
// before 1. So this instance publishes a clear of everything, if it published at all.
func (bp *Backplane) newHistory() {
	bp.redial()
	if bp.publisher.takeAttempted() {
		bp.enqueue(invalidation{all: true}, nothing) // this instance is clear already
	}
}
