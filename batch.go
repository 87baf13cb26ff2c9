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
	// A cache with more keys or regions than this in one batch is cleared instead:
	// Redis has been away for long, and the queue must not grow without bound.
	maxBatchEntries = 1 << 16

	// The same for the bytes of those keys and regions, in one cache. Each counts
	// entryOverhead more than its length.
	maxBatchBytes = 16 << 20

	// The same for all caches together, and for what is being sent as well as what is
	// queued behind it. The cache whose entry finds no room is cleared: it is likely to
	// be the one that is written to most.
	maxQueueBytes = 128 << 20

	// entryOverhead is about what a set spends on a string, beside the string's bytes.
	entryOverhead = 64

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
	elsewhere int      // bytes of the batch that is being sent, which share maxQueueBytes
	collapsed uint64   // caches that outgrew the bounds and became a clear
	fallen    []string // their names, until takeFallen; an empty one stands for all caches
}

// cacheBatch is the part of a batch for one cache. When clear is set, keys and
// regions are empty.
type cacheBatch struct {
	clear   bool
	keys    map[string]struct{}
	regions map[string]struct{}
	bytes   int // of all keys and regions, and their overhead
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
		room := min(maxBatchBytes, maxQueueBytes-b.elsewhere-others)
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

// merge folds every invalidation of other into b. It is the quicker the less other
// holds.
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

// describeBatches says what batches hold, for an error; it names no keys. It counts,
// and does not merge: the queue may be long, and its lock is held. An entry of two
// batches counts twice.
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

// cacheTally counts what batches hold.
type cacheTally struct{ clears, keys, regions int }

func (t *cacheTally) add(c *cacheBatch) {
	if c.clear {
		t.clears++
	}
	t.keys += len(c.keys)
	t.regions += len(c.regions)
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
	if len(c.keys)+len(c.regions) == maxBatchEntries || c.bytes+len(entry)+entryOverhead > room {
		c.collapse()
		return
	}
	if *set == nil {
		*set = map[string]struct{}{}
	}
	(*set)[own(entry)] = struct{}{}
	c.bytes += len(entry) + entryOverhead
}

func (c *cacheBatch) collapse() { *c = cacheBatch{clear: true} }

// part is one message's share of a batch.
type part struct {
	body    string
	changes []transport.Change // the same
	whole   bool               // it is all that the batch holds
}

// part encodes as much of b as fits one message: a body of at most limit bytes, and of
// at most most keys, regions and clears. An entry that is larger than limit by itself
// has a message of its own. b is not empty.
func (b *batch) part(limit, most int) part {
	w := bodyWriter{limit: limit, most: most, body: []byte{bodyVersion}}
	whole := w.write(b)
	return part{body: string(w.body), changes: w.changes, whole: whole}
}

// drop takes out of b what is in p, which part has returned. Nothing was added to b
// meanwhile.
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
	limit   int // bytes of the body
	most    int // entries in it
	body    []byte
	entries int
	changes []transport.Change // what the body says
}

// write writes what b holds until the body is full. It reports whether that was all.
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

// room reports whether so many more bytes and entries fit. The first entry always does.
func (w *bodyWriter) room(bytes, entries int) bool {
	return w.entries+entries == 1 || len(w.body)+bytes <= w.limit && w.entries+entries <= w.most
}

func (w *bodyWriter) operation(op byte, cache string, entries int) {
	w.body = appendString(append(w.body, op), cache)
	w.entries += entries
}

// list writes one operation with those values of set that fit, returns them, and reports
// whether they are all.
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
