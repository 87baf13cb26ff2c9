package nearcache

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nearcache/nearcache/internal/transport"
)

// Backplane joins this process's caches with those of all other instances on one
// Redis channel. A process needs one; any number of caches share its single
// subscription. Its methods may be called from any number of goroutines. Connect
// and Local make one; the zero Backplane is of no use.
type Backplane struct {
	// Not the options: they hold a password, and a Backplane may be printed.
	closeTimeout time.Duration
	logger       *slog.Logger
	staleness    time.Duration // BackplaneOptions.MaxStaleness
	lease        *lease
	random       random
	closed       atomic.Bool

	// All nil, or empty, in a process-local backplane.
	bus        transport.Bus
	channel    string // as it is named in Redis
	publisher  *publisher
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

	closeOnce sync.Once
	closeErr  error
}

// Connect joins the channel that options name. It returns once the subscription
// is confirmed and the first lease is held (see BackplaneOptions.MaxStaleness).
// It tries for as long as the connect timeout lasts (5 seconds, or connectTimeout
// in the connection string, or Redis.DialTimeout), connectRetry times more after
// the first attempt if that is set, and fails when that or ctx ends, or as soon
// as Redis refuses: a wrong password, a missing permission, a certificate that
// does not verify. It also fails if Redis takes longer than MaxStaleness to answer
// a probe. With AllowDisconnectedStart, or abortConnect=false in the connection
// string, it returns at once, without a lease, and keeps trying. ctx governs
// nothing after Connect has returned.
//
// With neither RedisConnectionString nor Redis set the backplane is
// process-local, as from Local, and a warning is logged.
//
// The error wraps ErrOptions if the options cannot be used.
func Connect(ctx context.Context, options BackplaneOptions) (*Backplane, error) {
	o, err := options.withDefaults()
	if err != nil {
		return nil, err
	}
	if standIn, ok := transport.StandInOf(ctx); ok {
		return joinStandIn(ctx, o, standIn)
	}
	if o.RedisConnectionString == "" && o.Redis == nil {
		o.Logger.Warn("nearcache: no RedisConnectionString; the backplane is process-local, " +
			"and other instances will not hear of changes (use Local if that is meant)")
		return newBackplane(o), nil
	}
	server, err := newRedisServer(o)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrOptions, err)
	}
	o.Logger = o.Logger.With("channel", server.channel, "instance", fmt.Sprintf("%x", server.self[:4]))
	if len(server.ignored) > 0 {
		o.Logger.Info("nearcache: connection string options without a meaning here are ignored",
			"options", strings.Join(server.ignored, ","))
	}
	o.AllowDisconnectedStart = server.disconnectedStart
	bp, err := joinBus(ctx, o, server, server.self, rand.Int64N)
	if err != nil {
		return nil, err
	}
	bp.channel = server.channel
	return bp, nil
}

// joinBus makes a backplane on b. All jitter comes from random.
func joinBus(ctx context.Context, o BackplaneOptions, b transport.Bus, self instanceID, random random) (*Backplane, error) {
	bp := newBackplane(o)
	bp.bus = b
	bp.random = random
	bp.lease = newLease(o.MaxStaleness)
	bp.lease.onSilence = bp.silence
	bp.lease.onStep = func() {
		bp.logger.Warn("nearcache: lease dropped; the wall clock has moved against the monotonic one", "state", StateNoLease)
	}
	bp.adjustLifeLocked()
	bp.lease.start()
	bp.subscriber = &subscriber{
		subscribe: b.Subscribe,
		target:    bp,
		self:      self,
		lease:     bp.lease,
		random:    random,
		logger:    bp.logger,
	}
	bp.publisher = newPublisher(b.Publish, random, bp.logger)
	var sub transport.Subscription
	if !o.AllowDisconnectedStart {
		var err error
		if sub, err = b.First(ctx, bp.subscriber.attempt); err != nil {
			_ = bp.publisher.close(0) // nothing is queued
			bp.lease.close()
			b.Close()
			return nil, err
		}
	} else {
		bp.logger.Info("nearcache: connecting", "state", StateConnecting)
	}
	following, unfollow := context.WithCancel(context.Background())
	bp.unfollow = unfollow
	bp.following.Go(func() { bp.subscriber.run(following, sub) })
	return bp, nil
}

// Local returns a backplane without Redis: for single processes and for tests.
// Its caches behave as all others do, and nobody else hears of changes.
func Local() *Backplane {
	o, _ := BackplaneOptions{}.withDefaults() // the zero value is legal
	return newBackplane(o)
}

// newBackplane returns a process-local backplane.
func newBackplane(o BackplaneOptions) *Backplane {
	return &Backplane{
		closeTimeout: o.CloseTimeout,
		logger:       o.Logger,
		staleness:    o.MaxStaleness,
		lease:        newLocalLease(),
		random:       rand.Int64N,
		members:      map[string]member{},
		writersGone:  make(chan struct{}, 1),
	}
}

// ClearAll evicts every item of every cache on the channel, here and in every
// other instance. The errors are those of Cache.Remove.
func (bp *Backplane) ClearAll(ctx context.Context) error {
	if !bp.enter() {
		return fmt.Errorf("%w: backplane", ErrClosed)
	}
	defer bp.leave()
	for _, m := range bp.snapshotMembers() {
		m.clearLocal()
	}
	return bp.publish(ctx, invalidation{all: true})
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
	case bp.subscriber.connected.Load():
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
		bp.subscriber.snapshot(&s)
	}
	for _, m := range bp.snapshotMembers() {
		s.Caches = append(s.Caches, m.Stats())
	}
	slices.SortFunc(s.Caches, func(a, b CacheStats) int { return strings.Compare(a.Name, b.Name) })
	return s
}

// Close closes the caches, waits for writes under way, delivers what is queued,
// and leaves the channel, all within CloseTimeout. It must not be called from
// Update's write, for which it would wait until then.
//
// Its error wraps ErrUnconfirmed and says what could not be delivered; other
// instances may then serve what those items were until their time to live ends.
// A write that still waits for Redis then returns ErrUnconfirmed. Close may be
// called again and returns the same.
func (bp *Backplane) Close() error {
	bp.closeOnce.Do(func() { bp.closeErr = bp.close() })
	return bp.closeErr
}

func (bp *Backplane) close() error {
	deadline := time.Now().Add(bp.closeTimeout)
	bp.closing.Store(true) // before the members are listed, see register
	// The caches first: from here on writes are refused, and nothing may be served
	// from memory that a refused write would have evicted.
	for _, m := range bp.snapshotMembers() {
		_ = m.Close()
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
	bp.unfollow()
	bp.following.Wait()
	bp.lease.close()
	bp.bus.Close()
	if err != nil {
		bp.logger.Warn("nearcache: closed with invalidations undelivered", "state", StateClosed, "error", err)
	} else {
		bp.logger.Info("nearcache: closed", "state", StateClosed)
	}
	return err
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

// publish tells the other instances and waits for Redis to accept it.
func (bp *Backplane) publish(ctx context.Context, inv invalidation) error {
	if bp.publisher == nil {
		return nil
	}
	return bp.publisher.publish(ctx, inv)
}

// enqueue tells the other instances and waits for nothing.
func (bp *Backplane) enqueue(inv invalidation) {
	if bp.publisher != nil {
		_, _ = bp.publisher.enqueue(inv) // nobody is there to be told
	}
}

// silence is called when no echo has come for the life of a lease. The connections
// may be dead while they look alive, or lead to a server that is none any more.
// The subscription ends itself.
func (bp *Backplane) silence() {
	bp.redial()
	bp.logger.Warn("nearcache: lease lost; items are served for MaxStaleness after their load began, until Redis is heard again",
		"state", StateNoLease)
}

// redial has the next invalidation go over a new connection.
func (bp *Backplane) redial() { bp.bus.Redial() }

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
		bp.enqueue(invalidation{all: true})
	}
}
