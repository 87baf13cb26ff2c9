package main

import "time"

// maxStaleness is the bound that the instances ask nearcache for. It counts from
// when Redis has accepted an invalidation.
const maxStaleness = time.Second

// tolerance is how long a version may still be served once the source has taken
// the next one, whatever became of the invalidation. A later read of it is a
// violation. It leaves a second for Redis to accept the invalidation; and without
// Redis, nothing is served for longer than maxStaleness after its load began.
const tolerance = 2 * time.Second

// item names one versioned item of the catalogue.
type item struct{ kind, key string }

func (i item) String() string { return i.kind + " " + i.key }

// ledger remembers when each version of each item was superseded, and judges
// reads by it. Times are since the start of the run, on one monotonic clock.
type ledger struct {
	tolerance  time.Duration
	superseded map[item][]time.Duration // version v at index v-1; the current one is not in it
}

func newLedger() ledger {
	return ledger{tolerance: tolerance, superseded: map[item][]time.Duration{}}
}

// supersede ends the current version of i: the source has taken the next one.
func (l *ledger) supersede(i item, at time.Duration) {
	l.superseded[i] = append(l.superseded[i], at)
}

// finding is what the ledger says of one read.
type finding struct {
	stale     bool          // the version was superseded before the read began
	age       time.Duration // how long before
	violation bool          // by more than the tolerance
}

// judge looks at a read that began at a time and returned a version.
func (l *ledger) judge(i item, version int64, began time.Duration) finding {
	ended := l.superseded[i]
	if version > int64(len(ended)) {
		return finding{} // the current one
	}
	age := began - ended[max(version, 1)-1]
	if age <= 0 {
		return finding{}
	}
	return finding{stale: true, age: age, violation: age > l.tolerance}
}
