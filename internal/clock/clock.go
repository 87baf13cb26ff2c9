// Package clock reads the monotonic clock, and reads it fast enough for a path
// that takes tens of nanoseconds in all.
//
// Asking the system for the time costs more than looking up an item in memory.
// [Clock.Fast] asks the processor's own counter instead, and adds what has passed
// since the system was asked last, a millisecond ago at most. Nothing has to run
// in the background for that, so a process that was stopped, suspended or starved
// reads the right time at once when it goes on: the counter has gone on without
// it, the millisecond is over, and the system is asked.
//
// Guarantees:
//   - Fast is never behind Now, and ahead of it by a fiftieth of a millisecond,
//     or a whole one if a goroutine was interrupted while it read the clocks.
//   - Fast does not allocate and waits for nobody.
//
// What you cannot assume: that of two calls to Fast the later returns more.
//
// What the first guarantee rests on: the kernel makes its own monotonic clock
// from the same counter. That is looked up once, and where it is not so Fast is
// Now. A kernel that takes its trust in the counter back later, as it does when
// processors disagree about it, is not noticed as such, nor is a hypervisor that
// suspends the machine and sets its clock forward but not its counter. We accept
// this because each millisecond's reading checks the one before: a counter that was
// too slow, or ran backwards, is learnt anew before it is used again, and one
// that was so time after time is not used any more.
package clock

import (
	"sync"
	"sync/atomic"
	"time"
)

const (
	// window is for how long one reading of the system's clock is built upon, by
	// the counter: one at half its speed would have Fast behind by as much, once.
	window = time.Millisecond

	// calibration is how long the counter is watched before it is used.
	calibration = 10 * time.Millisecond

	// A reading of the clock lies between two of the counter. For calibrating, the
	// two must be closer together than this part of the time in question.
	bracketShare = 1000

	// marginShare is the part by which time from the counter runs fast, so that it
	// is never behind: more than what a calibration is wrong by, and than NTP
	// usually makes clocks differ.
	marginShare = 64

	// mostWrong is how often a counter may be found to be wrong. A machine that was
	// suspended or moved can account for some.
	mostWrong = 16

	// fraction is the number of binary places in Clock.rate.
	fraction = 32
)

// Clock counts nanoseconds from its making on. Its methods may be called from any
// number of goroutines.
type Clock struct {
	epoch   time.Time
	counter func() uint64 // nil: there is none, or none to be trusted

	// stamp and at are the newest reading: at is what Now returned after the counter
	// showed stamp. rate is the most nanoseconds that a tick takes, and ticks the
	// length of window. All are written under mu, stamp with an unusable value
	// before the others and the right one after them, and read without: a reading
	// is whole if stamp is the same before and after.
	stamp atomic.Uint64
	at    atomic.Int64
	rate  atomic.Uint64
	ticks atomic.Uint64 // 0: not calibrated

	mu     sync.Mutex // guards writes of the above, and what is below
	anchor reading    // where the calibration began
	wrong  int        // how often the counter was
}

// reading is one of the clock between two of the counter.
type reading struct {
	before, after uint64
	at            int64
}

// New returns a clock that counts from now.
func New() *Clock {
	c := &Clock{epoch: time.Now()}
	if trusted(c.epoch) {
		c.counter = counter
		c.anchor = c.read()
	}
	return c
}

// Interrupted returns a clock that counts from now, for tests: Fast first calls
// interrupt, which thus comes between whatever its caller does before and after. What
// interrupt does must not depend on how often it is called for one Fast.
func Interrupted(interrupt func()) *Clock {
	return &Clock{
		epoch: time.Now(), wrong: mostWrong, // never calibrated
		counter: func() uint64 {
			interrupt()
			return 0
		},
	}
}

// trusted reports whether the counter may stand in for the clock. In a bubble of
// testing/synctest it may not: time there begins with the year 2000 and passes by
// rules of its own.
func trusted(now time.Time) bool {
	const theClockWasNeverSet = 2020
	return now.Year() >= theClockWasNeverSet && counterIsTheClock()
}

// Now returns the monotonic clock's time, as time.Since would.
func (c *Clock) Now() int64 { return int64(time.Since(c.epoch)) }

// Both returns Now and, of the same moment, the wall clock in nanoseconds since
// 1970.
func (c *Clock) Both() (now, wall int64) {
	t := time.Now()
	return int64(t.Sub(c.epoch)), t.UnixNano()
}

// Fast returns what Now would, or a little more, and less than a call before it
// by as little.
func (c *Clock) Fast() int64 {
	if hasCounter {
		if now, ok := c.since(counter()); ok {
			return now
		}
	}
	return c.ask()
}

// since returns the time at which the counter showed count, if that follows from
// the newest reading.
func (c *Clock) since(count uint64) (now int64, ok bool) {
	stamp := c.stamp.Load()
	passed := count - stamp // if it ran backwards, a huge number
	if passed >= c.ticks.Load() {
		return 0, false
	}
	now = c.at.Load() + int64((passed+1)*c.rate.Load()>>fraction) // plus the tick that is under way
	return now, c.stamp.Load() == stamp
}

// ask asks the system for the time, for all who ask for it within window.
func (c *Clock) ask() int64 {
	if c.counter == nil || !c.mu.TryLock() { // then another goroutine is at it
		return c.Now()
	}
	defer c.mu.Unlock()
	r := c.read() // under mu: one that was overtaken would look like a counter that ran backwards
	c.learnLocked(r)
	return r.at
}

func (c *Clock) read() (r reading) {
	r.before = c.counter()
	r.at = c.Now()
	r.after = c.counter()
	return r
}

// learnLocked takes a new reading for the newest one, if the counter is
// calibrated and has kept to it, or else goes on with the calibration.
func (c *Clock) learnLocked(r reading) {
	last := reading{before: c.stamp.Load(), at: c.at.Load()}
	c.stamp.Store(r.before - 1<<63) // unusable: far from all that the counter shows
	switch {
	case c.ticks.Load() == 0:
		if !c.calibrateLocked(r) {
			return
		}
	case r.before <= last.before || r.at > last.at+c.most(r.after-last.before):
		// It ran backwards, or slower than it should: what was learnt is void.
		c.ticks.Store(0)
		c.anchor = r
		c.wrong++
		return
	}
	c.at.Store(r.at)
	c.stamp.Store(r.before)
}

// most returns how long the ticks took at most.
func (c *Clock) most(ticks uint64) int64 {
	return int64(float64(ticks) * float64(c.rate.Load()) / (1 << fraction))
}

// calibrateLocked finds out how long a tick takes, if the anchor lies far enough
// behind, and reports whether it has.
func (c *Clock) calibrateLocked(r reading) bool {
	passed := r.at - c.anchor.at
	if passed < int64(calibration) || c.wrong >= mostWrong {
		return false
	}
	least, most := r.before-c.anchor.after, r.after-c.anchor.before
	if most >= 1<<62 || least > most || (most-least)*bracketShare > least {
		c.anchor = r // the goroutine was interrupted between two readings
		return false
	}
	rate := float64(passed) / float64(least) * (1 + 1.0/marginShare)
	c.rate.Store(uint64(rate * (1 << fraction)))
	c.ticks.Store(uint64(float64(window) / rate))
	return true
}
