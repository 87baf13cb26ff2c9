package nearcache

import (
	"math"
	"time"
)

// The fence: nothing is kept that an invalidation overtook. Each load and each
// write notes its start (the generation, the count of region clears) and
// registers itself under its key. It may keep its result only if it is still
// registered and its start still holds. Numbered interleavings stand beside the
// lines that handle them.

// start is what a load or write notes when it begins.
type start struct {
	at         int64       // lease.now
	since      int64       // from when the age counts of what it brings; at, but see noteShared
	generation *generation // local.current
	clears     uint64      // clearLog.count
}

// pendingWrite is an Update under way.
type pendingWrite struct{ start start }

// begin notes the start of a load or write of a key of that shard. Each is paired
// with one l.end.
func (l *local[K, V]) beginWork(sh *shard[K, V]) start {
	if l.regional {
		l.clears.begin(&sh.underWay) // first, see there
	}
	return l.startNow()
}

// note notes the start of what is counted as under way.
func (l *local[K, V]) startNow() start {
	at := l.lease.now()
	return start{at: at, since: at, generation: l.current.Load(), clears: l.clears.count.Load()}
}

// noteShared notes of a load's start s that the shared level may be asked, and
// reports whether it may: under a lease. The age of what is read there counts from
// when that lease's probe was sent.
//
//  1. a probe is sent that earns a lease   2. the master is cut off from the others,
//     and takes no writes any more; another one accepts an invalidation   3. a load
//     reads the old version from the former. It may be served for as long as under the
//     lease, and not until MaxStaleness after 3.
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

// holds reports whether nothing was cleared since s: not the cache, no region.
func (l *local[K, V]) nothingClearedSince(s start) bool {
	return s.generation == l.current.Load() && (!l.regional || s.clears == l.clears.count.Load())
}

// beginWrite fences key for an Update: it is evicted, loads and writes
// under way will not keep it, and what it returns tells at the end whether
// anything has invalidated it since.
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

// endWrite ends w. The key is invalidated once more, and then kept as outcome
// says unless anything else invalidated it since w began.
//
//  1. Update A of key begins   2. Update B of key begins, A is no longer registered
//  3. A ends, B is no longer registered   4. B ends: neither result is kept,
//
// since nobody knows in which order the source took them.
func (l *local[K, V]) endWrite(key K, w *pendingWrite, o *outcome[V]) {
	hash := l.hash(key)
	sh := l.shard(hash)
	defer l.endWork(sh)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	undisturbed := sh.writes[key] == w
	l.removeLocked(sh, hash, key)
	if undisturbed {
		l.storeLocked(sh, hash, l.lease.now(), key, &w.start, o, nil)
	}
}

// put keeps o under key, for a write that began at s, unless the cache or one of
// its regions was cleared since. What was held is replaced, and loads and writes
// under way will not be kept.
func (l *local[K, V]) put(hash uint64, key K, s start, o *outcome[V]) {
	fresh := l.prepare(o, hash, key, &s)
	sh := l.shard(hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	sh.counters.keysInvalidated++
	sh.overtakeLocked(key)
	sh.forgetFailureLocked(key)
	if !l.storeLocked(sh, hash, s.at, key, &s, o, fresh) {
		l.removeLocked(sh, hash, key)
	}
}

// prepare makes the entry that o will need, as far as can be told, before the
// shard's lock is taken: what allocates may have to help the garbage collector.
func (l *local[K, V]) prepare(o *outcome[V], hash uint64, key K, s *start) *entry[K, V] {
	if o.ttl <= 0 || l.cell != fixed && l.table(hash).find(hash, key) != nil {
		return nil
	}
	return newEntry(key, o.value, s.since, deadline(s.at, o.ttl))
}

// keepLocked keeps o under key, whose load or write began at s, unless the cache
// or one of its regions was cleared since; the caller has checked that key
// itself was not invalidated. It reports whether o is in memory now. Fresh is what
// prepare has made, or nil.
func (l *local[K, V]) storeLocked(
	sh *shard[K, V], hash uint64, now int64, key K, s *start, o *outcome[V], fresh *entry[K, V],
) (kept bool) {
	expires := deadline(s.at, o.ttl)
	last := expires
	if o.err == nil {
		last = deadline(expires, l.staleIfError) // it may be of use though it has expired
	}
	if o.ttl <= 0 || last <= now || l.closed.Load() {
		return false
	}
	// 1. a load begins   2. it reads the source   3. the cache is cleared   4. the
	// load ends. A clear between this line and the end is harmless: the entry is of
	// the old generation and born dead.
	l.renewLocked(sh)
	if s.generation != sh.generation {
		return false
	}
	// The same for a region. A kept error is a member of all, unless NotFoundRegions names
	// its own, and born dead if one is cleared from here on; other items are if their
	// regions are marked.
	if o.err != nil && !o.hasRegions && s.clears != l.clears.count.Load() {
		return false
	}
	e := sh.table.Load().find(hash, key)
	scope, attached := l.scopeLocked(sh, o, s, e)
	if !attached {
		return false
	}
	if e == nil || !l.replaceLocked(sh, e, scope, o, s.since, expires, now) {
		if e = fresh; e == nil {
			e = newEntry(key, o.value, s.since, expires)
		}
		e.Item.scope = scope
		l.renew(e, now)
		l.addLocked(sh, hash, e, o.weight, now)
	}
	// 1. the checks above pass   2. a clear, and the sweep that follows it, which
	// finds nothing here   3. the entry is stored. No other sweep would come.
	if l.fate(e, vouched(now)) == cleared {
		l.dropLocked(sh, hash, e)
		return false
	}
	return true
}

// scopeLocked returns the scope of what a load or write that began at s ended with,
// unless one of its regions was cleared since. What is held of the key is e, or nil.
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
		hash := l.hash(key)
		sh := l.shard(hash)
		sh.mu.Lock()
		sh.counters.keysInvalidated++
		l.removeLocked(sh, hash, key)
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
func (l *local[K, V]) removeLocked(sh *shard[K, V], hash uint64, key K) {
	if e := sh.table.Load().find(hash, key); e != nil {
		l.dropLocked(sh, hash, e)
	}
	sh.overtakeLocked(key)
}

// overtakeLocked sees to it that loads and writes of key that are under way keep
// nothing, and that nobody joins them.
//
// A load that has not begun will not have been overtaken when it does.
func (sh *shard[K, V]) overtakeLocked(key K) {
	if f := sh.flights[key]; f != nil && !f.begun {
		f.older.overtakenLocked()
		f.older = nil
	} else if f != nil {
		f.overtakenLocked()
		forget(&sh.flights, &sh.mostFlights, key) // with all the older ones
	}
	forget(&sh.writes, &sh.mostWrites, key)
}
