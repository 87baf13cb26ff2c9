package clock

import (
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestFast compares both readings on whatever counter there is, from several
// goroutines at once.
func TestFast(t *testing.T) {
	c := New()
	for c.ticks.Load() == 0 && c.Now() < int64(time.Second) { // on a busy machine some attempts fail
		c.Fast()
	}
	anchor, calibrated := c.anchor, c.ticks.Load() > 0
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for range 300_000 {
				before := c.Now()
				fast := c.Fast()
				if fast < before {
					t.Errorf("Fast is behind Now by %d ns", before-fast)
				}
				if ahead := fast - c.Now(); ahead > int64(window) {
					t.Errorf("Fast is ahead of Now by %d ns", ahead)
				}
			}
		})
	}
	readers.Wait()
	t.Logf("the counter is in use: %v", c.ticks.Load() > 0)
	if calibrated {
		assert.Equal(t, anchor, c.anchor, "a steady counter is calibrated once")
	}
}

func TestFastDoesNotAllocate(t *testing.T) {
	c := New()
	assert.Zero(t, testing.AllocsPerRun(1000, func() { c.Fast() }))
}

// In a bubble nothing but the bubble's own time counts.
func TestSyntheticTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := New()
		for _, step := range []time.Duration{0, 1, time.Millisecond, time.Hour, 0} {
			for range 100 {
				time.Sleep(step)
				require.Equal(t, c.Now(), c.Fast())
			}
		}
		assert.Zero(t, c.ticks.Load())
	})
}

// machine is a simulated one: a counter, and a clock (the bubble's) that pass at
// a rate that can change.
type machine struct {
	*Clock
	count   float64 // of ticks
	perTick float64 // nanoseconds
}

func newMachine(perTick float64) *machine {
	m := &machine{count: 1 << 40, perTick: perTick}
	m.Clock = &Clock{epoch: time.Now(), counter: m.ticking}
	m.anchor = m.read()
	return m
}

func (m *machine) ticking() uint64 { return uint64(m.count) }

// pass lets time pass, on both.
func (m *machine) pass(d time.Duration) {
	time.Sleep(d)
	m.count += float64(d) / m.perTick
}

// fast is Fast, on the simulated counter.
func (m *machine) fast() (now int64, counted bool) {
	if now, ok := m.since(m.ticking()); ok {
		return now, true
	}
	return m.ask(), false
}

// calibrate passes time until the counter is in use.
func (m *machine) calibrate(t *testing.T) {
	t.Helper()
	m.fast()
	m.pass(calibration + 1)
	m.fast()
	m.pass(time.Microsecond)
	_, counted := m.fast()
	require.True(t, counted)
}

// Whatever the counter's speed and however seldom it is asked, Fast is not
// behind.
func TestFastIsNeverBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		seed := uint64(time.Now().UnixNano()) // that of the bubble: the same in each run
		random := rand.New(rand.NewPCG(seed, 1))
		for _, perTick := range []float64{0.2, 0.39, 1, 10, 41.7} {
			m := newMachine(perTick)
			m.calibrate(t)
			used := 0
			for range 20_000 {
				m.pass(time.Duration(random.ExpFloat64() * float64(window) / 4))
				now, counted := m.fast()
				require.GreaterOrEqual(t, now, m.Now())
				require.LessOrEqual(t, now, m.Now()+int64(window)/50)
				if counted {
					used++
				}
			}
			assert.Greater(t, used, 10_000)
		}
	})
}

// 1. a process reads the clock   2. it is stopped for a second, or an hour   3. it
// goes on, and the first thing it does is to read the clock again.
func TestAStoppedProcessReadsTheRightTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(0.39)
		m.calibrate(t)
		for _, stop := range []time.Duration{window, time.Second, time.Hour, 365 * 24 * time.Hour} {
			m.pass(stop)
			now, counted := m.fast()
			require.Equal(t, m.Now(), now)
			require.False(t, counted)
		}
	})
}

// A counter that does not keep its word does harm for a window at most, measured
// by itself.
func TestACounterThatGoesWrong(t *testing.T) {
	tests := []struct {
		name   string
		wrong  func(m *machine)
		behind time.Duration // at most
	}{
		{name: "half the speed", wrong: func(m *machine) { m.perTick *= 2 }, behind: window},
		{name: "a tenth of the speed", wrong: func(m *machine) { m.perTick *= 10 }, behind: 9 * window},
		{name: "a jump back to the start", wrong: func(m *machine) { m.count = 1 }},
		{name: "a small jump back", wrong: func(m *machine) { m.count -= 10 }},
		{name: "a jump ahead", wrong: func(m *machine) { m.count += 1 << 50 }},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMachine(0.5)
				m.calibrate(t)
				m.pass(window)
				m.fast() // a fresh reading
				test.wrong(m)

				behind := int64(0)
				for range 1000 {
					m.pass(window / 10)
					now, _ := m.fast()
					behind = max(behind, m.Now()-now)
				}
				assert.LessOrEqual(t, time.Duration(behind), test.behind)
				for range 1000 { // it has been learnt again
					m.pass(window / 10)
					now, _ := m.fast()
					require.GreaterOrEqual(t, now, m.Now())
				}
				_, counted := m.fast()
				assert.True(t, counted)
			})
		})
	}
}

// 1. a process reads the clock   2. the hypervisor suspends the machine for an hour,
// and has its clock go on but not its counter   3. for a window of the counter Fast
// goes on from 1, and then it is right.
func TestASuspendedMachine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(0.5)
		m.calibrate(t)
		m.pass(window)
		m.fast()
		time.Sleep(time.Hour)
		m.pass(window + 1)
		for range 1000 {
			now, _ := m.fast()
			require.GreaterOrEqual(t, now, m.Now())
			m.pass(window / 10)
		}
	})
}

// On a machine whose processors disagree, a goroutine that moves to and fro sees a
// counter that is wrong for ever.
func TestACounterThatStaysWrongIsNotUsed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(0.5)
		found := 0
		for range 2 * mostWrong {
			m.fast()
			m.pass(calibration + 1)
			m.fast()
			m.pass(time.Microsecond)
			if _, counted := m.fast(); !counted {
				break
			}
			found++
			m.count -= 1e6 // the other processor's
			m.pass(time.Microsecond)
			m.fast()
		}
		assert.Equal(t, mostWrong, found)
		for range 1000 {
			m.pass(window / 10)
			now, counted := m.fast()
			require.Equal(t, m.Now(), now)
			require.False(t, counted)
		}
	})
}

// An interruption between the counter and the clock does not spoil the
// calibration.
func TestInterruptedCalibration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(0.5)
		interrupt := func(d time.Duration) {
			m.counter = func() uint64 {
				m.pass(d)
				return m.ticking()
			}
			m.fast()
			m.counter = m.ticking
		}
		m.pass(calibration)
		interrupt(calibration)
		assert.Zero(t, m.ticks.Load())
		for range 2 {
			m.pass(calibration)
			m.fast()
		}
		require.NotZero(t, m.ticks.Load())
		for range 1000 {
			m.pass(window / 7)
			now, _ := m.fast()
			require.GreaterOrEqual(t, now, m.Now())
			require.LessOrEqual(t, now, m.Now()+int64(window)/50)
		}
		interrupt(window / 2)
		now, _ := m.fast()
		require.GreaterOrEqual(t, now, m.Now())
		require.LessOrEqual(t, now, m.Now()+int64(window))
	})
}

// 1. a goroutine reads the counter   2. another reads counter and clock, and
// publishes   3. the first goes on. That its counter is the older one does not
// mean that counters run backwards.
func TestReadersDoNotOvertakeEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(0.5)
		m.calibrate(t)
		m.pass(window)
		m.counter = func() uint64 {
			m.counter = m.ticking
			count := m.ticking()
			m.pass(time.Microsecond)
			m.ask() // as another goroutine would
			return count
		}
		m.fast()
		m.pass(time.Microsecond)
		_, counted := m.fast()
		assert.True(t, counted, "the calibration holds")
	})
}

func BenchmarkFast(b *testing.B) {
	c := New()
	for c.Now() < 2*int64(calibration) {
		c.Fast()
	}
	for b.Loop() {
		c.Fast()
	}
}

func BenchmarkNow(b *testing.B) {
	c := New()
	for b.Loop() {
		c.Now()
	}
}
