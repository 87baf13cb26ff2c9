package nearcache

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"
)

const (
	// A cache with more keys or regions than this in one batch is cleared instead:
	// Redis has been away for long, and the queue must not grow without bound.
	maxBatchEntries = 1 << 16

	// The same for the bytes of those keys and regions, in one cache.
	maxBatchBytes = 16 << 20

	// And of all caches together. The cache whose entry finds no room is cleared, as the
	// one that is written to most is the likeliest.
	maxQueueBytes = 128 << 20

	// Past so many caches, everything is cleared instead.
	maxBatchCaches = 1 << 12
)

// invalidation is what one write asks every other instance to evict: a whole
// channel, a whole cache, or keys and regions of one cache.
type invalidation struct {
	all     bool
	cache   string
	clear   bool
	keys    []string
	regions []string
}

// batch gathers invalidations until they are published. It holds one entry for
// each key, region and cache, however often it was invalidated, and a wider
// entry swallows the narrower ones. It never loses one.
type batch struct {
	all       bool
	caches    map[string]*cacheBatch
	bytes     int      // of all caches
	collapsed uint64   // caches that outgrew the bounds and became a clear
	fallen    []string // their names, until takeFallen; an empty one stands for all caches
}

// cacheBatch is the part of a batch for one cache. When clear is set, keys and
// regions are empty.
type cacheBatch struct {
	clear   bool
	keys    map[string]struct{}
	regions map[string]struct{}
	bytes   int // of all keys and regions
}

// add folds inv into b. Keys and regions are copied where b has not got them yet: their
// bytes may be those of a caller who uses them again, or a piece of something large.
//
//  1. a handler removes a key, which lies in its request's buffer   2. Redis is away, and
//     the message is queued   3. the buffer has the next request, and another key
//  4. Redis is back: the key of 1 is to be removed.
func (b *batch) add(inv invalidation) { b.fold(inv, strings.Clone) }

// fold is add, with own making the copies.
func (b *batch) fold(inv invalidation, own func(string) string) {
	switch {
	case b.all:
	case inv.all:
		b.all, b.caches, b.bytes = true, nil, 0
	case b.caches[inv.cache] == nil && len(b.caches) == maxBatchCaches:
		b.collapsed++
		b.fallen = append(b.fallen, "")
		b.add(invalidation{all: true})
	default:
		c := b.cache(inv.cache)
		others := b.bytes - c.bytes
		room := min(maxBatchBytes, maxQueueBytes-others)
		if inv.clear {
			c.collapse()
		}
		before := c.clear
		for _, key := range inv.keys {
			c.add(&c.keys, key, room, own)
		}
		for _, region := range inv.regions {
			c.add(&c.regions, region, room, own)
		}
		b.bytes = others + c.bytes
		if c.clear && !before {
			b.collapsed++
			b.fallen = append(b.fallen, inv.cache)
		}
	}
}

// takeFallen returns the caches that were collapsed since it was last called.
func (b *batch) takeFallen() []string {
	fallen := b.fallen
	b.fallen = nil
	return fallen
}

// merge folds every invalidation of other into b.
func (b *batch) merge(other *batch) {
	b.collapsed += other.collapsed
	if other.all {
		b.add(invalidation{all: true})
	}
	if b.all {
		return
	}
	for name, c := range other.caches {
		b.fold(invalidation{
			cache: name, clear: c.clear,
			keys: slices.Collect(maps.Keys(c.keys)), regions: slices.Collect(maps.Keys(c.regions)),
		}, asItIs)
	}
}

// asItIs is for strings that nobody else changes.
func asItIs(s string) string { return s }

// concerns reports whether b evicts a key of a cache, or may: in what regions its item
// is nobody knows here.
func (b *batch) concerns(cache, key string) bool {
	if b.all {
		return true
	}
	c := b.caches[cache]
	if c == nil {
		return false
	}
	_, removed := c.keys[key]
	return removed || c.clear || len(c.regions) > 0
}

func (b *batch) empty() bool { return !b.all && len(b.caches) == 0 }

// entries returns how many keys, regions, and cleared caches b holds.
func (b *batch) entries() int {
	if b.all {
		return 1
	}
	n := 0
	for _, c := range b.caches {
		n += len(c.keys) + len(c.regions)
		if c.clear {
			n++
		}
	}
	return n
}

// describe says what b holds, for an error; it names no keys.
func (b *batch) describe() string {
	if b.all {
		return invalidation{all: true}.describe()
	}
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(b.caches)) {
		c := b.caches[name]
		parts = append(parts, describe(name, c.clear, len(c.keys), len(c.regions)))
	}
	return strings.Join(parts, ", ")
}

// describe says what inv is about, for an error; it names no keys.
func (inv invalidation) describe() string {
	if inv.all {
		return "a clear of all caches"
	}
	return describe(inv.cache, inv.clear, len(inv.keys), len(inv.regions))
}

func describe(cache string, cleared bool, keys, regions int) string {
	if cleared {
		return "a clear of " + cache
	}
	var parts []string
	if keys > 0 {
		parts = append(parts, fmt.Sprintf("%d key(s)", keys))
	}
	if regions > 0 {
		parts = append(parts, fmt.Sprintf("%d region(s)", regions))
	}
	return strings.Join(parts, " and ") + " of " + cache
}

func (b *batch) cache(name string) *cacheBatch {
	c := b.caches[name]
	if c == nil {
		c = &cacheBatch{}
		if b.caches == nil {
			b.caches = map[string]*cacheBatch{}
		}
		b.caches[name] = c
	}
	return c
}

// add puts a copy of entry into set, one of c's own. If there is no room for so many
// bytes in all, or for another entry, c collapses to a clear.
func (c *cacheBatch) add(set *map[string]struct{}, entry string, room int, own func(string) string) {
	if c.clear {
		return
	}
	if _, held := (*set)[entry]; held {
		return
	}
	if len(c.keys)+len(c.regions) == maxBatchEntries || c.bytes+len(entry) > room {
		c.collapse()
		return
	}
	if *set == nil {
		*set = map[string]struct{}{}
	}
	(*set)[own(entry)] = struct{}{}
	c.bytes += len(entry)
}

func (c *cacheBatch) collapse() { *c = cacheBatch{clear: true} }

// bodies encodes b as message bodies of at most limit bytes each, and at most most
// keys, regions and clears; only an entry that is larger by itself exceeds limit.
func (b *batch) bodies(limit, most int) []string {
	w := bodyWriter{limit: limit, most: most}
	if b.all {
		w.operation(opClearAll, "")
	}
	for name, c := range b.caches {
		if c.clear {
			w.operation(opClearCache, name)
		}
		w.list(opRemoveKeys, name, c.keys)
		w.list(opClearRegions, name, c.regions)
	}
	w.flush()
	return w.bodies
}

// bodyWriter writes operations into bodies of a limited size.
type bodyWriter struct {
	limit   int // bytes in a body
	most    int // entries in a body
	body    []byte
	entries int // in body
	bodies  []string
}

// room starts a new body unless another entry of n bytes fits into this one.
func (w *bodyWriter) room(n int) {
	if len(w.body) > 1 && (len(w.body)+n > w.limit || w.entries >= w.most) {
		w.flush()
	}
	if len(w.body) == 0 {
		w.body = append(w.body, bodyVersion)
	}
}

func (w *bodyWriter) flush() {
	if len(w.body) > 1 {
		w.bodies = append(w.bodies, string(w.body))
	}
	w.body, w.entries = w.body[:0], 0
}

func (w *bodyWriter) operation(op byte, cache string) {
	w.room(1 + binary.MaxVarintLen64 + len(cache))
	w.entries++
	w.body = append(w.body, op)
	if op != opClearAll {
		w.body = appendString(w.body, cache)
	}
}

// list writes one operation with the values of set, or several where the limit
// splits them.
func (w *bodyWriter) list(op byte, cache string, set map[string]struct{}) {
	var values []byte
	count := 0
	write := func() {
		if count == 0 {
			return
		}
		w.body = append(w.body, op)
		w.body = appendString(w.body, cache)
		w.body = binary.AppendUvarint(w.body, uint64(count))
		w.body = append(w.body, values...)
		w.entries += count
		values, count = values[:0], 0
	}
	header := 1 + binary.MaxVarintLen64 + len(cache) + binary.MaxVarintLen64
	for value := range set {
		size := binary.MaxVarintLen64 + len(value)
		if count > 0 && (len(w.body)+header+len(values)+size > w.limit || w.entries+count >= w.most) {
			write()
		}
		if count == 0 {
			w.room(header + size)
		}
		values = appendString(values, value)
		count++
	}
	write()
}
