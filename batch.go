package nearcache

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/nearcache/nearcache/internal/transport"
)

const (
	// maxBatchEntries bounds the keys and regions of one cache in a batch. A cache with
	// more is cleared instead: Redis has been away for long, and the queue must not grow
	// without bound.
	maxBatchEntries = 1 << 16

	// maxBatchBytes bounds the bytes of those keys and regions in the same way. Each
	// counts its length and entryOverhead.
	maxBatchBytes = 16 << 20

	// maxQueueBytes bounds the bytes of all caches together, both of the batch that is
	// being sent and of the one queued behind it. The cache whose entry finds no room is
	// cleared: it is likely to be the one with the most writes.
	maxQueueBytes = 128 << 20

	// entryOverhead is about what a set needs for a string, besides the string's bytes.
	entryOverhead = 64

	// maxBatchCaches bounds the caches of a batch. If there are more, everything is
	// cleared instead.
	maxBatchCaches = 1 << 12
)

// invalidation is what one write tells every other instance to evict: all caches, one
// cache, or keys and regions of one cache.
type invalidation struct {
	all     bool
	cache   string
	clear   bool
	keys    []string
	regions []string
}

// batch gathers invalidations until they are published. It has one entry for each key,
// region and cache, however often these were invalidated. A clear of a cache replaces the
// cache's keys and regions, and a clear of everything replaces all other entries. No
// invalidation is ever lost.
type batch struct {
	all            bool
	caches         map[string]*cacheBatch
	bytes          int      // of all caches
	elsewhere      int      // bytes of the batch that is being sent; they count for maxQueueBytes too
	collapsed      uint64   // caches that outgrew the bounds, and are cleared instead
	newlyCollapsed []string // their names, until takeCollapsed; an empty name means all caches
}

// cacheBatch is the part of a batch for one cache. When clear is set, keys and
// regions are empty.
type cacheBatch struct {
	clear   bool
	keys    map[string]struct{}
	regions map[string]struct{}
	bytes   int // of all keys and regions, with their overhead
}

// add adds inv to b. Keys and regions that are new to b are copied: a caller may use their
// bytes again, or they may be a piece of something large.
//
//  1. a handler removes a key that is a part of its request's buffer   2. Redis is away,
//     and the message is queued   3. the buffer is used for the next request, with another
//     key   4. Redis is back. The key of 1 has to be removed.
func (b *batch) add(inv invalidation) { b.fold(inv, strings.Clone) }

// fold is add, with clone to copy the strings that b keeps.
func (b *batch) fold(inv invalidation, clone func(string) string) {
	switch {
	case b.all:
	case inv.all:
		b.all, b.caches, b.bytes = true, nil, 0
	case b.caches[inv.cache] == nil && len(b.caches) == maxBatchCaches:
		b.collapsed++
		b.newlyCollapsed = append(b.newlyCollapsed, "")
		b.add(invalidation{all: true})
	default:
		c := b.cache(inv.cache)
		others := b.bytes - c.bytes
		room := min(maxBatchBytes, maxQueueBytes-b.elsewhere-others)
		if inv.clear {
			c.collapse()
		}
		before := c.clear
		for _, key := range inv.keys {
			c.add(&c.keys, key, room, clone)
		}
		for _, region := range inv.regions {
			c.add(&c.regions, region, room, clone)
		}
		b.bytes = others + c.bytes
		if c.clear && !before {
			b.collapsed++
			b.newlyCollapsed = append(b.newlyCollapsed, inv.cache)
		}
	}
}

// takeCollapsed returns the caches that were collapsed since it was last called.
func (b *batch) takeCollapsed() []string {
	collapsed := b.newlyCollapsed
	b.newlyCollapsed = nil
	return collapsed
}

// merge adds every invalidation of other to b. Its cost grows with the size of other.
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

// asItIs returns s itself, for strings that are copies already.
func asItIs(s string) string { return s }

// concerns reports whether b evicts a key of a cache, or may. It may if it has any region
// of the cache, since the regions of the key's item are not known here.
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

// entries returns the number of keys, regions and clears in b.
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

// describeBatches describes what is in batches, for an error. It names no keys. It counts
// entries instead of merging the batches, since the queue may be long and its lock is
// held. So an entry that is in two batches counts twice.
func describeBatches(batches ...*batch) string {
	names := map[string]struct{}{}
	var sum cacheTally
	for _, b := range batches {
		if b.all {
			return invalidation{all: true}.describe()
		}
		for name, c := range b.caches {
			names[name] = struct{}{}
			sum.add(c)
		}
	}
	if len(names) > mostCachesNamed {
		return fmt.Sprintf("%d clear(s), %d key(s) and %d region(s) of %d caches", sum.clears, sum.keys, sum.regions, len(names))
	}
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(names)) {
		var one cacheTally
		for _, b := range batches {
			if c := b.caches[name]; c != nil {
				one.add(c)
			}
		}
		parts = append(parts, describe(name, one.clears > 0, one.keys, one.regions))
	}
	return strings.Join(parts, ", ")
}

// mostCachesNamed bounds how many caches an error names.
const mostCachesNamed = 4

// cacheTally counts the entries of batches.
type cacheTally struct{ clears, keys, regions int }

func (t *cacheTally) add(c *cacheBatch) {
	if c.clear {
		t.clears++
	}
	t.keys += len(c.keys)
	t.regions += len(c.regions)
}

// describe describes inv, for an error. It names no keys.
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

// add adds a copy of entry to set, which is c.keys or c.regions. If c would exceed room
// bytes or maxBatchEntries, it collapses to a clear.
func (c *cacheBatch) add(set *map[string]struct{}, entry string, room int, clone func(string) string) {
	if c.clear {
		return
	}
	if _, held := (*set)[entry]; held {
		return
	}
	if len(c.keys)+len(c.regions) == maxBatchEntries || c.bytes+len(entry)+entryOverhead > room {
		c.collapse()
		return
	}
	if *set == nil {
		*set = map[string]struct{}{}
	}
	(*set)[clone(entry)] = struct{}{}
	c.bytes += len(entry) + entryOverhead
}

func (c *cacheBatch) collapse() { *c = cacheBatch{clear: true} }

// part is one message's share of a batch.
type part struct {
	body    string
	changes []transport.Change // the same, decoded
	whole   bool               // it is the whole batch
}

// part encodes as much of b as fits one message: a body of at most limit bytes, with at
// most most keys, regions and clears. An entry that alone is larger than limit gets a
// message of its own. b must not be empty.
func (b *batch) part(limit, most int) part {
	w := bodyWriter{limit: limit, most: most, body: []byte{bodyVersion}}
	whole := w.write(b)
	return part{body: string(w.body), changes: w.changes, whole: whole}
}

// drop removes from b what is in p, which part has returned. Nothing may have been added
// to b in between.
func (b *batch) drop(p part) {
	if p.whole {
		b.all, b.caches, b.bytes = false, nil, 0
		return
	}
	for i := range p.changes {
		change := &p.changes[i]
		c := b.caches[change.Cache]
		before := c.bytes
		c.clear = c.clear && !change.Clear
		c.drop(c.keys, change.Keys)
		c.drop(c.regions, change.Regions)
		b.bytes -= before - c.bytes
		if !c.clear && len(c.keys)+len(c.regions) == 0 {
			delete(b.caches, change.Cache)
		}
	}
}

func (c *cacheBatch) drop(set map[string]struct{}, entries []string) {
	for _, entry := range entries {
		delete(set, entry)
		c.bytes -= len(entry) + entryOverhead
	}
}

// bodyWriter writes the body of one message.
type bodyWriter struct {
	limit   int // of bytes
	most    int // of entries
	body    []byte
	entries int                // in body
	changes []transport.Change // what body says
}

// write writes entries of b until the body is full. It reports whether it wrote all.
func (w *bodyWriter) write(b *batch) (all bool) {
	if b.all {
		w.body = append(w.body, opClearAll)
		w.changes = append(w.changes, transport.Change{All: true})
		return true
	}
	for name, c := range b.caches {
		if c.clear {
			if !w.room(1+binary.MaxVarintLen64+len(name), 1) {
				return false
			}
			w.operation(opClearCache, name, 1)
			w.changes = append(w.changes, transport.Change{Cache: name, Clear: true})
			continue
		}
		keys, all := w.list(opRemoveKeys, name, c.keys)
		if len(keys) > 0 {
			w.changes = append(w.changes, transport.Change{Cache: name, Keys: keys})
		}
		if !all {
			return false
		}
		regions, all := w.list(opClearRegions, name, c.regions)
		if len(regions) > 0 {
			w.changes = append(w.changes, transport.Change{Cache: name, Regions: regions})
		}
		if !all {
			return false
		}
	}
	return true
}

// room reports whether so many more bytes and entries fit. The first entry always fits.
func (w *bodyWriter) room(bytes, entries int) bool {
	return w.entries+entries == 1 || len(w.body)+bytes <= w.limit && w.entries+entries <= w.most
}

func (w *bodyWriter) operation(op byte, cache string, entries int) {
	w.body = appendString(append(w.body, op), cache)
	w.entries += entries
}

// list writes one operation with as many values of set as fit. It returns those, and
// reports whether they are all.
func (w *bodyWriter) list(op byte, cache string, set map[string]struct{}) (written []string, all bool) {
	head := 1 + binary.MaxVarintLen64 + len(cache) + binary.MaxVarintLen64
	var values []byte
	for value := range set {
		if !w.room(head+len(values)+binary.MaxVarintLen64+len(value), len(written)+1) {
			break
		}
		values = appendString(values, value)
		written = append(written, value)
	}
	if len(written) > 0 {
		w.operation(op, cache, len(written))
		w.body = binary.AppendUvarint(w.body, uint64(len(written)))
		w.body = append(w.body, values...)
	}
	return written, len(written) == len(set)
}
