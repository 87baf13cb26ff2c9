package main

import "time"

// tolerance is how long after its invalidation was confirmed a superseded version
// may be served. Past it a read is a violation.
const tolerance = 2 * time.Second

// item names one versioned item of the catalogue.
type item struct{ kind, key string }

func (i item) String() string { return i.kind + " " + i.key }

// ledger remembers when each version of each item was superseded, and judges
// reads by it. Times are since the start of the run, on one monotonic clock.
type ledger struct {
	tolerance  time.Duration
	superseded map[item][]supersession // version v at index v-1; the current one is not in it
}

// supersession is the end of one version.
type supersession struct {
	at        time.Duration // when the source took the next version
	confirmed time.Duration // when Redis had accepted an invalidation sent after that, or unconfirmed
}

const unconfirmed time.Duration = -1

func newLedger() ledger {
	return ledger{tolerance: tolerance, superseded: map[item][]supersession{}}
}

// supersede ends the current version of i.
func (l *ledger) supersede(i item, at time.Duration) {
	l.superseded[i] = append(l.superseded[i], supersession{at: at, confirmed: unconfirmed})
}

// confirm says that an invalidation which followed version is confirmed: from now
// on, no version before it is to be served for long.
func (l *ledger) confirm(i item, version int64, at time.Duration) {
	ended := l.superseded[i]
	for n := min(version-1, int64(len(ended))) - 1; n >= 0 && ended[n].confirmed == unconfirmed; n-- {
		ended[n].confirmed = at
	}
}

// finding is what the ledger says of one read.
type finding struct {
	stale     bool          // the version was superseded before the read began
	age       time.Duration // how long before
	violation bool          // its invalidation was confirmed more than the tolerance before
}

// judge looks at a read that began at a time and returned a version.
func (l *ledger) judge(i item, version int64, began time.Duration) finding {
	ended := l.superseded[i]
	if version > int64(len(ended)) {
		return finding{} // the current one
	}
	s := ended[max(version, 1)-1]
	if s.at >= began {
		return finding{}
	}
	return finding{
		stale:     true,
		age:       began - s.at,
		violation: s.confirmed != unconfirmed && began-s.confirmed > l.tolerance,
	}
}
