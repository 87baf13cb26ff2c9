package systemtest

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/nearcache/nearcache"
)

// item names an item of one of the caches of a reality run.
type item struct {
	Cache string
	Key   int
}

func (i item) String() string { return fmt.Sprintf("%s/%d", i.Cache, i.Key) }

// clock is the time by which a reality run is judged: the wall clock, because the
// monotonic one of the time package has another origin in every process. The two
// run at the same rate, however they are slewed; a step parts them, and a run
// watches for one, see watchClocks.
func clock() int64 { return time.Now().UnixNano() }

// reading is what one instance read of one version of an item since its last
// report. Of many reads the one that began last says most: if it is legal, so
// were those before it.
type reading struct {
	Item        item
	Version     int64
	Count       int
	First, Last int64 // when the first and the last of these reads began
}

// acceptance says when Redis had accepted an invalidation at the latest: when the
// writer was told so.
type acceptance struct {
	Write, At int64
}

// What an instance asks the run; package rpc wants the names exported.
type (
	LoadRequest   struct{ Item item }
	ChangeRequest struct {
		By    int
		Kind  string
		Items []item
	}
	Changed struct {
		Write    int64
		Versions []int64
	}
	Report struct {
		By       int
		Stats    nearcache.BackplaneStats
		Accepted []acceptance
		Readings []reading
	}
)

// audit judges the reads of a reality run by one rule: a read that began at t may
// not be older than any invalidation that was accepted before t - MaxStaleness.
// News come in any order, so each piece is held against all the others that it may
// concern. What it remembers is bounded.
type audit struct {
	bounds map[string]time.Duration // MaxStaleness of each cache

	mu       sync.Mutex // guards everything below
	items    map[item]*ledger
	writes   map[int64]*write // not known to be accepted yet
	lastID   int64
	faults   []*fault // the newest
	accepted int
	reads    int
	stale    int      // reads of what had been invalidated, at least
	found    int      // violations
	reports  []string // of the first of them

	// worst is the longest time from an acceptance to a read of what it invalidated,
	// in each cache.
	worst map[string]time.Duration
}

// write is a change of the source that an invalidation is to follow.
type write struct {
	by       int // the instance
	kind     string
	versions map[item]int64
}

// floor says that from a time on reads have to be of a version at least.
type floor struct {
	version, at int64
	write       *write
}

// ledger is what an audit knows of one item.
type ledger struct {
	newest int64 // at the source
	floors []floor
	seen   map[sighting]int64 // when the last read of it began
	judged map[sighting]bool  // found to be a violation
}

type sighting struct {
	version  int64
	instance int
}

const (
	floorsKept   = 64
	versionsKept = 64
	faultsKept   = 64
	reportsKept  = 10
)

func newAudit(bounds map[string]time.Duration) *audit {
	return &audit{
		bounds: bounds, items: map[item]*ledger{}, writes: map[int64]*write{}, worst: map[string]time.Duration{},
	}
}

func (a *audit) ledgerLocked(i item) *ledger {
	l := a.items[i]
	if l == nil {
		l = &ledger{newest: 1, seen: map[sighting]int64{}, judged: map[sighting]bool{}}
		a.items[i] = l
	}
	return l
}

// version is what a load reads.
func (a *audit) version(i item) int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.ledgerLocked(i).newest
}

// change writes items at the source, and returns the name of the write.
func (a *audit) change(by int, kind string, items ...item) (id int64, versions []int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	w := &write{by: by, kind: kind, versions: map[item]int64{}}
	for _, i := range items {
		l := a.ledgerLocked(i)
		if w.versions[i] == 0 {
			l.newest++
		}
		w.versions[i] = l.newest
		versions = append(versions, l.newest)
	}
	a.lastID++
	a.writes[a.lastID] = w
	return a.lastID, versions
}

// accept takes note that the invalidation which follows a write was accepted.
func (a *audit) accept(accepted acceptance) {
	a.mu.Lock()
	defer a.mu.Unlock()
	w := a.writes[accepted.Write]
	delete(a.writes, accepted.Write)
	a.accepted++
	for i, version := range w.versions {
		l := a.items[i]
		f := floor{version, accepted.At, w}
		l.floors = slices.DeleteFunc(l.floors, func(g floor) bool { return g.version <= f.version && g.at >= f.at })
		l.floors = append(l.floors, f)
		l.floors = l.floors[max(0, len(l.floors)-floorsKept):]
		for s, last := range l.seen {
			if s.version < version {
				a.judgeLocked(i, l, s, last)
			}
		}
	}
}

// read takes note of reads.
func (a *audit) read(instance int, readings ...reading) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, r := range readings {
		l := a.ledgerLocked(r.Item)
		s := sighting{r.Version, instance}
		a.reads += r.Count
		l.seen[s] = max(l.seen[s], r.Last)
		if f := l.overtaken(r.Version); f != nil {
			switch {
			case r.First > f.at:
				a.stale += r.Count
			case r.Last > f.at:
				a.stale++
			}
		}
		a.judgeLocked(r.Item, l, s, l.seen[s])
		if len(l.seen) > 4*versionsKept {
			old := func(s sighting) bool { return s.version < l.newest-versionsKept }
			maps.DeleteFunc(l.seen, func(s sighting, _ int64) bool { return old(s) })
			maps.DeleteFunc(l.judged, func(s sighting, _ bool) bool { return old(s) })
		}
	}
}

// overtaken returns the first accepted invalidation of a version, or nil.
func (l *ledger) overtaken(version int64) (first *floor) {
	if version >= l.newest {
		return nil
	}
	for i := range l.floors {
		if f := &l.floors[i]; f.version > version && (first == nil || f.at < first.at) {
			first = f
		}
	}
	return first
}

// judgeLocked applies the rule to an instance's last read of a version.
func (a *audit) judgeLocked(i item, l *ledger, s sighting, last int64) {
	f := l.overtaken(s.version)
	if f == nil {
		return
	}
	late := time.Duration(last - f.at)
	a.worst[i.Cache] = max(a.worst[i.Cache], late)
	if late <= a.bounds[i.Cache] || l.judged[s] {
		return
	}
	l.judged[s] = true
	a.found++
	if len(a.reports) == reportsKept {
		return
	}
	var report strings.Builder
	_, _ = fmt.Fprintf(&report, "%v: instance %d read version %d %v after Redis had accepted the invalidation of "+
		"version %d (%s, by instance %d, accepted %s, read %s); MaxStaleness is %v. Faults about then:",
		i, s.instance, s.version, late, f.version, f.write.kind, f.write.by, stamp(f.at), stamp(last), a.bounds[i.Cache])
	for _, fault := range a.faults {
		if fault.begun < last && (fault.ended == 0 || fault.ended > f.at-2*int64(time.Second)) {
			_, _ = fmt.Fprintf(&report, "\n\t%s", fault)
		}
	}
	a.reports = append(a.reports, report.String())
}

func stamp(at int64) string { return time.Unix(0, at).Format("15:04:05.000") }

// fault is something that went wrong for a while.
type fault struct {
	name         string
	begun, ended int64 // ended is 0 while it lasts
}

func (f *fault) String() string {
	if f.ended == 0 {
		return fmt.Sprintf("from %s on: %s", stamp(f.begun), f.name)
	}
	return fmt.Sprintf("%s to %s: %s", stamp(f.begun), stamp(f.ended), f.name)
}

// during notes a fault for the reports, while it happens.
func (a *audit) during(name string, happen func()) {
	f := &fault{name: name, begun: clock()}
	a.mu.Lock()
	a.faults = append(a.faults, f)
	a.faults = slices.Clone(a.faults[max(0, len(a.faults)-faultsKept):])
	a.mu.Unlock()
	happen()
	a.mu.Lock()
	f.ended = clock()
	a.mu.Unlock()
}

// TestAudit checks the judge: an audit that finds nothing would let everything
// pass.
func TestAudit(t *testing.T) {
	t.Parallel()
	const bound = 100
	type step func(*audit)
	one, two := item{"a", 1}, item{"a", 2}
	write := func(i item) step { return func(a *audit) { a.change(1, "Remove", i) } }
	accept := func(id, at int64) step { return func(a *audit) { a.accept(acceptance{id, at}) } }
	read := func(version, at int64) step {
		return func(a *audit) { a.read(0, reading{one, version, 1, at, at}) }
	}
	tests := []struct {
		name  string
		steps []step
		found int
		worst time.Duration
	}{
		{"the newest version", []step{write(one), accept(1, 1000), read(2, 5000)}, 0, 0},
		{"an old one, before the acceptance", []step{write(one), accept(1, 1000), read(1, 900)}, 0, 0},
		{"an old one, in time", []step{write(one), accept(1, 1000), read(1, 1100)}, 0, 100},
		{"an old one, too late", []step{write(one), accept(1, 1000), read(1, 1101)}, 1, 101},
		{"too late, before the acceptance was known", []step{write(one), read(1, 1101), accept(1, 1000)}, 1, 101},
		{"never accepted", []step{write(one), read(1, 9000)}, 0, 0},
		{"another item", []step{write(two), accept(1, 1000), read(1, 9000)}, 0, 0},
		{"one of two that are old", []step{
			write(one), write(one), accept(1, 1000), accept(2, 2000), read(2, 2100), read(1, 1100),
		}, 0, 100},
		{"the later write is accepted first", []step{
			write(one), write(one), accept(2, 1000), read(1, 1101), read(2, 1101), accept(1, 5000),
		}, 2, 101},
		{"the later write is not accepted", []step{
			write(one), write(one), accept(1, 1000), read(2, 9000), read(1, 1200),
		}, 1, 200},
		{"told once", []step{write(one), accept(1, 1000), read(1, 1500), read(1, 1600), read(1, 1400)}, 1, 600},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			a := newAudit(map[string]time.Duration{"a": bound})
			for _, step := range test.steps {
				step(a)
			}
			assert.Equal(t, test.found, a.found, a.reports)
			assert.Equal(t, test.worst, a.worst["a"])
		})
	}
}
