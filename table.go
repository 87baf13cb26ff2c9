package nearcache

import (
	"iter"
	"math/bits"
	"sync/atomic"
)

// table finds entries by key. Any number of readers may look keys up, without a lock, while
// one writer changes it. The caller ensures by the shard's lock that there is one writer at
// a time. A writer that runs out of room fills a larger table and publishes that.
//
// Between a key and its entry lie two cache misses: the bucket's and the entry's. The slots
// of a bucket are told apart by tags in the bucket itself.
//
// A look-up that overlaps with a change of its key may or may not see that change. In
// particular, it may continue in a table that was replaced, and find an entry there that
// was deleted from the new table since. That is right: the look-up began before.
type table[K comparable, V any] struct {
	buckets []bucket[K, V] // their number is a power of two
}

const (
	bucketSlots = 7
	bucketFill  = 5 // slots taken on average, at most
)

// bucket is one cache line.
//
// An entry is in the bucket that its hash names. If that bucket was full, it is in one of
// the next. Each full bucket on the way counts the entry as passed on. So a look-up knows
// where to stop.
type bucket[K comparable, V any] struct {
	// tags has a byte for each slot, which is zero if the slot is empty. Its last byte is
	// the number of entries that were passed on. A count that has reached passedMany stays
	// there.
	tags  atomic.Uint64
	slots [bucketSlots]atomic.Pointer[entry[K, V]]
}

const (
	passedShift = 8 * bucketSlots
	passedOne   = 1 << passedShift
	passedMany  = 0xff

	lowBits  = 0x0001010101010101 // the lowest bit of each slot's byte
	highBits = lowBits << 7
)

// newTable returns a table with room for n entries.
func newTable[K comparable, V any](n int) *table[K, V] {
	buckets := (n + bucketFill - 1) / bucketFill
	return &table[K, V]{buckets: make([]bucket[K, V], 1<<bits.Len(uint(max(buckets, 1)-1)))}
}

// room returns how many entries there is room for.
func (t *table[K, V]) room() int { return bucketFill * len(t.buckets) }

// The lowest bits of a hash choose the shard, the next ones the bucket, and the highest
// ones make the tag.
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

// zeroBytes returns the highest bit of each slot's byte that is zero in x. Bytes above a
// zero byte may count as zero too.
func zeroBytes(x uint64) uint64 { return (x - lowBits) &^ x & highBits }

// put adds an entry, whose key must not be in the table. There must be room.
func (t *table[K, V]) put(hash uint64, e *entry[K, V]) {
	for i := home(hash); ; i++ {
		b := t.at(i)
		tags := b.tags.Load()
		free := bits.TrailingZeros64(zeroBytes(tags)) / 8
		if free < bucketSlots {
			b.slots[free].Store(e) // first: a reader that sees the tag finds the entry
			b.tags.Store(tags | tag(hash)<<(8*free))
			return
		}
		if tags>>passedShift < passedMany {
			b.tags.Store(tags + passedOne)
		}
	}
}

// replace replaces old, which is in the table, by e, which has the same key.
func (t *table[K, V]) replace(hash uint64, old, e *entry[K, V]) {
	b, slot := t.locate(hash, old)
	b.slots[slot].Store(e)
}

// delete deletes e, which is in the table.
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

// locate returns the bucket and the slot of e, which is in the table.
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

// resized returns a table with room for n entries that has the entries of t, which are no
// more.
func (t *table[K, V]) resized(n int, hash func(K) uint64) *table[K, V] {
	other := newTable[K, V](n)
	for e := range t.all() {
		other.put(hash(e.Item.key), e)
	}
	return other
}

// all yields every entry. Entries that come or go meanwhile may be yielded or not.
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
