package nearcache

import (
	"context"
	"encoding/binary"
	"math"
	"sync"
	"sync/atomic"
	"time"
)

// lease is this instance's proof that it has heard everything that Redis had
// accepted up to a known moment.
//
// The instance probes: a script in Redis reads the channel's position and
// publishes it to the instance's own channel, over the connection on which the
// invalidations come. Redis does one thing at a time and a connection keeps its
// order, so when the echo arrives, everything accepted before the probe has
// arrived too, or is known to have been missed and everything was cleared. From
// the moment the probe was sent, not from the echo's arrival, the lease counts.
//
// The serving rule: a read may have an entry if, when the read began, the lease
// was younger than MaxStaleness, or the entry's load had begun less than
// MaxStaleness before. (The local layer takes up to a fifth off MaxStaleness,
// another part for each key, so that all that is held does not lapse at once.)
type lease struct {
	epoch time.Time // what now() counts from, on the monotonic clock

	// sent is when the newest probe was sent whose echo came. Every hit reads it.
	sent atomic.Int64

	// floor is when the clocks were last found to disagree: what was loaded before
	// may be older than the monotonic clock says.
	floor atomic.Int64

	// onSilence is called, without a lock, when no echo has come for life. The
	// lease is lost then, unless a step of the clocks has taken it before.
	onSilence func()

	// onStep is called, without a lock, after a step of the clocks.
	onStep func()

	// hurry has a token when the next probe must not wait for its turn.
	hurry chan struct{}

	mu        sync.Mutex // guards everything below
	life      time.Duration
	ever      bool  // a lease was held once
	held      bool  // since the last grant, it was neither lost nor dropped
	since     int64 // life counts from here: the newest grant's probe, or life's last change
	skew      int64 // wall clock minus now(), when the newest grant's probe was sent
	watchdog  *time.Timer
	term      context.Context // ends when the watchdog finds that life has passed
	endTerm   context.CancelFunc
	closed    bool
	roundTrip time.Duration
	lost      uint64
	regained  uint64
	steps     uint64
}

const (
	neverHeld  = math.MinInt64 / 2 // as lease.sent: older than any staleness but Unbounded
	alwaysHeld = math.MaxInt64 / 2 // as lease.sent: never old, for a process-local backplane

	// probesPerLife is how many probes begin in the life of a lease.
	probesPerLife = 5

	// The clocks may drift apart by this share of a lease's life while it lasts:
	// more than any clock is slewed by. Beyond that it is a step.
	skewShare = 10
	minSkew   = 10 * time.Millisecond
)

// newLease returns a lease that is not held yet.
func newLease(life time.Duration) *lease {
	l := &lease{
		epoch: time.Now(), life: life, hurry: make(chan struct{}, 1),
		onSilence: func() {}, onStep: func() {},
	}
	l.sent.Store(neverHeld)
	l.floor.Store(neverHeld)
	l.term, l.endTerm = context.WithCancel(context.Background())
	l.endTerm()
	return l
}

// newLocalLease returns the lease of a process that hears all there is to hear.
func newLocalLease() *lease {
	l := newLease(Unbounded)
	l.sent.Store(alwaysHeld)
	return l
}

// now reads the monotonic clock, in nanoseconds since epoch.
func (l *lease) now() int64 { return int64(time.Since(l.epoch)) }

// moment is when a read begins, and how old the lease is then.
type moment struct{ at, leaseAge int64 }

// read begins a read. It comes before any look-up:
//
//  1. a read looks an entry up   2. the lease has run out, and a message is missed
//  3. a probe shows it, everything is cleared, the lease is renewed   4. the read
//     finds the lease valid, and has the old entry in its hands.
func (l *lease) read() moment {
	now := l.now()
	return moment{at: now, leaseAge: now - l.sent.Load()}
}

// vouched is a moment at which only the fate of an entry counts, whether it may
// be served or not.
func vouched(now int64) moment { return moment{at: now, leaseAge: math.MinInt64} }

// covers reports whether a read that began at m may have what was loaded from
// started on.
func (l *lease) covers(m moment, started, staleness int64) bool {
	return m.leaseAge < staleness || (m.at-started < staleness && started >= l.floor.Load())
}

// valid reports whether the lease is younger than its life.
func (l *lease) valid() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.held && l.now()-l.sent.Load() < int64(l.life)
}

// clocks reads now() and the wall clock at one moment.
func (l *lease) clocks() (now, wall int64) {
	t := time.Now()
	return int64(t.Sub(l.epoch)), t.UnixNano()
}

// nonce is what a probe carries and its echo brings back: when it was sent, by
// now() and by the wall clock.
func (l *lease) nonce() string {
	now, wall := l.clocks()
	b := binary.BigEndian.AppendUint64(nil, uint64(now))
	return string(binary.BigEndian.AppendUint64(b, uint64(wall)))
}

// readNonce returns when a nonce's probe was sent, and how far the wall clock was
// ahead of now() then. It reports false for what nonce did not make.
func readNonce(nonce string) (sent, skew int64, ok bool) {
	if len(nonce) != 16 {
		return 0, 0, false
	}
	sent = int64(binary.BigEndian.Uint64([]byte(nonce[:8])))
	return sent, int64(binary.BigEndian.Uint64([]byte(nonce[8:]))) - sent, true
}

// grant takes the echo of the probe with that nonce for what it proves. The
// caller has cleared everything if anything was missed. Echoes may come late and
// in any order. It reports whether the lease is held now and was not before.
func (l *lease) grant(nonce string) (gained bool) {
	now, wall := l.clocks()
	sent, skew, ok := readNonce(nonce)
	if !ok || sent > now {
		return false
	}
	l.mu.Lock()
	stepped := l.steppedLocked(now, wall-now-skew)
	if !stepped {
		gained = l.grantLocked(now, sent, skew)
	}
	l.mu.Unlock()
	if stepped {
		l.onStep()
	}
	return gained
}

func (l *lease) grantLocked(now, sent, skew int64) (gained bool) {
	if sent <= l.sent.Load() || sent < l.floor.Load() || l.closed {
		return false
	}
	l.sent.Store(sent)
	l.skew = skew
	l.roundTrip = time.Duration(now - sent)
	l.since = max(l.since, sent)
	if l.held || l.roundTrip >= l.life {
		return false
	}
	if l.ever {
		l.regained++
	}
	l.ever, l.held = true, true
	if l.term.Err() != nil {
		l.term, l.endTerm = context.WithCancel(context.Background())
		l.watchLocked(now)
	}
	return true
}

// watchLocked sets the watchdog to the end of the lease as it stands at now.
func (l *lease) watchLocked(now int64) {
	left := time.Duration(deadline(l.since, l.life) - now)
	if l.watchdog == nil {
		l.watchdog = time.AfterFunc(left, l.watch)
	} else {
		l.watchdog.Reset(left)
	}
}

// watch is called when the lease would have run out if it was not renewed in the
// meantime.
func (l *lease) watch() {
	l.mu.Lock()
	now := l.now()
	switch {
	case l.closed || l.term.Err() != nil:
		l.mu.Unlock()
		return
	case now-l.since < int64(l.life):
		l.watchLocked(now)
		l.mu.Unlock()
		return
	}
	if l.held {
		l.lost++
	}
	l.held = false
	l.endTerm()
	l.mu.Unlock()
	l.onSilence()
}

// present returns a context that ends when the watchdog finds that no echo has
// come for life; it has ended already if it found so and no echo has come since.
func (l *lease) present() context.Context {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.term
}

// setLife changes how long a lease lasts and how often it is renewed. A lease
// that is older than its new life is not lost at once: it was renewed as often as
// was asked for.
func (l *lease) setLife(life time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.life == life {
		return
	}
	shorter := life < l.life
	l.life = life
	l.since = l.now()
	if l.term.Err() == nil {
		l.watchLocked(l.since)
	}
	if shorter {
		signal(l.hurry)
	}
}

// lifetime returns for how long a lease lasts.
func (l *lease) lifetime() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.life
}

// checkClocks drops the lease if the wall clock has moved against the monotonic
// one since the lease's probe was sent: the machine may have been suspended, with
// a monotonic clock that stood still.
func (l *lease) checkClocks() {
	now, wall := l.clocks()
	l.mu.Lock()
	stepped := l.sent.Load() != neverHeld && l.steppedLocked(now, wall-now-l.skew)
	l.mu.Unlock()
	if stepped {
		l.onStep()
	}
}

// steppedLocked drops the lease if drift, the way that the wall clock has made
// against now(), is more than clocks are slewed by. Whatever was timed by the
// monotonic clock before is older than it seems: the lease, probes under way,
// and entries whose load seems to have begun a short while ago.
func (l *lease) steppedLocked(now, drift int64) bool {
	if l.closed || time.Duration(drift).Abs() <= max(l.life/skewShare, minSkew) {
		return false
	}
	l.floor.Store(now) // first: it is asked for only when sent does not vouch
	l.sent.Store(neverHeld)
	if l.held {
		l.held = false
		l.lost++
	}
	l.steps++
	signal(l.hurry)
	return true
}

// close ends the watchdog.
func (l *lease) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	l.endTerm()
	if l.watchdog != nil {
		l.watchdog.Stop()
	}
}

// snapshot returns what is known of the lease, and whether one was ever held.
func (l *lease) snapshot() (s LeaseStats, ever bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s = LeaseStats{RoundTrip: l.roundTrip, Lost: l.lost, Regained: l.regained, ClockSteps: l.steps}
	if sent := l.sent.Load(); sent != neverHeld && sent != alwaysHeld {
		s.Age = time.Duration(l.now() - sent)
		s.Held = l.held && s.Age < l.life
	}
	return s, l.ever
}
