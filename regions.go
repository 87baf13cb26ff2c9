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

// regionTable is what a cache knows of regions, beside those of its live entries
// (see generation): the names cleared since the oldest load under way began. It
// holds no others, however many are ever cleared.
type regionTable struct {
	// clears counts region clears. A load or write notes it at its start.
	clears atomic.Uint64

	// underWay counts loads and writes between begin and end.
	underWay atomic.Int64

	// logged reports whether log may hold names; it spares end the lock.
	logged atomic.Bool

	mu   sync.Mutex // guards everything below, generation.regions, and region.members
	log  []string   // log[i] is the name of clear number base+1+i
	base uint64     // base + len(log) == clears
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

// attach returns the scope of an item that belongs to the regions of those names,
// and counts it as their member. It reports false if one of them was cleared
// after the item's load or write had noted its start s.
func (t *regionTable) attach(names []string, s start) (*scope, bool) {
	if len(names) == 0 {
		return &s.generation.plain, true
	}
	t.mu.Lock()
	defer t.mu.Unlock()

	// 1. a load of item i begins   2. it reads the source   3. i changes, and its
	// region is cleared   4. the load ends: its value is older than the clear.
	if s.clears < t.base {
		return nil, false // the names were not kept that far back
	}
	for _, cleared := range t.log[s.clears-t.base:] {
		if slices.Contains(names, cleared) {
			return nil, false
		}
	}
	regions := make([]*region, 0, len(names))
	for i, name := range names {
		if slices.Contains(names[:i], name) {
			continue
		}
		r := s.generation.regions[name]
		if r == nil {
			if s.generation.regions == nil {
				s.generation.regions = map[string]*region{}
			}
			r = newRegion(s.generation, name)
			s.generation.regions[name] = r
		}
		r.members++
		regions = append(regions, r)
	}
	if len(regions) == 1 {
		return &regions[0].scope, true
	}
	return &scope{generation: s.generation, regions: regions}, true
}

// release takes back the membership of an entry in its regions.
func (t *regionTable) release(s *scope) {
	if len(s.regions) == 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, r := range s.regions {
		r.members--
		if r.members == 0 && s.generation.regions[r.name] == r {
			delete(s.generation.regions, r.name)
		}
	}
}

// clear clears regions of the current generation, and reports whether any had
// members. Regions of others need no clearing: their entries are dead.
func (t *regionTable) clear(current *atomic.Pointer[generation], names []string) (hadMembers bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, name := range names {
		n := t.clears.Add(1)
		// Looked at under mu: whatever has been attached until now is of this
		// generation, or of an older one.
		g := current.Load()
		if r := g.regions[name]; r != nil {
			r.scope.cleared.Store(true)
			delete(g.regions, name)
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
func (t *regionTable) tracked(current *atomic.Pointer[generation]) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(current.Load().regions) + len(t.log)
}

// dropLogLocked forgets the names of all clears up to number base.
func (t *regionTable) dropLogLocked(base uint64) {
	t.log = nil
	t.base = base
	t.logged.Store(false)
}
