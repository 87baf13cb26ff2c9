package nearcache

import (
	"context"
	"encoding/json"
	"log/slog"
	"runtime"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache/internal/messagetest"
)

// eventLog keeps events as a callback is told of them.
type eventLog struct {
	mu     sync.Mutex // guards everything below
	events []Event
}

func (l *eventLog) add(e Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, e)
}

func (l *eventLog) all() []Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.events
}

// of returns the events of a kind, without their time.
func (l *eventLog) of(kind EventKind) (events []Event) {
	for _, e := range l.all() {
		if e.Kind == kind {
			e.Time = time.Time{}
			events = append(events, e)
		}
	}
	return events
}

func (l *eventLog) states() (states []State) {
	for _, e := range l.of(EventState) {
		states = append(states, e.State)
	}
	return states
}

// An outage as OnEvent is told of it, from a start without Redis to the end.
func TestEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &eventLog{}
		in, bp := onFakeBus(t, BackplaneOptions{OnEvent: log.add})
		time.Sleep(10 * time.Second)
		synctest.Wait()
		require.Equal(t, []State{StateConnecting}, log.states())
		require.Len(t, log.of(EventConnectFailed), 1, "the first of many attempts")
		require.Error(t, log.of(EventConnectFailed)[0].Err)

		in.Heal(true)
		become(t, bp, StateLive)
		require.Equal(t, []Event{{Kind: EventCleared, State: StateConnecting, Cause: ClearCauseStart}}, log.of(EventCleared))
		in.Partition()
		require.ErrorIs(t, bp.ClearAll(t.Context()), ErrUnconfirmed)
		synctest.Wait()
		require.Len(t, log.of(EventPublishFailed), 1)
		require.Error(t, log.of(EventPublishFailed)[0].Err)
		become(t, bp, StateNoLease)
		time.Sleep(10 * time.Second)
		in.Heal(true)
		become(t, bp, StateLive)
		require.NoError(t, bp.Flush(t.Context()))
		synctest.Wait()
		require.Len(t, log.of(EventPublishResumed), 1)
		require.Len(t, log.of(EventPublishFailed), 1, "one for each outage")
		require.Len(t, log.of(EventConnectFailed), 2)

		in.Cut()
		become(t, bp, StateConnecting)
		become(t, bp, StateLive)
		require.NoError(t, bp.Close())
		require.Equal(t, []State{
			StateConnecting, StateLive, StateNoLease, StateLive, StateConnecting, StateLive, StateClosed,
		}, log.states())
		states := log.of(EventState)
		require.Error(t, states[4].Err, "what ended the subscription")
		require.NoError(t, states[6].Err)
		last := time.Time{}
		for _, e := range log.all() {
			require.False(t, e.Time.Before(last))
			require.Zero(t, e.Lost)
			last = e.Time
		}
	})
}

// A backplane that only publishes is live for as long as Redis accepts, and tells it
// in the log and as events.
func TestPublishOnlyStatesAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		events, lines := &eventLog{}, &stateLog{Handler: slog.DiscardHandler}
		in, bp := onFakeBus(t, BackplaneOptions{PublishOnly: true, OnEvent: events.add, Logger: slog.New(lines)})
		require.Equal(t, StateConnecting, bp.State())
		time.Sleep(10 * time.Second)
		require.Equal(t, StateConnecting, bp.State())
		in.Heal(true)
		become(t, bp, StateLive)
		in.Partition()
		time.Sleep(time.Minute)
		require.Equal(t, StateLive, bp.State(), "it has not tried")
		require.ErrorIs(t, bp.ClearAll(t.Context()), ErrUnconfirmed)
		become(t, bp, StateConnecting)
		in.Heal(true)
		become(t, bp, StateLive)
		require.NoError(t, bp.Flush(t.Context()))
		require.NoError(t, bp.Close())
		want := []State{StateConnecting, StateLive, StateConnecting, StateLive, StateClosed}
		require.Equal(t, want, lines.states)
		require.Equal(t, want, events.states())
		require.Len(t, events.of(EventPublishFailed), 2)
		require.Len(t, events.of(EventPublishResumed), 2)
		require.Empty(t, events.of(EventConnectFailed))
		require.Error(t, events.of(EventState)[2].Err)
	})
}

func TestEventsOfALocalBackplane(t *testing.T) {
	log := &eventLog{}
	bp, err := Connect(t.Context(), BackplaneOptions{OnEvent: log.add, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	require.NoError(t, bp.ClearAll(t.Context()))
	require.NoError(t, bp.Close())
	require.Equal(t, []State{StateLocal, StateClosed}, log.states())
	require.Len(t, log.all(), 2)
}

// withEvents runs test in a bubble, on a local backplane with a callback.
func withEvents(t *testing.T, onEvent func(Event), test func(*testing.T, *Backplane)) {
	synctest.Test(t, func(t *testing.T) {
		bp, err := Connect(t.Context(), BackplaneOptions{
			OnEvent: onEvent, CloseTimeout: time.Second, Logger: slog.New(slog.DiscardHandler),
		})
		require.NoError(t, err)
		defer bp.Close()
		synctest.Wait()
		test(t, bp)
	})
}

// A message with a key that is none of a cache's type clears that cache, and the key
// is not shown.
func TestUndecodableKeyIsAnEvent(t *testing.T) {
	log := &eventLog{}
	withEvents(t, log.add, func(t *testing.T, bp *Backplane) {
		cache, err := New(bp, Options[int, string]{
			Name: "p",
			Load: func(context.Context, int) (string, error) { return "", nil },
		})
		require.NoError(t, err)
		defer cache.Close()
		require.NoError(t, bp.apply(messagetest.Body(messagetest.Operation{Op: messagetest.RemoveKeys, Cache: "p", Values: []string{"7", "secret"}})))
		synctest.Wait()
		require.Equal(t, []Event{{
			Kind: EventCleared, State: StateLocal, Cause: ClearCauseUndecodable, Cache: "p", Err: errForeignKey,
		}}, log.of(EventCleared))
	})
}

// withToldPublisher runs test in a bubble, on a backplane with a callback whose
// messages a fakeRedis takes.
func withToldPublisher(t *testing.T, test func(*testing.T, *Backplane, *fakeRedis, *eventLog)) {
	synctest.Test(t, func(t *testing.T) {
		log, redis := &eventLog{}, &fakeRedis{}
		bp := newBackplane(BackplaneOptions{Logger: slog.New(slog.DiscardHandler), OnEvent: log.add})
		bp.events.start()
		defer bp.Close()
		bp.publisher = newPublisher(redis.send, func(n int64) int64 { return n / 2 }, bp)
		defer bp.publisher.close(0)
		test(t, bp, redis, log)
	})
}

func TestCollapsedQueueIsAnEvent(t *testing.T) {
	withToldPublisher(t, func(t *testing.T, bp *Backplane, redis *fakeRedis, log *eventLog) {
		redis.refuse(errRefused)
		bp.enqueue(removal("first"), nothing)
		synctest.Wait()
		for i := range maxBatchEntries + 10 {
			bp.enqueue(removal(strconv.Itoa(i)), nothing)
		}
		synctest.Wait()
		require.Equal(t, []Event{{Kind: EventCollapsed, Cache: "p"}}, log.of(EventCollapsed))
		for i := range maxBatchCaches {
			bp.enqueue(invalidation{cache: strconv.Itoa(i), keys: []string{"a"}}, nothing)
		}
		synctest.Wait()
		require.Equal(t, []Event{{Kind: EventCollapsed, Cache: "p"}, {Kind: EventCollapsed}}, log.of(EventCollapsed))
	})
}

// What fails and what was queued behind it each had room, and have none together.
func TestCollapseOfAMergeIsAnEvent(t *testing.T) {
	withToldPublisher(t, func(t *testing.T, bp *Backplane, redis *fakeRedis, log *eventLog) {
		redis.refuse(errRefused)
		bp.enqueue(removal("first"), nothing)
		synctest.Wait()
		release := redis.holdUp()
		for _, half := range []string{"a", "b"} {
			for i := range maxBatchEntries/2 + 1 {
				bp.enqueue(removal(half+strconv.Itoa(i)), nothing)
			}
			time.Sleep(time.Second) // the first half is being sent
			synctest.Wait()
			require.Empty(t, log.of(EventCollapsed))
		}
		release()
		synctest.Wait()
		require.Equal(t, []Event{{Kind: EventCollapsed, Cache: "p"}}, log.of(EventCollapsed))
	})
}

// A callback that takes its time delays nothing, and is told how much it missed.
func TestSlowOnEvent(t *testing.T) {
	log := &eventLog{}
	hold := func(e Event) {
		if e.Kind == EventCollapsed {
			time.Sleep(time.Second)
		}
		log.add(e)
	}
	withEvents(t, hold, func(t *testing.T, bp *Backplane) {
		before := time.Now()
		bp.collapsed("first") // is told at once, and takes a second
		synctest.Wait()
		for i := range maxEvents + 10 {
			bp.collapsed(strconv.Itoa(i))
		}
		require.Equal(t, before, time.Now(), "nobody waits")
		time.Sleep(10 * time.Minute)
		events := log.of(EventCollapsed)
		require.Len(t, events, 1+maxEvents)
		require.Equal(t, "first", events[0].Cache)
		require.Equal(t, Event{Kind: EventCollapsed, Cache: "10", Lost: 10}, events[1], "the oldest are lost")
		for i, e := range events[2:] {
			require.Equal(t, Event{Kind: EventCollapsed, Cache: strconv.Itoa(i + 11)}, e)
		}
	})
}

// What Close does about a callback that is not through.
func TestCloseWithOnEvent(t *testing.T) {
	t.Run("waits for what is queued", func(t *testing.T) {
		log := &eventLog{}
		slow := func(e Event) { time.Sleep(100 * time.Millisecond); log.add(e) }
		withEvents(t, slow, func(t *testing.T, bp *Backplane) {
			for range 5 {
				bp.collapsed("p")
			}
			require.NoError(t, bp.Close())
			require.Len(t, log.all(), 7)
			require.Equal(t, StateClosed, log.all()[6].State)
			bp.collapsed("p")
			time.Sleep(time.Minute)
			require.Len(t, log.all(), 7, "nothing is told after Close")
		})
	})
	t.Run("leaves one that hangs", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			log, hang := &eventLog{}, make(chan struct{})
			bp, err := Connect(t.Context(), BackplaneOptions{
				OnEvent:      func(e Event) { log.add(e); <-hang },
				CloseTimeout: time.Second, Logger: slog.New(slog.DiscardHandler),
			})
			require.NoError(t, err)
			before := time.Now()
			require.NoError(t, bp.Close())
			require.Equal(t, time.Second, time.Since(before))
			close(hang)
			synctest.Wait()
			require.Len(t, log.all(), 1, "there is no other call")
		})
	})
	t.Run("gives it a moment when the queue has taken the time", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			log := &eventLog{}
			_, bp := onFakeBus(t, BackplaneOptions{PublishOnly: true, OnEvent: log.add, CloseTimeout: time.Second})
			bp.enqueue(removal("a"), nothing)
			before := time.Now()
			err := bp.Close()
			require.ErrorIs(t, err, ErrUnconfirmed)
			require.Equal(t, time.Second, time.Since(before))
			last := log.all()[len(log.all())-1]
			require.Equal(t, StateClosed, last.State)
			require.Equal(t, err, last.Err)
		})
	})
	t.Run("tells its error, although the state has changed before", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			log := &eventLog{}
			in, bp := onFakeBus(t, BackplaneOptions{PublishOnly: true, OnEvent: log.add, CloseTimeout: time.Minute})
			in.Heal(true)
			become(t, bp, StateLive)
			in.Partition()
			bp.enqueue(removal("a"), nothing) // fails after Close was called, and before it ends
			err := bp.Close()
			require.ErrorIs(t, err, ErrUnconfirmed)
			require.Len(t, log.of(EventPublishFailed), 1)
			require.Equal(t, []State{StateConnecting, StateLive, StateClosed}, log.states())
			require.Equal(t, err, log.of(EventState)[2].Err)
		})
	})
	t.Run("may be called by it", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			began, closed, set := time.Now(), make(chan error, 2), make(chan struct{})
			var bp *Backplane
			bp, err := Connect(t.Context(), BackplaneOptions{
				OnEvent:      func(Event) { <-set; closed <- bp.Close() },
				CloseTimeout: time.Second, Logger: slog.New(slog.DiscardHandler),
			})
			require.NoError(t, err)
			close(set)
			require.NoError(t, <-closed)
			require.Equal(t, time.Second, time.Since(began))
		})
	})
	t.Run("does not wait for one that has ended its goroutine", func(t *testing.T) {
		withEvents(t, func(Event) { runtime.Goexit() }, func(t *testing.T, bp *Backplane) {
			before := time.Now()
			require.NoError(t, bp.Close())
			require.Equal(t, before, time.Now())
		})
	})
}

// 1. the lease is lost   2. it is regained, which is told   3. the loss is told, by
// another goroutine that was slower: the last state that was told is the one that is.
func TestStatesAreToldAsTheyAre(t *testing.T) {
	log, state := &eventLog{}, StateLive
	q := newEvents(log.add, func() State { return state })
	q.start()
	q.add(Event{Kind: EventState, State: StateLive})
	state = StateNoLease
	state = StateLive
	q.add(Event{Kind: EventState, State: StateLive})
	q.add(Event{Kind: EventState, State: StateNoLease})
	state = StateClosed
	q.add(Event{Kind: EventState, State: StateClosed})
	require.True(t, q.close(time.Minute))
	require.Equal(t, []State{StateLive, StateClosed}, log.states())
}

func TestWithoutOnEvent(t *testing.T) {
	bp := Local()
	require.Nil(t, bp.events)
	require.Zero(t, testing.AllocsPerRun(100, func() { bp.note(Event{Kind: EventState}) }))
	require.NoError(t, bp.Close())
}

func TestEventNames(t *testing.T) {
	names := map[string]bool{}
	for kind := EventState; kind <= EventSharedResumed; kind++ {
		names[kind.String()] = true
	}
	require.Len(t, names, int(EventSharedResumed))
	require.Equal(t, "unknown", EventKind(0).String())
	for cause := ClearCauseNone; cause < causes; cause++ {
		names[cause.String()] = true
	}
	require.Len(t, names, int(EventSharedResumed)+int(causes))
	require.Equal(t, "unknown", causes.String())
	require.NotContains(t, names, "unknown")
}

// Kinds and causes are names in JSON, too.
func TestEventNamesInJSON(t *testing.T) {
	text, err := json.Marshal(map[EventKind]ClearCause{EventCleared: ClearCauseHistory, EventState: ClearCauseNone})
	require.NoError(t, err)
	require.JSONEq(t, `{"cleared": "history", "state": "none"}`, string(text))
}
