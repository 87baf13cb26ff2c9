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
)

// Backplane joins this process's caches with those of all other instances on one
// Redis channel. A process needs one; any number of caches share its single
// subscription. Its methods may be called from any number of goroutines. Connect
// and Local make one; the zero Backplane is of no use.
type Backplane struct {
	// Not the options: they hold a password, and a Backplane may be printed.
	closeTimeout time.Duration
	logger       *slog.Logger
	events       *events       // nil: nobody is to be told
	staleness    time.Duration // BackplaneOptions.MaxStaleness
	lease        *lease
	random       backoff.Random
	closed       atomic.Bool
	publishOnly  bool
	claims       *claims // of its caches, at the shared level

	// What a stand-in for Redis asks of the caches, see transport.StandIn.
	fullStaleness, noBreaker bool

	// Of the log.
	publishLines  outageLog
	outlivedLines logLimit
	noHistory     logOnce // the shared level is not used for that
	sharedOutage  sharedOutage
	oversized     logLimit // values in Redis that are too large

	unpacking room // of values of the shared level

	// All nil, or empty, in a process-local backplane.
	bus       *guardedBus
	panics    *barrier.Panics
	channel   string // as it is named in Redis
	publisher *publisher

	// Nil too in one that only publishes.
	subscriber *subscriber
	following  sync.WaitGroup     // the subscriber's goroutine
	unfollow   context.CancelFunc // ends it

	mu      sync.RWMutex // guards everything below
	members map[string]member

	// writers counts the writes under way, which close waits for. A write counts
	// itself first and then looks at closing, close does it the other way round: of
	// two that race one sees the other.
	writers     atomic.Int64
	closing     atomic.Bool
	writersGone chan struct{} // one token: writers was 0, once closing

	closeOnce atomic.Bool
	closeDone chan struct{} // closed when closeErr is set
	closeErr  error
}

// ClearAll evicts every item of every cache on the channel, here and in every
// other instance. The errors are those of Cache.Remove.
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

// Flush waits until Redis has accepted everything that was queued when it was
// called, however long Redis is away. Its error wraps ErrUnconfirmed, and says
// what is left, if ctx ends first or if Close gave up; after a Close that
// delivered everything it returns nil.
func (bp *Backplane) Flush(ctx context.Context) error {
	if bp.publisher == nil {
		return nil
	}
	return bp.publisher.flush(ctx)
}

// State returns how the backplane stands with Redis now.
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

// Stats returns a snapshot of the backplane's counters and of all its caches'.
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

// Close closes the caches, waits for writes under way, delivers what is queued,
// gives up the claims of loads that are under way (see SharedOptions), and leaves the
// channel, in this order and all within CloseTimeout.
//
// It may be called from a callback. Loads, Set and Remove are not waited for while they
// call one: a write that Close overtakes in a callback returns ErrClosed. For Update it
// does wait, from the call of write on, since the source may have changed. So a Close that
// is called from Update's write, or from the Expiry, Weigh or Regions that follow it,
// waits for CloseTimeout, and says that the write was not delivered. The same wait, and
// no error, is that of a Close from OnEvent, from a log handler, from UnmarshalText of a
// key that a message brings, or from a function in BackplaneOptions.Redis. In all of
// these, use "go bp.Close()".
//
// Its error wraps ErrUnconfirmed and says what could not be delivered; other
// instances may then serve what those items were until their time to live ends.
// A write that still waits for Redis then returns ErrUnconfirmed. Close may be
// called again and returns the same.
func (bp *Backplane) Close() error {
	if bp.closeOnce.Swap(true) {
		<-bp.closeDone
		return bp.closeErr
	}
	deadline := time.Now().Add(bp.closeTimeout)
	bp.closeErr = bp.close(deadline)
	close(bp.closeDone) // before it is told: those who are told may call Close
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
	// The caches first, all of them before anything is waited for: from here on writes
	// are refused, and nothing may be served from memory that a refused write would have
	// evicted.
	members := bp.snapshotMembers()
	for _, m := range members {
		m.stopServing()
	}
	for _, m := range members {
		m.closeLocal()
	}

	// 1. an Update begins   2. Close   3. the Update changes the source. Were it too
	// late to publish, the other instances would not hear of it.
	writers := bp.writers.Load() // one that is refused may be counted for a moment, later
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
	// The claims at the shared level last, all caches' together, in what time is left.
	//
	//  1. Redis hangs   2. there are invalidations in the queue, and loads under way in many
	//  caches   3. were the claims released first, nothing would be left for the queue. What
	//  is not delivered is served elsewhere; a claim that stays costs others a wait.
	bp.claims.close()
	ctx, cancel := context.WithDeadline(context.Background(), deadline)
	bp.claims.release(ctx, nil)
	cancel()
	// Functions of the user's run in these goroutines, which Close may have been called
	// from: then they end after it.
	bp.unfollow()
	within(deadline, bp.following.Wait)
	within(deadline, bp.lease.close)
	bp.bus.Close()
	within(deadline, bp.claims.wait)
	return err
}

// closeGrace is how long Close waits for what has nothing left to do but to end, if
// CloseTimeout is over.
const closeGrace = 100 * time.Millisecond

// within waits until wait returns, until a deadline and closeGrace.
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

// endEvents waits until OnEvent has been told everything. If the queue of
// invalidations has taken all the time there was, that comes on top.
func (bp *Backplane) endEvents(deadline time.Time) {
	if !bp.events.close(max(time.Until(deadline), leastEventTime)) {
		bp.logger.Warn("nearcache: closed while OnEvent has not returned; what else it was to be told is lost")
	}
}

// enter reports whether a write may begin. If so leave ends it. Without a publisher
// writes are not counted: there is nothing that close could deliver for them.
func (bp *Backplane) enter() bool {
	if bp.closing.Load() {
		return false // uncounted: close is to wait for writes that were let in
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

// publish does the local part of a write, tells the other instances, and waits for
// Redis to accept it.
func (bp *Backplane) publish(ctx context.Context, inv invalidation, local func()) error {
	if bp.publisher == nil {
		local()
		return nil
	}
	return bp.publisher.publish(ctx, inv, local)
}

// enqueue is publish, and waits for nothing.
func (bp *Backplane) enqueue(inv invalidation, local func()) {
	if bp.publisher == nil {
		local()
		return
	}
	_, _ = bp.publisher.enqueue(inv, local) // nobody is there to be told
}

// silence is called when no echo has come for the life of a lease. The connections
// may be dead while they look alive, or lead to a server that is none any more.
// The subscription ends itself.
func (bp *Backplane) silence() {
	bp.redial()
	bp.tellIf(bp.subscriber.leaseLines.failing(), slog.LevelWarn, "nearcache: lease lost; items are served for MaxStaleness after their load began, until Redis is heard again",
		Event{Kind: EventState, State: StateNoLease})
}

// redial has the next invalidation, and the next look at a value, go over a new
// connection.
func (bp *Backplane) redial() {
	bp.bus.Redial()
	bp.bus.Values().Redial()
}

// afterRound is called by the publisher when Redis has accepted messages or has
// not, with what was wrong before that and what is now.
func (bp *Backplane) afterRound(before, now error) {
	wasFailing := before != nil && !isNotReached(before)
	var state []any
	if bp.publishOnly && (before == nil) != (now == nil) { // without a subscription, the state is just that
		state = []any{"state", bp.State()}
		defer bp.note(Event{Kind: EventState, Err: now})
	}
	switch {
	case now != nil:
		e := Event{Kind: EventPublishFailed, Err: now}
		if wasFailing {
			e.Kind = 0 // for the log alone, if it has no line yet
		}
		bp.tellIf(bp.publishLines.failing(), slog.LevelWarn,
			"nearcache: publishing failed; invalidations are queued until Redis accepts them", e, state...)
	case wasFailing:
		bp.tellIf(bp.publishLines.works(), slog.LevelInfo, "nearcache: invalidations are published again",
			Event{Kind: EventPublishResumed}, state...)
	case state != nil:
		bp.logger.Info("nearcache: live", state...)
	}
}

// collapsed is called by the publisher when the queue has outgrown its bound, and
// holds a clear of the cache in place of what it held of it; or of all of them, if
// cache is empty. It is not logged, since a Remove of too many keys at once does it
// too, and every Remove may.
func (bp *Backplane) collapsed(cache string) {
	bp.note(Event{Kind: EventCollapsed, Cache: cache})
}

// outlived is called when a load takes longer than its claim at the shared level is
// kept.
func (bp *Backplane) outlived(h *heldClaim) {
	if bp.outlivedLines.allow() {
		bp.logger.Warn("nearcache: a load takes longer than its claim at the shared level is kept; from now on other instances "+
			"load the item too, and what this one brings may not be stored (LoadTimeout ends loads that hang)",
			"cache", h.cache, "kept for", h.most)
	}
}

// reached is called by the subscriber when Redis answers.
func (bp *Backplane) reached() { bp.publisher.reached() }

// notReached is called by the subscriber after an attempt that failed.
func (bp *Backplane) notReached(err error) { bp.publisher.notReached(err) }

// newHistory is called by the subscriber when Redis has another history than
// before: a replica was promoted, or it restarted.
//
//  1. this instance publishes, and a server takes it that was cut off from the
//     others or is about to fall   2. another takes over, and never had the message.
//
// Those who hear of the new history clear everything, but some may have done so
// before 1.
func (bp *Backplane) newHistory() {
	bp.redial()
	if bp.publisher.takeAttempted() {
		bp.enqueue(invalidation{all: true}, nothing) // the local part is done
	}
}
