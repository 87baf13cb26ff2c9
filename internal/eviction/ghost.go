package eviction

import (
	"fmt"
	"math"
	"math/bits"
)

// ghost remembers the hashes that were added last, as many as its capacity.
//
// A hash that is taken, or added once more, leaves a hole in the ring, which
// counts against the capacity until it is overwritten in its turn. Filling holes
// would need a linked list, at twice the memory, for a few more hashes.
//
// Memory grows with the hashes that were added: 16 to 24 bytes each when full. A
// map from hash to ring position in the place of slots was measured at 34
// bytes and three times the time.
type ghost struct {
	capacity int

	// ring has the hashes in the order in which they were added, and after
	// capacity of them wraps: oldest is then the position to be overwritten.
	ring   []uint64
	oldest int

	// slots finds a hash's position in the ring: a hash table with linear probing
	// that holds position+1, or 0 for an empty slot. Its length is a power of two
	// and at least twice the ring's. A hash has one slot at most, for the latest
	// position that it was added at; a position that no slot refers to is a hole.
	slots []uint32
}

// newGhost returns an empty ghost, which may have a capacity of 0.
func newGhost(capacity int) ghost {
	// A slot has 32 bits. Two billion hashes are 40 GB in one shard.
	return ghost{capacity: min(capacity, math.MaxInt32)}
}

// add remembers hash as the newest, and forgets the oldest if the ghost is full.
func (g *ghost) add(hash uint64) {
	if g.capacity == 0 {
		return
	}
	position := len(g.ring)
	if position < g.capacity {
		if position == cap(g.ring) {
			g.grow()
		}
		g.ring = append(g.ring, hash)
	} else {
		position = g.oldest
		g.forget(position)
		g.ring[position] = hash
		g.oldest = (position + 1) % g.capacity
	}
	slot := g.find(hash)
	g.slots[slot] = uint32(position) + 1
}

// take forgets hash and reports whether it was remembered.
func (g *ghost) take(hash uint64) bool {
	if len(g.slots) == 0 {
		return false
	}
	slot := g.find(hash)
	if g.slots[slot] == 0 {
		return false
	}
	g.clear(slot)
	return true
}

// forget makes position a hole, if it is not one already.
func (g *ghost) forget(position int) {
	slot := g.find(g.ring[position])
	// The same hash may have been added again since, at another position.
	if g.slots[slot] == uint32(position)+1 {
		g.clear(slot)
	}
}

// find returns the slot of hash, or the empty slot where it would go. The table
// is never full.
func (g *ghost) find(hash uint64) int {
	mask := len(g.slots) - 1
	slot := g.home(hash)
	for g.slots[slot] != 0 && g.hashAt(slot) != hash {
		slot = (slot + 1) & mask
	}
	return slot
}

// clear empties slot and moves up what follows, so that every hash can still be
// reached from its home without crossing an empty slot. Tombstones instead would
// pile up, since a full ghost clears one slot for each that it fills.
func (g *ghost) clear(slot int) {
	mask := len(g.slots) - 1
	for next := (slot + 1) & mask; g.slots[next] != 0; next = (next + 1) & mask {
		fromHome := (next - g.home(g.hashAt(next))) & mask
		fromGap := (next - slot) & mask
		if fromHome >= fromGap {
			g.slots[slot] = g.slots[next]
			slot = next
		}
	}
	g.slots[slot] = 0
}

// home returns the slot from which the search for hash starts. All hashes of a
// shard may have some bits in common, so neither end of the hash will do as it
// is: the multiplication (by 2^64 over the golden ratio) spreads them.
func (g *ghost) home(hash uint64) int {
	const spread = 0x9E3779B97F4A7C15
	return int(hash * spread >> (64 - bits.TrailingZeros(uint(len(g.slots)))))
}

// hashAt returns the hash that a slot, which is not empty, refers to.
func (g *ghost) hashAt(slot int) uint64 { return g.ring[g.slots[slot]-1] }

// grow makes room for more hashes in a ring that has not wrapped yet.
func (g *ghost) grow() {
	const smallest = 16
	size := min(max(smallest, 2*len(g.ring)), g.capacity)
	ring := make([]uint64, len(g.ring), size)
	copy(ring, g.ring)
	g.ring = ring

	slots := g.slots
	g.slots = make([]uint32, 1<<bits.Len(uint(2*size-1)))
	for _, held := range slots {
		if held != 0 {
			g.slots[g.find(g.ring[held-1])] = held
		}
	}
}

// check returns an error if the ring and the slots do not fit together.
func (g *ghost) check() error {
	if len(g.ring) > g.capacity {
		return fmt.Errorf("eviction: the ghost has %d hashes and a capacity of %d", len(g.ring), g.capacity)
	}
	if g.oldest != 0 && (len(g.ring) < g.capacity || g.oldest >= g.capacity) {
		return fmt.Errorf("eviction: the ghost's oldest position is %d of %d", g.oldest, len(g.ring))
	}
	if len(g.slots) < 2*len(g.ring) || len(g.slots)&(len(g.slots)-1) != 0 {
		return fmt.Errorf("eviction: the ghost has %d slots for %d hashes", len(g.slots), len(g.ring))
	}
	for slot, held := range g.slots {
		if int(held) > len(g.ring) {
			return fmt.Errorf("eviction: the ghost's slot %d refers to position %d of %d", slot, held-1, len(g.ring))
		}
		if held != 0 && g.find(g.hashAt(slot)) != slot {
			return fmt.Errorf("eviction: the ghost's slot %d is not where its hash is looked for", slot)
		}
	}
	return nil
}
