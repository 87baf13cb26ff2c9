package nearcache

import (
	"slices"
	"strings"
	"sync"
	"sync/atomic"
)

// generation is a cache's life from one clear of the whole cache to the next. Each
// entry belongs to one, and is dead as soon as that is not the current one.
type generation struct {
	plain scope // of the items that belong to no region

	errors atomic.Int64 // the kept ones that are members of every region, not-founds among them
}

func newGeneration() *generation {
	g := &generation{}
	g.plain.generation = g
	return g
}

// scope is what can make an entry dead from afar: its generation, and its regions.
// The entries of a generation that have none share one scope, those of one region
// that of the region.
type scope struct {
	generation *generation
	cleared    atomic.Bool // the region was, if this is a region's
	err        error       // what is kept in place of a value: ErrNotFound, or a loader's
	every      bool        // of a kept error: it is a member of every region
	clears     uint64      // then: clearLog.count when its load began
	regions    []*region   // each once; of a region's own scope: itself
}

// isCleared reports whether a clear has made an entry of scope s dead, of the
// whole cache or of one of its regions.
func (l *local[K, V]) isCleared(s *scope) bool {
	if s.generation != l.current.Load() || s.cleared.Load() {
		return true
	}
	if s.every && s.clears != l.clears.count.Load() {
		return true
	}
	if len(s.regions) > 1 || s.err != nil {
		for _, r := range s.regions {
			if r.scope.cleared.Load() {
				return true
			}
		}
	}
	return false
}

// region is one region's present life in one shard: clearing it marks the object,
// and the next item of that name gets a new one. So an entry is dead as soon as
// one of its regions is marked, without being searched for.
type region struct {
	scope   scope // of the items that belong to this region alone
	name    string
	members int // entries that hold it

	_ [40]byte // hits read the scope: what changes with every write is on another cache line
}

// regionNames are names of regions, each once. They are made before a lock is taken,
// so that what is done under it takes no longer than the names are many.
type regionNames struct {
	list []string // sorted, if more than fewNames
}

// fewNames is how many are compared with each other sooner than sorted.
const fewNames = 8

// namesOf returns names without those that come twice. It allocates nothing for a
// few, nor for those that are sorted, and leaves the list as it is.
func namesOf(list []string) regionNames {
	if len(list) > fewNames {
		if !ascending(list) {
			list = slices.Clone(list)
			slices.Sort(list)
			list = slices.Compact(list)
		}
		return regionNames{list}
	}
	for i, name := range list {
		if slices.Contains(list[:i], name) {
			list = slices.Clone(list)
			slices.Sort(list)
			return regionNames{slices.Compact(list)}
		}
	}
	return regionNames{list}
}

// ascending reports whether list is sorted, and has nothing twice.
func ascending(list []string) bool {
	for i := 1; i < len(list); i++ {
		if list[i-1] >= list[i] {
			return false
		}
	}
	return true
}

// has reports whether name is one of them.
func (n regionNames) has(name string) bool {
	if len(n.list) <= fewNames {
		return slices.Contains(n.list, name)
	}
	_, found := slices.BinarySearch(n.list, name)
	return found
}

// attachLocked returns the scope of an item that belongs to the regions of those
// names, of which addLocked makes it a member. It reports false if one of them was
// cleared after the item's load or write had noted its start s, whose generation
// is the shard's. An item that is held has the scope held, which saves a look-up if
// the new one's is the same.
func (l *local[K, V]) attachLocked(sh *shard[K, V], names regionNames, s *start, held *scope) (*scope, bool) {
	if len(names.list) == 0 {
		return &s.generation.plain, true
	}
	// 1. a load of item i begins   2. it reads the source   3. i changes, and its
	// region is cleared   4. the load ends: its value is older than the clear. A clear
	// that is logged from here on finds the item when it comes to this shard.
	if l.clears.overtook(s.clears, names) {
		return nil, false
	}
	if len(names.list) == 1 {
		if held.isOf(names.list[0]) {
			return held, true
		}
		return &sh.regionLocked(names.list[0]).scope, true
	}
	return &scope{generation: s.generation, regions: sh.regionsLocked(names)}, true
}

// isOf reports whether s, which may be nil, is that of one region alone, which has
// that name and was not cleared. That of a kept not-found is not, see scopeLocked.
func (s *scope) isOf(name string) bool {
	return s != nil && s.err == nil && len(s.regions) == 1 && s.regions[0].name == name && !s.cleared.Load()
}

// regionsLocked returns the regions of those names.
func (sh *shard[K, V]) regionsLocked(names regionNames) []*region {
	regions := make([]*region, len(names.list))
	for i, name := range names.list {
		regions[i] = sh.regionLocked(name)
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
func (l *local[K, V]) clearRegions(list []string) {
	names := namesOf(list)
	l.clears.record(names.list) // first
	died := l.current.Load().errors.Load() > 0
	for i := range l.shards {
		if l.shards[i].clearRegions(names) {
			died = true
		}
	}
	if died {
		l.dirty.Add(1) // after the entries died: a sweep that counts it has seen them dead
		l.sweeper.soon()
	}
}

const (
	// namesAtOnce is how many names are looked up under one hold of a shard's lock.
	namesAtOnce = 1024

	// searchCost is how many look-ups in the map of a shard's regions take as long as
	// a search among many names.
	searchCost = 4
)

// clearRegions marks those of the shard's regions that have one of the names, and
// reports whether there are any. It looks at the names or at the shard's regions,
// whichever takes less: there may be thousands of either, and of shards.
func (sh *shard[K, V]) clearRegions(names regionNames) (died bool) {
	for rest := names.list; len(rest) > 0; {
		sh.mu.Lock()
		if len(sh.regions)*searchCost < len(rest) {
			for name, r := range sh.regions {
				if names.has(name) {
					sh.markLocked(r)
					died = true
				}
			}
			rest = nil
		} else {
			some := rest[:min(len(rest), namesAtOnce)]
			rest = rest[len(some):]
			for _, name := range some {
				if r := sh.regions[name]; r != nil {
					sh.markLocked(r)
					died = true
				}
			}
		}
		sh.mu.Unlock()
	}
	return died
}

// markLocked makes the members of a region dead.
func (sh *shard[K, V]) markLocked(r *region) {
	r.scope.cleared.Store(true)
	forget(&sh.regions, &sh.mostRegions, r.name)
}

// maxClearLog bounds how many region clears are remembered for the loads under
// way. A load that was overtaken by more is treated as if one of its regions had
// been cleared.
const maxClearLog = 1024

// maxClearLogBytes bounds what those names take. Each may be as long as a message.
const maxClearLogBytes = 1 << 20

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
	bytes int        // of the names
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

// record logs that regions are cleared. One look at what is under way is enough for
// all of them, since they count as cleared in one moment.
func (c *clearLog) record(names []string) {
	bytes := 0
	for _, name := range names {
		bytes += len(name)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	before := c.count.Load()
	now := c.count.Add(uint64(len(names)))
	switch {
	case !c.underWay(), len(names) > maxClearLog, bytes > maxClearLogBytes:
		c.dropLocked(now)
		return
	case len(c.names)+len(names) > maxClearLog, c.bytes+bytes > maxClearLogBytes:
		c.dropLocked(before)
	}
	for _, name := range names {
		c.names = append(c.names, strings.Clone(name)) // it may be a piece of a large message
	}
	c.bytes += bytes
}

// overtook reports whether one of the regions was cleared, or may have been,
// after a load or write noted since.
func (c *clearLog) overtook(since uint64, regions regionNames) bool {
	if c.count.Load() == since {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if since < c.base {
		return true // the names were not kept that far back
	}
	return slices.ContainsFunc(c.names[since-c.base:], regions.has)
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
	c.names, c.bytes = nil, 0
	c.base = base
}
