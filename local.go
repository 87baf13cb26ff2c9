package nearcache

import (
	"hash/maphash"
	"reflect"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/nearcache/nearcache/internal/eviction"
)

// local is the memory of a cache: bounded, divided into regions, and fenced against
// invalidations.
//
// Readers look entries up in tables that need no lock. Each change of a key's entry happens
// in one critical section of the key's shard, together with the look-up that leads to it.
//
// A key is invalidated by dropping its entry. Clearing the cache or a region takes O(1): it
// begins a generation, or marks the region, which makes entries dead where they are. A dead
// entry is a miss. A sweep in the background frees its memory.
//
// What may be kept at all is decided by the fence, see fence.go.
type local[K comparable, V any] struct {
	// tables has the entries of each shard. Writes need the shard's lock.
	tables []atomic.Pointer[table[K, V]]

	shards []shard[K, V] // as many as tables: a power of two
	seed   maphash.Seed

	// lockedHits says that the eviction policy has to see hits under the shard's lock.
	lockedHits bool

	// regional says that items may belong to regions. If not, loads and writes do not have
	// to heed clears of regions.
	regional bool

	cell cellKind // of the values

	// ownsStrings says that keys are of a string kind, see own.
	ownsStrings bool

	lifetimes

	// lease and staleness make the serving rule, see lease. A lease younger than
	// freshLeaseAge covers every entry, see covered.
	lease                    *lease
	staleness, freshLeaseAge int64

	// current is the generation that is served.
	current atomic.Pointer[generation]

	closed  atomic.Bool
	sweeper *sweeper

	clears clearLog // of regions

	// dirty counts clears of regions. swept is what dirty was when the last complete sweep
	// began. If they are equal, no entry of the current generation was cleared.
	dirty, swept atomic.Uint64
}

// entry is one item in memory. With a key and a value of eight bytes each, it fills one
// cache line. Once it is published in a table, its key and scope never change. Its other
// fields change under the shard's lock, see replaceLocked.
type entry[K comparable, V any] = eviction.Node[item[K, V]]

type item[K comparable, V any] struct {
	key     K
	value   V // see loadValue
	scope   *scope
	expires atomic.Int64
	started atomic.Int64 // when its load or write began; last, since hits under a lease do not read it
}

// newEntry returns an entry that is not in memory yet, and has no scope.
func newEntry[K comparable, V any](key K, value V, started, expires int64) *entry[K, V] {
	e := &entry[K, V]{Item: item[K, V]{key: key, value: value}}
	e.Item.expires.Store(expires)
	e.Item.started.Store(started)
	return e
}

// shard is a part of a cache with a lock of its own. What every write changes comes first,
// in as few cache lines as possible: another processor is likely to have used the shard
// before.
type shard[K comparable, V any] struct {
	underWay atomic.Int64 // loads and writes of its keys, between clearLog.begin and end

	// mu guards everything below, and all changes of the shard's table.
	mu          sync.Mutex
	expiring    atomic.Int64 // entries that can expire; read without mu
	counters    shardCounters
	table       *atomic.Pointer[table[K, V]]
	limits      eviction.Limits
	generation  *generation // of all its entries
	regions     map[string]*region
	policy      eviction.Policy[item[K, V]]
	flights     map[K]*flight[K, V] // the newest flight of each key
	writes      map[K]*pendingWrite
	failedLoads map[K]failedLoad // of items in memory

	mostFlights, mostWrites, mostFailedLoads, mostRegions int // see forget

	_ [48]byte // so that shards share no cache line, and all have the same alignment
}

const (
	// entriesPerShard is the smallest capacity of a shard. Keys do not spread evenly, so
	// smaller shards would evict long before the whole cache is full.
	entriesPerShard = 1024

	// There are more shards than the processors need only to keep shards small. A table
	// that grows delays the writes of its shard until all entries have moved.
	shardsPerProcessor = 16
	quicklyMoved       = 1 << 14

	// mostShards bounds the memory of an empty cache, and the time to visit all shards. It
	// leaves enough bits of a hash to choose the bucket, see home.
	mostShards = 1 << 12
)

// shardsFor returns how many shards a cache has, a power of two. A cache with MaxWeight has
// one shard. How many items that bound admits is not known, and any item up to the bound
// must find room.
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

// emptyLocked drops all that the shard holds, and makes it a shard of g.
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

// use tells the eviction policy of a hit on e.
func (l *local[K, V]) use(e *entry[K, V]) {
	if l.lockedHits {
		l.touch(e)
	} else {
		e.Use()
	}
}

// touch tells a policy that needs the lock of a hit on e, unless e is no longer in memory.
func (l *local[K, V]) touch(e *entry[K, V]) {
	hash := l.hash(e.Item.key)
	sh := l.shard(hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.table.Load().find(hash, e.Item.key) == e {
		sh.policy.Touch(e)
	}
}

// peek returns the live entry of key, or nil, and when the read began. It changes nothing.
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

// result returns the value of an entry, or the error that is kept instead.
func (l *local[K, V]) result(e *entry[K, V]) (V, error) {
	if err := e.Item.scope.err; err != nil {
		return e.Item.value, err // the zero value, which is never replaced
	}
	return loadValue(l.cell, &e.Item.value), nil
}

// own returns the key to keep for key, whose bytes may be the caller's. Everything that
// outlives a call has such a key: entries, loads, writes and queued messages. If K has a
// MarshalText, they have a key that keyCodec.name has decoded instead. Look-ups use the
// caller's key.
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

// addLocked adds e, or replaces the entry of its key.
//
// It makes as few atomic operations as possible. Each one waits for all writes before it,
// and these wait for other processors to hand over their cache lines.
func (l *local[K, V]) addLocked(sh *shard[K, V], hash uint64, e *entry[K, V], weight uint32, now int64) {
	sh.retainLocked(e.Item.scope) // first: or e's region would go when its last other member does
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
		if sh.policy.Len() > t.room() { // it counts e already
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

// replaceLocked gives e the value, deadline and start of a newer load or write of its key.
// It reports false if it cannot, because something else about e would change.
//
// Readers read the deadline and the start first, and the value last. Here the value is
// written first. So no reader combines an old value with the newer times. A reader may
// combine a newer value with the older times. That is allowed: the newer write began later,
// and overlaps with the read.
func (l *local[K, V]) replaceLocked(
	sh *shard[K, V], e *entry[K, V], s *scope, o *outcome[V], at newTimes,
) bool {
	it := &e.Item
	if l.cell == fixed || it.scope != s || e.Weight() != o.weight || at.started < it.started.Load() {
		return false
	}
	storeValue(l.cell, &it.value, o.value)
	l.countExpiringLocked(sh, l.expiring(at.expires)-l.expiring(it.expires.Swap(at.expires)))
	it.started.Store(at.started)
	l.renew(e, at.now)
	sh.policy.Touch(e)
	return true
}

// newTimes are the times of a newer load or write of an entry's key.
type newTimes struct{ started, expires, now int64 }

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

// dropLocked removes an entry from memory. It also replaces a table that has become far too
// large.
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

// uncountLocked updates the counts for an entry that was removed, except the count of
// entries that can expire. It returns by how much the caller has to lower that one.
func (l *local[K, V]) uncountLocked(sh *shard[K, V], e *entry[K, V]) (expiring int) {
	sh.releaseLocked(e.Item.scope)
	if e.Item.scope.every {
		sh.generation.errors.Add(-1)
	}
	return l.expiring(e.Item.expires.Load())
}

// underWay reports whether any load or write has begun and not ended.
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

// len returns the number of entries that were not cleared. Entries that expired a short
// while ago may count.
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

// expires reports whether there are entries that will expire. It takes no lock: the sweeper
// calls it under its own lock, which addLocked takes under a shard's.
func (l *local[K, V]) expires() bool {
	for i := range l.shards {
		if l.shards[i].expiring.Load() > 0 {
			return true
		}
	}
	return false
}

// count returns the total weight of the current generation's entries, the number of regions
// in all shards, and the sum of the shards' counters.
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

// renewLocked moves sh to the current generation. All entries of an older one are dropped
// at once, however many they are.
func (l *local[K, V]) renewLocked(sh *shard[K, V]) {
	if g := l.current.Load(); sh.generation != g {
		sh.counters.evictions[cleared] += uint64(sh.policy.Len())
		l.emptyLocked(sh, g)
	}
}

// sweep removes dead entries from memory.
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

// stopServing has nothing served from memory, nor kept, from here on. It does not wait.
func (l *local[K, V]) stopServing() {
	l.closed.Store(true) // first: nothing is added to a shard after it was emptied
	l.current.Store(newGeneration())
}

// close drops everything, and keeps nothing from here on.
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
		sh.flights = map[K]*flight[K, V]{} // no caller joins them, and a second close does not end them again
		sh.mu.Unlock()
	}
}
