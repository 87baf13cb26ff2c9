package nearcache

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nearcache/nearcache/internal/backoff"
	"github.com/nearcache/nearcache/internal/barrier"
	"github.com/nearcache/nearcache/internal/loglimit"
	"github.com/nearcache/nearcache/internal/transport"
)

// subscriber follows the channel in one goroutine and applies its messages. It waits for
// nothing but the next message.
//
// Every message carries the channel's position before it. If that is not the position
// that the last message made, a message was missed, and everything is cleared. While no
// message comes, the subscriber cannot know whether one was missed. So it sends probes,
// several times in the life of a lease, and compares the position in the echo. A new
// subscription begins with a probe: if its echo shows that nothing was missed, memory is
// kept.
type subscriber struct {
	subscribe func(context.Context, transport.Identity) (transport.Subscription, error)
	target    subscriberTarget
	self      *identity
	lease     *lease
	random    backoff.Random
	panics    *barrier.Panics

	// Used by one goroutine at a time: the one that has the subscription.
	last    string     // the channel's position as this instance knows it; empty: unknown
	history string     // the server's history id in the last echo; empty: unknown
	knownID string     // the last history id that was not empty
	begun   bool       // an echo has come, on any subscription
	fresh   bool       // no echo has come on this subscription yet
	cleared ClearCause // why everything was cleared since the last subscription, if it was

	// Limits of the log: a connection may be lost and made again many times.
	clearLines, probeLines, historyLines loglimit.Limit
	lostLines, connectLines, leaseLines  loglimit.Outage
	saidLive                             bool // the first line "live" was logged; used like the above

	connected atomic.Bool

	received, applied, own, echoes, foreign atomic.Uint64
	subscribed, warm, failed, probeFailures atomic.Uint64
	clears                                  [causes]atomic.Uint64
}

// subscriberTarget is what a subscriber acts on: the backplane.
type subscriberTarget interface {
	reached()
	notReached(error)
	apply(body string) error
	missedMessages()
	newHistory()
	redial()

	// tell logs a line and queues an event for OnEvent; note does only the latter.
	tell(level slog.Level, line string, e Event, args ...any)
	note(e Event)
}

// attempt makes one attempt to get a subscription with a lease: it subscribes, sends a
// probe and waits for the echo. The echo has to come within the life of a lease. If the
// attempt is patient, several round trips are allowed even if they take longer:
//
//  1. a cache is made whose MaxStaleness is shorter than a round trip   2. the
//     connection is lost   3. no echo comes within that MaxStaleness. The other caches
//     can still have a lease, if attempt waits for the echo.
func (s *subscriber) attempt(ctx context.Context, patient bool) (_ transport.Subscription, err error) {
	began := time.Now()
	id := s.self.identify()
	sub, err := s.subscribe(ctx, transport.Identity{ID: id, Echo: head(kindEcho, id)})
	if err != nil {
		return nil, err
	}
	s.self.become(id)
	life := s.lease.lifetime()
	if patient {
		// Subscribing took two round trips or more. No other measurement may exist yet.
		life = max(s.lease.patience(), min(patientRoundTrips/2*time.Since(began), maxLeaseLife))
	}
	ctx, cancel := context.WithTimeoutCause(ctx, life,
		fmt.Errorf("a probe's echo did not come within %v", life))
	defer cancel()
	defer context.AfterFunc(ctx, sub.Close)()
	defer func() {
		if err != nil {
			sub.Close()
			if cause := context.Cause(ctx); cause != nil && errors.Is(err, net.ErrClosed) {
				err = cause // AfterFunc above has closed it
			} else if cause != nil && !errors.Is(err, cause) {
				err = fmt.Errorf("%w: %w", cause, err)
			}
		}
	}()
	s.fresh = true
	s.lease.forgetProbes()
	if err := sub.Probe(ctx, s.lease.probe()); err != nil {
		return nil, fmt.Errorf("probe: %w", err)
	}
	for s.fresh || !s.lease.valid() {
		payload, own, err := sub.Receive()
		if err != nil {
			return nil, err
		}
		if err := s.hear(payload, own); err != nil {
			return nil, err
		}
	}
	s.joined()
	return sub, nil
}

// joined counts, logs and reports a subscription that has its lease.
func (s *subscriber) joined() {
	s.subscribed.Add(1)
	if s.cleared == ClearCauseNone {
		s.warm.Add(1)
	}
	s.connected.Store(true)
	if s.history == "" {
		s.target.redial() // the publisher may be connected to a server that is no longer the master
	}
	s.target.reached()
	live := !s.saidLive
	s.saidLive = true
	for _, o := range []*loglimit.Outage{&s.lostLines, &s.connectLines, &s.leaseLines} {
		live = o.Works() || live // each of these outages is over
	}
	s.tellIf(live, slog.LevelInfo, "nearcache: live", Event{Kind: EventState, State: StateLive},
		"kept", s.cleared == ClearCauseNone, "because", s.cleared.sentence())
	s.cleared = ClearCauseNone
}

// tellIf is the target's tell if logged, and its note otherwise.
func (s *subscriber) tellIf(logged bool, level slog.Level, line string, e Event, args ...any) {
	if logged {
		s.target.tell(level, line, e, args...)
	} else {
		s.target.note(e)
	}
}

// run follows sub, and then one new subscription after another, until ctx ends. sub may
// be nil. Pauses between attempts grow, also if each subscription succeeds and is soon
// lost again.
func (s *subscriber) run(ctx context.Context, sub transport.Subscription) {
	pause := newBackoff(s.random)
	for {
		if sub == nil {
			if sub = s.connect(ctx, pause); sub == nil {
				return
			}
		}
		began := time.Now()
		err := s.follow(ctx, sub)
		sub = nil
		s.connected.Store(false)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > min(2*s.lease.lifetime(), backoffMax) {
			pause.Reset()
		}
		state := StateConnecting
		if !s.lease.valid() {
			state = StateNoLease
		}
		s.tellIf(s.lostLines.Failing(), slog.LevelWarn, "nearcache: subscription lost; connecting again",
			Event{Kind: EventState, State: state, Err: err})
	}
}

// connect tries until there is a subscription with a lease. It returns nil when
// ctx ends.
func (s *subscriber) connect(ctx context.Context, pause *backoff.Backoff) transport.Subscription {
	for said := false; pause.Wait(ctx, nil); {
		sub, err := s.attempt(ctx, true)
		if err == nil {
			pause.Retreat(3) // Redis is there
			return sub
		}
		s.failed.Add(1)
		s.target.notReached(err)
		if ctx.Err() != nil {
			continue
		}
		e := Event{Kind: EventConnectFailed, Err: err}
		if said {
			e.Kind = 0 // not another event; only the log may still need its line
		}
		said = true
		s.tellIf(s.connectLines.Failing(), slog.LevelWarn, "nearcache: cannot connect to Redis; trying again until it works", e)
	}
	return nil
}

// follow applies what sub receives, and sends probes, until sub fails, the lease is lost,
// or ctx ends.
func (s *subscriber) follow(ctx context.Context, sub transport.Subscription) error {
	ctx, cancel := context.WithCancel(ctx)
	heard := s.lease.heard()
	defer sub.Close()
	defer context.AfterFunc(heard, cancel)()
	defer context.AfterFunc(ctx, sub.Close)()
	var probing sync.WaitGroup
	probing.Go(func() { s.probe(ctx, sub) })
	defer probing.Wait()
	defer cancel()
	for {
		payload, own, err := sub.Receive()
		if err != nil && heard.Err() != nil {
			return errSilence
		}
		if err != nil {
			return err
		}
		if err := s.hear(payload, own); err != nil {
			return err
		}
	}
}

// errSilence is the error of a subscription that looked alive, but brought no echo.
var errSilence = errors.New("the lease was lost: no probe was answered in time")

// probe sends probes until ctx ends. It gives up a probe that hangs early enough to send
// others before the lease is lost.
func (s *subscriber) probe(ctx context.Context, sub transport.Subscription) {
	failing := false
	for s.waitForProbe(ctx) {
		timely, cancel := context.WithTimeout(ctx, max(2*s.lease.lifetime()/probesPerLife, patientRoundTrips/2*s.lease.roundTrip()))
		err := sub.Probe(timely, s.lease.probe())
		cancel()
		if err != nil && ctx.Err() == nil {
			s.probeFailures.Add(1)
			if !failing {
				s.tellIf(s.probeLines.Allow(), slog.LevelWarn, "nearcache: a probe failed; trying again", Event{Kind: EventProbeFailed, Err: err})
			}
		}
		failing = err != nil
	}
}

// waitForProbe waits until the next probe is due, and reports whether ctx is still alive.
// A random part of the wait, up to a tenth, is left out, so that the probes of a fleet do
// not come all at once.
func (s *subscriber) waitForProbe(ctx context.Context) bool {
	return backoff.Wait(ctx, backoff.Less(s.random, s.lease.lifetime()/probesPerLife, 10), s.lease.hurry)
}

// hear handles one message. A panic there ends the subscription, not the process. The
// message was then applied in part or not at all, so the next echo clears everything.
func (s *subscriber) hear(payload string, own bool) (err error) {
	handled := false
	defer func() { // deferred, since UnmarshalText may end the goroutine
		if !handled {
			s.last = ""
		}
	}()
	defer s.panics.Caught("what applies a message", &err)
	s.handle(payload, own)
	handled = true
	return nil
}

// handle handles a payload from the common channel, or from this instance's own channel.
// An echo counts only on the own channel, and an invalidation only on the common one: a
// Redis user may have the right to publish on one of them alone.
func (s *subscriber) handle(payload string, own bool) {
	e, err := decodeEnvelope(payload)
	if own {
		if err != nil || e.kind != kindEcho || !s.echo(e) {
			s.foreign.Add(1) // no answer to a probe: it shows nothing about missed messages
		}
		return
	}
	s.received.Add(1)
	switch {
	case errors.Is(err, errForeign), e.kind == kindEcho:
		s.foreign.Add(1)
	case err != nil:
		// Its position is unknown too, so the next message will not continue the chain.
		s.last = ""
		s.clear(ClearCauseUndecodable, err)
	case e.kind == kindInvalidation:
		s.invalidate(e)
	}
}

// invalidate applies an invalidation.
func (s *subscriber) invalidate(e envelope) {
	// An empty position never continues the chain. It is empty if the channel has lost
	// its position, or if this instance has none.
	own := s.self.sent(e)
	missed := e.previous == "" || e.previous != s.last
	s.last = e.own
	if missed {
		s.clear(ClearCauseMessage, nil)
		return
	}
	if own {
		s.own.Add(1) // its local part was done before it was published
		return
	}
	if err := s.target.apply(e.body); err != nil {
		s.clear(ClearCauseUndecodable, err) // a part of it may have been applied
		return
	}
	s.applied.Add(1)
}

// echo handles the answer to a probe of this instance. Everything that Redis accepted
// before the probe has come by now, or will never come. It reports whether e is such an
// answer.
//
//  1. a message is lost: the connection was dead, the bus lost it, or a replica took
//     over that never had it   2. a probe is sent   3. its echo shows a position or a
//     history that is not this instance's   4. everything is cleared: nothing that was
//     kept before 3 is served, and no load that began before 3 is kept   5. only then
//     the lease is renewed, and its age counts from 2.
func (s *subscriber) echo(e envelope) bool {
	history, nonce, err := decodeEcho(e.body)
	if err != nil {
		return false
	}
	probe, ok := s.lease.answered(nonce)
	if !ok { // this instance did not send it, or its echo has come already
		return false
	}
	s.echoes.Add(1)
	why := s.compare(e.own, history)
	newHistory := s.knownID != "" && history != "" && history != s.knownID
	refused := history == "" && (s.history != "" || !s.begun)
	s.last, s.history, s.begun = e.own, history, true
	if history != "" {
		s.knownID = history
	}
	s.fresh = false
	if why != ClearCauseNone {
		s.clear(why, nil)
	}
	s.lease.follow(history)
	if s.lease.grant(probe) && s.connected.Load() {
		s.tellIf(s.leaseLines.Works(), slog.LevelInfo, "nearcache: lease regained", Event{Kind: EventState, State: StateLive})
	}
	if newHistory {
		s.target.newHistory()
	}
	if refused && s.historyLines.Allow() {
		s.target.tell(slog.LevelInfo, "nearcache: Redis does not tell its history; every reconnect will clear the caches "+
			"(to keep them warm, grant the user +info)", Event{})
	}
	return true
}

// compare returns why an echo requires a clear of everything, or ClearCauseNone.
func (s *subscriber) compare(position, history string) ClearCause {
	switch {
	case !s.begun:
		return ClearCauseStart
	case position == "" || position != s.last:
		return ClearCausePosition
	case history != s.history:
		return ClearCauseHistory
	case history == "" && s.fresh:
		return ClearCauseNoHistory
	}
	return ClearCauseNone
}

// clear clears everything. Each clear is an event, but the log is limited: if one message
// causes a clear, every message may.
func (s *subscriber) clear(why ClearCause, err error) {
	s.target.missedMessages()
	s.clears[why].Add(1) // after the clear: once counted, it is done
	if !s.connected.Load() {
		s.cleared = why
	}
	logged := why != ClearCauseStart && s.clearLines.Allow()
	s.tellIf(logged, slog.LevelWarn, "nearcache: everything was cleared", Event{Kind: EventCleared, Cause: why, Err: err})
}

// snapshot sets the subscriber's fields of to.
func (s *subscriber) snapshot(to *BackplaneStats) {
	to.Received = s.received.Load()
	to.Applied = s.applied.Load()
	to.Own = s.own.Load()
	to.Echoes = s.echoes.Load()
	to.Foreign = s.foreign.Load()
	to.Subscribed = s.subscribed.Load()
	to.SubscribedWarm = s.warm.Load()
	to.Reconnects = max(to.Subscribed, 1) - 1
	to.ConnectFailures = s.failed.Load()
	to.ProbeFailures = s.probeFailures.Load()
	to.Clears = ClearStats{
		Start:       s.clears[ClearCauseStart].Load(),
		Message:     s.clears[ClearCauseMessage].Load(),
		Position:    s.clears[ClearCausePosition].Load(),
		History:     s.clears[ClearCauseHistory].Load(),
		NoHistory:   s.clears[ClearCauseNoHistory].Load(),
		Undecodable: s.clears[ClearCauseUndecodable].Load(),
	}
}
