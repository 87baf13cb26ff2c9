package nearcache

import (
	"math/bits"
	"time"

	"github.com/nearcache/nearcache/internal/backoff"
)

// lifetimes are the times in an item's life other than its deadline.
type lifetimes struct {
	refreshAfter      int64 // how old an item must be for a hit to refresh it; 0: no hit does
	idle              int64 // how long an item may go without a hit; 0: for ever
	idleShift         uint  // the binary logarithm of a tick
	staleIfError      time.Duration
	servesStale       bool // items may be served while their load fails
	staleWithoutLease bool // even without a lease

	tracksHits bool // hits have to be noted, or may be due for a refresh
}

// The lowest bit of an entry's note says whether a refresh of it was begun. The bits above
// have the tick of its last hit, without its upper bits.
//
// A tick is at most a sixteenth of IdleTTL. So hits write a note at most once in that time.
const (
	refreshing = 1
	tickShift  = 1
	tickMask   = 1<<23 - 1

	ticksPerIdle = 16
)

func newLifetimes[K comparable, V any](o Options[K, V]) lifetimes {
	return lifetimes{
		refreshAfter:      int64(o.RefreshAfter),
		idle:              int64(o.IdleTTL),
		idleShift:         uint(max(1, bits.Len64(uint64(o.IdleTTL/ticksPerIdle))) - 1),
		staleIfError:      o.StaleIfError,
		servesStale:       o.StaleIfError > 0 || o.StaleWithoutLease,
		staleWithoutLease: o.StaleWithoutLease,
		tracksHits:        o.RefreshAfter > 0 || o.IdleTTL > 0,
	}
}

func (t *lifetimes) tick(at int64) uint32 { return uint32(at>>t.idleShift) & tickMask }

// isIdle reports whether at that time an entry with that note has had no hit for IdleTTL,
// or for up to a tick less.
//
// Without the upper bits, ticks are ambiguous if they are more than half of tickMask apart.
// That is thousands of IdleTTLs. The sweeper comes much more often, and evicts what is
// idle.
func (t *lifetimes) isIdle(note uint32, at int64) bool {
	ticks := (t.tick(at) - note>>tickShift) & tickMask
	if ticks > tickMask/2 {
		return false // another hit came later than at
	}
	return int64(ticks)<<t.idleShift+at&(1<<t.idleShift-1) >= t.idle
}

// noteHit notes a hit on e.
func (l *local[K, V]) noteHit(e *entry[K, V], at int64) {
	if l.idle == 0 {
		return
	}
	note, tick := e.Note(), l.tick(at)
	if later := (tick - note>>tickShift) & tickMask; later != 0 && later <= tickMask/2 {
		e.SwapNote(note, tick<<tickShift|note&refreshing) // if it fails, another hit was noted
	}
}

// renew has e count as just hit, and as not refreshing.
func (l *local[K, V]) renew(e *entry[K, V], now int64) {
	if !l.tracksHits {
		return
	}
	tick := uint32(0)
	if l.idle > 0 {
		tick = l.tick(now)
	}
	for !e.SwapNote(e.Note(), tick<<tickShift) {
	}
}

// markRefreshing marks e as refreshing, for the caller to refresh it. It reports false if e
// is marked already. The mark stays until unmarkRefreshing, or until the entry's value is
// replaced.
func (l *local[K, V]) markRefreshing(e *entry[K, V]) bool {
	note := e.Note()
	return note&refreshing == 0 && e.SwapNote(note, note|refreshing)
}

func (l *local[K, V]) unmarkRefreshing(e *entry[K, V]) {
	for note := e.Note(); note&refreshing != 0 && !e.SwapNote(note, note&^refreshing); note = e.Note() {
	}
}

// isDue reports whether a hit at that time has to refresh e.
func (l *local[K, V]) isDue(e *entry[K, V], at int64) bool {
	return l.refreshAfter > 0 && at-e.Item.started.Load() >= l.refreshAfter && e.Item.scope.err == nil
}

// failedLoad says how often in a row the load of an item in memory has failed. Until a
// time, neither a refresh nor a Get that can serve the item loads it again.
type failedLoad struct {
	count int
	until int64
}

const (
	failurePause     = 100 * time.Millisecond // after the first failure
	mostFailurePause = 10 * time.Second
)

// noteFailureLocked counts a failed load of key, and returns how long to wait for the next.
func (sh *shard[K, V]) noteFailureLocked(key K, now int64, random backoff.Random) time.Duration {
	f := sh.failedLoads[key]
	pause := backoff.Less(random, backoff.Ceiling(failurePause, mostFailurePause, f.count), 2) // a random part, so that not all come at once again
	if sh.failedLoads == nil {
		sh.failedLoads = map[K]failedLoad{}
	}
	sh.failedLoads[key] = failedLoad{count: f.count + 1, until: deadline(now, pause)}
	return pause
}

func (sh *shard[K, V]) forgetFailureLocked(key K) {
	if len(sh.failedLoads) > 0 {
		forget(&sh.failedLoads, &sh.mostFailedLoads, key)
	}
}
