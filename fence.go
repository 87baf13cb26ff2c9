package nearcache

import (
	"math"
	"time"
)

// The fence keeps out of memory what an invalidation has overtaken. Each load and each
// write notes its start: the generation, and the count of region clears. It also registers
// itself under its key. It may keep its result only if it is still registered, and if
// neither the cache nor one of the item's regions was cleared since its start. Numbered
// interleavings stand beside the lines that handle them.

// start is what a load or a write notes when it begins.
type start struct {
	at         int64       // lease.now
	since      int64       // when the result's age starts: equals at, except for values from Redis
	generation *generation // local.current
	clears     uint64      // clearLog.count
}

// pendingWrite is an Update under way.
type pendingWrite struct{ start start }

// beginWork counts a load or write of a key of that shard as under way, and returns its
// start. Each call is paired with one endWork.
func (l *local[K, V]) beginWork(sh *shard[K, V]) start {
	if l.regional {
		l.clears.begin(&sh.underWay) // first, see there
	}
	return l.startNow()
}

// startNow returns a start for a load or write that is counted as under way.
func (l *local[K, V]) startNow() start {
	at := l.lease.now()
	return start{at: at, since: at, generation: l.current.Load(), clears: l.clears.count.Load()}
}

// startFromLease is called before a load asks the shared level. It reports whether the load
// may: only under a lease. The age of what is read there starts when that lease's probe was
// sent. startFromLease records that in s.
//
//  1. a probe is sent that earns a lease   2. the master is cut off from the other
//     servers, and takes no more writes. Another master accepts an invalidation   3. a load
//     reads the old version from the first. It may be served as long as that lease allows.
//     Counted from 3, it would be served until MaxStaleness after 3.
func (l *local[K, V]) startFromLease(s *start) bool {
	m := l.lease.read()
	if m.leaseAge >= l.freshLeaseAge {
		return false
	}
	s.since = min(s.since, m.at-m.leaseAge)
	return true
}

func (l *local[K, V]) endWork(sh *shard[K, V]) {
	if l.regional {
		l.clears.end(&sh.underWay)
	}
}

// nothingClearedSince reports whether nothing was cleared since s: neither the cache nor a
// region.
func (l *local[K, V]) nothingClearedSince(s start) bool {
	return s.generation == l.current.Load() && (!l.regional || s.clears == l.clears.count.Load())
}

// beginWrite fences key for an Update. It evicts the key. No load or write of the key that
// is under way is kept. The result tells endWrite whether anything has invalidated the key
// since.
func (l *local[K, V]) beginWrite(key K) *pendingWrite {
	hash := l.hash(key)
	sh := l.shard(hash)
	w := &pendingWrite{start: l.beginWork(sh)}
	sh.mu.Lock()
	defer sh.mu.Unlock()
	sh.counters.keysInvalidated++
	l.removeLocked(sh, hash, key)
	sh.writes[key] = w
	return w
}

// endWrite ends w. The key is invalidated once more. Then o is kept, unless anything else
// has invalidated the key since w began.
//
//  1. Update A of key begins   2. Update B of key begins, and A is no longer registered
//  3. A ends, and B is no longer registered   4. B ends. Neither result is kept, since it is
//     not known in which order the source took them.
func (l *local[K, V]) endWrite(key K, w *pendingWrite, o *outcome[V]) {
	hash := l.hash(key)
	sh := l.shard(hash)
	defer l.endWork(sh)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	undisturbed := sh.writes[key] == w
	l.removeLocked(sh, hash, key)
	if undisturbed {
		l.storeLocked(sh, &pendingStore[K, V]{hash: hash, key: key, now: l.lease.now()}, &w.start, o)
	}
}

// put keeps o under key, for a write that began at s, unless the cache or one of the item's
// regions was cleared since. It replaces the entry in memory. No load or write of the key
// that is under way is kept.
func (l *local[K, V]) put(hash uint64, key K, s start, o *outcome[V]) {
	prepared := l.prepare(o, hash, key, &s)
	sh := l.shard(hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	sh.counters.keysInvalidated++
	sh.overtakeLocked(key)
	sh.forgetFailureLocked(key)
	if !l.storeLocked(sh, &pendingStore[K, V]{hash: hash, key: key, prepared: prepared, now: s.at}, &s, o) {
		l.removeLocked(sh, hash, key)
	}
}

// prepare makes the entry that o is likely to need, before the shard's lock is taken: an
// allocation may have to help the garbage collector.
func (l *local[K, V]) prepare(o *outcome[V], hash uint64, key K, s *start) *entry[K, V] {
	if o.ttl <= 0 || l.cell != fixed && l.table(hash).find(hash, key) != nil {
		return nil
	}
	return newEntry(key, o.value, s.since, deadline(s.at, o.ttl))
}

// pendingStore says where the outcome of a load or a write is to be kept. It has no pointer
// to the outcome or to the start: the compiler would move them to the heap.
type pendingStore[K comparable, V any] struct {
	hash     uint64
	key      K
	prepared *entry[K, V] // what prepare has made; may be nil
	now      int64
}

// storeLocked keeps o, whose load or write began at s, unless the cache or one of the item's regions was
// cleared since the load or write began. The caller has checked that the key itself was not
// invalidated. storeLocked reports whether the outcome is in memory now.
func (l *local[K, V]) storeLocked(sh *shard[K, V], p *pendingStore[K, V], s *start, o *outcome[V]) (kept bool) {
	now := p.now
	expires := deadline(s.at, o.ttl)
	last := expires
	if o.err == nil {
		last = deadline(expires, l.staleIfError) // it may be served although it has expired
	}
	if o.ttl <= 0 || last <= now || l.closed.Load() {
		return false
	}
	// 1. a load begins   2. it reads the source   3. the cache is cleared   4. the load
	// ends. A clear between this line and the end does no harm: the entry is of the old
	// generation, and dead from the start.
	l.renewLocked(sh)
	if s.generation != sh.generation {
		return false
	}
	// The same for regions. A kept error belongs to all regions, unless NotFoundRegions
	// names its own. It is dead from the start if any region is cleared from here on. Other
	// items are dead once one of their regions is marked.
	if o.err != nil && !o.hasRegions && s.clears != l.clears.count.Load() {
		return false
	}
	e := sh.table.Load().find(p.hash, p.key)
	scope, attached := l.scopeLocked(sh, o, s, e)
	if !attached {
		return false
	}
	if e == nil || !l.replaceLocked(sh, e, scope, o, newTimes{started: s.since, expires: expires, now: now}) {
		if e = p.prepared; e == nil {
			e = newEntry(p.key, o.value, s.since, expires)
		}
		e.Item.scope = scope
		l.renew(e, now)
		l.addLocked(sh, p.hash, e, o.weight, now)
	}
	// 1. the checks above pass   2. the cache or a region is cleared. The sweep that
	// follows finds nothing here   3. the entry is stored. No other sweep would come for
	// it.
	if l.fate(e, vouched(now)) == cleared {
		l.dropLocked(sh, p.hash, e)
		return false
	}
	return true
}

// scopeLocked returns the scope for the result of a load or write that began at s. It
// reports false if one of the result's regions was cleared since. e is the key's entry in
// memory, or nil.
func (l *local[K, V]) scopeLocked(sh *shard[K, V], o *outcome[V], s *start, e *entry[K, V]) (*scope, bool) {
	if o.err != nil && !o.hasRegions {
		return &scope{generation: s.generation, err: o.err, every: true, clears: s.clears}, true
	}
	if o.err != nil {
		if l.clears.overtook(s.clears, o.regions) { // as in attachLocked
			return nil, false
		}
		return &scope{generation: s.generation, err: o.err, regions: sh.regionsLocked(o.regions)}, true
	}
	var held *scope
	if e != nil {
		held = e.Item.scope
	}
	return l.attachLocked(sh, o.regions, s, held)
}

// never is the deadline of an entry that does not expire.
const never = math.MaxInt64

// deadline adds ttl to at, without overflow.
func deadline(at int64, ttl time.Duration) int64 {
	if int64(ttl) > never-at {
		return never
	}
	return at + int64(ttl)
}

// remove invalidates keys.
func (l *local[K, V]) remove(keys ...K) {
	for _, key := range keys {
		hash := l.hash(key)
		sh := l.shard(hash)
		sh.mu.Lock()
		sh.counters.keysInvalidated++
		l.removeLocked(sh, hash, key)
		sh.mu.Unlock()
	}
}

// removeLocked invalidates key. Its entry is dropped. No caller joins its load under way
// from here on, and neither that load nor a write under way is kept.
//
//  1. a Get starts a load   2. the load reads version 1   3. another instance writes
//     version 2, and its message arrives here   4. the load ends. It is no longer
//     registered: its callers get version 1, and it is not kept   5. a Get after 3 finds no
//     load to join, and starts its own.
func (l *local[K, V]) removeLocked(sh *shard[K, V], hash uint64, key K) {
	if e := sh.table.Load().find(hash, key); e != nil {
		l.dropLocked(sh, hash, e)
	}
	sh.overtakeLocked(key)
}

// overtakeLocked makes sure that no load or write of key that is under way is kept, and
// that no caller joins such a load. A load that has not begun is not concerned: it will
// read the source later.
func (sh *shard[K, V]) overtakeLocked(key K) {
	if f := sh.flights[key]; f != nil && !f.begun {
		f.older.overtakenLocked()
		f.older = nil
	} else if f != nil {
		f.overtakenLocked()
		forget(&sh.flights, &sh.mostFlights, key) // with all older ones
	}
	forget(&sh.writes, &sh.mostWrites, key)
}
