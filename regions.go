package nearcache

import (
	"slices"
	"strings"
	"sync"
	"sync/atomic"
)

// maxClearLog bounds how many region clears are remembered for the loads under
// way. A load that was overtaken by more is treated as if one of its regions had
// been cleared.
const maxClearLog = 1024

// region is one region's present life: clearing it marks the object and the next
// item of that name gets a new one. An entry holds the regions it was kept with,
// so it is dead as soon as one of them is marked, without being searched for.
type region struct {
	cleared atomic.Bool

	name    string
	members int // entries that hold it; guarded by regionTable.mu
}

// regionTable is what a cache knows of regions: those of its live entries, and
// the names cleared since the oldest load under way began. It holds no others,
// however many are ever cleared.
type regionTable struct {
	// clears counts region clears. A load or write notes it at its start.
	clears atomic.Uint64

	// underWay counts loads and writes between begin and end.
	underWay atomic.Int64

	// logged reports whether log may hold names; it spares end the lock.
	logged atomic.Bool

	mu     sync.Mutex // guards everything below, and region.members
	byName map[string]*region
	log    []string // log[i] is the name of clear number base+1+i
	base   uint64   // base + len(log) == clears
}

// begin starts a load or write and returns the clears before it. Each begin is
// paired with one end.
//
// The order matters: counted first, then noted. A clear advances first and then
// looks whether anyone counts, so that of a load and a clear that race either the
// load notes the clear or the clear logs its name.
func (t *regionTable) begin() uint64 {
	t.underWay.Add(1)
	return t.clears.Load()
}

func (t *regionTable) end() {
	if t.underWay.Add(-1) > 0 || !t.logged.Load() {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.underWay.Load() == 0 {
		t.dropLogLocked(t.clears.Load())
	}
}

// attach returns the regions of an item whose load noted since, counted as
// members. It reports false if one of them was cleared in the meantime.
func (t *regionTable) attach(names []string, since uint64) ([]*region, bool) {
	if len(names) == 0 {
		return nil, true
	}
	t.mu.Lock()
	defer t.mu.Unlock()

	// 1. a load of item i begins   2. it reads the source   3. i changes, and its
	// region is cleared   4. the load ends: its value is older than the clear.
	if since < t.base {
		return nil, false // the names were not kept that far back
	}
	for _, cleared := range t.log[since-t.base:] {
		if slices.Contains(names, cleared) {
			return nil, false
		}
	}
	regions := make([]*region, 0, len(names))
	for i, name := range names {
		if slices.Contains(names[:i], name) {
			continue
		}
		r := t.byName[name]
		if r == nil {
			if t.byName == nil {
				t.byName = map[string]*region{}
			}
			r = &region{name: name}
			t.byName[name] = r
		}
		r.members++
		regions = append(regions, r)
	}
	return regions, true
}

// release takes an entry's membership back.
func (t *regionTable) release(regions []*region) {
	if len(regions) == 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, r := range regions {
		r.members--
		if r.members == 0 && t.byName[r.name] == r {
			delete(t.byName, r.name)
		}
	}
}

// clear clears regions and reports whether any had members.
func (t *regionTable) clear(names []string) (hadMembers bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, name := range names {
		n := t.clears.Add(1)
		if r := t.byName[name]; r != nil {
			r.cleared.Store(true)
			delete(t.byName, name)
			hadMembers = true
		}
		if t.underWay.Load() == 0 {
			t.dropLogLocked(n)
			continue
		}
		if len(t.log) == maxClearLog {
			t.dropLogLocked(n - 1)
		}
		t.log = append(t.log, strings.Clone(name)) // it may be a piece of a large message
		t.logged.Store(true)
	}
	return hadMembers
}

// tracked returns the number of names held, for entries and for loads under way.
func (t *regionTable) tracked() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.byName) + len(t.log)
}

// forget drops all regions, for a table that has no entries any more.
func (t *regionTable) forget() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.byName = nil
	t.dropLogLocked(t.clears.Load())
}

// dropLogLocked forgets the names of all clears up to number base.
func (t *regionTable) dropLogLocked(base uint64) {
	t.log = nil
	t.base = base
	t.logged.Store(false)
}
