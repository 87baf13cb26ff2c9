package nearcache

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nearcache/nearcache/internal/backoff"
	"github.com/nearcache/nearcache/internal/transport"
)

var (
	// errNotReached is the cause while writes are unconfirmed because Redis was never
	// reached.
	errNotReached = errors.New("no connection to Redis yet")

	// errNoAnswer is the cause if close had to end the attempt to send a write.
	errNoAnswer = errors.New("no answer from Redis")
)

// publisher sends invalidations in groups. While one group is being sent, writes are
// added to the next one. There is no timer and no added delay: the busier the publisher,
// the larger its groups.
//
// A group that Redis does not accept returns to the queue. It is merged with the group
// that has gathered meanwhile, and sent again until Redis accepts it.
type publisher struct {
	send   func(ctx context.Context, body string, changes []transport.Change) error // makes one attempt to send one message
	random backoff.Random
	target publisherTarget

	// announcing counts writes whose local part has begun and whose message is not queued
	// yet.
	announcing atomic.Int64

	// attempted is true if any message was sent since the last call of takeAttempted.
	attempted atomic.Bool

	// mostEntries bounds the keys, regions and clears in one message. It is unbounded
	// until Redis is found to have shared values. Only run uses it.
	mostEntries int

	work  chan struct{} // one token: something was queued, or closing was set
	retry chan struct{} // one token: end the pause, and try again
	done  chan struct{} // closed when run has returned
	stop  context.CancelFunc

	// mu guards everything below. No method of an error is called under it, so errors.Is
	// is not either: the error may wrap one of a user's Dialer.
	mu        sync.Mutex
	gathering *group
	sending   *group // nil between rounds
	down      error  // why the last round failed; nil while Redis accepts
	closing   bool
	queued    uint64        // invalidations added so far
	accepted  uint64        // how many of them Redis has accepted
	progress  chan struct{} // closed when accepted advances; nil if no flush waits
	published uint64        // messages that Redis accepted
	failures  uint64        // rounds that failed
	collapsed uint64        // in accepted groups, caches that were cleared because the queue had no room
}

// publisherTarget is what a publisher reports to: the backplane. Its methods are called
// without a lock.
type publisherTarget interface {
	// afterRound is called after each round, with the errors of the round before and of
	// this one; nil: Redis accepted the messages.
	afterRound(before, now error)

	// collapsed is called when the queue had no room for a cache's keys and regions, and
	// replaced them by a clear of the cache, or of all caches if the name is empty.
	collapsed(cache string)
}

// greeting is the body of a message without operations. It only shows whether Redis
// accepts messages. Instances that receive it follow the chain and evict nothing.
const greeting = string(rune(bodyVersion))

// group is what one round sends.
type group struct {
	batch  batch
	greets bool      // send it even if batch is empty, unless the publisher is closing
	last   uint64    // publisher.queued after the newest invalidation was added
	oldest time.Time // when the first invalidation was added

	done chan struct{} // closed when the round is over
	err  error         // why it failed; set before done is closed
}

func newGroup() *group { return &group{done: make(chan struct{})} }

// newPublisher starts a publisher. It considers Redis unreachable until reached is called
// or a round succeeds.
func newPublisher(
	send func(context.Context, string, []transport.Change) error, random backoff.Random, target publisherTarget,
) *publisher {
	ctx, stop := context.WithCancel(context.Background())
	p := &publisher{
		send:      send,
		random:    random,
		target:    target,
		work:      make(chan struct{}, 1),
		retry:     make(chan struct{}, 1),
		done:      make(chan struct{}),
		stop:      stop,
		gathering: newGroup(),
		down:      errNotReached,

		mostEntries: math.MaxInt,
	}
	go p.run(ctx)
	return p
}

// publish is enqueue, followed by a wait until Redis has accepted inv, ctx ends, or Redis
// turns out to be unreachable.
func (p *publisher) publish(ctx context.Context, inv invalidation, local func()) error {
	g, err := p.enqueue(inv, local)
	if err != nil {
		return err
	}
	select {
	case <-g.done:
		return unconfirmed(inv, g.err)
	case <-ctx.Done():
		return unconfirmed(inv, ctx.Err())
	}
}

// enqueue does the local part of a write, since this instance ignores its own messages,
// and then queues inv. It returns inv's group. The error wraps ErrUnconfirmed if waiting
// is pointless, and ErrClosed as well if nothing was queued.
func (p *publisher) enqueue(inv invalidation, local func()) (*group, error) {
	p.announcing.Add(1)
	defer p.announcing.Add(-1)
	done := false
	defer func() { // UnmarshalText, in the local part, may end the goroutine: queue inv all the same
		if !done {
			_, _ = p.add(inv)
		}
	}()
	local()
	done = true
	return p.add(inv)
}

// add queues inv, and returns its group.
func (p *publisher) add(inv invalidation) (*group, error) {
	p.mu.Lock()
	g, down := p.gathering, p.down
	if p.closing { // the write began before close, and took longer than close could wait
		p.mu.Unlock()
		return nil, unconfirmed(inv, ErrClosed)
	}
	first := g.batch.empty()
	if first {
		g.oldest = time.Now()
	}
	g.batch.add(inv)
	p.queued++
	g.last = p.queued
	collapsed := g.batch.takeCollapsed()
	p.mu.Unlock()

	for _, cache := range collapsed {
		p.target.collapsed(cache)
	}
	if first {
		signal(p.work)
	}
	return g, unconfirmed(inv, down)
}

// unconfirmed wraps a cause in ErrUnconfirmed and describes inv. It returns nil if the
// cause is nil.
func unconfirmed(inv invalidation, cause error) error {
	if cause == nil {
		return nil
	}
	state := "done here, and queued for the other instances until Redis accepts it"
	if errors.Is(cause, ErrClosed) {
		state = "done here, and not delivered to the other instances before Close"
	}
	return fmt.Errorf("%w: %s: %s: %w", ErrUnconfirmed, inv.describe(), state, cause)
}

// signal sends a token to a channel that holds one, unless it holds one already.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// reached is called when Redis answers. What is queued is then sent at once.
func (p *publisher) reached() {
	p.mu.Lock()
	if isNotReached(p.down) {
		p.down = nil
	}
	p.mu.Unlock()
	signal(p.retry)
}

// notReached notes why Redis has not been reached so far.
func (p *publisher) notReached(cause error) {
	down := &notReached{cause: cause, text: fmt.Sprintf("%v: %v", errNotReached, cause)}
	p.mu.Lock()
	defer p.mu.Unlock()
	if isNotReached(p.down) {
		p.down = down
	}
}

// notReached is errNotReached with its cause.
type notReached struct {
	cause error
	text  string
}

func (e *notReached) Error() string { return e.text }

func (e *notReached) Unwrap() []error { return []error{errNotReached, e.cause} }

// isNotReached reports whether err is errNotReached. It calls no method of err, so it may
// be used under a lock.
func isNotReached(err error) bool {
	_, is := err.(*notReached)
	return is || err == errNotReached
}

// greet sends an empty message, again and again until Redis accepts one. That shows
// whether Redis would accept an invalidation.
func (p *publisher) greet() {
	p.mu.Lock()
	p.gathering.greets = true
	p.mu.Unlock()
	signal(p.work)
}

// accepts reports whether Redis has accepted the last message.
func (p *publisher) accepts() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.down == nil
}

// run sends group after group, until the publisher is closing and the queue is empty, or
// until ctx ends.
func (p *publisher) run(ctx context.Context) {
	defer close(p.done)
	pause := newBackoff(p.random)
	for {
		g := p.next()
		if g == nil {
			return
		}
		err := p.round(ctx, g)
		p.finish(g, err, ctx.Err() != nil)
		if err == nil {
			pause.Reset()
		} else if !pause.Wait(ctx, p.retry) {
			return
		}
	}
}

// next waits for a group to send. It returns nil when the publisher is closing and
// nothing is left.
func (p *publisher) next() *group {
	for {
		p.mu.Lock()
		if g := p.gathering; !g.batch.empty() || g.greets && !p.closing {
			p.sending, p.gathering = g, newGroup()
			p.gathering.batch.elsewhere, g.batch.elsewhere = g.batch.bytes, 0
			p.mu.Unlock()
			return g
		}
		closing := p.closing
		p.mu.Unlock()
		if closing {
			return nil
		}
		<-p.work
	}
}

// round sends g, message by message. What Redis has accepted is removed from g at once,
// so it is not sent again if a later message fails. Each message is encoded just before
// it is sent. So while Redis is away, an attempt encodes only one message, however long
// the queue is.
func (p *publisher) round(ctx context.Context, g *group) error {
	if g.batch.empty() {
		return p.send(ctx, greeting, nil)
	}
	for !g.batch.empty() { // without the lock: only this goroutine changes a group being sent
		next := g.batch.part(maxMessageBytes, p.mostEntries)
		p.attempted.Store(true) // before: the answer may be lost
		err := p.send(ctx, next.body, next.changes)
		if errors.Is(err, transport.ErrTooManyChanges) && p.mostEntries > transport.MostChanges {
			p.mostEntries = transport.MostChanges // there are shared values, as Redis just told
			continue
		}
		if err != nil {
			return err
		}
		p.mu.Lock()
		g.batch.drop(next)
		p.gathering.batch.elsewhere = g.batch.bytes
		p.published++
		p.mu.Unlock()
	}
	return nil
}

// finish ends a round: g was accepted, or returns to the queue. ended reports whether the
// publisher's context has ended; then close reports the failure, and finish does not.
func (p *publisher) finish(g *group, err error, ended bool) {
	collapsed, wasDown := p.requeueOrAccept(g, err, ended)
	for _, cache := range collapsed {
		p.target.collapsed(cache)
	}
	if err == nil || !ended {
		p.target.afterRound(wasDown, err)
	}
}

// requeueOrAccept is the part of finish that holds the lock. It returns what finish has
// to report: which caches have collapsed, and the error of the round before.
func (p *publisher) requeueOrAccept(g *group, err error, ended bool) (collapsed []string, wasDown error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	wasDown = p.down
	p.sending, p.down = nil, err

	if err == nil {
		p.accepted = g.last
		p.collapsed += g.batch.collapsed
		if p.progress != nil {
			close(p.progress)
			p.progress = nil
		}
		close(g.done)
		return nil, wasDown
	}

	// 1. A is sent   2. B is queued behind it   3. the reply to A is lost. Whether Redis
	// accepted A is unknown. So A is sent again together with B, in a message that is sent
	// after both local parts, so both are in time. It does no harm to send A twice.
	if ended {
		p.down = errNoAnswer // close ended an attempt
		if wasDown != nil {
			p.down = wasDown
		}
	}
	p.failures++
	behind, again := p.gathering, newGroup()
	again.last, again.oldest, again.greets = max(g.last, behind.last), g.oldest, g.greets
	less, more := behind.batch, g.batch
	if less.entries() > more.entries() {
		less, more = more, less
	}
	again.batch = more
	again.batch.elsewhere = 0
	again.batch.merge(&less)
	p.gathering = again
	for _, failed := range []*group{g, behind} {
		failed.err = p.down
		close(failed.done)
	}
	return again.batch.takeCollapsed(), wasDown
}

// nothing is the local part of a write that does not need one.
func nothing() {}

// pending reports whether an invalidation of this instance concerns a key of a cache, or
// may, and is not known to be accepted by Redis. It counts from the beginning of its
// local part.
func (p *publisher) pending(cache, key string) bool {
	if p.announcing.Load() > 0 { // first: a write is queued before it stops announcing
		return true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.gathering.batch.concerns(cache, key) || p.sending != nil && p.sending.batch.concerns(cache, key)
}

// flush waits until Redis has accepted everything that was queued before.
func (p *publisher) flush(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for target := p.queued; p.accepted < target; {
		if p.progress == nil {
			p.progress = make(chan struct{})
		}
		progress := p.progress
		p.mu.Unlock()
		var ended error
		select {
		case <-progress:
		case <-ctx.Done():
			ended = ctx.Err()
		case <-p.done:
			ended = ErrClosed
		}
		p.mu.Lock()
		if ended != nil && p.accepted < target {
			down, left := p.down, p.describeLocked()
			p.mu.Unlock()
			defer p.mu.Lock()
			if down != nil {
				ended = fmt.Errorf("%w (%w)", ended, down)
			}
			return fmt.Errorf("%w: Flush ended with %s still to be accepted by Redis: %w",
				ErrUnconfirmed, left, ended)
		}
	}
	return nil
}

// takeAttempted reports whether any message was sent since its last call, accepted or
// not.
func (p *publisher) takeAttempted() bool { return p.attempted.Swap(false) }

// describeLocked describes what is queued or being sent.
func (p *publisher) describeLocked() string {
	if p.sending == nil {
		return describeBatches(&p.gathering.batch)
	}
	return describeBatches(&p.gathering.batch, &p.sending.batch)
}

// close refuses further invalidations, and tries for at most timeout to deliver those
// that are queued. Its error says what could not be delivered.
func (p *publisher) close(timeout time.Duration) error {
	p.mu.Lock()
	p.closing = true
	if p.gathering.batch.empty() && (p.sending == nil || p.sending.batch.empty()) {
		timeout = 0 // at most a greeting is being sent
	}
	p.mu.Unlock()
	signal(p.work)
	signal(p.retry)

	limit := time.AfterFunc(timeout, p.stop)
	within(time.Now().Add(timeout), func() { <-p.done })
	limit.Stop()
	p.stop()

	p.mu.Lock()
	empty := p.gathering.batch.empty() && (p.sending == nil || p.sending.batch.empty())
	left, down := p.describeLocked(), p.down
	p.mu.Unlock()
	if empty {
		return nil
	}
	if down == nil {
		down = errNoAnswer // an attempt has not ended although its context has
	}
	return fmt.Errorf("%w: closed before Redis accepted %s: %w", ErrUnconfirmed, left, down)
}

// snapshot sets the publisher's fields of s.
func (p *publisher) snapshot(s *BackplaneStats) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s.Published, s.PublishFailures, s.Collapsed = p.published, p.failures, p.collapsed
	for _, g := range []*group{p.gathering, p.sending} {
		if g == nil || g.batch.empty() {
			continue
		}
		s.Queued += g.batch.entries()
		s.QueueAge = max(s.QueueAge, time.Since(g.oldest))
		s.Collapsed += g.batch.collapsed
	}
}
