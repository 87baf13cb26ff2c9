package nearcache

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache/internal/fakebus"
)

// stateLog is a log handler that keeps the states that lines tell, each once in a
// row, and counts lines.
type stateLog struct {
	slog.Handler

	mu     sync.Mutex // guards everything below
	states []State
	lines  int
}

func (h *stateLog) Enabled(context.Context, slog.Level) bool { return true }

func (h *stateLog) Handle(_ context.Context, r slog.Record) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lines++
	r.Attrs(func(a slog.Attr) bool {
		if s, ok := a.Value.Any().(State); ok && (len(h.states) == 0 || h.states[len(h.states)-1] != s) {
			h.states = append(h.states, s)
		}
		return true
	})
	return nil
}

// onFakeBus returns an instance of a simulated Redis, which is cut off from it, and a
// backplane of it that has started disconnected.
func onFakeBus(t *testing.T, o BackplaneOptions) (*fakebus.Instance, *Backplane) {
	t.Helper()
	network := fakebus.New(fakebus.Options{Seed: 1, Instances: 1, ConnectTimeout: time.Second, CommandTimeout: time.Second})
	t.Cleanup(network.Close)
	in := network.Instance(0)
	halves := func(n int64) int64 { return n / 2 }
	in.Partition()
	o.MaxStaleness = time.Second
	o.AllowDisconnectedStart = true
	o.RedisConnectionString = "simulated"
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	o, err := o.withDefaults()
	require.NoError(t, err)
	bp, err := joinBus(t.Context(), o, in.Bus(), simulatedIdentity(instanceID{1}, halves), halves)
	require.NoError(t, err)
	return in, bp
}

// become waits until a backplane is in a state, and has told.
func become(t *testing.T, bp *Backplane, want State) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); bp.State() != want; time.Sleep(time.Millisecond) {
		require.True(t, time.Now().Before(deadline), "it is %v and not %v", bp.State(), want)
	}
	synctest.Wait()
}

// Every change of state is told by a line of the log, and by State and Stats, and
// nothing else is: no line for each message.
func TestStatesAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &stateLog{Handler: slog.DiscardHandler}
		in, bp := onFakeBus(t, BackplaneOptions{Logger: slog.New(log)})
		states := []State{StateConnecting}
		become := func(want State) {
			t.Helper()
			become(t, bp, want)
			states = append(states, want)
		}
		time.Sleep(10 * time.Second)
		require.Equal(t, StateConnecting, bp.State(), "there was no lease yet that could be lost")
		in.Heal(true)
		become(StateLive)
		in.Cut()
		become(StateConnecting)
		become(StateLive)
		s := bp.Stats()
		require.True(t, s.Lease.Held)
		require.EqualValues(t, 1, s.Reconnects)
		require.EqualValues(t, 1, s.SubscribedWarm)
		require.Zero(t, s.Lease.Lost)
		failures := s.ConnectFailures
		require.NotZero(t, failures)

		in.Partition()
		become(StateNoLease)
		time.Sleep(10 * time.Second)
		in.Heal(true)
		become(StateLive)
		s = bp.Stats()
		require.EqualValues(t, 2, s.Reconnects)
		require.EqualValues(t, 1, s.Lease.Lost)
		require.EqualValues(t, 1, s.Lease.Regained)
		require.Greater(t, s.ConnectFailures, failures)

		time.Sleep(time.Second)
		log.mu.Lock()
		before := log.lines
		log.mu.Unlock()
		for range 1000 {
			require.NoError(t, bp.ClearAll(t.Context()))
		}
		log.mu.Lock()
		require.Equal(t, before, log.lines)
		log.mu.Unlock()

		require.NoError(t, bp.Close())
		become(StateClosed)
		log.mu.Lock()
		defer log.mu.Unlock()
		require.Equal(t, states, log.states)
	})
}
