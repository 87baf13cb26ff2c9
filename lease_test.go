package nearcache

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
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

// Close waits for whoever watches the lease.
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
