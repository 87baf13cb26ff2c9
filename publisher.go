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
	// errNotReached is why writes are unconfirmed before Redis was ever reached.
	errNotReached = errors.New("no connection to Redis yet")

	// errNoAnswer is why a write is unconfirmed whose attempt close had to end.
	errNoAnswer = errors.New("no answer from Redis")
)

// publisher sends invalidations in groups: while one is being sent the next
// gathers, and whoever adds to it waits for its one message. There is no timer
// and no added delay; the busier the publisher, the larger its groups.
//
// A group that Redis does not accept goes back into the queue, with whatever
// gathered behind it, and is sent again until Redis does accept it.
type publisher struct {
	send   func(ctx context.Context, body string, changes []transport.Change) error // one attempt at one message
	random backoff.Random
	target publisherTarget

	// announcing counts writes between the beginning of their local part and the
	// queueing of their message.
	announcing atomic.Int64

	// attempted reports whether any message was sent since takeAttempted was called.
	attempted atomic.Bool

	// mostEntries bounds the keys, regions and clears in one message; for run alone. It
	// is large while nothing is known to be shared.
	mostEntries int

	work  chan struct{} // one token: something was queued, or closing was set
	retry chan struct{} // one token: do not wait any longer to try again
	done  chan struct{} // closed when run has returned
	stop  context.CancelFunc

	// mu guards everything below. Under it no method of an error is called, so also no
	// errors.Is: an error may wrap one of a user's dialler.
	mu        sync.Mutex
	gathering *group
	sending   *group // nil between rounds
	down      error  // why the last round failed; nil while Redis accepts
	closing   bool
	queued    uint64        // invalidations added so far
	accepted  uint64        // how many of them Redis has accepted
	progress  chan struct{} // closed when accepted advances; nil when nobody waits
	published uint64        // messages that Redis accepted
	failures  uint64        // rounds that failed
	collapsed uint64        // caches cleared for want of room, in accepted groups
}

// publisherTarget is who a publisher tells how it goes: the backplane. No lock is
// held then.
type publisherTarget interface {
	// afterRound comes after each round, and says what was wrong before it and what
	// is now; nil: Redis accepts.
	afterRound(before, now error)

	// collapsed comes when the queue had no room for what it held of a cache, and
	// holds a clear of it now; of all caches, if the name is empty.
	collapsed(cache string)
}

// greeting is the body of a message without operations. Only what has to be sent
// somehow goes by it: instances follow the chain, and evict nothing.
const greeting = string(rune(bodyVersion))

// group is what one round sends.
type group struct {
	batch  batch
	greets bool      // it is sent even if batch is empty, until the publisher is closed
	last   uint64    // publisher.queued after the last one added
	oldest time.Time // when the first one was added

	done chan struct{} // closed when the round is over
	err  error         // why it failed; set before done is closed
}

func newGroup() *group { return &group{done: make(chan struct{})} }

// newPublisher starts a publisher. It takes Redis to be unreachable until reached
// is called or a round succeeds.
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

// publish is enqueue, and waits until Redis has accepted inv, ctx ends, or Redis is
// found to be unreachable.
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

// enqueue does the local part of a write and then queues inv: this instance passes
// over its own messages. It returns inv's group. The error is ErrUnconfirmed if there
// is no point in waiting, and ErrClosed as well if nothing was queued.
func (p *publisher) enqueue(inv invalidation, local func()) (*group, error) {
	p.announcing.Add(1)
	defer p.announcing.Add(-1)
	done := false
	defer func() { // UnmarshalText, in the local part, can end the goroutine: others are told all the same
		if !done {
			_, _ = p.add(inv)
		}
	}()
	local()
	done = true
	return p.add(inv)
}

// add is the part of enqueue that queues.
func (p *publisher) add(inv invalidation) (*group, error) {
	p.mu.Lock()
	g, down := p.gathering, p.down
	if p.closing { // the caller began before, and took longer than close could wait
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
	fallen := g.batch.takeFallen()
	p.mu.Unlock()

	for _, cache := range fallen {
		p.target.collapsed(cache)
	}
	if first {
		signal(p.work)
	}
	return g, unconfirmed(inv, down)
}

// unconfirmed wraps a cause in ErrUnconfirmed and says what it is about; nil
// stays nil.
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

// signal leaves a token for one receiver, unless there is one already.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// reached says that Redis answers: what is queued is tried at once.
func (p *publisher) reached() {
	p.mu.Lock()
	if isNotReached(p.down) {
		p.down = nil
	}
	p.mu.Unlock()
	signal(p.retry)
}

// notReached says why Redis has not been reached so far.
func (p *publisher) notReached(cause error) {
	down := &notReached{cause: cause, text: fmt.Sprintf("%v: %v", errNotReached, cause)}
	p.mu.Lock()
	defer p.mu.Unlock()
	if isNotReached(p.down) {
		p.down = down
	}
}

// notReached is errNotReached, and says why.
type notReached struct {
	cause error
	text  string
}

func (e *notReached) Error() string { return e.text }

func (e *notReached) Unwrap() []error { return []error{errNotReached, e.cause} }

// isNotReached reports whether err is errNotReached, and asks no error for it.
func isNotReached(err error) bool {
	_, is := err.(*notReached)
	return is || err == errNotReached
}

// greet has a message sent although there is nothing to tell, again and again until
// Redis accepts one. That shows whether it would accept an invalidation.
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

// run sends group after group until closing finds nothing left, or ctx ends.
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

// next waits for something to send. It returns nil when there is nothing and
// never will be.
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

// round sends g, message by message. What Redis has accepted is taken out of g at once:
// if a later message fails, it is not sent again. A message is encoded when its turn
// comes: while Redis is away, an attempt costs no more than its first message, however
// long the queue is.
func (p *publisher) round(ctx context.Context, g *group) error {
	if g.batch.empty() {
		return p.send(ctx, greeting, nil)
	}
	for !g.batch.empty() { // without the lock: only this goroutine changes what is being sent
		next := g.batch.part(maxMessageBytes, p.mostEntries)
		p.attempted.Store(true) // before: the answer may be lost
		err := p.send(ctx, next.body, next.changes)
		if errors.Is(err, transport.ErrTooManyChanges) && p.mostEntries > transport.MostChanges {
			p.mostEntries = transport.MostChanges // there are shared values, as turns out here
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

// finish ends a round: g was accepted, or returns to the queue. ended reports
// whether the publisher's time is over; then it is for close to say what that
// means.
func (p *publisher) finish(g *group, err error, ended bool) {
	fallen, wasDown := p.requeueOrAccept(g, err, ended)
	for _, cache := range fallen {
		p.target.collapsed(cache)
	}
	if err == nil || !ended {
		p.target.afterRound(wasDown, err)
	}
}

// settle is finish without telling, and returns what there is to tell: which
// caches have collapsed, and what was wrong before this round.
func (p *publisher) requeueOrAccept(g *group, err error, ended bool) (fallen []string, wasDown error) {
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

	// 1. A is sent   2. B is queued behind it   3. the reply to A is lost. Whether
	// A was accepted is unknown; it is sent once more together with B, in a
	// message that starts after both, so both are in time. Twice does no harm.
	if ended {
		p.down = errNoAnswer // close ran out of time in the middle of an attempt
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
	return again.batch.takeFallen(), wasDown
}

// nothing is the local part of a write that has none.
func nothing() {}

// pending reports whether an invalidation concerns a key of a cache, or may, whose
// local part was begun here and which Redis has not accepted yet, as far as is known.
func (p *publisher) pending(cache, key string) bool {
	if p.announcing.Load() > 0 { // first: what was announced is queued
		return true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.gathering.batch.concerns(cache, key) || p.sending != nil && p.sending.batch.concerns(cache, key)
}

// flush waits until everything queued before it was accepted.
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

// takeAttempted reports whether any message was sent since it was last called,
// accepted or not.
func (p *publisher) takeAttempted() bool { return p.attempted.Swap(false) }

// describeLocked says what is queued or being sent.
func (p *publisher) describeLocked() string {
	if p.sending == nil {
		return describeBatches(&p.gathering.batch)
	}
	return describeBatches(&p.gathering.batch, &p.sending.batch)
}

// close takes no more invalidations, tries for at most timeout to deliver those
// that are queued, and says what could not be delivered.
func (p *publisher) close(timeout time.Duration) error {
	p.mu.Lock()
	p.closing = true
	if p.gathering.batch.empty() && (p.sending == nil || p.sending.batch.empty()) {
		timeout = 0 // what is under way, if anything, is a greeting
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
		down = errNoAnswer // an attempt goes on though its time is over
	}
	return fmt.Errorf("%w: closed before Redis accepted %s: %w", ErrUnconfirmed, left, down)
}

// snapshot fills in what the publisher knows.
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
