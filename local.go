package nearcache

import (
	"hash/maphash"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/puzpuzpuz/xsync/v4"

	"github.com/nearcache/nearcache/internal/eviction"
)

// The local layer holds a cache's items in this process's memory: bounded, in
// regions, and fenced against invalidations.
//
// Readers look entries up in one lock-free map. Everything that changes what is
// held for a key, and every look-up that is followed by such a change, happens
// in one critical section of the key's shard.
//
// A key is invalidated by taking it out. Clearing the cache or a region is O(1):
// it advances a generation, or marks the region, and so makes entries dead where
// they are. A dead entry is a miss, and a sweep in the background returns its
// memory.
//
// What may be held at all is the fence's business, see fence.go.
type local[K comparable, V any] struct {
	// entries holds every entry by its key; a key's shard lock guards its writes.
	entries *xsync.Map[K, *entry[K, V]]

	shards []shard[K, V] // a power of two
	seed   maphash.Seed

	// lockedHits says that the policy has to see hits under the shard lock.
	lockedHits bool

	// regional says that items may belong to regions: if not, clears of regions
	// are of no concern to loads and writes.
	regional bool

	// lease and staleness are the serving rule's, see lease. A lease younger than
	// fresh covers whatever is held, see covered.
	lease            *lease
	staleness, fresh int64

	// generation advances with every clear of the cache.
	generation atomic.Uint64

	regions regionTable

	closed  atomic.Bool
	sweeper *sweeper
	stats   *cacheCounters

	// expiring counts the entries that have a deadline, notFounds the kept
	// not-founds.
	expiring, notFounds atomic.Int64

	// dirty counts clears; swept is what it was when the last whole sweep began.
	// Equal: every entry is live or expired.
	dirty, swept atomic.Uint64
}

// entry is one item in memory. Its fields never change once it is published in
// the map.
type entry[K comparable, V any] = eviction.Node[item[K, V]]

type item[K comparable, V any] struct {
	key      K
	value    V
	notFound bool // a kept not-found: no value, and a member of every region
	expires  int64
	start    start
	regions  []*region
}

// shard is a part of the cache with a lock of its own.
type shard[K comparable, V any] struct {
	// mu guards everything below, and all changes to local.entries for the keys
	// of this shard.
	mu      sync.Mutex
	policy  eviction.Policy[item[K, V]]
	flights map[K]*flight[K, V] // the newest of each key
	writes  map[K]*pendingWrite

	_ [64]byte // shards share no cache line
}

// entriesPerShard is the least capacity of a shard: smaller ones evict much
// sooner than the whole cache would, since keys do not spread evenly.
const entriesPerShard = 512

func newLocal[K comparable, V any](o Options[K, V], lease *lease, stats *cacheCounters) *local[K, V] {
	shards := 1
	for shards < 16*runtime.GOMAXPROCS(0) && o.Capacity/(2*shards) >= entriesPerShard {
		shards *= 2
	}
	l := &local[K, V]{
		entries:    xsync.NewMap[K, *entry[K, V]](),
		shards:     make([]shard[K, V], shards),
		seed:       maphash.MakeSeed(),
		lockedHits: o.Eviction == LRU,
		regional:   o.Regions != nil || o.NotFoundTTL > 0,
		lease:      lease,
		staleness:  int64(o.MaxStaleness),
		fresh:      int64(o.MaxStaleness - o.MaxStaleness/lapseSpread),
		stats:      stats,
	}
	l.sweeper = newSweeper(l.sweep, func() bool { return l.expiring.Load() > 0 })
	for i := range l.shards {
		sh := &l.shards[i]
		share := o.Capacity / shards
		if i < o.Capacity%shards {
			share++
		}
		if l.lockedHits {
			sh.policy = eviction.NewLRU[item[K, V]](share)
		} else {
			sh.policy = eviction.NewS3FIFO[item[K, V]](share)
		}
		sh.flights = map[K]*flight[K, V]{}
		sh.writes = map[K]*pendingWrite{}
	}
	return l
}

// get returns the live entry of key, or nil, and counts the hit with the policy.
func (l *local[K, V]) get(key K) *entry[K, V] {
	e := l.peek(key)
	if e == nil {
		return nil
	}
	if !l.lockedHits {
		e.Use()
		return e
	}
	sh, _ := l.shard(key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if current, _ := l.entries.Load(key); current == e {
		sh.policy.Touch(e)
	}
	return e
}

// peek returns the live entry of key, or nil, and leaves no trace.
func (l *local[K, V]) peek(key K) *entry[K, V] {
	m := l.lease.read() // first
	e, held := l.entries.Load(key)
	if !held || l.fate(e, m) != alive {
		return nil
	}
	return e
}

// fate is what has become of an entry.
type fate int

const (
	absent fate = iota // there is no entry
	alive
	expired
	cleared
	unleased // nothing is known against it, but neither does the lease vouch for it
	fates    // how many there are
)

// dead reports whether an entry of that fate will never be served again.
func (f fate) dead() bool { return f == expired || f == cleared }

// fate reports whether e may be served by a read that began at m.
func (l *local[K, V]) fate(e *entry[K, V], m moment) fate {
	it := &e.Item
	if it.start.generation != l.generation.Load() {
		return cleared
	}
	if it.notFound && it.start.clears != l.regions.clears.Load() {
		return cleared
	}
	for _, r := range it.regions {
		if r.cleared.Load() {
			return cleared
		}
	}
	if m.at >= it.expires {
		return expired
	}
	if m.leaseAge >= l.fresh && !l.covered(e, m) {
		return unleased
	}
	return alive
}

// lapseSpread is the part of MaxStaleness over which entries lapse one by one.
const lapseSpread = 5

// covered reports whether the serving rule lets e be served by a read that began
// at m.
func (l *local[K, V]) covered(e *entry[K, V], m moment) bool {
	return l.lease.covers(m, e.Item.start.at, l.stalenessOf(e.Hash))
}

// stalenessOf takes up to a fifth off MaxStaleness, as the key's hash has it: when
// Redis is lost the source is not asked for everything in one moment, nor for
// everything at once again. A lease is renewed long before that matters.
func (l *local[K, V]) stalenessOf(hash uint64) int64 {
	return l.staleness - int64(float64(l.staleness-l.fresh)*float64(hash>>32)/(1<<32))
}

// shard returns the shard of key, and key's hash.
func (l *local[K, V]) shard(key K) (*shard[K, V], uint64) {
	hash := maphash.Comparable(l.seed, key)
	return &l.shards[hash&uint64(len(l.shards)-1)], hash
}

// dropLocked takes a held entry out of memory.
func (l *local[K, V]) dropLocked(sh *shard[K, V], e *entry[K, V]) {
	sh.policy.Remove(e)
	l.forgetLocked(e)
}

// forgetLocked takes an entry that has left the policy out of everything else.
func (l *local[K, V]) forgetLocked(e *entry[K, V]) {
	l.entries.Delete(e.Item.key)
	l.regions.release(e.Item.regions)
	if e.Item.notFound {
		l.notFounds.Add(-1)
	}
	if e.Item.expires != never {
		l.expiring.Add(-1)
	}
}

// clear invalidates the whole cache.
func (l *local[K, V]) clear() {
	l.generation.Add(1)
	l.dirty.Add(1) // after the entries died: a sweep that counts it has seen them dead
	l.sweeper.soon()
}

// clearRegions invalidates the items of regions. A load under way does not know
// its regions yet, so none can be joined after it (see holds), and each finds
// out at its end whether it may be kept (see attach).
func (l *local[K, V]) clearRegions(regions []string) {
	if l.regions.clear(regions) || l.notFounds.Load() > 0 {
		l.dirty.Add(1)
		l.sweeper.soon()
	}
}

// len returns the number of entries that are held and not cleared; entries that
// expired a short while ago may count.
func (l *local[K, V]) len() int {
	if l.swept.Load() == l.dirty.Load() {
		return l.entries.Size()
	}
	n := 0
	for _, e := range l.entries.All() {
		if l.fate(e, vouched(0)) != cleared {
			n++
		}
	}
	return n
}

// sweep takes dead and expired entries out of memory.
func (l *local[K, V]) sweep(stopped func() bool) {
	dirty, now := l.dirty.Load(), vouched(l.lease.now())
	for key, e := range l.entries.All() {
		fate := l.fate(e, now)
		if !fate.dead() {
			continue
		}
		if stopped() {
			return
		}
		sh, _ := l.shard(key)
		sh.mu.Lock()
		if current, _ := l.entries.Load(key); current == e {
			l.dropLocked(sh, e)
			l.stats.evictions.count(fate)
		}
		sh.mu.Unlock()
	}
	l.swept.Store(dirty)
}

// close forgets everything and keeps nothing from here on.
func (l *local[K, V]) close() {
	l.closed.Store(true)
	l.generation.Add(1)
	l.sweeper.close()

	// All shards at once, so that no entry is in the map and in no policy.
	for i := range l.shards {
		l.shards[i].mu.Lock()
	}
	l.entries.Clear()
	l.regions.forget()
	for i := range l.shards {
		l.shards[i].policy = nil // nothing is kept, so nothing asks for it
		l.shards[i].mu.Unlock()
	}
}
