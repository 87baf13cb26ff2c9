package nearcache

import (
	"hash/maphash"
	"math"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

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
// The fence: nothing is kept that an invalidation overtook. Each load and each
// write notes its start (the generation, the count of region clears) and
// registers itself under its key. It may keep its result only if it is still
// registered and its start still holds. Numbered interleavings stand beside the
// lines that handle them.
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

// start is what a load or write notes when it begins.
type start struct {
	at         int64  // lease.now
	generation uint64 // local.generation
	clears     uint64 // regionTable.clears
}

// after reports whether s began after other, as far as it matters: one may be kept
// over the other.
func (s start) after(other start) bool {
	return s.clears > other.clears || s.at > other.at
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

// pendingWrite is a Set or Update under way.
type pendingWrite struct{ start start }

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

// begin notes the start of a load or write. Each is paired with one l.end.
func (l *local[K, V]) begin() start {
	return start{at: l.lease.now(), generation: l.generation.Load(), clears: l.regions.begin()}
}

func (l *local[K, V]) end() { l.regions.end() }

// holds reports whether nothing was cleared since s: not the cache, no region.
func (l *local[K, V]) holds(s start) bool {
	return s.generation == l.generation.Load() && (!l.regional || s.clears == l.regions.clears.Load())
}

// beginWrite fences key for a Set or Update: it is evicted, loads and writes
// under way will not keep it, and what it returns tells at the end whether
// anything has invalidated it since.
func (l *local[K, V]) beginWrite(key K) *pendingWrite {
	w := &pendingWrite{start: l.begin()}
	sh, _ := l.shard(key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	l.removeLocked(sh, key)
	sh.writes[key] = w
	return w
}

// endWrite ends w. The key is invalidated once more, and then kept as outcome
// says unless anything else invalidated it since w began.
//
//  1. Update A of key begins   2. Update B of key begins, A is no longer registered
//  3. A ends, B is no longer registered   4. B ends: neither result is kept,
//
// since nobody knows in which order the source took them.
func (l *local[K, V]) endWrite(key K, w *pendingWrite, o *outcome[V]) {
	defer l.end()
	sh, hash := l.shard(key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	undisturbed := sh.writes[key] == w
	l.removeLocked(sh, key)
	if undisturbed {
		l.keepLocked(sh, hash, l.lease.now(), key, w.start, o)
	}
}

// outcome is what a load or write ended with, as far as keeping it goes.
type outcome[V any] struct {
	value    V
	notFound bool
	ttl      time.Duration // zero or less: not to be kept
	regions  []string
}

// keepLocked keeps o under key, whose load or write began at s, unless the cache
// or one of its regions was cleared since; the caller has checked that key
// itself was not invalidated. It reports whether o is in memory now.
func (l *local[K, V]) keepLocked(
	sh *shard[K, V], hash uint64, now int64, key K, s start, o *outcome[V],
) (kept bool) {
	expires := deadline(s.at, o.ttl)
	if o.ttl <= 0 || expires <= now || l.closed.Load() {
		return false
	}
	// 1. a load begins   2. it reads the source   3. the cache is cleared   4. the
	// load ends. A clear between this line and the store below is harmless: the
	// entry carries the old generation and is born dead.
	if s.generation != l.generation.Load() {
		return false
	}
	// The same for a region. A not-found is a member of all, and born dead if one
	// is cleared from here on; other items are if attach's regions are marked.
	if o.notFound && s.clears != l.regions.clears.Load() {
		return false
	}
	regions, attached := l.regions.attach(o.regions, s.clears)
	if !attached {
		return false
	}
	e := &entry[K, V]{Hash: hash, Item: item[K, V]{
		key: key, value: o.value, notFound: o.notFound, expires: expires, start: s, regions: regions,
	}}
	// 1. load A begins   2. a region is cleared that turns out to be none of its
	// own, or the lease is lost   3. load B of the same key begins, since A may not be
	// joined   4. both end. Either may be kept, and B may be newer.
	if old, held := l.entries.Load(key); held {
		if old.Item.start.after(s) && !l.fate(old, vouched(now)).dead() {
			l.regions.release(regions)
			return false
		}
		l.dropLocked(sh, old)
	}
	if victim := sh.policy.Add(e); victim != nil {
		l.forgetLocked(victim)
		l.stats.evictions.count(l.fate(victim, vouched(now)))
	}
	l.entries.Store(key, e)
	if o.notFound {
		l.notFounds.Add(1)
	}
	if expires != never {
		l.expiring.Add(1)
		l.sweeper.later()
	}
	// 1. the checks above pass   2. a clear, and the sweep that follows it, which
	// finds nothing here   3. the entry is stored. No other sweep would come.
	if l.fate(e, vouched(now)) == cleared {
		l.dropLocked(sh, e)
		return false
	}
	return true
}

// never is the deadline of an entry that does not expire.
const never = math.MaxInt64

// deadline adds ttl to at without overflow.
func deadline(at int64, ttl time.Duration) int64 {
	if int64(ttl) > never-at {
		return never
	}
	return at + int64(ttl)
}

// remove invalidates keys.
func (l *local[K, V]) remove(keys ...K) {
	for _, key := range keys {
		sh, _ := l.shard(key)
		sh.mu.Lock()
		l.removeLocked(sh, key)
		sh.mu.Unlock()
	}
}

// removeLocked invalidates key: its entry goes, and so do its load and write
// under way, which nobody joins and which keep nothing from here on.
//
//  1. Get starts a load   2. the load reads version 1   3. another instance
//     writes version 2 and its message arrives here   4. the load ends: it is no
//     longer registered, its callers get version 1, and nobody keeps it.
//  5. A Get after 3 finds no load to join and starts its own.
func (l *local[K, V]) removeLocked(sh *shard[K, V], key K) {
	if e, held := l.entries.Load(key); held {
		l.dropLocked(sh, e)
	}
	delete(sh.flights, key) // with all the older ones
	delete(sh.writes, key)
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
