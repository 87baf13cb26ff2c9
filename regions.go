package nearcache

import (
	"slices"
	"strings"
	"sync"
	"sync/atomic"
)

// region is one region's present life in one shard: clearing it marks the object,
// and the next item of that name gets a new one. So an entry is dead as soon as
// one of its regions is marked, without being searched for.
type region struct {
	scope   scope // of the items that belong to this region alone
	name    string
	members int // entries that hold it

	_ [40]byte // hits read the scope: what changes with every write is on another cache line
}

// attachLocked returns the scope of an item that belongs to the regions of those
// names, of which addLocked makes it a member. It reports false if one of them was
// cleared after the item's load or write had noted its start s, whose generation
// is the shard's. An item that is held has the scope held, which saves a look-up if
// the new one's is the same.
func (l *local[K, V]) attachLocked(sh *shard[K, V], names []string, s *start, held *scope) (*scope, bool) {
	if len(names) == 0 {
		return &s.generation.plain, true
	}
	// 1. a load of item i begins   2. it reads the source   3. i changes, and its
	// region is cleared   4. the load ends: its value is older than the clear. A clear
	// that is logged from here on finds the item when it comes to this shard.
	if l.clears.overtook(s.clears, names) {
		return nil, false
	}
	if len(names) == 1 {
		if held.isOf(names[0]) {
			return held, true
		}
		return &sh.regionLocked(names[0]).scope, true
	}
	regions := sh.regionsLocked(names)
	if len(regions) == 1 {
		return &regions[0].scope, true
	}
	return &scope{generation: s.generation, regions: regions}, true
}

// isOf reports whether s, which may be nil, is that of one region alone, which has
// that name and was not cleared. That of a kept not-found is not, see scopeLocked.
func (s *scope) isOf(name string) bool {
	return s != nil && s.err == nil && len(s.regions) == 1 && s.regions[0].name == name && !s.cleared.Load()
}

// regionsLocked returns the regions of those names, each once.
func (sh *shard[K, V]) regionsLocked(names []string) []*region {
	regions := make([]*region, 0, len(names))
	for i, name := range names {
		if !slices.Contains(names[:i], name) {
			regions = append(regions, sh.regionLocked(name))
		}
	}
	return regions
}

// regionLocked returns the region of that name. A new one is without a member: it stays
// only if the item that it is for is added at once.
func (sh *shard[K, V]) regionLocked(name string) *region {
	r := sh.regions[name]
	if r == nil {
		if sh.regions == nil {
			sh.regions = map[string]*region{}
		}
		name = strings.Clone(name) // it may be a piece of a value, or of memory that is used again
		r = &region{name: name}
		r.scope.generation, r.scope.regions = sh.generation, []*region{r}
		sh.regions[name] = r
	}
	return r
}

// retainLocked counts an entry as a member of its regions.
func (sh *shard[K, V]) retainLocked(s *scope) {
	for _, r := range s.regions {
		r.members++
	}
}

// releaseLocked takes back the membership of an entry in its regions.
func (sh *shard[K, V]) releaseLocked(s *scope) {
	for _, r := range s.regions {
		r.members--
		if r.members == 0 && sh.regions[r.name] == r {
			forget(&sh.regions, &sh.mostRegions, r.name)
		}
	}
}

// clearRegions invalidates the items of regions. A load under way does not know
// its regions yet, so none can be joined after it (see holds), and each finds
// out at its end whether it may be kept (see attachLocked).
func (l *local[K, V]) clearRegions(names []string) {
	l.clears.record(names) // first
	died := l.current.Load().errors.Load() > 0
	for i := range l.shards {
		sh := &l.shards[i]
		sh.mu.Lock()
		for _, name := range names {
			if r := sh.regions[name]; r != nil {
				r.scope.cleared.Store(true)
				forget(&sh.regions, &sh.mostRegions, name)
				died = true
			}
		}
		sh.mu.Unlock()
	}
	if died {
		l.dirty.Add(1) // after the entries died: a sweep that counts it has seen them dead
		l.sweeper.soon()
	}
}

// maxClearLog bounds how many region clears are remembered for the loads under
// way. A load that was overtaken by more is treated as if one of its regions had
// been cleared.
const maxClearLog = 1024

// clearLog is what a cache knows of regions that were cleared: their names, since
// the oldest load under way began, or a few more. It holds no others, however many
// are ever cleared.
type clearLog struct {
	// count counts region clears. A load or write notes it at its start.
	count atomic.Uint64

	// underWay reports whether there are loads and writes between begin and end.
	// They are counted in each shard: one counter would be passed from processor to
	// processor with every write.
	underWay func() bool

	mu    sync.Mutex // guards everything below
	names []string   // names[i] is that of clear number base+1+i
	base  uint64     // base + len(names) == count
}

// begin counts a load or write, in its shard, before that notes the clears before it.
// Each begin is paired with one end.
//
// The order matters: counted first, then noted. A clear advances first and then
// looks whether anyone counts, so that of a load and a clear that race either the
// load notes the clear or the clear logs its name.
func (c *clearLog) begin(counter *atomic.Int64) { counter.Add(1) }

// end leaves the names that nobody needs any more to whoever comes by next: they
// are few, and a look at all shards is too much for every write.
func (c *clearLog) end(counter *atomic.Int64) { counter.Add(-1) }

// record logs that regions are cleared.
func (c *clearLog) record(names []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, name := range names {
		n := c.count.Add(1)
		if !c.underWay() {
			c.dropLocked(n)
			continue
		}
		if len(c.names) == maxClearLog {
			c.dropLocked(n - 1)
		}
		c.names = append(c.names, strings.Clone(name)) // it may be a piece of a large message
	}
}

// overtook reports whether one of the regions was cleared, or may have been,
// after a load or write noted since.
func (c *clearLog) overtook(since uint64, regions []string) bool {
	if c.count.Load() == since {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if since < c.base {
		return true // the names were not kept that far back
	}
	return slices.ContainsFunc(c.names[since-c.base:], func(cleared string) bool {
		return slices.Contains(regions, cleared)
	})
}

// size returns the number of names that are needed.
func (c *clearLog) size() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.underWay() {
		c.dropLocked(c.count.Load())
	}
	return len(c.names)
}

// dropLocked forgets the names of all clears up to number base.
func (c *clearLog) dropLocked(base uint64) {
	c.names = nil
	c.base = base
}
