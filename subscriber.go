package nearcache

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"
)

// subscription is one confirmed subscription, over one connection. Whatever goes
// wrong ends it for good and a new one is made; the old one is never mended,
// since messages may have been missed in between.
type subscription interface {
	// position returns the channel's position at some moment after the
	// subscription was confirmed.
	position() string

	// receive waits for the next payload on the channel.
	receive() (string, error)

	// close ends the subscription, and a receive that waits, from any goroutine.
	close()
}

// subscriber follows the channel in one goroutine, and applies what it hears
// without waiting for anything but the next message.
//
// Every message carries the channel's position before it. If that is not the
// position that the last message made, something was missed, and everything is
// cleared. So it is whenever a new subscription is confirmed, for what was
// missed while there was none.
type subscriber struct {
	subscribe func(context.Context) (subscription, error)
	target    subscriberTarget
	self      instanceID
	logger    *slog.Logger

	last       string    // the channel's position here
	quietUntil time.Time // no clear is logged before; like last, used by one goroutine at a time

	received, applied, own, foreign, undecodable, gaps, subscribed atomic.Uint64
}

// logInterval is how long the log is silent about clears after one was logged.
const logInterval = time.Minute

// subscriberTarget is what a subscriber acts on: the backplane.
type subscriberTarget interface {
	setState(State)
	connectFailed(error)
	apply(operation)
	missedMessages()
}

// run follows sub, which joined has seen, and then one new subscription after
// another, until ctx ends. sub may be nil.
func (s *subscriber) run(ctx context.Context, sub subscription) {
	for {
		if sub == nil {
			if sub = s.connect(ctx); sub == nil {
				return
			}
			s.joined(sub)
		}
		err := s.follow(ctx, sub)
		sub.close()
		sub = nil
		if ctx.Err() != nil {
			return
		}
		s.target.setState(StateConnecting)
		s.logger.Warn("nearcache: subscription lost; connecting again", "error", err)
	}
}

// connect tries until there is a subscription. It returns nil when ctx ends.
func (s *subscriber) connect(ctx context.Context) subscription {
	var pause backoff
	for pause.wait(ctx, nil) {
		sub, err := s.subscribe(ctx)
		if err == nil {
			return sub
		}
		s.target.connectFailed(err)
		if pause.failures == 1 && ctx.Err() == nil {
			s.logger.Warn("nearcache: cannot subscribe; trying again until it works", "error", err)
		}
	}
	return nil
}

// joined starts from a new subscription.
//
//  1. the old subscription is lost   2. an item changes, its message goes nowhere
//  3. sub is confirmed   4. everything is cleared: what was kept before 3 goes,
//     and loads that began before 3 keep nothing.
func (s *subscriber) joined(sub subscription) {
	s.last = sub.position()
	s.target.missedMessages()
	s.subscribed.Add(1)
	s.target.setState(StateLive)
	s.logger.Info("nearcache: subscribed")
}

// follow applies what sub receives, until it fails.
func (s *subscriber) follow(ctx context.Context, sub subscription) error {
	defer context.AfterFunc(ctx, sub.close)()
	for {
		payload, err := sub.receive()
		if err != nil {
			return err
		}
		s.handle(payload)
	}
}

// handle applies one message.
func (s *subscriber) handle(payload string) {
	s.received.Add(1)
	e, err := decodeEnvelope(payload)
	switch {
	case errors.Is(err, errForeign):
		s.foreign.Add(1)
		return
	case err != nil:
		// Its position is unknown too, so the next message will not fit the chain.
		s.last = ""
		s.clear(&s.undecodable, "undecodable message on the channel; everything was cleared", err)
		return
	case e.kind == kindNotice:
		return
	}

	// No position fits none: neither that of a channel that has lost its own nor
	// this instance's, if it has none.
	missed := e.previous == "" || e.previous != s.last
	s.last = e.own
	if missed {
		s.clear(&s.gaps, "messages were missed; everything was cleared", nil)
		return
	}
	if e.publisher == s.self {
		s.own.Add(1) // the work was done before it was published
		return
	}
	ops, err := decodeBody(e.body)
	if err != nil {
		s.clear(&s.undecodable, "undecodable invalidation on the channel; everything was cleared", err)
		return
	}
	s.applied.Add(1)
	for _, op := range ops {
		s.target.apply(op)
	}
}

// clear clears everything, counted by its reason. Now and then it is logged: what
// one message causes, every message may.
func (s *subscriber) clear(counter *atomic.Uint64, reason string, err error) {
	counter.Add(1)
	s.target.missedMessages()
	now := time.Now()
	if now.Before(s.quietUntil) {
		return
	}
	s.quietUntil = now.Add(logInterval)
	args := []any{"undecodable", s.undecodable.Load(), "gaps", s.gaps.Load()}
	if err != nil {
		args = append(args, "error", err)
	}
	s.logger.Warn("nearcache: "+reason, args...)
}

// snapshot fills in what the subscriber knows.
func (s *subscriber) snapshot(to *BackplaneStats) {
	to.Received = s.received.Load()
	to.Applied = s.applied.Load()
	to.Own = s.own.Load()
	to.Foreign = s.foreign.Load()
	to.Undecodable = s.undecodable.Load()
	to.Gaps = s.gaps.Load()
	to.Subscribed = s.subscribed.Load()
}
