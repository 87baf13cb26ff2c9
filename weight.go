package nearcache

import (
	"math"
	"unsafe"
)

// slotBytes is what an entry takes in its shard's table, which is between half full and
// full, and in the policy's memory of evicted items.
const slotBytes = 32

// weighError returns the weight of a not-found, or of another error, that is to be kept
// under key. Without WeighNotFound it is in bytes: what an entry and its scope take, the
// key, and the error's text.
//
// Weigh is not asked, since it is for values. One that returns a constant, or counts
// rows, says nothing of a key that somebody else has chosen, and such keys can come in
// any number.
func (c *Cache[K, V]) weighError(key K, err error) uint32 {
	if c.options.WeighNotFound != nil {
		return c.options.WeighNotFound(key, err)
	}
	n := errorBytes[K, V]() + c.keys.bytesOf(key)
	if err != ErrNotFound { // whose text is there once
		n += len(err.Error())
	}
	return uint32(min(uint64(n), math.MaxUint32))
}

// errorBytes is what a kept error takes beside its key's bytes and its text.
func errorBytes[K comparable, V any]() int {
	return int(unsafe.Sizeof(entry[K, V]{})+unsafe.Sizeof(scope{})) + slotBytes
}

// weighed decides by its weight whether an outcome is kept in memory.
func (c *Cache[K, V]) weighed(o *outcome[V], weight uint32) {
	o.weight = weight
	if int64(weight) > c.options.MaxWeight {
		c.stats.tooHeavy.Add(1)
		o.ttl = 0
	}
}
