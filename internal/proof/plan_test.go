package proof

import (
	"math/rand/v2"
	"time"

	"github.com/nearcache/nearcache"
)

const (
	stormLength = 10 * time.Second
	settleTime  = time.Minute // for a fleet without faults to become live

	closeTimeout = 5 * time.Second // of every backplane

	// roundTrip is longer than any message takes on a network that is well.
	roundTrip = 50 * time.Millisecond
)

// plan is what a seed decides at the start.
type plan struct {
	instances, keys int
	maxStaleness    [2]time.Duration // of the first cache, and the backplane; of the second
	ttl             [2]time.Duration
	notFoundTTL     time.Duration
	slowLoads       int // in a thousand, longer than MaxStaleness
	readPause       time.Duration
	writePause      time.Duration
	commandTimeout  time.Duration
	outputLimit     int
	clearsLimit     int
	connectedStart  bool
	info            bool
	clones          bool // all instances have one identity
	features        [2]features
	faults          []fault
	faultPause      time.Duration
	calm            bool // there are no faults, and hardly any staleness is tolerated
}

// features are the options of a cache that have to do with loads and lifetimes.
type features struct {
	batch, only                             bool // there is a LoadMany, and no Load
	refreshAfter, staleIfError, softTimeout time.Duration
	errorTTL, idleTTL, loadTimeout          time.Duration
	concurrentLoads                         int

	shared                               bool
	sharedTTL, sharedTimeout, sharedWait time.Duration
}

// planFeatures has each of them every other time, or all of them at once.
func planFeatures(r *rand.Rand, limit time.Duration) (f features) {
	all := r.IntN(4) == 0
	some := func(low, high time.Duration) time.Duration {
		if d := between(r, low, high); r.IntN(2) == 0 || all {
			return d
		}
		return 0
	}
	f.batch, f.only = r.IntN(2) == 0 || all, r.IntN(3) == 0
	f.refreshAfter = some(limit/10, limit)
	f.staleIfError = some(limit/4, 10*limit)
	f.softTimeout = some(time.Millisecond, limit/4)
	if f.staleIfError == 0 {
		f.softTimeout = 0
	}
	f.errorTTL = some(time.Millisecond, 2*limit)
	f.idleTTL = some(limit/4, 2*limit)
	f.loadTimeout = some(limit/10, 3*limit)
	f.concurrentLoads = int(some(1, 4))
	f.shared = r.IntN(3) > 0 || all
	f.sharedTTL = []time.Duration{20 * limit, between(r, limit/4, 2*limit)}[r.IntN(2)]
	f.sharedTimeout = between(r, 10*time.Millisecond, limit)
	f.sharedWait = between(r, 5*time.Millisecond, 2*limit)
	return f
}

func newPlan(r *rand.Rand) plan {
	limit := between(r, 600*time.Millisecond, 1500*time.Millisecond)
	p := plan{
		instances:      []int{2, 3, 3, 3, 4}[r.IntN(5)],
		keys:           4 + r.IntN(5),
		maxStaleness:   [2]time.Duration{limit, max(100*time.Millisecond, between(r, limit/4, limit*3/4))},
		notFoundTTL:    between(r, limit, 10*limit),
		slowLoads:      []int{0, 5, 20, 60}[r.IntN(4)],
		readPause:      between(r, 10*time.Millisecond, 80*time.Millisecond),
		writePause:     between(r, 60*time.Millisecond, 500*time.Millisecond),
		commandTimeout: between(r, limit/2, 4*limit),
		outputLimit:    []int{8, 30, 1000}[r.IntN(3)],
		clearsLimit:    []int{8, 16, 1024}[r.IntN(3)],
		connectedStart: r.IntN(4) > 0,
		info:           r.IntN(8) > 0,
		clones:         r.IntN(4) == 0,
		faultPause:     between(r, 100*time.Millisecond, 1500*time.Millisecond),
		calm:           r.IntN(20) == 0,
	}
	for i := range p.ttl {
		p.ttl[i] = []time.Duration{nearcache.NoExpiry, 20 * limit, between(r, limit/4, 2*limit)}[r.IntN(3)]
	}
	for i := range p.features {
		p.features[i] = planFeatures(r, p.maxStaleness[i])
	}
	// A few kinds of faults at a time meet in more ways than all of them do.
	some := 1 + r.IntN(len(faultKinds))
	for _, i := range r.Perm(len(faultKinds))[:some] {
		p.faults = append(p.faults, faultKinds[i])
	}
	if p.calm {
		p.faults, p.connectedStart = nil, true
	}
	return p
}

// between returns a random duration, at least low and less than high.
func between(r *rand.Rand, low, high time.Duration) time.Duration {
	return low + time.Duration(r.Int64N(int64(high-low)))
}
