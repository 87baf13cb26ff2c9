package eviction

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// referenceGhost is a ghost to compare with: the hashes as they were added, the
// oldest first.
type referenceGhost struct {
	capacity int
	entries  []referenceGhostEntry
}

type referenceGhostEntry struct {
	hash uint64
	hole bool
}

func (g *referenceGhost) add(hash uint64) {
	g.take(hash)
	g.entries = append(g.entries, referenceGhostEntry{hash: hash})
	g.entries = g.entries[max(0, len(g.entries)-g.capacity):]
}

func (g *referenceGhost) take(hash uint64) bool {
	at := slices.Index(g.entries, referenceGhostEntry{hash: hash})
	if at < 0 {
		return false
	}
	g.entries[at].hole = true
	return true
}

func TestGhostModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		capacity := rapid.IntRange(0, 40).Draw(t, "capacity")
		// Shards share a part of their hashes, at either end.
		shift := rapid.SampledFrom([]int{0, 8, 56}).Draw(t, "shift")
		hashes := rapid.Uint64Range(0, uint64(2*capacity+1))
		g, want := newGhost(capacity), referenceGhost{capacity: capacity}
		for range rapid.SampledFrom([]int{10, 100, 1000}).Draw(t, "steps") {
			hash := hashes.Draw(t, "hash") << shift
			if rapid.Bool().Draw(t, "add") {
				g.add(hash)
				want.add(hash)
			} else {
				require.Equal(t, want.take(hash), g.take(hash))
			}
			require.NoError(t, g.check())
		}
	})
}

func TestGhostGrowsWithWhatItHolds(t *testing.T) {
	g := newGhost(100_000)
	for hash := range uint64(150_000) {
		g.add(hash)
		held := min(int(hash)+1, 100_000)
		require.LessOrEqual(t, cap(g.ring), min(max(16, 2*held), 100_000))
		require.LessOrEqual(t, len(g.slots), max(32, 4*cap(g.ring)))
	}
	require.NoError(t, g.check())
	assert.False(t, g.take(49_999))
	assert.True(t, g.take(50_000))
	assert.True(t, g.take(149_999))
}

// TestGhostSpreadsHashesWithCommonBits has the hashes of one shard of 256, which
// was chosen by the lowest or by the highest byte.
func TestGhostSpreadsHashesWithCommonBits(t *testing.T) {
	tests := []struct {
		name string
		hash func(random uint64) uint64
	}{
		{name: "no common bits", hash: func(random uint64) uint64 { return random }},
		{name: "common low byte", hash: func(random uint64) uint64 { return random<<8 | 0xA5 }},
		{name: "common high byte", hash: func(random uint64) uint64 { return random>>8 | 0xA5<<56 }},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			const held = 1 << 14
			g := newGhost(held)
			random := newRandom(1)
			for range held {
				g.add(test.hash(random.Uint64()))
			}
			require.NoError(t, g.check())
			steps := 0
			for slot, position := range g.slots {
				if position != 0 {
					steps += (slot - g.home(g.hashAt(slot))) & (len(g.slots) - 1)
				}
			}
			assert.Less(t, float64(steps)/held, 1.0, "steps from home")
		})
	}
}

func TestGhostCheckFindsDamage(t *testing.T) {
	tests := []struct {
		name   string
		damage func(g *ghost)
	}{
		{name: "more hashes than allowed", damage: func(g *ghost) { g.capacity-- }},
		{name: "an oldest position outside", damage: func(g *ghost) { g.oldest = len(g.ring) }},
		{name: "a wrapped ring that is not full", damage: func(g *ghost) { g.capacity++; g.oldest = 1 }},
		{name: "too few slots", damage: func(g *ghost) { g.slots = make([]uint32, len(g.slots)/2) }},
		{name: "a position outside", damage: func(g *ghost) { g.slots[g.find(g.ring[3])] = 100 }},
		{name: "a hash out of reach", damage: func(g *ghost) { g.ring[3] = ^g.ring[3] }},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			g := newGhost(16)
			for hash := range uint64(16) {
				g.add(hash * 3)
			}
			require.NoError(t, g.check())
			test.damage(&g)
			assert.Error(t, g.check())
		})
	}
}
