package nearcache

import (
	"iter"
	"math/bits"
	"sync/atomic"
)

// table finds entries by key. Any number of readers may look up, without a lock,
// while one writer at a time changes it: the caller sees to that by the shard's
// lock. A writer that runs out of room fills a larger table and publishes that.
//
// Two cache misses lie between a key and its entry, the bucket's and the entry's,
// and the slots of a bucket are told apart by tags that lie in the bucket itself.
//
// A look-up that overlaps with a change of its key sees it or does not. In
// particular it may go on in a table that was replaced, and there find an entry
// that was deleted from the new one since: the look-up began before.
type table[K comparable, V any] struct {
	buckets []bucket[K, V] // a power of two
}

const (
	bucketSlots = 7
	bucketFill  = 5 // slots taken on average, at most
)

// bucket is one cache line.
//
// An entry is in the bucket that its hash names or, if that was full, in one of
// those that follow it. Each bucket on the way counts the entry as passed on, so
// that a look-up knows where to stop.
type bucket[K comparable, V any] struct {
	// tags has a byte for each slot, zero if the slot is empty, and in its last byte
	// the number of entries that were passed on. A count that has reached passedMany
	// stays there.
	tags  atomic.Uint64
	slots [bucketSlots]atomic.Pointer[entry[K, V]]
}

const (
	passedShift = 8 * bucketSlots
	passedOne   = 1 << passedShift
	passedMany  = 0xff

	lowBits  = 0x0001010101010101 // of each slot's byte
	highBits = lowBits << 7
)

// newTable returns a table with room for n entries.
func newTable[K comparable, V any](n int) *table[K, V] {
	buckets := (n + bucketFill - 1) / bucketFill
	return &table[K, V]{buckets: make([]bucket[K, V], 1<<bits.Len(uint(max(buckets, 1)-1)))}
}

// room returns for how many entries there is room.
func (t *table[K, V]) room() int { return bucketFill * len(t.buckets) }

// The lowest bits of a hash choose the shard, the next ones the bucket, and the
// highest make the tag.
func home(hash uint64) uint64 { return hash >> 16 }
func tag(hash uint64) uint64  { return hash>>57 | 0x80 }

func (t *table[K, V]) at(i uint64) *bucket[K, V] { return &t.buckets[i&uint64(len(t.buckets)-1)] }

// find returns the entry of key, whose hash is hash, or nil.
func (t *table[K, V]) find(hash uint64, key K) *entry[K, V] {
	wanted := tag(hash) * lowBits
	for i, end := home(hash), home(hash)+uint64(len(t.buckets)); i < end; i++ {
		b := t.at(i)
		tags := b.tags.Load()
		for m := zeroBytes(tags ^ wanted); m != 0; m &= m - 1 {
			e := b.slots[bits.TrailingZeros64(m)/8].Load()
			if e != nil && e.Item.key == key {
				return e
			}
		}
		if tags < passedOne {
			return nil
		}
	}
	return nil
}

// zeroBytes returns the highest bit of each of the slots' bytes that is zero in
// x. It may have that of others too, behind one that is.
func zeroBytes(x uint64) uint64 { return (x - lowBits) &^ x & highBits }

// put adds an entry whose key is not held. The caller has seen to it that there
// is room.
func (t *table[K, V]) put(hash uint64, e *entry[K, V]) {
	for i := home(hash); ; i++ {
		b := t.at(i)
		tags := b.tags.Load()
		free := bits.TrailingZeros64(zeroBytes(tags)) / 8
		if free < bucketSlots {
			b.slots[free].Store(e) // first: who sees the tag finds the entry
			b.tags.Store(tags | tag(hash)<<(8*free))
			return
		}
		if tags>>passedShift < passedMany {
			b.tags.Store(tags + passedOne)
		}
	}
}

// replace puts e in the place of old, which is held and has the same key.
func (t *table[K, V]) replace(hash uint64, old, e *entry[K, V]) {
	b, slot := t.locate(hash, old)
	b.slots[slot].Store(e)
}

// delete takes out e, which is held.
func (t *table[K, V]) delete(hash uint64, e *entry[K, V]) {
	found, slot := t.locate(hash, e)
	found.tags.Store(found.tags.Load() &^ (0xff << (8 * slot)))
	found.slots[slot].Store(nil)
	for i := home(hash); t.at(i) != found; i++ {
		b := t.at(i)
		if tags := b.tags.Load(); tags>>passedShift < passedMany {
			b.tags.Store(tags - passedOne)
		}
	}
}

// locate returns where e is, which is held.
func (t *table[K, V]) locate(hash uint64, e *entry[K, V]) (*bucket[K, V], int) {
	for i := home(hash); i < home(hash)+uint64(len(t.buckets)); i++ {
		b := t.at(i)
		for slot := range b.slots {
			if b.slots[slot].Load() == e {
				return b, slot
			}
		}
	}
	panic("nearcache: the entry is not in the table")
}

// resized returns a table with room for n entries that holds what t holds, which is
// no more.
func (t *table[K, V]) resized(n int, hash func(K) uint64) *table[K, V] {
	other := newTable[K, V](n)
	for e := range t.all() {
		other.put(hash(e.Item.key), e)
	}
	return other
}

// all yields every entry. Of those that come and go meanwhile it may yield some.
func (t *table[K, V]) all() iter.Seq[*entry[K, V]] {
	return func(yield func(*entry[K, V]) bool) {
		for i := range t.buckets {
			for slot := range t.buckets[i].slots {
				if e := t.buckets[i].slots[slot].Load(); e != nil && !yield(e) {
					return
				}
			}
		}
	}
}
