// Package clock reads the monotonic clock, fast enough for a hit, which takes tens of
// nanoseconds in all.
//
// Asking the system for the time takes longer than looking up an item in memory.
// [Clock.Fast] reads the processor's time stamp counter instead. It adds what the counter
// has advanced to the time that the system returned last, at most a millisecond ago. No
// goroutine has to update anything in the background. So a process that was stopped,
// suspended or starved reads the right time at once when it continues: the counter has
// advanced meanwhile, the millisecond is over, and the system is asked.
//
// The counter is read by assembly, on linux/amd64 alone. Elsewhere, and with the build
// tag nearcache_noasm, Fast is Now.
//
// Guarantees:
//   - Fast is never behind Now. It is ahead by at most a fiftieth of a millisecond, or by
//     a millisecond if a goroutine was interrupted while it read the clocks.
//   - Fast does not allocate and does not block.
//
// What you cannot assume: that the later of two calls of Fast returns more.
//
// The first guarantee holds because the kernel computes its own monotonic clock from the
// same counter. Package clock checks that once; if it is not so, Fast is Now. Two later
// changes go unnoticed at first: the kernel may stop using the counter, as it does when
// processors disagree about it, and a hypervisor may suspend the machine and set its clock
// forward but not its counter. We accept this because each millisecond's reading checks
// the one before. A counter that was too slow, or ran backwards, is calibrated again
// before it is used again. One that was wrong many times is no longer used.
package clock

import (
	"sync"
	"sync/atomic"
	"time"
)

const (
	// window is how long Fast uses the counter after one reading of the system's clock. If
	// the counter ran at half its speed, Fast would be behind by that much, once.
	window = time.Millisecond

	// calibration is how long the counter is measured before it is used.
	calibration = 10 * time.Millisecond

	// A reading of the clock lies between two of the counter. For a calibration, these two
	// must be closer together than a thousandth of the time that is measured.
	bracketShare = 1000

	// marginShare makes time from the counter run fast by a 64th, so that it is never
	// behind. That is more than the error of a calibration, and more than NTP usually
	// makes clocks differ.
	marginShare = 64

	// mostWrong is how often the counter may be wrong before it is no longer used. It may
	// be wrong whenever the machine is suspended or moved.
	mostWrong = 16

	// fraction is the number of binary places in Clock.rate.
	fraction = 32
)

// Clock counts nanoseconds since New. Its methods are safe for concurrent use.
type Clock struct {
	epoch   time.Time
	counter func() uint64 // nil: there is none, or it is not trusted

	// stamp and at are the newest reading: Now returned at just after the counter showed
	// stamp. rate is the most nanoseconds that a tick takes, and ticks is the length of
	// window. All are written under mu and read without it. A writer first sets stamp to
	// an unusable value, then sets the others, and then sets stamp. So a reader has a
	// consistent reading if stamp is the same before and after.
	stamp atomic.Uint64
	at    atomic.Int64
	rate  atomic.Uint64
	ticks atomic.Uint64 // 0: not calibrated

	mu     sync.Mutex // guards writes of the fields above, and the fields below
	anchor reading    // the beginning of the calibration
	wrong  int        // how often the counter was found to be wrong
}

// reading is a reading of the clock between two readings of the counter.
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

// Interrupted returns a clock that counts from now, for tests: Fast first calls interrupt.
// So a test can act between what the caller of Fast does before and after. One Fast may
// call interrupt more than once.
func Interrupted(interrupt func()) *Clock {
	return &Clock{
		epoch: time.Now(), wrong: mostWrong, // never calibrated
		counter: func() uint64 {
			interrupt()
			return 0
		},
	}
}

// trusted reports whether the counter may be used in place of the clock. In a bubble of
// testing/synctest it may not: time there begins with the year 2000, and does not follow
// the counter.
func trusted(now time.Time) bool {
	const theClockWasNeverSet = 2020
	return now.Year() >= theClockWasNeverSet && counterIsTheClock()
}

// Now returns the monotonic clock's time, as time.Since would.
func (c *Clock) Now() int64 { return int64(time.Since(c.epoch)) }

// Both returns Now and the wall clock at the same moment, the latter in nanoseconds since
// 1970.
func (c *Clock) Both() (now, wall int64) {
	t := time.Now()
	return int64(t.Sub(c.epoch)), t.UnixNano()
}

// Fast returns what Now would return, or a little more. It may return a little less than
// an earlier call.
func (c *Clock) Fast() int64 {
	if hasCounter {
		if now, ok := c.since(counter()); ok {
			return now
		}
	}
	return c.ask()
}

// since returns the time at which the counter showed count. It reports false if the
// newest reading is too old for that, or was just replaced.
func (c *Clock) since(count uint64) (now int64, ok bool) {
	stamp := c.stamp.Load()
	passed := count - stamp // a huge number if the counter ran backwards
	if passed >= c.ticks.Load() {
		return 0, false
	}
	now = c.at.Load() + int64((passed+1)*c.rate.Load()>>fraction) // +1 for the tick under way
	return now, c.stamp.Load() == stamp
}

// ask asks the system for the time. The reading serves all calls of Fast within window.
func (c *Clock) ask() int64 {
	if c.counter == nil || !c.mu.TryLock() { // if locked, another goroutine takes the reading
		return c.Now()
	}
	defer c.mu.Unlock()
	r := c.read() // under mu: a reading that was overtaken would look as if the counter ran backwards
	c.learnLocked(r)
	return r.at
}

func (c *Clock) read() (r reading) {
	r.before = c.counter()
	r.at = c.Now()
	r.after = c.counter()
	return r
}

// learnLocked makes r the newest reading, if the counter is calibrated and still agrees
// with the clock. Otherwise it continues or restarts the calibration.
func (c *Clock) learnLocked(r reading) {
	last := reading{before: c.stamp.Load(), at: c.at.Load()}
	c.stamp.Store(r.before - 1<<63) // unusable: far from any value of the counter
	switch {
	case c.ticks.Load() == 0:
		if !c.calibrateLocked(r) {
			return
		}
	case r.before <= last.before || r.at > last.at+c.most(r.after-last.before):
		// It ran backwards or too slowly, so the calibration is void.
		c.ticks.Store(0)
		c.anchor = r
		c.wrong++
		return
	}
	c.at.Store(r.at)
	c.stamp.Store(r.before)
}

// most returns the most nanoseconds that so many ticks take.
func (c *Clock) most(ticks uint64) int64 {
	return int64(float64(ticks) * float64(c.rate.Load()) / (1 << fraction))
}

// calibrateLocked measures how long a tick takes, if the anchor is old enough. It reports
// whether it did.
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
