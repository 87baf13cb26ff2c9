package nearcache

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/nearcache/nearcache/internal/backoff"
	"github.com/nearcache/nearcache/internal/barrier"
	"github.com/nearcache/nearcache/internal/redisbus"
	"github.com/nearcache/nearcache/internal/transport"
)

// Connect joins the channel that options name. It returns once the subscription
// is confirmed and the first lease is held (see BackplaneOptions.MaxStaleness).
// It tries for as long as the connect timeout lasts (5 seconds, or connectTimeout
// in the connection string, or Redis.DialTimeout), connectRetry times more after
// the first attempt if that is set, and fails when that or ctx ends, or as soon
// as Redis refuses: a wrong password, a missing permission, a certificate that
// does not verify. It also fails if Redis takes longer than MaxStaleness to answer
// a probe. With AllowDisconnectedStart, or abortConnect=false in the connection
// string, it returns at once, without a lease, and keeps trying. ctx governs
// nothing after Connect has returned. With PublishOnly all this holds for one
// empty message that Redis has to accept, in place of subscription and lease.
//
// With neither RedisConnectionString nor Redis set the backplane is
// process-local, as from Local, and a warning is logged.
//
// The error wraps ErrInvalidOptions if the options cannot be used.
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
		bp := newBackplane(o)
		bp.events.start()
		bp.note(Event{Kind: EventState})
		return bp, nil
	}
	server, err := newRedisServer(o)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalidOptions, err)
	}
	label := drawNonce() // not an identity: of these there are more than one
	o.Logger = o.Logger.With("channel", server.Channel(), "instance", fmt.Sprintf("%x", label[:4]))
	if ignored := server.Ignored(); len(ignored) > 0 {
		o.Logger.Info("nearcache: connection string options without a meaning here are ignored",
			"options", strings.Join(ignored, ","))
	}
	server.Panics().Logger = o.Logger
	o.AllowDisconnectedStart = server.DisconnectedStart()
	bp, err := joinBus(ctx, o, server, newIdentity(), rand.Int64N)
	if err != nil {
		return nil, err
	}
	bp.channel = server.Channel()
	return bp, nil
}

// newRedisServer reads what the options say of Redis. It does not connect.
func newRedisServer(o BackplaneOptions) (*redisbus.Server, error) {
	return redisbus.New(redisbus.Config{
		Redis:                  o.Redis,
		ConnectionString:       o.RedisConnectionString,
		Channel:                o.Channel,
		AllowDisconnectedStart: o.AllowDisconnectedStart,
		Logger:                 o.Logger,
		Nonce:                  drawNonce,
		Backoff:                func() *backoff.Backoff { return newBackoff(rand.Int64N) },
		MaxBodyBytes:           maxBodyBytes,
		ErrClosed:              ErrClosed,
	})
}

// joinBus makes a backplane on b. All jitter comes from random.
func joinBus(ctx context.Context, o BackplaneOptions, b transport.Bus, self *identity, random backoff.Random) (*Backplane, error) {
	bp := newBackplane(o)
	bp.panics = &barrier.Panics{Logger: o.Logger}
	if s, ok := b.(*redisbus.Server); ok {
		bp.panics = s.Panics()
	}
	bp.bus = newGuardedBus(b, bp.panics)
	bp.claims.values = bp.bus.Values()
	bp.random = random
	send := func(ctx context.Context, body string, changes []transport.Change) error {
		return bp.bus.Publish(ctx, self.message(body, changes))
	}
	bp.publisher = newPublisher(send, random, bp)
	var err error
	if o.PublishOnly {
		err = bp.greet(ctx, o.AllowDisconnectedStart, send)
	} else {
		err = bp.listen(ctx, o.AllowDisconnectedStart, self)
	}
	if err != nil {
		_ = bp.publisher.close(0) // nothing is queued
		bp.lease.close()
		bp.bus.Close()
		return nil, err
	}
	bp.events.start() // only now: of a backplane that was never there nothing is told
	return bp, nil
}

// listen has the backplane hear of changes, from now on, or as soon as it can if it
// may start disconnected.
func (bp *Backplane) listen(ctx context.Context, disconnected bool, self *identity) error {
	bp.lease = newLease(bp.staleness)
	bp.lease.draw = self.draw
	bp.lease.onSilence = bp.silence
	bp.lease.onStep = func() {
		bp.tellIf(bp.subscriber.leaseLines.failing(), slog.LevelWarn, "nearcache: lease dropped; the wall clock has moved against the monotonic one",
			Event{Kind: EventState, State: StateNoLease})
	}
	bp.adjustLifeLocked()
	bp.subscriber = &subscriber{
		subscribe: bp.bus.Subscribe,
		target:    bp,
		self:      self,
		lease:     bp.lease,
		random:    bp.random,
		panics:    bp.panics,
	}
	bp.lease.start()
	var sub transport.Subscription
	if disconnected {
		bp.tell(slog.LevelInfo, "nearcache: connecting", Event{Kind: EventState, State: StateConnecting})
	} else if err := bp.bus.First(ctx, func(ctx context.Context) (err error) {
		sub, err = bp.subscriber.attempt(ctx, false)
		return err
	}); err != nil {
		return err
	}
	following, unfollow := context.WithCancel(context.Background())
	bp.unfollow = unfollow
	bp.following.Go(func() { bp.follow(following, sub) })
	return nil
}

// follow has the subscriber follow sub, and then others, until ctx ends. If UnmarshalText
// of a key ends the goroutine, another one goes on, with another subscription.
func (bp *Backplane) follow(ctx context.Context, sub transport.Subscription) {
	returned := false
	defer func() {
		if !returned {
			bp.subscriber.connected.Store(false)
			bp.following.Go(func() { bp.follow(ctx, nil) })
		}
	}()
	bp.subscriber.run(ctx, sub)
	returned = true
}

// greet sees whether Redis takes messages from this instance, which is all that one
// without a subscription can know: now, or again and again until it does if the
// backplane may start disconnected.
func (bp *Backplane) greet(
	ctx context.Context, disconnected bool, send func(context.Context, string, []transport.Change) error,
) error {
	if disconnected {
		bp.tell(slog.LevelInfo, "nearcache: connecting", Event{Kind: EventState, State: StateConnecting})
		bp.publisher.greet()
		return nil
	}
	if err := bp.bus.First(ctx, func(ctx context.Context) error {
		if err := send(ctx, greeting, nil); err != nil {
			return fmt.Errorf("an empty message was not accepted: %w", err)
		}
		return nil
	}); err != nil {
		return err
	}
	bp.publisher.reached()
	bp.tell(slog.LevelInfo, "nearcache: live", Event{Kind: EventState, State: StateLive})
	return nil
}

// Local returns a backplane without Redis: for single processes and for tests.
// Its caches behave as all others do, and nobody else hears of changes.
func Local() *Backplane {
	o, _ := BackplaneOptions{}.withDefaults() // the zero value is legal
	return newBackplane(o)
}

// newBackplane returns a process-local backplane.
func newBackplane(o BackplaneOptions) *Backplane {
	bp := &Backplane{
		closeTimeout: o.CloseTimeout,
		logger:       o.Logger,
		staleness:    o.MaxStaleness,
		lease:        newLocalLease(),
		random:       rand.Int64N,
		publishOnly:  o.PublishOnly,
		unfollow:     func() {},
		members:      map[string]member{},
		writersGone:  make(chan struct{}, 1),
		closeDone:    make(chan struct{}),
	}
	bp.unpacking.size = mostUnpacking
	bp.claims = newClaims(bp.outlived)
	bp.events = newEvents(o.OnEvent, bp.State)
	return bp
}

const (
	backoffBase = 100 * time.Millisecond

	// backoffMax bounds how long an instance stays away from a Redis that is back.
	backoffMax = 2 * time.Second
)

// newBackoff spaces attempts at Redis. All jitter comes from the backplane's random, so
// that a test can have it repeat itself.
func newBackoff(random backoff.Random) *backoff.Backoff {
	return &backoff.Backoff{Random: random, Base: backoffBase, Max: backoffMax}
}

// joinStandIn makes a backplane on what stands in for Redis: that of package
// nearcachetest, which alone can ask for it (see transport.WithStandIn). The
// options that say where Redis is have no meaning here.
func joinStandIn(ctx context.Context, o BackplaneOptions, s transport.StandIn) (*Backplane, error) {
	bp, err := joinBus(ctx, o, s.Bus, simulatedIdentity(s.Instance, s.Random), s.Random)
	if err != nil {
		return nil, err
	}
	bp.channel = o.Channel
	bp.fullStaleness, bp.noBreaker = s.FullStaleness, s.NoBreaker
	return bp, nil
}
