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
)

// Backplane joins this process's caches with those of all other instances on one
// Redis channel. A process needs one; any number of caches share its single
// subscription. Its methods may be called from any number of goroutines. Connect
// and Local make one; the zero Backplane is of no use.
type Backplane struct {
	// Not the options: they hold a password, and a Backplane may be printed.
	closeTimeout time.Duration
	logger       *slog.Logger
	state        atomic.Int64 // a State

	// All nil in a process-local backplane.
	redis      *redisServer
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

// member is a cache as its backplane sees it.
type member interface {
	removeWire(keys []string)
	clearRegionsLocal(regions []string)
	clearLocal()
	missedMessages()
	Stats() CacheStats
	Close() error
}

// Connect joins the channel that options name. It returns once the subscription
// is confirmed. It tries for as long as the connect timeout lasts (5 seconds, or
// connectTimeout in the connection string, or Redis.DialTimeout), connectRetry
// times more after the first attempt if that is set, and fails when that or ctx
// ends, or as soon as Redis refuses: a wrong password, a missing permission, a
// certificate that does not verify. With AllowDisconnectedStart, or
// abortConnect=false in the connection string, it returns at once and keeps
// trying. ctx governs nothing after Connect has returned.
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
	if o.RedisConnectionString == "" && o.Redis == nil {
		o.Logger.Warn("nearcache: no RedisConnectionString; the backplane is process-local, " +
			"and other instances will not hear of changes (use Local if that is meant)")
		return newBackplane(o, StateLocal), nil
	}
	server, err := newRedisServer(o)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrOptions, err)
	}
	bp := newBackplane(o, StateConnecting)
	bp.redis = server
	bp.logger = o.Logger.With("channel", server.channel, "instance", fmt.Sprintf("%x", server.self[:4]))
	if len(server.ignored) > 0 {
		bp.logger.Info("nearcache: connection string options without a meaning here are ignored",
			"options", strings.Join(server.ignored, ","))
	}
	bp.subscriber = &subscriber{
		subscribe: server.subscribe,
		target:    bp,
		self:      server.self,
		logger:    bp.logger,
	}
	var sub subscription
	if !server.disconnectedStart {
		if sub, err = server.firstSubscription(ctx); err != nil {
			return nil, err
		}
	}
	bp.publisher = newPublisher(server.publish, bp.logger)
	if sub != nil {
		bp.subscriber.joined(sub) // here, so that nothing loaded after Connect is cleared by it
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
	return newBackplane(o, StateLocal)
}

func newBackplane(o BackplaneOptions, state State) *Backplane {
	bp := &Backplane{
		closeTimeout: o.CloseTimeout,
		logger:       o.Logger,
		members:      map[string]member{},
		writersGone:  make(chan struct{}, 1),
	}
	bp.state.Store(int64(state))
	return bp
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
func (bp *Backplane) State() State { return State(bp.state.Load()) }

// Stats returns a snapshot of the backplane's counters and of all its caches'.
func (bp *Backplane) Stats() BackplaneStats {
	s := BackplaneStats{State: bp.State()}
	if bp.redis != nil {
		s.Channel = bp.redis.channel
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
	for bp.writers.Load() > 0 && time.Now().Before(deadline) {
		select {
		case <-bp.writersGone:
		case <-time.After(time.Until(deadline)):
		}
	}
	writers := bp.writers.Load()
	bp.state.Store(int64(StateClosed))
	if bp.redis == nil {
		return nil
	}
	err := bp.publisher.close(time.Until(deadline))
	if writers > 0 {
		err = errors.Join(err, fmt.Errorf("%w: %d write(s) still under way, whose invalidations will not be sent",
			ErrUnconfirmed, writers))
	}
	bp.unfollow()
	bp.following.Wait()
	bp.redis.close()
	if err != nil {
		bp.logger.Warn("nearcache: closed with invalidations undelivered", "error", err)
	} else {
		bp.logger.Info("nearcache: closed")
	}
	return err
}

// register takes a cache in under its name.
func (bp *Backplane) register(name string, m member) error {
	bp.mu.Lock()
	defer bp.mu.Unlock()
	if bp.members == nil {
		return fmt.Errorf("%w: the backplane of cache %q is a zero Backplane; use Connect, or Local", ErrOptions, name)
	}
	if bp.closing.Load() { // looked at under mu: a cache is refused here, or listed by close
		return fmt.Errorf("%w: cache %q was not made, its backplane is closed", ErrClosed, name)
	}
	if bp.members[name] != nil {
		return fmt.Errorf("%w: the backplane has a cache named %q already; close that first, or name this one otherwise",
			ErrOptions, name)
	}
	bp.members[name] = m
	return nil
}

func (bp *Backplane) unregister(name string, m member) {
	bp.mu.Lock()
	defer bp.mu.Unlock()
	if bp.members[name] == m {
		delete(bp.members, name)
	}
}

func (bp *Backplane) snapshotMembers() []member {
	bp.mu.RLock()
	defer bp.mu.RUnlock()
	members := make([]member, 0, len(bp.members))
	for _, m := range bp.members {
		members = append(members, m)
	}
	return members
}

// enter reports whether a write may begin. If so leave ends it.
func (bp *Backplane) enter() bool {
	if bp.closing.Load() {
		return false // uncounted: close is to wait for writes that were let in
	}
	bp.writers.Add(1)
	if bp.closing.Load() {
		bp.leave()
		return false
	}
	return true
}

func (bp *Backplane) leave() {
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

// setState is called by the subscriber. Closed is final.
func (bp *Backplane) setState(s State) {
	for old := bp.state.Load(); State(old) != StateClosed; old = bp.state.Load() {
		if bp.state.CompareAndSwap(old, int64(s)) {
			break
		}
	}
	if s == StateLive {
		bp.publisher.reached()
	}
}

// connectFailed is called by the subscriber after an attempt that failed.
func (bp *Backplane) connectFailed(err error) { bp.publisher.notReached(err) }

// applyHere does the local part of inv on the cache that it names.
func (bp *Backplane) applyHere(inv invalidation) {
	bp.mu.RLock()
	m := bp.members[inv.cache]
	bp.mu.RUnlock()
	switch {
	case m == nil:
	case inv.clear:
		m.clearLocal()
	default:
		m.removeWire(inv.keys)
		if len(inv.regions) > 0 {
			m.clearRegionsLocal(inv.regions)
		}
	}
}

// apply applies an operation of another instance.
func (bp *Backplane) apply(o operation) {
	if o.op == opClearAll {
		for _, m := range bp.snapshotMembers() {
			m.clearLocal()
		}
		return
	}
	inv := invalidation{cache: o.cache, clear: o.op == opClearCache}
	switch o.op {
	case opRemoveKeys:
		inv.keys = o.values
	case opClearRegions:
		inv.regions = o.values
	}
	bp.applyHere(inv) // a cache that this instance does not hold is none of its business
}

// missedMessages clears every cache, because anything may have been missed.
func (bp *Backplane) missedMessages() {
	for _, m := range bp.snapshotMembers() {
		m.missedMessages()
	}
}
