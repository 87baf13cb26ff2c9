package nearcache

import (
	"context"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nearcache/nearcache/internal/clock"
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
	clock *clock.Clock

	// sent is when the newest probe was sent whose echo came. Every hit reads it.
	sent atomic.Int64

	// followed is the history id that the newest echo showed.
	followed atomic.Pointer[string]

	// floor is when the clocks were last found to disagree: what was loaded before
	// may be older than the monotonic clock says.
	floor atomic.Int64

	// onSilence is called, without a lock, when no echo has come for as long as
	// patienceLocked says. The lease is lost then, unless a step of the clocks has
	// taken it before.
	onSilence func()

	// onStep is called, without a lock, after a step of the clocks.
	onStep func()

	hurry    chan struct{} // one token: the next probe must not wait for its turn
	changed  chan struct{} // one token: life was changed
	stop     chan struct{} // closed by close
	watching sync.WaitGroup

	mu           sync.Mutex      // guards everything below
	life         time.Duration   // the smallest MaxStaleness: how often it is renewed
	ever         bool            // a lease was held once
	held         bool            // since the last grant, it was neither lost nor dropped
	due          int64           // when it is lost without another grant
	skew         int64           // wall clock minus now(): of the newest grant's probe, or after a step
	untilSilence context.Context // ends when due has passed
	fallSilent   context.CancelFunc
	closed       bool
	probes       [maxProbes]probe // the newest, in a ring
	next         int              // where the next one goes
	draw         func() [16]byte  // makes nonces
	roundTrips   [4]time.Duration // of the newest echoes
	newest       time.Duration    // one of them
	echoes       int              // so far
	lost         uint64
	regained     uint64
	steps        uint64
}

const (
	neverHeld  = math.MinInt64 / 2 // as lease.sent: older than any staleness but Unbounded
	alwaysHeld = math.MaxInt64 / 2 // as lease.sent: never old, for a process-local backplane

	// probesPerLife is how many probes begin in the life of a lease.
	probesPerLife = 5

	// maxProbes is how many probes an echo may still be taken for: more than are sent in
	// twelve lives of a lease. One that is given up is forgotten when so many others
	// were sent. Until then its echo may come and be of use, to a cache with a longer
	// MaxStaleness.
	maxProbes = 64

	// patientRoundTrips is for how many round trips Redis is waited for, if that is
	// longer than the life of a lease.
	patientRoundTrips = 8

	// The clocks may drift apart by this share of a lease's life while it lasts:
	// more than any clock is slewed by. Beyond that it is a step.
	skewShare = 10
	minSkew   = 10 * time.Millisecond
	maxSkew   = time.Second
)

// newLease returns a lease that is not held yet, and that nobody watches yet.
func newLease(life time.Duration) *lease {
	l := &lease{
		clock: clock.New(), life: life,
		hurry: make(chan struct{}, 1), changed: make(chan struct{}, 1), stop: make(chan struct{}),
		onSilence: func() {}, onStep: func() {}, draw: drawNonce,
	}
	now, wall := l.clock.Both()
	l.skew = wall - now
	l.sent.Store(neverHeld)
	l.floor.Store(neverHeld)
	l.untilSilence, l.fallSilent = context.WithCancel(context.Background())
	l.fallSilent()
	return l
}

// newLocalLease returns the lease of a process that hears all there is to hear.
func newLocalLease() *lease {
	l := newLease(Unbounded)
	l.sent.Store(alwaysHeld)
	return l
}

// history returns the server's history id as the newest echo showed it; empty: it is
// unknown.
func (l *lease) history() string {
	if id := l.followed.Load(); id != nil {
		return *id
	}
	return ""
}

// follow notes the history id that an echo has shown.
func (l *lease) follow(history string) { l.followed.Store(&history) }

// now reads the monotonic clock, in nanoseconds.
func (l *lease) now() int64 { return l.clock.Now() }

// moment is when a read begins, and how old the lease is then.
type moment struct{ at, leaseAge int64 }

// read begins a read. It comes before any look-up:
//
//  1. a read looks an entry up   2. the lease has run out, and a message is missed
//  3. a probe shows it, everything is cleared, the lease is renewed   4. the read
//     finds the lease valid, and has the old entry in its hands.
//
// A moment is a little late, if anything (see clock.Fast): a lease seems older than
// it is, and a deadline closer.
func (l *lease) read() moment {
	now := l.clock.Fast()
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

// valid reports whether the lease is held, as the backplane sees it: a cache
// judges by its own MaxStaleness.
func (l *lease) valid() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.validLocked()
}

func (l *lease) validLocked() bool { return l.held && l.now() < l.due }

// probe is one that was sent: when, by now(), and how far the wall clock was ahead of
// now() then.
type probe struct {
	nonce      string // empty: there is none, or its echo has come
	sent, skew int64
}

// probe notes that a probe is about to be sent, and returns its nonce, which the echo
// brings back. The nonce cannot be guessed, and the times stay here:
//
//  1. messages do not reach this instance   2. somebody else who may publish on its
//     channel sends an echo   3. its nonce says when a probe was sent: a moment ago
//  4. the lease is renewed, or dropped because the clocks seem to disagree.
func (l *lease) probe() (nonce string) {
	drawn := l.draw()
	l.mu.Lock()
	defer l.mu.Unlock()
	now, wall := l.clock.Both()
	nonce = string(drawn[:])
	l.probes[l.next] = probe{nonce, now, wall - now}
	l.next = (l.next + 1) % maxProbes
	return nonce
}

// answered returns the probe with that nonce, once. It reports false if there is none
// under way.
func (l *lease) answered(nonce string) (p probe, ok bool) {
	if nonce == "" {
		return p, false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.probes {
		if l.probes[i].nonce == nonce {
			p, l.probes[i] = l.probes[i], probe{}
			return p, true
		}
	}
	return p, false
}

// forgetProbes has no echo taken any more for that of a probe that was sent before.
func (l *lease) forgetProbes() {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.probes[:])
}

// grant takes the echo of a probe for what it proves. The caller has cleared
// everything if anything was missed. Echoes may come late and in any order. It reports
// whether the lease is held now and was not before.
func (l *lease) grant(p probe) (gained bool) {
	l.mu.Lock()
	now, wall := l.clock.Both()
	if p.sent <= l.sent.Load() || p.sent < l.floor.Load() || l.closed {
		l.mu.Unlock()
		return false
	}
	stepped := l.compareLocked(now, wall-now, p.skew)
	if !stepped {
		gained = l.grantLocked(now, p.sent, p.skew)
	}
	l.mu.Unlock()
	if stepped {
		l.onStep()
	}
	return gained
}

func (l *lease) grantLocked(now, sent, skew int64) (gained bool) {
	l.sent.Store(sent)
	l.skew = skew
	l.due = sent + int64(l.patienceLocked()) // by the round trips before this one
	l.newest = time.Duration(now - sent)
	l.roundTrips[l.echoes%len(l.roundTrips)] = l.newest
	l.echoes++
	if l.held || now >= l.due {
		return false
	}
	if l.ever {
		l.regained++
	}
	l.ever, l.held = true, true
	if l.untilSilence.Err() != nil {
		l.untilSilence, l.fallSilent = context.WithCancel(context.Background())
	}
	return true
}

// patienceLocked is for how long no echo has to come until the connection is taken for
// dead, and the lease for lost: for the life of a lease, or several round trips if they
// take longer. A cache whose MaxStaleness is shorter than a round trip has no lease,
// which is its own affair (see covers); the others have theirs only if the connection
// is left alone for long enough.
func (l *lease) patienceLocked() time.Duration {
	return max(l.life, min(patientRoundTrips*l.roundTripLocked(), maxLeaseLife))
}

func (l *lease) patience() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.patienceLocked()
}

// roundTripLocked returns how long the fastest of the newest echoes took; 0: none has
// come. A Redis that hung for once is not slow: the connection to it would be waited
// for too long the next time.
func (l *lease) roundTripLocked() time.Duration {
	known := min(l.echoes, len(l.roundTrips))
	if known == 0 {
		return 0
	}
	return slices.Min(l.roundTrips[:known])
}

func (l *lease) roundTrip() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.roundTripLocked()
}

// start has the lease watched until it is closed.
func (l *lease) start() { l.watching.Go(l.watch) }

// watch looks at the clocks as often as probes are sent, and for silence when the
// lease is due.
func (l *lease) watch() {
	timer := time.NewTimer(l.nextLook())
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-l.changed:
		case <-l.stop:
			return
		}
		l.checkClocks()
		l.checkSilence()
		timer.Reset(l.nextLook())
	}
}

func (l *lease) nextLook() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	next := l.life / probesPerLife
	if l.untilSilence.Err() == nil {
		next = min(next, time.Duration(l.due-l.now()))
	}
	return max(next, 0)
}

// checkSilence takes the lease away when it is due.
func (l *lease) checkSilence() {
	l.mu.Lock()
	silent := l.untilSilence.Err() == nil && l.now() >= l.due
	if silent {
		if l.held {
			l.lost++
		}
		l.held = false
		l.fallSilent()
	}
	l.mu.Unlock()
	if silent {
		l.onSilence()
	}
}

// heard returns a context that ends when no echo has come in time; it has ended
// already if none has come since that was so.
func (l *lease) heard() context.Context {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.untilSilence
}

// setLife changes how long a lease lasts and how often it is renewed (but see
// patienceLocked). A lease
// that is older than its new life is not lost at once: it was renewed as often as
// was asked for.
func (l *lease) setLife(life time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	before := l.life
	if life == before {
		return
	}
	l.life = life
	if life < before {
		l.due = min(l.due, l.now()+int64(l.patienceLocked()))
		signal(l.hurry)
	} else {
		l.due = max(l.due, l.sent.Load()+int64(l.patienceLocked()))
	}
	signal(l.changed)
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
	l.mu.Lock()
	now, wall := l.clock.Both()
	stepped := l.compareLocked(now, wall-now, l.skew)
	l.mu.Unlock()
	if stepped {
		l.onStep()
	}
}

// compareLocked drops the lease if the wall clock, which is ahead of now() by
// skew, has moved against it since it was ahead by before, more than clocks are
// slewed by. Whatever was timed by the monotonic clock before is older than it
// seems: the lease, probes under way, and entries whose load seems to have begun
// a short while ago.
func (l *lease) compareLocked(now, skew, before int64) (stepped bool) {
	allowed := min(max(l.life/skewShare, minSkew), maxSkew)
	if l.closed || time.Duration(skew-before).Abs() <= allowed {
		return false
	}
	l.floor.Store(now) // first: it is asked for only when sent does not vouch
	l.sent.Store(neverHeld)
	l.skew = skew
	if l.held {
		l.held = false
		l.lost++
	}
	l.steps++
	signal(l.hurry)
	return true
}

// close ends the lease, and waits for whoever watches it.
func (l *lease) close() {
	l.mu.Lock()
	if !l.closed {
		close(l.stop)
	}
	l.closed, l.held = true, false
	l.fallSilent()
	l.mu.Unlock()
	l.watching.Wait()
}

// snapshot returns what is known of the lease, and whether one was ever held.
func (l *lease) snapshot() (s LeaseStats, ever bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s = LeaseStats{RoundTrip: l.newest, Lost: l.lost, Regained: l.regained, ClockSteps: l.steps}
	if sent := l.sent.Load(); sent != neverHeld && sent != alwaysHeld {
		s.Age = time.Duration(l.now() - sent)
		s.Held = l.validLocked()
	}
	return s, l.ever
}
