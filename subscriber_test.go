package nearcache

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// recorder is a subscriberTarget that writes down what is done to it.
type recorder struct {
	applied []operation
	clears  int
	states  []State
}

func (r *recorder) apply(o operation)   { r.applied = append(r.applied, o) }
func (r *recorder) missedMessages()     { r.clears++ }
func (r *recorder) setState(s State)    { r.states = append(r.states, s) }
func (r *recorder) connectFailed(error) {}

func newTestSubscriber() (*subscriber, *recorder) {
	r := &recorder{}
	return &subscriber{target: r, self: instanceID{9}, logger: slog.New(slog.DiscardHandler)}, r
}

func TestSubscriberFollowsTheChain(t *testing.T) {
	remove := body(invalidation{cache: "p", keys: []string{"1"}})
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
			message: payload(testPublisher, positionA, positionB, remove),
			applied: 1, wantLast: positionB,
			counter: func(s *subscriber) uint64 { return s.applied.Load() },
		}, {
			name: "a link was missed", last: positionA,
			message: payload(testPublisher, positionB, positionC, remove),
			clears:  1, wantLast: positionC,
			counter: func(s *subscriber) uint64 { return s.gaps.Load() },
		}, {
			name: "the channel has lost its position", last: positionA,
			message: payload(testPublisher, "", positionB, remove),
			clears:  1, wantLast: positionB,
			counter: func(s *subscriber) uint64 { return s.gaps.Load() },
		}, {
			name: "this instance has no position", last: "",
			message: payload(testPublisher, positionA, positionB, remove),
			clears:  1, wantLast: positionB,
			counter: func(s *subscriber) uint64 { return s.gaps.Load() },
		}, {
			name: "absent does not equal absent", last: "",
			message: payload(testPublisher, "", positionB, remove),
			clears:  1, wantLast: positionB,
			counter: func(s *subscriber) uint64 { return s.gaps.Load() },
		}, {
			name: "an own message", last: positionA,
			message:  payload(instanceID{9}, positionA, positionB, remove),
			wantLast: positionB,
			counter:  func(s *subscriber) uint64 { return s.own.Load() },
		}, {
			name: "an own message behind a gap", last: positionA,
			message: payload(instanceID{9}, positionB, positionC, remove),
			clears:  1, wantLast: positionC,
			counter: func(s *subscriber) uint64 { return s.gaps.Load() },
		}, {
			name: "somebody else's bytes", last: positionA,
			message: "hello", wantLast: positionA,
			counter: func(s *subscriber) uint64 { return s.foreign.Load() },
		}, {
			name: "our magic and then nonsense", last: positionA,
			message: magic + "nonsense",
			clears:  1, wantLast: "",
			counter: func(s *subscriber) uint64 { return s.undecodable.Load() },
		}, {
			name: "an undecodable body", last: positionA,
			message: payload(testPublisher, positionA, positionB, "\x01\x09"),
			clears:  1, wantLast: positionB,
			counter: func(s *subscriber) uint64 { return s.undecodable.Load() },
		}, {
			name: "a body of a later version", last: positionA,
			message: payload(testPublisher, positionA, positionB, "\x02whatever"),
			clears:  1, wantLast: positionB,
			counter: func(s *subscriber) uint64 { return s.undecodable.Load() },
		}, {
			name: "a notice", last: positionA,
			message:  string(appendHead(nil, kindNotice, testPublisher)) + "roll call",
			wantLast: positionA,
			counter:  func(s *subscriber) uint64 { return s.received.Load() },
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s, r := newTestSubscriber()
			s.last = test.last
			s.handle(test.message)
			require.Len(t, r.applied, test.applied)
			require.Equal(t, test.clears, r.clears)
			require.Equal(t, test.wantLast, s.last)
			require.EqualValues(t, 1, test.counter(s))
		})
	}
}

// scriptedSubscription hands out messages and then fails, or waits to be closed.
type scriptedSubscription struct {
	at       string
	messages chan string
	closed   chan struct{}
}

func newScripted(at string) *scriptedSubscription {
	return &scriptedSubscription{at: at, messages: make(chan string, 10), closed: make(chan struct{})}
}

func (s *scriptedSubscription) position() string { return s.at }

func (s *scriptedSubscription) receive() (string, error) {
	select {
	case m, ok := <-s.messages:
		if !ok {
			return "", errors.New("connection lost")
		}
		return m, nil
	case <-s.closed:
		return "", errors.New("closed")
	}
}

func (s *scriptedSubscription) close() {
	select {
	case <-s.closed:
	default:
		close(s.closed)
	}
}

// A lost subscription is replaced by a fresh one, never mended, after waits that
// grow while Redis stays away; and every new one clears everything.
func TestSubscriberReconnects(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, r := newTestSubscriber()
		first, second := newScripted(positionA), newScripted(positionB)
		failures := 20
		var attempts []time.Time
		s.subscribe = func(context.Context) (subscription, error) {
			attempts = append(attempts, time.Now())
			if len(attempts) <= failures {
				return nil, errRefused
			}
			return second, nil
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		s.joined(first)
		go func() { s.run(ctx, first); close(ended) }()

		remove := body(invalidation{cache: "p", keys: []string{"1"}})
		first.messages <- payload(testPublisher, positionA, positionC, remove)
		synctest.Wait()
		require.Len(t, r.applied, 1)
		require.Equal(t, 1, r.clears)

		lost := time.Now()
		close(first.messages)
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		require.Len(t, attempts, failures+1)
		require.Less(t, attempts[0].Sub(lost), backoffBase)
		for i := range failures {
			wait := attempts[i+1].Sub(attempts[i])
			require.Less(t, wait, min(backoffMax, backoffBase<<(i+1)))
		}
		require.Greater(t, attempts[failures].Sub(lost), 5*time.Second, "attempts are not spread out")
		require.Equal(t, 2, r.clears)
		require.Equal(t, positionB, s.last)
		require.Equal(t, []State{StateLive, StateConnecting, StateLive}, r.states)

		second.messages <- payload(testPublisher, positionB, positionC, remove)
		synctest.Wait()
		require.Len(t, r.applied, 2)
		require.Equal(t, 2, r.clears)

		cancel()
		<-ended
	})
}

// What one message causes every message may: the log gets a line now and then.
func TestClearsAreLoggedNowAndThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, r := newTestSubscriber()
		lines := 0
		s.logger = slog.New(statsHandler{slog.DiscardHandler, func() { lines++ }})
		for range 1000 {
			s.handle(magic + "nonsense")
		}
		require.Equal(t, 1000, r.clears)
		require.Equal(t, 1, lines)
		time.Sleep(logInterval)
		s.handle(magic + "nonsense")
		require.Equal(t, 2, lines)
	})
}
