package nearcache

import (
	"context"
	"crypto/sha1"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache/internal/loglimit"
	"github.com/nearcache/nearcache/internal/messagetest"
	"github.com/nearcache/nearcache/internal/transport"
)

// recorder is a subscriberTarget that writes down what is done to it.
type recorder struct {
	applied   []messagetest.Operation
	applyTo   *Backplane // nil: they are only written down
	clears    int
	histories int
	redials   int
	onClear   func()

	mu     sync.Mutex // guards everything below
	lines  int
	events []Event
}

func (r *recorder) apply(body string) error {
	if r.applyTo != nil {
		return r.applyTo.apply(body)
	}
	ops, err := messagetest.DecodeBody(body)
	r.applied = append(r.applied, ops...)
	return err
}
func (r *recorder) missedMessages() {
	r.clears++
	if r.onClear != nil {
		r.onClear()
	}
}
func (r *recorder) reached()         {}
func (r *recorder) notReached(error) {}
func (r *recorder) newHistory()      { r.histories++ }
func (r *recorder) redial()          { r.redials++ }
func (r *recorder) note(e Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, e)
}
func (r *recorder) tell(_ slog.Level, _ string, e Event, _ ...any) {
	r.note(e)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines++
}

const testLife = time.Second

func newTestSubscriber(t *testing.T) (*subscriber, *recorder) {
	r := &recorder{}
	l := newLease(testLife)
	l.start()
	t.Cleanup(l.close)
	me := newIdentity()
	me.become(instanceID{9})
	return &subscriber{
		target: r, self: me, lease: l, random: rand.Int64N,
	}, r
}

// positionOf returns the position that the publish script makes.
func positionOf(previous, nonce string) string {
	sum := sha1.Sum([]byte(previous + nonce))
	return hex.EncodeToString(sum[:])
}

func TestSubscriberFollowsTheChain(t *testing.T) {
	remove := body(invalidation{cache: "p", keys: []string{"1"}})
	ownB, ownC := positionOf(positionA, "sent"), positionOf(positionB, "sent")
	tests := []struct {
		name     string
		last     string // position before the message
		message  string
		applied  int
		clears   int
		wantLast string
		counter  func(*subscriber) uint64
	}{
		{
			name: "the next link", last: positionA,
			message: messagetest.Message(testPublisher, positionA, positionB, remove),
			applied: 1, wantLast: positionB,
			counter: func(s *subscriber) uint64 { return s.applied.Load() },
		}, {
			name: "a link was missed", last: positionA,
			message: messagetest.Message(testPublisher, positionB, positionC, remove),
			clears:  1, wantLast: positionC,
			counter: func(s *subscriber) uint64 { return s.clears[ClearCauseMessage].Load() },
		}, {
			name: "the channel has lost its position", last: positionA,
			message: messagetest.Message(testPublisher, "", positionB, remove),
			clears:  1, wantLast: positionB,
			counter: func(s *subscriber) uint64 { return s.clears[ClearCauseMessage].Load() },
		}, {
			name: "this instance has no position", last: "",
			message: messagetest.Message(testPublisher, positionA, positionB, remove),
			clears:  1, wantLast: positionB,
			counter: func(s *subscriber) uint64 { return s.clears[ClearCauseMessage].Load() },
		}, {
			name: "absent does not equal absent", last: "",
			message: messagetest.Message(testPublisher, "", positionB, remove),
			clears:  1, wantLast: positionB,
			counter: func(s *subscriber) uint64 { return s.clears[ClearCauseMessage].Load() },
		}, {
			name: "an own message", last: positionA,
			message:  messagetest.Message(instanceID{9}, positionA, ownB, remove),
			wantLast: ownB,
			counter:  func(s *subscriber) uint64 { return s.own.Load() },
		}, {
			name: "a message of a clone", last: positionA,
			message: messagetest.Message(instanceID{9}, positionA, positionB, remove),
			applied: 1, wantLast: positionB,
			counter: func(s *subscriber) uint64 { return s.applied.Load() },
		}, {
			name: "an own message from before this subscription", last: positionA,
			message: messagetest.Message(testPublisher, positionA, ownB, remove),
			applied: 1, wantLast: ownB,
			counter: func(s *subscriber) uint64 { return s.applied.Load() },
		}, {
			name: "an own message behind a gap", last: positionA,
			message: messagetest.Message(instanceID{9}, positionB, ownC, remove),
			clears:  1, wantLast: ownC,
			counter: func(s *subscriber) uint64 { return s.clears[ClearCauseMessage].Load() },
		}, {
			name: "somebody else's bytes", last: positionA,
			message: "hello", wantLast: positionA,
			counter: func(s *subscriber) uint64 { return s.foreign.Load() },
		}, {
			name: "our magic and then nonsense", last: positionA,
			message: magic + "nonsense",
			clears:  1, wantLast: "",
			counter: func(s *subscriber) uint64 { return s.clears[ClearCauseUndecodable].Load() },
		}, {
			name: "an undecodable body", last: positionA,
			message: messagetest.Message(testPublisher, positionA, positionB, "\x01\x09"),
			clears:  1, wantLast: positionB,
			counter: func(s *subscriber) uint64 { return s.clears[ClearCauseUndecodable].Load() },
		}, {
			name: "a body of a later version", last: positionA,
			message: messagetest.Message(testPublisher, positionA, positionB, "\x02whatever"),
			clears:  1, wantLast: positionB,
			counter: func(s *subscriber) uint64 { return s.clears[ClearCauseUndecodable].Load() },
		}, {
			name: "a notice", last: positionA,
			message:  head(kindNotice, testPublisher) + "roll call",
			wantLast: positionA,
			counter:  func(s *subscriber) uint64 { return s.received.Load() },
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s, r := newTestSubscriber(t)
			s.last, s.self.nonces = test.last, []string{"lost", "sent", "sent later"}
			s.handle(test.message, false)
			require.Len(t, r.applied, test.applied)
			require.Equal(t, test.clears, r.clears)
			require.Equal(t, test.wantLast, s.last)
			require.EqualValues(t, 1, test.counter(s))
		})
	}
}

func TestSubscriberComparesEchoes(t *testing.T) {
	tests := []struct {
		name     string
		start    bool   // nothing was heard before
		last     string // position before the echo
		history  string // that the last echo showed
		fresh    bool   // it is the first echo of a subscription
		position string
		now      string // history that the echo shows
		why      ClearCause
		renewed  bool
	}{
		{name: "nothing was missed", last: positionA, history: "1", position: positionA, now: "1", why: ClearCauseNone},
		{name: "a reconnect that missed nothing", last: positionA, history: "1", fresh: true, position: positionA, now: "1", why: ClearCauseNone},
		{name: "messages were missed", last: positionA, history: "1", position: positionB, now: "1", why: ClearCausePosition},
		{name: "another history", last: positionA, history: "1", position: positionA, now: "2", why: ClearCauseHistory, renewed: true},
		{name: "both", last: positionA, history: "1", position: positionB, now: "2", why: ClearCausePosition, renewed: true},
		{name: "the first echo of all", start: true, fresh: true, position: positionA, now: "1", why: ClearCauseStart},
		{name: "this instance has no position", last: "", history: "1", position: positionA, now: "1", why: ClearCausePosition},
		{name: "no history, the same subscription", last: positionA, position: positionA, why: ClearCauseNone},
		{name: "no history, a new subscription", last: positionA, fresh: true, position: positionA, why: ClearCauseNoHistory},
		{name: "the right to see the history is lost", last: positionA, history: "1", position: positionA, why: ClearCauseHistory},
		{name: "the right to see the history is granted", last: positionA, position: positionA, now: "1", why: ClearCauseHistory},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, r := newTestSubscriber(t)
				s.begun, s.fresh, s.last, s.history, s.knownID = !test.start, test.fresh, test.last, test.history, test.history
				nonce := s.lease.probe()
				time.Sleep(time.Millisecond)
				s.handle(messagetest.Echo(s.self.id, test.position, test.now, nonce), true)
				require.Equal(t, test.why != ClearCauseNone, r.clears == 1)
				require.Equal(t, test.renewed, r.histories == 1)
				require.Equal(t, test.position, s.last)
				require.True(t, s.lease.valid())
				if test.why != ClearCauseNone {
					require.EqualValues(t, 1, s.clears[test.why].Load())
				}

				s.handle(messagetest.Echo(s.self.id, test.position, test.now, nonce), true) // an echo counts once
				require.EqualValues(t, 1, s.echoes.Load())
				require.EqualValues(t, 1, s.foreign.Load())
				require.Equal(t, test.why != ClearCauseNone, r.clears == 1)
			})
		})
	}
}

// A new history is noticed although the right to see it was lost in between.
func TestHistoryIsRemembered(t *testing.T) {
	s, r := newTestSubscriber(t)
	for i, history := range []string{"1", "", "1", "", "2"} {
		s.handle(messagetest.Echo(s.self.id, positionA, history, s.lease.probe()), true)
		require.Equal(t, i == 4, r.histories == 1, history)
	}
}

// Who sees a clear counted can rely on it.
func TestCountedWhenDone(t *testing.T) {
	s, r := newTestSubscriber(t)
	r.onClear = func() {
		require.EqualValues(t, r.clears-1, s.clears[ClearCauseStart].Load()+s.clears[ClearCausePosition].Load())
	}
	s.handle(messagetest.Echo(s.self.id, positionA, "1", s.lease.probe()), true)
	s.handle(messagetest.Echo(s.self.id, positionB, "1", s.lease.probe()), true)
	require.Equal(t, 2, r.clears)
	require.EqualValues(t, 1, s.clears[ClearCausePosition].Load())
}

//  1. an echo shows that messages were missed   2. the lease is renewed   3. a read
//     finds what they would have evicted   4. everything is cleared, too late.
func TestClearComesBeforeTheLease(t *testing.T) {
	s, r := newTestSubscriber(t)
	s.handle(messagetest.Echo(s.self.id, positionA, "1", s.lease.probe()), true)
	before := s.lease.sent.Load()
	r.onClear = func() { require.Equal(t, before, s.lease.sent.Load()) }
	s.handle(messagetest.Echo(s.self.id, positionB, "1", s.lease.probe()), true)
	require.Equal(t, 2, r.clears)
	require.Greater(t, s.lease.sent.Load(), before)
}

// Only the echo of a probe of this subscription proves anything, once, and only on the
// instance's own channel, where nothing else is heard. What is no such echo clears
// nothing, changes nothing, drops no lease and logs no line.
//
//  1. messages do not reach this instance   2. somebody who may publish where an
//     instance does sends it what it hopes for: an echo that is dated by its clock, one
//     that it had before, or the message after the last one that it had   3. the lease
//     is renewed though something was missed.
func TestForgedMessages(t *testing.T) {
	remove := body(invalidation{cache: "p", keys: []string{"1"}})
	var used, lost, pending string                         // nonces: of an echo that has come, of the subscription before, of one that has not come
	clocks := func(l *lease, ahead time.Duration) string { // a nonce as it once was
		now, wall := l.clock.Both()
		b := binary.BigEndian.AppendUint64(nil, uint64(now+int64(ahead)))
		return string(binary.BigEndian.AppendUint64(b, uint64(wall+int64(ahead))))
	}
	tests := []struct {
		name  string
		forge func(*subscriber) string
		own   bool // on the own channel
	}{
		{"an echo without a nonce", func(s *subscriber) string { return messagetest.Echo(s.self.id, positionA, "1", "") }, true},
		{"with any nonce", func(s *subscriber) string { return messagetest.Echo(s.self.id, positionA, "1", "0123456789abcdef") }, true},
		{"of the clocks", func(s *subscriber) string { return messagetest.Echo(s.self.id, positionA, "1", clocks(s.lease, 0)) }, true},
		{"of the clocks, to come", func(s *subscriber) string {
			return messagetest.Echo(s.self.id, positionA, "1", clocks(s.lease, time.Hour))
		}, true},
		{"with another position", func(s *subscriber) string { return messagetest.Echo(s.self.id, positionB, "1", "0123456789abcdef") }, true},
		{"with another history", func(s *subscriber) string { return messagetest.Echo(s.self.id, positionA, "2", "0123456789abcdef") }, true},
		{"once more", func(s *subscriber) string { return messagetest.Echo(s.self.id, positionB, "1", used) }, true},
		{"of the last subscription", func(s *subscriber) string { return messagetest.Echo(s.self.id, positionB, "1", lost) }, true},
		{"of another instance", func(*subscriber) string { return messagetest.Echo(testPublisher, positionB, "1", "0123456789abcdef") }, true},
		{"cut short", func(s *subscriber) string {
			e := messagetest.Echo(s.self.id, positionA, "1", pending)
			return e[:len(e)-1]
		}, true},
		{"of another version", func(s *subscriber) string {
			return strings.Replace(messagetest.Echo(s.self.id, positionA, "1", pending), positionA+"\x01", positionA+"\x02", 1)
		}, true},
		{"on the channel", func(s *subscriber) string { return messagetest.Echo(s.self.id, positionA, "1", pending) }, false},
		{"on the channel, with another position", func(s *subscriber) string { return messagetest.Echo(s.self.id, positionB, "1", pending) }, false},
		{"a message on the own channel", func(*subscriber) string { return messagetest.Message(testPublisher, positionA, positionB, remove) }, true},
		{"one that does not follow", func(*subscriber) string { return messagetest.Message(testPublisher, positionB, positionC, remove) }, true},
		{"a notice", func(*subscriber) string { return head(kindNotice, testPublisher) }, true},
		{"our magic and then nonsense", func(*subscriber) string { return magic + "nonsense" }, true},
		{"nonsense", func(*subscriber) string { return "nonsense" }, true},
		{"nothing", func(*subscriber) string { return "" }, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, r := newTestSubscriber(t)
				lost = s.lease.probe()
				s.lease.forgetProbes()
				used = s.lease.probe()
				time.Sleep(time.Millisecond)
				s.handle(messagetest.Echo(s.self.id, positionA, "1", used), true)
				require.True(t, s.lease.valid())
				pending = s.lease.probe()
				sent, steps, lines, clears := s.lease.sent.Load(), s.lease.steps, r.lines, r.clears

				time.Sleep(time.Millisecond)
				for range 10 {
					s.handle(test.forge(s), test.own)
				}
				require.Equal(t, sent, s.lease.sent.Load())
				require.Equal(t, steps, s.lease.steps)
				require.Equal(t, clears, r.clears)
				require.Equal(t, lines, r.lines)
				require.Empty(t, r.applied)
				require.Zero(t, r.histories)
				require.Equal(t, positionA, s.last)
				require.Equal(t, "1", s.history)
				require.EqualValues(t, 10, s.foreign.Load())
				require.EqualValues(t, 1, s.echoes.Load())

				s.handle(messagetest.Echo(s.self.id, positionA, "1", pending), true)
				require.Greater(t, s.lease.sent.Load(), sent, "the true echo counts")
				require.Equal(t, clears, r.clears)
			})
		})
	}
}

// scriptedSubscription hands out messages, and an echo for each probe, and then
// fails, or waits to be closed.
type scriptedSubscription struct {
	s        *subscriber
	position string
	mute     bool // probes are taken and never answered
	messages chan string
	closed   chan struct{}
	once     sync.Once
}

func newScripted(s *subscriber, position string) *scriptedSubscription {
	return &scriptedSubscription{s: s, position: position, messages: make(chan string, 100), closed: make(chan struct{})}
}

func (s *scriptedSubscription) Probe(_ context.Context, nonce string) error {
	if !s.mute {
		s.messages <- messagetest.Echo(s.s.self.id, s.position, "1", nonce)
	}
	return nil
}

func (s *scriptedSubscription) Receive() (payload string, own bool, err error) {
	select {
	case m := <-s.messages:
		if m == "" {
			return "", false, errors.New("connection lost")
		}
		return m, m[len(magic)] == kindEcho, nil
	case <-s.closed:
		return "", false, errors.New("closed")
	}
}

func (s *scriptedSubscription) Close() { s.once.Do(func() { close(s.closed) }) }

// A lost subscription is replaced by a fresh one, never mended, after waits that
// grow while Redis stays away. It clears everything if something was missed.
func TestSubscriberReconnects(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, r := newTestSubscriber(t)
		first, second := newScripted(s, positionA), newScripted(s, positionB)
		subs := []*scriptedSubscription{first, second, newScripted(s, positionC)}
		failures := 20
		var attempts []time.Time
		s.subscribe = func(context.Context, transport.Identity) (transport.Subscription, error) {
			attempts = append(attempts, time.Now())
			if len(attempts) <= failures {
				return nil, errRefused
			}
			sub := subs[0]
			subs = subs[1:]
			return sub, nil
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		began := time.Now()
		go func() { s.run(ctx, nil); close(ended) }()
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		require.Len(t, attempts, failures+1)
		require.Less(t, attempts[0].Sub(began), backoffBase)
		for i := range failures {
			wait := attempts[i+1].Sub(attempts[i])
			require.Less(t, wait, min(backoffMax, backoffBase<<(i+1)))
		}
		require.Greater(t, attempts[failures].Sub(began), 5*time.Second, "attempts are not spread out")
		require.True(t, s.connected.Load())
		require.True(t, s.lease.valid(), "it is renewed")
		require.Equal(t, 1, r.clears)
		require.EqualValues(t, 1, s.clears[ClearCauseStart].Load())

		remove := body(invalidation{cache: "p", keys: []string{"1"}})
		first.messages <- messagetest.Message(testPublisher, positionA, positionB, remove)
		first.messages <- ""
		time.Sleep(backoffBase)
		synctest.Wait()
		require.Len(t, r.applied, 1)
		require.Equal(t, 1, r.clears, "nothing was missed")
		require.EqualValues(t, 1, s.warm.Load())

		second.messages <- "" // lost soon after the first one: the next comes later
		time.Sleep(2 * backoffBase)
		synctest.Wait()
		require.Equal(t, 2, r.clears)
		require.EqualValues(t, 1, s.clears[ClearCausePosition].Load())
		require.EqualValues(t, 1, s.warm.Load())
		require.EqualValues(t, 3, s.subscribed.Load())
		cancel()
		<-ended
	})
}

// A connection that is dead and looks alive is given up when the lease is lost.
func TestSilenceEndsTheSubscription(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := newTestSubscriber(t)
		var silent atomic.Int64
		began := time.Now()
		s.lease.onSilence = func() { silent.Add(int64(time.Since(began))) }
		first, second := newScripted(s, positionA), newScripted(s, positionA)
		subs := []*scriptedSubscription{first, second}
		s.subscribe = func(context.Context, transport.Identity) (transport.Subscription, error) {
			sub := subs[0]
			subs = subs[1:]
			return sub, nil
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		sub, err := s.attempt(ctx, false)
		require.NoError(t, err)
		first.mute = true // from its second probe on
		go func() { s.run(ctx, sub); close(ended) }()
		time.Sleep(testLife - 1)
		require.True(t, s.lease.valid())
		require.Zero(t, silent.Load())
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		require.False(t, s.lease.valid())
		require.EqualValues(t, testLife, silent.Load())
		<-first.closed
		time.Sleep(backoffBase)
		synctest.Wait()
		require.True(t, s.lease.valid())
		require.EqualValues(t, 1, s.warm.Load())
		require.EqualValues(t, 2, s.subscribed.Load())
		cancel()
		<-ended
	})
}

// probed is a scripted subscription whose n-th probe a test sees.
type probed struct {
	*scriptedSubscription
	onProbe func(ctx context.Context, n int)
	n       int
}

func (p *probed) Probe(ctx context.Context, nonce string) error {
	p.n++
	_ = p.scriptedSubscription.Probe(ctx, nonce)
	p.onProbe(ctx, p.n)
	return ctx.Err()
}

// One probe without an answer costs no lease: others are tried in time.
func TestProbeThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := newTestSubscriber(t)
		sub := &probed{scriptedSubscription: newScripted(s, positionA)}
		sub.onProbe = func(ctx context.Context, n int) {
			if n%3 == 0 {
				<-ctx.Done()
			}
		}
		s.subscribe = func(context.Context, transport.Identity) (transport.Subscription, error) { return sub, nil }
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { s.run(ctx, nil); close(ended) }()
		time.Sleep(time.Minute)
		synctest.Wait()
		require.True(t, s.lease.valid())
		require.EqualValues(t, 1, s.subscribed.Load())
		require.NotZero(t, s.probeFailures.Load())
		cancel()
		<-ended
		lease, _ := s.lease.snapshot()
		require.Zero(t, lease.Lost)
	})
}

// A probe whose echo has not come over its subscription is not answered over another.
func TestNoncesEndWithTheirSubscription(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := newTestSubscriber(t)
		lost := s.lease.probe()
		s.subscribe = func(context.Context, transport.Identity) (transport.Subscription, error) {
			return newScripted(s, positionA), nil
		}
		_, err := s.attempt(t.Context(), false)
		require.NoError(t, err)
		_, ok := s.lease.answered(lost)
		require.False(t, ok)
	})
}

// Subscriptions that begin well and are lost at once are not tried for ever and
// ever without a pause.
func TestReconnectsThatDoNotLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := newTestSubscriber(t)
		s.subscribe = func(context.Context, transport.Identity) (transport.Subscription, error) {
			sub := &probed{scriptedSubscription: newScripted(s, positionA)}
			sub.onProbe = func(context.Context, int) { sub.messages <- "" } // behind the echo
			return sub, nil
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { s.run(ctx, nil); close(ended) }()
		time.Sleep(10 * time.Minute)
		require.Less(t, s.subscribed.Load(), uint64(3000), "one each 400 ms or so")
		cancel()
		<-ended
	})
}

// What was cleared on the way to a subscription was not kept, whichever attempt it
// was in.
func TestWarmMeansThatNothingWasCleared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, r := newTestSubscriber(t)
		var subs []*scriptedSubscription
		s.subscribe = func(context.Context, transport.Identity) (transport.Subscription, error) {
			sub := newScripted(s, positionA)
			if len(subs) == 1 { // a message that does not follow, and then the connection is lost
				sub.messages <- messagetest.Message(testPublisher, positionC, positionA, body(invalidation{all: true}))
				sub.messages <- ""
			}
			subs = append(subs, sub)
			return sub, nil
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { s.run(ctx, nil); close(ended) }()
		time.Sleep(10 * time.Second)
		synctest.Wait()
		subs[0].messages <- ""
		time.Sleep(time.Second)
		synctest.Wait()
		require.Len(t, subs, 3)
		require.Equal(t, 2, r.clears)
		require.EqualValues(t, 2, s.subscribed.Load())
		require.Zero(t, s.warm.Load())
		cancel()
		<-ended
	})
}

// Where a failover does not show, each reconnect may be one: the publisher's
// connection is made again too.
func TestPublisherRedialsWithoutHistory(t *testing.T) {
	for history, redials := range map[string]int{"": 1, "1": 0} {
		s, r := newTestSubscriber(t)
		s.history = history
		s.joined()
		require.Equal(t, redials, r.redials, history)
	}
}

// An attempt whose probe is not answered within the life of a lease has failed.
func TestAttemptNeedsAnEcho(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := newTestSubscriber(t)
		sub := newScripted(s, positionA)
		sub.mute = true
		s.subscribe = func(context.Context, transport.Identity) (transport.Subscription, error) { return sub, nil }
		began := time.Now()
		_, err := s.attempt(t.Context(), false)
		require.ErrorContains(t, err, "echo did not come within 1s")
		require.Equal(t, testLife, time.Since(began))
		<-sub.closed
		require.False(t, s.connected.Load())
	})
}

// Five probes begin in the life of a lease, and no two instances stay in step.
func TestProbesAreSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := newTestSubscriber(t)
		ctx, cancel := context.WithCancel(t.Context())
		var turns []time.Duration
		began := time.Now()
		for len(turns) < 100 && s.waitForProbe(ctx) {
			turns = append(turns, time.Since(began))
			began = time.Now()
		}
		for _, turn := range turns {
			require.LessOrEqual(t, turn, testLife/5)
			require.GreaterOrEqual(t, turn, testLife/5*9/10)
		}
		require.NotEqual(t, turns[0], turns[1])
		cancel()
		require.False(t, s.waitForProbe(ctx))
	})
}

// What one message causes every message may: the log gets a line now and then, and
// OnEvent, which may drop what it has no time for, is told each time.
func TestClearsAreLoggedNowAndThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, r := newTestSubscriber(t)
		for range 1000 {
			s.handle(magic+"nonsense", false)
		}
		require.Equal(t, 1000, r.clears)
		require.Equal(t, 1, r.lines)
		time.Sleep(loglimit.Interval)
		s.handle(magic+"nonsense", false)
		require.Equal(t, 2, r.lines)
		require.Len(t, r.events, 1001)
		for _, e := range r.events {
			require.Equal(t, EventCleared, e.Kind)
			require.Equal(t, ClearCauseUndecodable, e.Cause)
			require.Error(t, e.Err)
		}
	})
}
