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

// lease is this instance's proof that it has heard everything that Redis had accepted
// up to a known time.
//
// The proof is a probe and its echo. A script in Redis reads the channel's position and
// publishes it to the instance's own channel. This echo comes over the connection on
// which the invalidations come. Redis executes one command at a time, and a connection
// keeps the order. So when the echo arrives, everything that was accepted before the
// probe has arrived too. If something is missing, the echo shows it, and everything is
// cleared. The age of a lease counts from when the probe was sent, not from when the
// echo arrived.
//
// The serving rule: a read may return an entry if, when the read began, the lease was
// younger than MaxStaleness, or the entry's load had begun less than MaxStaleness before.
// (The local layer takes up to a fifth off MaxStaleness, depending on the key, so that
// not all of memory lapses at once.)
type lease struct {
	clock *clock.Clock

	// sent is when the newest probe with an echo was sent. Every hit reads it.
	sent atomic.Int64

	// followed is the history id in the newest echo.
	followed atomic.Pointer[string]

	// floor is when the last step of the clocks was found. What was loaded before that
	// may be older than the monotonic clock says.
	floor atomic.Int64

	// onSilence is called, without a lock, when no echo has come for as long as
	// patienceLocked says. The lease is then lost, unless a step of the clocks has ended it
	// before.
	onSilence func()

	// onStep is called, without a lock, after a step of the clocks.
	onStep func()

	hurry    chan struct{}  // one token: send the next probe now, without the usual wait
	changed  chan struct{}  // one token: life has changed
	stop     chan struct{}  // closed by close
	watching sync.WaitGroup // waits for watch

	mu           sync.Mutex      // guards everything below
	life         time.Duration   // the smallest MaxStaleness: the lease is renewed several times in it
	ever         bool            // there has been a lease
	held         bool            // the lease was neither lost nor dropped since the last grant
	due          int64           // when the lease is lost without another grant
	skew         int64           // wall clock minus now(), at the newest grant's probe or at the last step
	untilSilence context.Context // ends when due has passed
	fallSilent   context.CancelFunc
	closed       bool
	probes       [maxProbes]probe // a ring of the newest ones
	next         int              // the index of the next one
	draw         func() [16]byte  // returns nonces
	roundTrips   [4]time.Duration // of the newest echoes
	newest       time.Duration    // the round trip of the newest echo
	echoes       int              // how many have come
	lost         uint64
	regained     uint64
	steps        uint64
}

const (
	neverHeld  = math.MinInt64 / 2 // as lease.sent: older than any MaxStaleness but Unbounded
	alwaysHeld = math.MaxInt64 / 2 // as lease.sent: never too old, for a process-local backplane

	// probesPerLife is how many probes are sent in the life of a lease.
	probesPerLife = 5

	// maxProbes is how many probes are remembered, to recognise their echoes: more than
	// are sent in twelve lives of a lease. A probe that was given up is forgotten when that
	// many others were sent. Until then its echo may still come, and help a cache with a
	// longer MaxStaleness.
	maxProbes = 64

	// patientRoundTrips is how many round trips to wait for an echo, if that is longer than
	// the life of a lease.
	patientRoundTrips = 8

	// The wall clock and the monotonic clock may drift apart by a tenth of a lease's life
	// while it lasts, within minSkew and maxSkew. That is more than any clock is slewed by.
	// Beyond that it is a step.
	skewShare = 10
	minSkew   = 10 * time.Millisecond
	maxSkew   = time.Second
)

// newLease returns a lease that is not held yet. It is watched from start on.
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

// newLocalLease returns the lease of a process-local backplane, which is never too old.
func newLocalLease() *lease {
	l := newLease(Unbounded)
	l.sent.Store(alwaysHeld)
	return l
}

// history returns the server's history id in the newest echo; empty: it is unknown.
func (l *lease) history() string {
	if id := l.followed.Load(); id != nil {
		return *id
	}
	return ""
}

// follow notes the history id that an echo has shown.
func (l *lease) follow(history string) { l.followed.Store(&history) }

// now returns the monotonic clock's time, in nanoseconds.
func (l *lease) now() int64 { return l.clock.Now() }

// moment is when a read begins, and the age of the lease at that time.
type moment struct{ at, leaseAge int64 }

// read begins a read. It has to be called before the entry is looked up. Otherwise:
//
//  1. a read looks up an entry   2. the lease has run out, and a message is missed
//  3. a probe shows that, everything is cleared, and the lease is renewed   4. the read
//     finds the lease valid, and returns the old entry.
//
// The time may be a little late, but never early (see clock.Fast). So a lease seems a
// little older than it is, and a deadline a little closer.
func (l *lease) read() moment {
	now := l.clock.Fast()
	return moment{at: now, leaseAge: now - l.sent.Load()}
}

// vouched returns a moment at which the lease covers everything. It serves to ask for an
// entry's fate regardless of the lease.
func vouched(now int64) moment { return moment{at: now, leaseAge: math.MinInt64} }

// covers reports whether a read that began at m may return an entry whose load began at
// started.
func (l *lease) covers(m moment, started, staleness int64) bool {
	return m.leaseAge < staleness || (m.at-started < staleness && started >= l.floor.Load())
}

// valid reports whether the backplane has a lease. A cache decides by its own
// MaxStaleness, see covers.
func (l *lease) valid() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.validLocked()
}

func (l *lease) validLocked() bool { return l.held && l.now() < l.due }

// probe is a probe that was sent. sent is the time by now(), and skew is the wall clock
// minus now() at that time.
type probe struct {
	nonce      string // empty: no probe, or its echo has come
	sent, skew int64
}

// probe notes that a probe is about to be sent, and returns its nonce, which the echo
// contains. The nonce cannot be guessed, and the times are not sent. If the nonce were
// the time of the probe:
//
//  1. messages do not reach this instance   2. another Redis user with the right to
//     publish on its channel forges an echo   3. the echo's nonce says that the probe was
//     sent just now   4. the lease is renewed, or dropped because the clocks seem to
//     disagree.
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

// answered returns the probe with that nonce and forgets it. It reports false if there is
// none.
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

// forgetProbes forgets all probes sent so far: their echoes no longer count.
func (l *lease) forgetProbes() {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.probes[:])
}

// grant renews the lease by the echo of p. If messages were missed, the caller has
// cleared everything before. Echoes may come late and in any order. grant reports whether
// the lease is held now and was not before.
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
	l.due = sent + int64(l.patienceLocked()) // without this round trip, which is added below
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

// patienceLocked returns how long to wait for an echo before the connection counts as
// dead and the lease as lost: the life of a lease, or several round trips if they take
// longer. If a cache's MaxStaleness is shorter than a round trip, that cache has no lease
// (see covers). The other caches have one only if the connection is not given up as soon.
func (l *lease) patienceLocked() time.Duration {
	return max(l.life, min(patientRoundTrips*l.roundTripLocked(), maxLeaseLife))
}

func (l *lease) patience() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.patienceLocked()
}

// roundTripLocked returns the shortest of the newest round trips; 0: no echo has come. It
// is the shortest because a Redis that hung once is not slow. Otherwise a dead connection
// would be noticed too late the next time.
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

// start begins to watch the lease, until it is closed.
func (l *lease) start() { l.watching.Go(l.watch) }

// watch checks the clocks as often as probes are sent, and checks for silence when the
// lease is due.
func (l *lease) watch() {
	timer := time.NewTimer(l.nextCheck())
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
		timer.Reset(l.nextCheck())
	}
}

// nextCheck returns the time until watch has to check again.
func (l *lease) nextCheck() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	next := l.life / probesPerLife
	if l.untilSilence.Err() == nil {
		next = min(next, time.Duration(l.due-l.now()))
	}
	return max(next, 0)
}

// checkSilence ends the lease if it is due.
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

// heard returns a context that ends when no echo comes in time. It has ended already if
// that has happened and no echo has come since.
func (l *lease) heard() context.Context {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.untilSilence
}

// setLife changes how long a lease lasts and how often it is renewed (but see
// patienceLocked). A lease that is older than its new life is not lost at once, since it
// was renewed as often as its old life required.
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

// lifetime returns how long a lease lasts.
func (l *lease) lifetime() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.life
}

// checkClocks drops the lease if the wall clock has moved against the monotonic clock
// since the lease's probe was sent. The machine may then have been suspended together
// with its monotonic clock.
func (l *lease) checkClocks() {
	l.mu.Lock()
	now, wall := l.clock.Both()
	stepped := l.compareLocked(now, wall-now, l.skew)
	l.mu.Unlock()
	if stepped {
		l.onStep()
	}
}

// compareLocked drops the lease if the clocks have stepped: if the wall clock minus now()
// was before and is skew now, and the two differ by more than clocks are slewed by. What
// the monotonic clock has timed so far may then be older than it seems: the lease, probes
// under way, and entries whose load seems to be recent.
func (l *lease) compareLocked(now, skew, before int64) (stepped bool) {
	allowed := min(max(l.life/skewShare, minSkew), maxSkew)
	if l.closed || time.Duration(skew-before).Abs() <= allowed {
		return false
	}
	l.floor.Store(now) // first: covers reads it only after it has found sent too old
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

// close ends the lease, and waits until watch has returned.
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

// snapshot returns the lease's statistics, and whether there has ever been a lease.
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
