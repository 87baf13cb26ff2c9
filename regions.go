package nearcache

import (
	"slices"
	"strings"
	"sync"
	"sync/atomic"
)

// generation is the time from one clear of the whole cache to the next. Each entry belongs
// to one generation. It is dead as soon as that is no longer the current one.
type generation struct {
	plain scope // of the items without regions

	errors atomic.Int64 // kept errors and not-founds that belong to every region
}

func newGeneration() *generation {
	g := &generation{}
	g.plain.generation = g
	return g
}

// scope is what makes entries dead without a visit to each: their generation and their
// regions. The entries of a generation that have no region share one scope. Entries of one
// region share that region's scope.
type scope struct {
	generation *generation
	cleared    atomic.Bool // the region was cleared, if this is a region's scope
	err        error       // kept instead of a value: ErrNotFound, or a loader's error
	every      bool        // a kept error that belongs to every region
	clears     uint64      // if every: clearLog.count when its load began
	regions    []*region   // without duplicates; in a region's own scope: that region
}

// isCleared reports whether a clear has made the entries of scope s dead: one of the whole
// cache, or of one of their regions.
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

// region is a region in one shard, until it is cleared. A clear marks the object, and the
// next item with that name gets a new one. So an entry is dead as soon as one of its
// regions is marked. Nothing has to search for the entry.
type region struct {
	scope   scope // of the items that belong to this region alone
	name    string
	members int // entries of the region

	_ [40]byte // hits read the scope: what every write changes is on another cache line
}

// regionNames is a list of names of regions, without duplicates. It is made before a lock
// is taken, so that the work under the lock is at most linear in the number of names.
type regionNames struct {
	list []string // sorted if it has more than fewNames
}

// fewNames is the number of names up to which to compare them one by one is faster than to
// sort them.
const fewNames = 8

// namesOf returns the names of list without duplicates. It does not change list. It makes no
// copy if list has no duplicates, and is either short or sorted.
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

// ascending reports whether list is sorted and has no duplicates.
func ascending(list []string) bool {
	for i := 1; i < len(list); i++ {
		if list[i-1] >= list[i] {
			return false
		}
	}
	return true
}

// has reports whether name is in the list.
func (n regionNames) has(name string) bool {
	if len(n.list) <= fewNames {
		return slices.Contains(n.list, name)
	}
	_, found := slices.BinarySearch(n.list, name)
	return found
}

// attachLocked returns the scope of an item that belongs to the regions with those names.
// addLocked makes the item a member of them. attachLocked reports false if one of the
// regions was cleared after the item's load or write began at s, whose generation is the
// shard's. held is the scope of the item's entry in memory. It saves a look-up if the new
// scope is the same.
func (l *local[K, V]) attachLocked(sh *shard[K, V], names regionNames, s *start, held *scope) (*scope, bool) {
	if len(names.list) == 0 {
		return &s.generation.plain, true
	}
	// 1. a load of item i begins   2. it reads the source   3. i changes, and its region is
	// cleared   4. the load ends: its value is older than the clear. A clear that is logged
	// after this check finds the item when it comes to this shard.
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

// isOf reports whether s is the scope of one region alone, which has that name and was not
// cleared. s may be nil. The scope of a kept not-found does not count, see scopeLocked.
func (s *scope) isOf(name string) bool {
	return s != nil && s.err == nil && len(s.regions) == 1 && s.regions[0].name == name && !s.cleared.Load()
}

// regionsLocked returns the regions with those names.
func (sh *shard[K, V]) regionsLocked(names regionNames) []*region {
	regions := make([]*region, len(names.list))
	for i, name := range names.list {
		regions[i] = sh.regionLocked(name)
	}
	return regions
}

// regionLocked returns the region with that name. A new one has no members. The caller has
// to add the item that it is for at once, or the region would never go.
func (sh *shard[K, V]) regionLocked(name string) *region {
	r := sh.regions[name]
	if r == nil {
		if sh.regions == nil {
			sh.regions = map[string]*region{}
		}
		name = strings.Clone(name) // it may be a part of a value, or of memory that is reused
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

// releaseLocked no longer counts an entry as a member of its regions.
func (sh *shard[K, V]) releaseLocked(s *scope) {
	for _, r := range s.regions {
		r.members--
		if r.members == 0 && sh.regions[r.name] == r {
			forget(&sh.regions, &sh.mostRegions, r.name)
		}
	}
}

// clearRegions invalidates the items of regions. A load under way does not know its regions
// yet. So no later caller joins it (see nothingClearedSince), and whether it is kept is
// decided at its end (see attachLocked).
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
		l.dirty.Add(1) // after the entries have died: a sweep that sees this count sees them dead
		l.sweeper.soon()
	}
}

const (
	// namesAtOnce is how many names are looked up under one hold of a shard's lock.
	namesAtOnce = 1024

	// searchCost is how many look-ups in the map of a shard's regions take as long as one
	// search in a long list of names.
	searchCost = 4
)

// clearRegions marks those of the shard's regions that are in names, and reports whether
// there are any. It walks the names or the shard's regions, whichever is faster. There may
// be thousands of names, of regions, and of shards.
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

// maxClearLog bounds how many region clears are remembered for the loads under way. A load
// that was overtaken by more counts as if one of its regions had been cleared.
const maxClearLog = 1024

// maxClearLogBytes bounds the bytes of those names. Each may be as long as a message.
const maxClearLogBytes = 1 << 20

// clearLog remembers which regions were cleared since the oldest load under way began, and
// perhaps a few more. Its size does not depend on how many are ever cleared.
type clearLog struct {
	// count counts region clears. A load or write notes it at its start.
	count atomic.Uint64

	// underWay reports whether there are loads and writes between begin and end. Each shard
	// counts its own: with a single counter, every write would move its cache line between
	// processors.
	underWay func() bool

	mu    sync.Mutex // guards everything below
	names []string   // names[i] is the name of clear number base+1+i
	bytes int        // of all names
	base  uint64     // base + len(names) == count
}

// begin counts a load or write in its shard's counter. Only then does the load or write
// note the count of clears. Each begin is paired with one end.
//
// The order matters. A clear first advances the count, and then looks whether anything is
// under way. So if a load and a clear race, either the load notes the clear, or the clear
// logs its name.
func (c *clearLog) begin(counter *atomic.Int64) { counter.Add(1) }

// end leaves names that are no longer needed in the log. The next record or size drops
// them: they are few, and to look at all shards would cost too much for every write.
func (c *clearLog) end(counter *atomic.Int64) { counter.Add(-1) }

// record logs that regions are cleared. They count as cleared in one moment, so one look at
// what is under way is enough.
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
		c.names = append(c.names, strings.Clone(name)) // it may be a part of a large message
	}
	c.bytes += bytes
}

// overtook reports whether one of the regions was cleared, or may have been, after a load
// or write noted the count since.
func (c *clearLog) overtook(since uint64, regions regionNames) bool {
	if c.count.Load() == since {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if since < c.base {
		return true // names from so long ago were not kept
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
