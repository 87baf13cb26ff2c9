package nearcache

import (
	"bytes"
	"context"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache/internal/fakebus"
)

// renew has a probe sent and answered at once.
func renew(t *testing.T, l *lease) {
	t.Helper()
	l.echo(l.probe())
	require.True(t, l.valid())
}

// echo takes the echo of the probe with that nonce.
func (l *lease) echo(nonce string) (gained bool) {
	p, ok := l.answered(nonce)
	return ok && l.grant(p)
}

// startLease returns a lease that is watched until the test ends.
func startLease(t *testing.T, life time.Duration) *lease {
	t.Helper()
	l := newLease(life)
	l.start()
	t.Cleanup(l.close)
	return l
}

func leased(l *lease, staleness time.Duration) bool { return l.read().leaseAge < int64(staleness) }

// The lease counts from the moment at which its probe was sent.
func TestLeaseCountsFromTheProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := startLease(t, time.Second)
		require.False(t, leased(l, time.Second), "none is held yet")
		nonce := l.probe()
		time.Sleep(300 * time.Millisecond)
		require.True(t, l.echo(nonce))
		time.Sleep(700*time.Millisecond - 1)
		require.True(t, leased(l, time.Second))
		require.True(t, l.valid())
		time.Sleep(time.Nanosecond)
		require.False(t, leased(l, time.Second))
		require.False(t, l.valid())
		require.True(t, leased(l, 2*time.Second), "each cache has its own staleness")
		require.True(t, leased(l, Unbounded))

		synctest.Wait()
		s, ever := l.snapshot()
		require.True(t, ever)
		require.Equal(t, LeaseStats{Age: time.Second, RoundTrip: 300 * time.Millisecond, Lost: 1}, s)
	})
}

// Echoes come late, twice, and in any order; the newest probe counts.
func TestLateEchoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := startLease(t, time.Second)
		old := l.probe()
		time.Sleep(100 * time.Millisecond)
		require.True(t, l.echo(l.probe()))
		sent := l.sent.Load()
		time.Sleep(200 * time.Millisecond)
		require.False(t, l.echo(old))
		require.Equal(t, sent, l.sent.Load())

		time.Sleep(2 * time.Second)
		nonce := l.probe()
		time.Sleep(time.Second)
		require.False(t, l.echo(nonce), "its lease is over before it begins")
		require.False(t, l.valid())
		require.True(t, leased(l, 2*time.Second), "but for a cache with a longer bound it counts")

		before := l.sent.Load()
		next := l.probe()
		for _, bad := range []string{"", "123", nonce, next + "0", next[:15], "\x7f" + next[1:]} {
			require.False(t, l.echo(bad))
			require.Equal(t, before, l.sent.Load())
		}
		require.True(t, l.echo(next))
	})
}

// No probe is forgotten before twelve lives of a lease are over, and what is known of
// probes does not grow.
func TestProbesAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := startLease(t, time.Second)
		lost := l.probe()
		for range maxProbes - 1 {
			l.probe()
		}
		_, ok := l.answered(lost)
		require.True(t, ok)
		lost = l.probe()
		for range maxProbes {
			l.probe()
		}
		_, ok = l.answered(lost)
		require.False(t, ok)

		last := l.probe()
		l.forgetProbes()
		require.False(t, l.echo(last), "it was of another subscription")
		renew(t, l)
	})
}

// Losing a lease and regaining it is counted and told once each.
func TestLeaseIsLostAndRegained(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := startLease(t, time.Second)
		var silences atomic.Int64
		l.onSilence = func() { silences.Add(1) }
		require.Error(t, l.heard().Err())
		for range 20 {
			renew(t, l)
			time.Sleep(900 * time.Millisecond)
		}
		require.NoError(t, l.heard().Err())
		require.Zero(t, silences.Load())
		time.Sleep(time.Hour)
		synctest.Wait()
		require.EqualValues(t, 1, silences.Load())
		require.Error(t, l.heard().Err())
		renew(t, l)
		require.NoError(t, l.heard().Err())
		s, _ := l.snapshot()
		require.EqualValues(t, 1, s.Lost)
		require.EqualValues(t, 1, s.Regained)
	})
}

// A shorter life asks for a probe at once, and takes no connection away before
// the probe could be answered.
func TestLifeChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := startLease(t, 10*time.Second)
		var silences atomic.Int64
		l.onSilence = func() { silences.Add(1) }
		renew(t, l)
		time.Sleep(5 * time.Second)
		l.setLife(time.Second)
		require.Len(t, l.hurry, 1)
		require.True(t, l.valid(), "it was renewed as often as was asked for")
		require.False(t, leased(l, time.Second), "which is not enough for the new cache")
		time.Sleep(time.Second - 1)
		synctest.Wait()
		require.Zero(t, silences.Load())
		for range 10 { // a cache that is made and closed again keeps no dead connection alive
			l.setLife(2 * time.Second)
			l.setLife(time.Second)
		}
		<-l.hurry
		renew(t, l)
		l.setLife(10 * time.Second)
		require.Empty(t, l.hurry, "there is no hurry")
		time.Sleep(10*time.Second - 1)
		require.True(t, l.valid())
		require.Zero(t, silences.Load())
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		require.EqualValues(t, 1, silences.Load())
	})
}

// 1. a lease is held, and an entry was loaded a moment ago   2. the machine is
// suspended for an hour, and its monotonic clock stands still   3. it wakes: by
// that clock nothing is old.
func TestStepOfTheClocksDropsTheLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := startLease(t, time.Second)
		steps := 0
		l.onStep = func() { steps++ }
		renew(t, l)
		started := l.now()
		underWay := l.probe()
		time.Sleep(100 * time.Millisecond)
		require.True(t, l.covers(moment{at: l.now(), leaseAge: int64(time.Hour)}, started, int64(time.Second)))

		l.checkClocks()
		require.True(t, l.valid(), "the clocks agree")
		l.skew -= int64(time.Second / skewShare) // of wall clock ahead of monotonic time
		l.checkClocks()
		require.True(t, l.valid(), "clocks are slewed")

		l.skew -= int64(time.Hour)
		l.checkClocks()
		require.Equal(t, 1, steps)
		require.False(t, l.valid())
		require.False(t, leased(l, time.Second))
		require.False(t, l.covers(l.read(), started, int64(time.Second)), "the entry is older than it seems")
		require.Len(t, l.hurry, 1)

		time.Sleep(time.Millisecond)
		require.False(t, l.echo(underWay), "so is the probe that was under way")
		require.False(t, l.valid())
		require.True(t, l.covers(l.read(), l.now(), int64(time.Second)), "what is loaded from here on has its time")
		renew(t, l)
		s, _ := l.snapshot()
		require.EqualValues(t, 1, s.ClockSteps)
		require.EqualValues(t, 1, s.Lost)
	})
}

// The clocks are looked at whatever goes on: here nothing does, since Redis is away.
func TestStepOfTheClocksIsFoundInSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := startLease(t, time.Second)
		renew(t, l)
		l.mu.Lock()
		l.skew -= int64(time.Hour) // the machine sleeps
		l.mu.Unlock()
		time.Sleep(time.Second / probesPerLife)
		synctest.Wait()
		require.False(t, leased(l, time.Second))
		time.Sleep(time.Minute)
		synctest.Wait()
		s, _ := l.snapshot()
		require.EqualValues(t, 1, s.ClockSteps, "once")
	})
}

// Close waits for the goroutine that watches the lease.
func TestLeaseCloseWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLease(time.Second)
		slow := make(chan struct{})
		var done atomic.Bool
		l.onSilence = func() { <-slow; done.Store(true) }
		l.start()
		renew(t, l)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		go func() { time.Sleep(time.Second); close(slow) }()
		l.close()
		require.True(t, done.Load())
		l.close()
		require.False(t, l.echo(l.probe()))
		s, _ := l.snapshot()
		require.False(t, s.Held)
	})
}

// The step is found by the echo too, if it comes before the next probe's turn.
func TestStepOfTheClocksDuringAProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := startLease(t, time.Second)
		steps := 0
		l.onStep = func() { steps++ }
		for _, ahead := range []int64{int64(time.Hour), -int64(time.Hour)} {
			renew(t, l)
			time.Sleep(time.Millisecond)
			p, ok := l.answered(l.probe())
			require.True(t, ok)
			p.skew += ahead
			time.Sleep(time.Millisecond)
			require.False(t, l.grant(p))
			require.False(t, l.valid())
		}
		require.Equal(t, 2, steps)
	})
}

// A process-local backplane hears all there is to hear.
func TestLocalLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLocalLease()
		require.True(t, leased(l, 100*time.Millisecond))
		time.Sleep(1000 * time.Hour)
		require.True(t, leased(l, 100*time.Millisecond))
		s, _ := l.snapshot()
		require.Zero(t, s)
	})
}

// counted is a cache of one item, and how often that was loaded.
type counted struct {
	*Cache[int, int]
	loads atomic.Int64
}

func newCounted(t *testing.T, bp *Backplane, name string, staleness time.Duration) *counted {
	t.Helper()
	c := &counted{}
	var err error
	c.Cache, err = New(bp, Options[int, int]{
		Name: name, MaxStaleness: staleness, TTL: time.Hour,
		Load: func(context.Context, int) (int, error) { return int(c.loads.Add(1)), nil },
	})
	require.NoError(t, err)
	return c
}

func slowBus(t *testing.T) *fakebus.Bus {
	t.Helper()
	bus := fakebus.New(fakebus.Options{Seed: 1, MinLatency: 74 * time.Millisecond, MaxLatency: 76 * time.Millisecond})
	t.Cleanup(bus.Close)
	return bus
}

// A cache with a bound shorter than the round trip is without a lease; the others,
// and the connection, are not concerned.
//
//  1. New of a cache with 100 ms, at a round trip of 150 ms   2. no echo is younger
//     than 100 ms when it comes   3. were that taken for silence, the connection
//     would be given up again and again, and no cache had a lease.
func TestOneShortBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := slowBus(t)
		bp := joinSimulated(t, bus, 0)
		defer bp.Close()
		long := newCounted(t, bp, "long", 5*time.Second)
		time.Sleep(time.Second)
		short := newCounted(t, bp, "short", 100*time.Millisecond)
		for range 1200 { // a minute
			time.Sleep(50 * time.Millisecond)
			for _, c := range []*counted{long, short} {
				_, err := c.Get(t.Context(), 1)
				require.NoError(t, err)
			}
			require.Equal(t, StateLive, bp.State())
		}
		s := bp.Stats()
		require.EqualValues(t, 1, s.Subscribed, "the connection is left alone")
		require.Zero(t, s.ProbeFailures)
		require.Zero(t, s.Lease.Lost)
		require.EqualValues(t, 1, long.loads.Load())
		require.Greater(t, short.loads.Load(), int64(300), "without a lease it is loaded again when it is 100 ms old")

		bus.Instance(0).Cut() // it is found again, too
		time.Sleep(5 * time.Second)
		require.Equal(t, StateLive, bp.State())
		require.EqualValues(t, 2, bp.Stats().Subscribed)
		loads := long.loads.Load()
		_, err := long.Get(t.Context(), 1)
		require.NoError(t, err)
		require.Equal(t, loads, long.loads.Load())

		bus.Instance(0).Mute(fakebus.Down) // and a connection that is dead is still given up
		time.Sleep(patientRoundTrips*160*time.Millisecond + time.Second)
		require.Equal(t, StateNoLease, bp.State())
		bus.Instance(0).Heal(true)
		time.Sleep(15 * time.Second)
		require.Equal(t, StateLive, bp.State())
	})
}

// The same for a cache that was there before Redis was reached.
func TestOneShortBoundFromTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := slowBus(t)
		o, err := BackplaneOptions{Logger: slog.New(slog.DiscardHandler), AllowDisconnectedStart: true}.withDefaults()
		require.NoError(t, err)
		in := bus.Instance(0)
		bp, err := joinBus(t.Context(), o, in.Bus(), simulatedIdentity(instanceID{1}, in.Jitter), in.Jitter)
		require.NoError(t, err)
		defer bp.Close()
		long := newCounted(t, bp, "long", 5*time.Second)
		newCounted(t, bp, "short", 100*time.Millisecond)
		time.Sleep(20 * time.Second)
		require.Equal(t, StateLive, bp.State())
		_, err = long.Get(t.Context(), 1)
		require.NoError(t, err)
		subscribed := bp.Stats().Subscribed
		for range 100 {
			time.Sleep(200 * time.Millisecond)
			_, ok := long.Peek(1)
			require.True(t, ok)
		}
		require.Equal(t, subscribed, bp.Stats().Subscribed)
	})
}

// One echo that was late, of a Redis that hung, does not make a slow Redis.
func TestALateEchoIsNotPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := startLease(t, time.Second)
		renew(t, l)
		require.Equal(t, time.Second, l.patience())
		nonce := l.probe()
		time.Sleep(10 * time.Second)
		l.echo(nonce)
		require.Equal(t, time.Second, l.patience())
		for range len(l.roundTrips) {
			nonce := l.probe()
			time.Sleep(10 * time.Second)
			l.echo(nonce)
		}
		require.Equal(t, maxLeaseLife, l.patience(), "many are")
		renew(t, l)
		require.Equal(t, time.Second, l.patience())
	})
}

// New says that a bound is too short, by the round trip that was measured.
func TestNewWarnsOfAShortBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		bp := joinSimulated(t, slowBus(t), 0)
		defer bp.Close()
		bp.logger = slog.New(slog.NewTextHandler(&log, nil))
		newCounted(t, bp, "long", 0)
		newCounted(t, bp, "unbounded", Unbounded)
		require.NotContains(t, log.String(), "MaxStaleness")
		newCounted(t, bp, "short", 500*time.Millisecond)
		require.Contains(t, log.String(), "cache=short maxStaleness=500ms roundTrip=1")
	})
}
