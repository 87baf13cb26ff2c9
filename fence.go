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
	at         int64  // lease.now
	generation uint64 // local.generation
	clears     uint64 // regionTable.clears
}

// after reports whether s began after other, as far as it matters: one may be kept
// over the other.
func (s start) after(other start) bool {
	return s.clears > other.clears || s.at > other.at
}

// pendingWrite is a Set or Update under way.
type pendingWrite struct{ start start }

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
