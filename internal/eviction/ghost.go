package eviction

import (
	"fmt"
	"math/bits"
	"slices"
)

// ghost remembers the hashes that were added last, about as many as its capacity, and the
// queue that each item left.
//
// It is a table of sets of 16 fingerprints; a set fills a cache line. A hash belongs to one
// set, which forgets its oldest hash for a new one. So the order is exact only within a
// set, and a hash is forgotten somewhat earlier or later than by one queue of that
// capacity. On recorded traces that made no difference to the hit ratio. The queue, with
// the hash table to search it, took 16 to 24 bytes for each hash, and this takes 4 to 8.
//
// The caller may change the capacity with each add. It rises at once, but sinks only by
// one for eight hashes. If a heavy item has evicted many light ones, these should be
// remembered although few nodes are left.
type ghost struct {
	fromSmall, fromMain int // how many fingerprints are in sets

	capacity, sinks int

	// The number of sets is 0 or a power of two. A set has its newest fingerprint first, and
	// its empty places last, which are 0. Fingerprints beyond the first ways count as
	// forgotten, even if they are not erased yet.
	sets []ghostSet
	ways int // Always: capacity ≤ ways * len(sets), unless there are ghostMaxSets.
}

// origin is the queue that an evicted item was in.
type origin uint8

const (
	unknown origin = iota
	fromSmall
	fromMain
)

const (
	ghostWays = 16

	// ghostMaxSets leaves at least 11 bits to tell the fingerprints of a set apart.
	// That many sets are 64 MB, and remember sixteen million hashes.
	ghostMaxSets = 1 << 20

	// ghostSinking is how many hashes are added while the capacity sinks by one.
	ghostSinking = 8
)

// A fingerprint is 31 bits of a hash and, lowest, whether its item was in main.
type ghostSet [ghostWays]uint32

const inMainBit = 1

// fingerprint returns the part of hash that is remembered, with inMainBit unset
// and some other bit set. All hashes of a shard may have some bits in common, so
// neither end of the hash will do as it is: the multiplication (by 2^64 over the
// golden ratio) spreads them.
func fingerprint(hash uint64) uint32 {
	const spread = 0x9E3779B97F4A7C15
	return max(2, uint32(hash*spread>>32)&^inMainBit)
}

// set returns the set of a fingerprint. There is one.
func (g *ghost) set(print uint32) *ghostSet {
	// By the upper bits, so that twice the sets need no other fingerprints.
	return &g.sets[print>>(32-bits.TrailingZeros(uint(len(g.sets))))]
}

// add remembers hash as the newest of its set. The ghost then has that capacity.
func (g *ghost) add(hash uint64, wasInMain bool, capacity int) {
	if capacity != g.capacity {
		g.adapt(capacity)
	}
	if g.ways == 0 {
		return
	}
	print := fingerprint(hash)
	if wasInMain {
		print |= inMainBit
	}
	g.insert(print)
}

func (g *ghost) insert(print uint32) {
	set := g.set(print)
	for at := g.ways - 1; at < ghostWays && set[at] != 0; at++ {
		g.count(set[at], -1)
		set[at] = 0
	}
	copy(set[1:g.ways], set[:g.ways])
	set[0] = print
	g.count(print, 1)
}

// count adds n to the count of the fingerprints of that origin.
func (g *ghost) count(print uint32, n int) {
	if print&inMainBit != 0 {
		g.fromMain += n
	} else {
		g.fromSmall += n
	}
}

// take forgets hash. It returns the queue that the item was in, or unknown.
func (g *ghost) take(hash uint64) origin {
	set, at := g.find(hash)
	if at < 0 {
		return unknown
	}
	print := set[at]
	g.count(print, -1)
	copy(set[at:], set[at+1:])
	set[ghostWays-1] = 0
	if print&inMainBit != 0 {
		return fromMain
	}
	return fromSmall
}

// renew makes hash the newest of its set, if it is remembered. The next add will
// not push it out then, unless the capacity is 1.
func (g *ghost) renew(hash uint64) {
	set, at := g.find(hash)
	if at > 0 {
		print := set[at]
		copy(set[1:at+1], set[:at])
		set[0] = print
	}
}

// find returns the set of hash and its place there, or a place below 0.
func (g *ghost) find(hash uint64) (set *ghostSet, at int) {
	if len(g.sets) == 0 {
		return nil, -1
	}
	print := fingerprint(hash)
	set = g.set(print)
	for at := range set[:g.ways] {
		if set[at]&^inMainBit == print {
			return set, at
		}
	}
	return set, -1
}

// adapt brings the capacity up, or nearer, to what is wanted.
func (g *ghost) adapt(want int) {
	if want > g.capacity {
		g.capacity = want
	} else if g.sinks++; g.sinks%ghostSinking == 0 {
		g.capacity--
	}
	sets := max(1, len(g.sets))
	for sets*ghostWays < g.capacity && sets < ghostMaxSets {
		sets *= 2
	}
	// Halve the sets only when a quarter of them would do, or the next rise could undo it.
	if sets > 1 && sets*ghostWays > 4*g.capacity {
		sets /= 2
	}
	if sets != len(g.sets) {
		g.rehash(sets)
	}
	g.ways = min((g.capacity+sets-1)/sets, ghostWays)
}

// rehash changes the number of sets. If two sets become one, it has room for both, since
// only a quarter of their places are used then.
func (g *ghost) rehash(sets int) {
	old := g.sets
	g.sets = make([]ghostSet, sets)
	g.fromSmall, g.fromMain = 0, 0
	ways := g.ways
	g.ways = ghostWays
	for i := range old {
		for _, print := range slices.Backward(old[i][:ways]) {
			if print != 0 {
				g.insert(print)
			}
		}
	}
}

// check returns an error if a fingerprint is not where it is looked for, or the
// table does not fit the capacity.
func (g *ghost) check() error {
	if g.ways > ghostWays || len(g.sets)&(len(g.sets)-1) != 0 ||
		len(g.sets) < ghostMaxSets && g.ways*len(g.sets) < g.capacity {
		return fmt.Errorf("eviction: the ghost has %d sets of %d for a capacity of %d", len(g.sets), g.ways, g.capacity)
	}
	counts := ghost{}
	for i := range g.sets {
		set := &g.sets[i]
		empty := false
		for _, print := range set {
			if print != 0 && (empty || g.set(print) != set) {
				return fmt.Errorf("eviction: the ghost's set %d has a fingerprint where none is looked for", i)
			}
			if print == 0 {
				empty = true
			} else {
				counts.count(print, 1)
			}
		}
	}
	if counts.fromSmall != g.fromSmall || counts.fromMain != g.fromMain {
		return fmt.Errorf("eviction: the ghost has %d and %d fingerprints and counts of %d and %d",
			counts.fromSmall, counts.fromMain, g.fromSmall, g.fromMain)
	}
	return nil
}
