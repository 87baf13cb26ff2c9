package nearcache

import (
	"hash/maphash"
	"reflect"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/nearcache/nearcache/internal/eviction"
)

// The local layer holds a cache's items in this process's memory: bounded, in
// regions, and fenced against invalidations.
//
// Readers look entries up in tables that need no lock. Everything that changes
// what is held for a key, and every look-up that is followed by such a change,
// happens in one critical section of the key's shard.
//
// A key is invalidated by taking it out. Clearing the cache or a region is O(1):
// it begins a generation, or marks the region, and so makes entries dead where
// they are. A dead entry is a miss, and a sweep in the background returns its
// memory.
//
// What may be held at all is the fence's business, see fence.go.
type local[K comparable, V any] struct {
	// tables has the entries of each shard. A shard's lock guards writes.
	tables []atomic.Pointer[table[K, V]]

	shards []shard[K, V] // as many, a power of two
	seed   maphash.Seed

	// lockedHits says that the policy has to see hits under the shard lock.
	lockedHits bool

	// regional says that items may belong to regions: if not, clears of regions
	// are of no concern to loads and writes.
	regional bool

	cell cellKind // of the values

	// ownsStrings says that keys are of a string kind, see own.
	ownsStrings bool

	lifetimes

	// lease and staleness are the serving rule's, see lease. A lease younger than
	// fresh covers whatever is held, see covered.
	lease                    *lease
	staleness, freshLeaseAge int64

	// current is the generation that is served.
	current atomic.Pointer[generation]

	closed  atomic.Bool
	sweeper *sweeper

	clears clearLog // of regions

	// dirty counts clears of regions; swept is what it was when the last whole sweep
	// began. Equal: every entry of the current generation is live or expired.
	dirty, swept atomic.Uint64
}

// entry is one item in memory. With a key and a value of eight bytes each it fills
// one cache line. Key and scope never change once it is published in a table. The
// others do under the shard's lock, see replaceLocked.
type entry[K comparable, V any] = eviction.Node[item[K, V]]

type item[K comparable, V any] struct {
	key     K
	value   V // see local.place
	scope   *scope
	expires atomic.Int64
	started atomic.Int64 // when its load or write began; last, since hits on a lease do not ask
}

// newEntry returns an entry that is not in memory yet, and has no scope.
func newEntry[K comparable, V any](key K, value V, started, expires int64) *entry[K, V] {
	e := &entry[K, V]{Item: item[K, V]{key: key, value: value}}
	e.Item.expires.Store(expires)
	e.Item.started.Store(started)
	return e
}

// shard is a part of the cache with a lock of its own. What every write changes comes
// first, in as few cache lines as may be: another processor had the shard before.
type shard[K comparable, V any] struct {
	underWay atomic.Int64 // loads and writes of its keys, between clearLog.begin and end

	// mu guards everything below, and all changes to the shard's table.
	mu          sync.Mutex
	expiring    atomic.Int64 // entries that have a deadline; read without mu
	counters    shardCounters
	table       *atomic.Pointer[table[K, V]]
	limits      eviction.Limits
	generation  *generation // of all its entries
	regions     map[string]*region
	policy      eviction.Policy[item[K, V]]
	flights     map[K]*flight[K, V] // the newest of each key
	writes      map[K]*pendingWrite
	failedLoads map[K]failedLoad // of items that are held

	mostFlights, mostWrites, mostFailedLoads, mostRegions int // see forget

	_ [48]byte // shards share no cache line, and all lie alike
}

const (
	// entriesPerShard is the least capacity of a shard: smaller ones evict much
	// sooner than the whole cache would, since keys do not spread evenly.
	entriesPerShard = 1024

	// Shards beyond what the processors need are there to be small: one whose table
	// grows holds up its writes until all entries have moved.
	shardsPerProcessor = 16
	quicklyMoved       = 1 << 14

	// mostShards bounds what an empty cache takes, and how long it takes to go through
	// all shards. It leaves the bits of a hash that choose the bucket, see home.
	mostShards = 1 << 12
)

// shardsFor returns how many shards a cache has, a power of two. One that bounds
// weights has one: how many items that makes is not known, and any item up to the
// bound must find room.
func shardsFor(capacity int, maxWeight int64) int {
	shards := 1
	if maxWeight > 0 {
		return shards
	}
	for shards < mostShards && capacity/(2*shards) >= entriesPerShard &&
		(shards < shardsPerProcessor*runtime.GOMAXPROCS(0) || capacity/shards > quicklyMoved) {
		shards *= 2
	}
	return shards
}

func newLocal[K comparable, V any](o Options[K, V], lease *lease) *local[K, V] {
	shards := shardsFor(o.Capacity, o.MaxWeight)
	l := &local[K, V]{
		tables:        make([]atomic.Pointer[table[K, V]], shards),
		shards:        make([]shard[K, V], shards),
		seed:          maphash.MakeSeed(),
		lockedHits:    o.Eviction == LRU,
		regional:      o.Regions != nil || o.NotFoundRegions != nil || o.NotFoundTTL > 0 || o.ErrorTTL > 0,
		cell:          cellKindOf[V](),
		ownsStrings:   reflect.TypeFor[K]().Kind() == reflect.String,
		lifetimes:     newLifetimes(o),
		lease:         lease,
		staleness:     int64(o.MaxStaleness),
		freshLeaseAge: int64(o.MaxStaleness - o.MaxStaleness/lapseSpread),
	}
	l.current.Store(newGeneration())
	l.clears.underWay = l.underWay
	l.sweeper = newSweeper(l.sweep, l.expires)
	for i := range l.shards {
		sh := &l.shards[i]
		sh.table = &l.tables[i]
		sh.limits = eviction.Limits{Entries: o.Capacity / shards, Weight: o.MaxWeight}
		if i < o.Capacity%shards {
			sh.limits.Entries++
		}
		sh.flights = map[K]*flight[K, V]{}
		sh.writes = map[K]*pendingWrite{}
		l.emptyLocked(sh, l.current.Load())
	}
	return l
}

// emptyLocked drops whatever the shard holds; from here on it is g's.
func (l *local[K, V]) emptyLocked(sh *shard[K, V], g *generation) {
	sh.generation, sh.regions, sh.failedLoads = g, nil, nil
	sh.expiring.Store(0)
	sh.table.Store(newTable[K, V](0))
	if l.lockedHits {
		sh.policy = eviction.NewLRU[item[K, V]](sh.limits)
	} else {
		sh.policy = eviction.NewAdaptive[item[K, V]](sh.limits)
	}
}

// use tells the policy of a hit on e.
func (l *local[K, V]) use(e *entry[K, V]) {
	if l.lockedHits {
		l.touch(e)
	} else {
		e.Use()
	}
}

// touch tells a policy that wants the lock of a hit on e, unless e has left.
func (l *local[K, V]) touch(e *entry[K, V]) {
	hash := l.hash(e.Item.key)
	sh := l.shard(hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.table.Load().find(hash, e.Item.key) == e {
		sh.policy.Touch(e)
	}
}

// peek returns the live entry of key, or nil, and when the read began. It leaves no
// trace.
func (l *local[K, V]) peek(key K) (*entry[K, V], int64) {
	m := l.lease.read() // first
	e := l.find(key)
	if e == nil || l.fate(e, m) != alive {
		return nil, m.at
	}
	return e, m.at
}

// find returns the entry of key, or nil. It takes no lock.
func (l *local[K, V]) find(key K) *entry[K, V] {
	hash := l.hash(key)
	return l.table(hash).find(hash, key)
}

func (l *local[K, V]) table(hash uint64) *table[K, V] {
	return l.tables[hash&uint64(len(l.tables)-1)].Load()
}

// result returns what an entry stands for.
func (l *local[K, V]) result(e *entry[K, V]) (V, error) {
	if err := e.Item.scope.err; err != nil {
		return e.Item.value, err // the zero value, never replaced
	}
	return loadValue(l.cell, &e.Item.value), nil
}

// own returns the key to keep for key, whose bytes may be the caller's. Whatever outlives
// a call, such as entries, loads, writes and queued messages, has a key from here or, if
// it has a MarshalText, one that keyCodec.name has decoded. Look-ups take the caller's.
func (l *local[K, V]) own(key K) K {
	if l.ownsStrings {
		return ownString(key)
	}
	return key
}

func (l *local[K, V]) hash(key K) uint64 { return maphash.Comparable(l.seed, key) }

func (l *local[K, V]) shard(hash uint64) *shard[K, V] {
	return &l.shards[hash&uint64(len(l.shards)-1)]
}

// addLocked takes e in, in the place of what is held under its key.
//
// It makes as few atomic operations as may be: each waits for all writes before it, and
// those for the processors that had their cache lines.
func (l *local[K, V]) addLocked(sh *shard[K, V], hash uint64, e *entry[K, V], weight uint32, now int64) {
	sh.retainLocked(e.Item.scope) // first: a region whose last other member leaves goes with it
	expiring := l.expiring(e.Item.expires.Load())
	t := sh.table.Load()
	old := t.find(hash, e.Item.key)
	if old != nil && old.Weight() == weight {
		sh.policy.Replace(old, e)
	} else {
		if old != nil {
			sh.policy.Remove(old) // first: it makes room
		}
		for victim := sh.policy.Evict(hash, weight); victim != nil; victim = sh.policy.Evict(hash, weight) {
			victimHash := l.hash(victim.Item.key)
			sh.policy.Remember(victimHash)
			sh.counters.evictions[l.fate(victim, vouched(now))]++
			t.delete(victimHash, victim)
			expiring -= l.uncountLocked(sh, victim)
			sh.forgetFailureLocked(victim.Item.key)
		}
		sh.policy.Add(e, hash, weight)
	}
	if old != nil {
		t.replace(hash, old, e)
		expiring -= l.uncountLocked(sh, old)
	} else {
		if sh.policy.Len() > t.room() { // e is in it already
			t = t.resized(2*t.room(), l.hash)
			sh.table.Store(t)
		}
		t.put(hash, e)
	}
	if e.Item.scope.every {
		sh.generation.errors.Add(1)
	}
	l.countExpiringLocked(sh, expiring)
}

// replaceLocked makes e's value, deadline and start those of a newer load or write
// of its key, and reports whether it can: if all else about e stays as it is.
//
// Readers look at the deadline and the start first and at the value last. Here the
// value comes first, so none finds an old value to be good by what was said of a
// new one. One may find a new value to be good by what was said of the old: the
// write began after the old one's, and overlaps with the read.
func (l *local[K, V]) replaceLocked(
	sh *shard[K, V], e *entry[K, V], s *scope, o *outcome[V], started, expires, now int64,
) bool {
	it := &e.Item
	if l.cell == fixed || it.scope != s || e.Weight() != o.weight || started < it.started.Load() {
		return false
	}
	storeValue(l.cell, &it.value, o.value)
	l.countExpiringLocked(sh, l.expiring(expires)-l.expiring(it.expires.Swap(expires)))
	it.started.Store(started)
	l.renew(e, now)
	sh.policy.Touch(e)
	return true
}

// expiring returns 1 if an entry with that deadline can expire, else 0.
func (l *local[K, V]) expiring(expires int64) int {
	if expires == never && l.idle == 0 {
		return 0
	}
	return 1
}

// countExpiringLocked counts n more entries that can expire.
func (l *local[K, V]) countExpiringLocked(sh *shard[K, V], n int) {
	if n == 0 {
		return
	}
	sh.expiring.Add(int64(n))
	if n > 0 {
		l.sweeper.later()
	}
}

// dropLocked takes a held entry out of memory. A table that has become much too
// large goes, too.
func (l *local[K, V]) dropLocked(sh *shard[K, V], hash uint64, e *entry[K, V]) {
	sh.policy.Remove(e)
	sh.table.Load().delete(hash, e)
	l.countExpiringLocked(sh, -l.uncountLocked(sh, e))
	sh.forgetFailureLocked(e.Item.key)
	held := sh.policy.Len()
	if t := sh.table.Load(); t.room() > 8*max(held, bucketFill) {
		sh.table.Store(t.resized(2*held, l.hash))
	}
}

// uncountLocked takes an entry that is no longer held out of the counts, but for that
// of the entries that can expire: it returns how many are less of those.
func (l *local[K, V]) uncountLocked(sh *shard[K, V], e *entry[K, V]) (expiring int) {
	sh.releaseLocked(e.Item.scope)
	if e.Item.scope.every {
		sh.generation.errors.Add(-1)
	}
	return l.expiring(e.Item.expires.Load())
}

// underWay reports whether a load or write has begun and not ended.
func (l *local[K, V]) underWay() bool {
	for i := range l.shards {
		if l.shards[i].underWay.Load() > 0 {
			return true
		}
	}
	return false
}

// clear invalidates the whole cache.
func (l *local[K, V]) clear() {
	l.current.Store(newGeneration())
	l.sweeper.soon()
}

// len returns the number of entries that are held and not cleared; entries that
// expired a short while ago may count.
func (l *local[K, V]) len() (n int) {
	exact := l.swept.Load() == l.dirty.Load()
	for i := range l.shards {
		sh := &l.shards[i]
		sh.mu.Lock()
		t, current := sh.table.Load(), sh.generation == l.current.Load()
		held := sh.policy.Len()
		sh.mu.Unlock()
		switch {
		case !current:
		case exact:
			n += held
		default:
			for e := range t.all() {
				if !l.isCleared(e.Item.scope) {
					n++
				}
			}
		}
	}
	return n
}

// expires reports whether there are entries that will expire. It takes no lock:
// the sweeper asks under its own, which is taken under a shard's (see addLocked).
func (l *local[K, V]) expires() bool {
	for i := range l.shards {
		if l.shards[i].expiring.Load() > 0 {
			return true
		}
	}
	return false
}

// count returns the sum of the weights of what is held of the current generation,
// the number of regions of all shards, and the sum of their counters.
func (l *local[K, V]) count() (weight int64, regions int, sum shardCounters) {
	for i := range l.shards {
		sh := &l.shards[i]
		sh.mu.Lock()
		if sh.generation == l.current.Load() {
			weight += sh.policy.Weight()
			regions += len(sh.regions)
		}
		sum.add(&sh.counters)
		sh.mu.Unlock()
	}
	return weight, regions, sum
}

// renewLocked makes sh the current generation's. Whatever it holds of another is
// dropped at once, however much it is.
func (l *local[K, V]) renewLocked(sh *shard[K, V]) {
	if g := l.current.Load(); sh.generation != g {
		sh.counters.evictions[cleared] += uint64(sh.policy.Len())
		l.emptyLocked(sh, g)
	}
}

// sweep takes dead and expired entries out of memory.
func (l *local[K, V]) sweep(stopped func() bool) {
	dirty, now := l.dirty.Load(), vouched(l.lease.now())
	for i := range l.shards {
		sh := &l.shards[i]
		sh.mu.Lock()
		l.renewLocked(sh)
		t := sh.table.Load()
		sh.mu.Unlock()
		for e := range t.all() {
			if !l.fate(e, now).dead() {
				continue
			}
			if stopped() {
				return
			}
			hash := l.hash(e.Item.key)
			sh.mu.Lock()
			if f := l.fate(e, now); f.dead() && sh.table.Load().find(hash, e.Item.key) == e {
				sh.counters.evictions[f]++
				l.dropLocked(sh, hash, e)
			}
			sh.mu.Unlock()
		}
	}
	l.swept.Store(dirty)
}

// stopServing has nothing served from memory, nor kept, from here on. It waits for
// nothing.
func (l *local[K, V]) stopServing() {
	l.closed.Store(true) // first: nothing is added to a shard that was emptied
	l.current.Store(newGeneration())
}

// close forgets everything and keeps nothing from here on.
func (l *local[K, V]) close() {
	l.stopServing()
	l.sweeper.close()
	for i := range l.shards {
		sh := &l.shards[i]
		sh.mu.Lock()
		l.emptyLocked(sh, l.current.Load())
		for _, newest := range sh.flights {
			newest.overtakenLocked()
		}
		sh.flights = map[K]*flight[K, V]{} // nobody joins them, and closed again they are not ended again
		sh.mu.Unlock()
	}
}
