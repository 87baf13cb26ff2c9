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

// Connect joins the channel that options name. It returns once the instance is subscribed
// and has its first lease (see BackplaneOptions.MaxStaleness). ctx has no effect after
// Connect has returned.
//
// Connect tries again until the connect timeout ends. That is connectTimeout in the
// connection string, or Redis.DialTimeout, or 5 seconds. If connectRetry is set, there are
// at most that many attempts after the first one. Connect fails when these are over, or
// when ctx ends. It fails at once if Redis refuses: a wrong password, a missing right, a
// certificate that does not verify. It also fails if Redis takes longer than MaxStaleness
// to answer a probe.
//
// With AllowDisconnectedStart, or abortConnect=false in the connection string, Connect
// returns at once, without a lease, and the backplane keeps trying in the background. With
// PublishOnly, Redis has to accept one empty message, and there is no subscription and no
// lease; otherwise all of the above holds.
//
// If neither RedisConnectionString nor Redis is set, the backplane is process-local, as
// from Local, and a warning is logged.
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
	label := drawNonce() // for the log alone: an instance has several identities
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

// joinBus returns a backplane that uses b. All jitter comes from random.
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
	bp.events.start() // only now: there are no events of a Connect that failed
	return bp, nil
}

// listen subscribes and gets the first lease, and then starts the subscriber's goroutine.
// If the backplane may start disconnected, it leaves all of that to the goroutine.
func (bp *Backplane) listen(ctx context.Context, disconnected bool, self *identity) error {
	bp.lease = newLease(bp.staleness)
	bp.lease.draw = self.draw
	bp.lease.onSilence = bp.silence
	bp.lease.onStep = func() {
		bp.tellIf(bp.subscriber.leaseLines.Failing(), slog.LevelWarn, "nearcache: lease dropped; the wall clock has moved against the monotonic one",
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

// follow runs the subscriber on sub, and then on further subscriptions, until ctx ends. If
// UnmarshalText of a key ends the goroutine, another one continues with a new subscription.
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

// greet sends an empty message, to find out whether Redis accepts messages from this
// instance. An instance without a subscription cannot know more. If the backplane may
// start disconnected, the publisher sends it in the background until Redis accepts it.
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

// Local returns a backplane without Redis, for single processes and for tests. Its caches
// behave as all others do, but no other process hears of changes. It never fails.
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

	// backoffMax bounds how long an instance does not notice that Redis is back.
	backoffMax = 2 * time.Second
)

// newBackoff returns the pauses between attempts to reach Redis. All jitter comes from
// random, so that a test can repeat a run exactly.
func newBackoff(random backoff.Random) *backoff.Backoff {
	return &backoff.Backoff{Random: random, Base: backoffBase, Max: backoffMax}
}

// joinStandIn returns a backplane that uses a stand-in for Redis: that of package
// nearcachetest, since no other package can set one (see transport.WithStandIn). It
// ignores the options that say where Redis is.
func joinStandIn(ctx context.Context, o BackplaneOptions, s transport.StandIn) (*Backplane, error) {
	bp, err := joinBus(ctx, o, s.Bus, simulatedIdentity(s.Instance, s.Random), s.Random)
	if err != nil {
		return nil, err
	}
	bp.channel = o.Channel
	bp.fullStaleness, bp.noBreaker = s.FullStaleness, s.NoBreaker
	return bp, nil
}
