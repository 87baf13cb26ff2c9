package eviction

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// referenceGhost is a ghost to compare with: a list for each set, the newest
// first.
type referenceGhost struct {
	capacity, sinks, ways int
	sets                  [][]remembered
}

type remembered struct {
	print  uint32
	origin origin
}

// set returns the number of the set of a fingerprint.
func (g *referenceGhost) set(print uint32) int { return int(uint64(print) * uint64(len(g.sets)) >> 32) }

func (g *referenceGhost) add(hash uint64, origin origin, capacity int) {
	switch {
	case capacity > g.capacity:
		g.capacity = capacity
	case capacity < g.capacity:
		g.sinks++
		if g.sinks%8 == 0 {
			g.capacity--
		}
	}
	sets := max(1, len(g.sets))
	switch {
	case g.capacity > 16*sets:
		for g.capacity > 16*sets {
			sets *= 2
		}
	case g.capacity < 4*sets && sets > 1:
		sets /= 2
	}
	if sets != len(g.sets) {
		old := g.sets
		g.sets = make([][]remembered, sets)
		for _, items := range old {
			for _, item := range slices.Backward(items[:min(len(items), g.ways)]) {
				i := g.set(item.print)
				g.sets[i] = slices.Insert(g.sets[i], 0, item)
			}
		}
	}
	for g.ways = 0; g.ways*sets < g.capacity; g.ways++ {
	}
	if g.capacity > 0 {
		i := g.set(fingerprint(hash))
		g.sets[i] = slices.Insert(g.sets[i], 0, remembered{print: fingerprint(hash), origin: origin})
		g.sets[i] = g.sets[i][:min(len(g.sets[i]), g.ways)]
	}
}

func (g *referenceGhost) take(hash uint64) origin {
	if len(g.sets) == 0 {
		return unknown
	}
	print := fingerprint(hash)
	i := g.set(print)
	at := slices.IndexFunc(g.sets[i], func(item remembered) bool { return item.print == print })
	if at < 0 || at >= g.ways {
		return unknown
	}
	origin := g.sets[i][at].origin
	g.sets[i] = slices.Delete(g.sets[i], at, at+1)
	return origin
}

func (g *referenceGhost) renew(hash uint64) {
	if origin := g.take(hash); origin != unknown {
		i := g.set(fingerprint(hash))
		g.sets[i] = slices.Insert(g.sets[i], 0, remembered{print: fingerprint(hash), origin: origin})
	}
}

func TestGhostModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		capacities := rapid.Just(rapid.IntRange(0, 200).Draw(t, "capacity"))
		if rapid.Bool().Draw(t, "changing") {
			capacities = rapid.OneOf(rapid.IntRange(0, 4), rapid.IntRange(0, 200))
		}
		// Shards share a part of their hashes, at either end.
		shift := rapid.SampledFrom([]int{0, 8, 56}).Draw(t, "shift")
		hashes := rapid.Uint64Range(0, uint64(rapid.SampledFrom([]int{10, 100, 400}).Draw(t, "hashes")))
		var g ghost
		var want referenceGhost
		for range rapid.SampledFrom([]int{10, 100, 1000}).Draw(t, "steps") {
			hash := hashes.Draw(t, "hash") << shift
			switch rapid.IntRange(0, 5).Draw(t, "kind") {
			case 0:
				require.Equal(t, want.take(hash), g.take(hash))
			case 1:
				g.renew(hash)
				want.renew(hash)
			default:
				capacity := capacities.Draw(t, "capacity")
				origin := rapid.SampledFrom([]origin{fromSmall, fromMain}).Draw(t, "origin")
				g.add(hash, origin == fromMain, capacity)
				want.add(hash, origin, capacity)
			}
			require.Equal(t, want.capacity, g.capacity)
			require.NoError(t, g.check())
		}
	})
}

func TestGhostRemembersTheLatestOfASet(t *testing.T) {
	var g ghost
	for hash := range uint64(20) {
		g.add(hash, hash%2 == 0, 10)
	}
	for hash := range uint64(20) {
		want := unknown
		if hash >= 10 {
			want = []origin{fromMain, fromSmall}[hash%2]
		}
		assert.Equal(t, want, g.take(hash), "hash %d", hash)
		assert.Equal(t, unknown, g.take(hash), "hash %d for the second time", hash)
	}
}

func TestGhostRemembersAboutAsManyAsItsCapacity(t *testing.T) {
	for _, capacity := range []int{1, 16, 17, 100, 1000, 1024, 1025, 10_000, 100_000} {
		var g ghost
		random := newRandom(1)
		for range 3 * capacity {
			g.add(random.Uint64(), false, capacity)
		}
		random = newRandom(1)
		remembered, lately := 0, 0
		for i := range 3 * capacity {
			if g.take(random.Uint64()) != unknown {
				remembered++
				if i >= 2*capacity {
					lately++
				}
			}
		}
		assert.InEpsilon(t, capacity, remembered, 0.15, "capacity %d", capacity)
		assert.Greater(t, float64(lately), 0.8*float64(capacity), "capacity %d", capacity)
	}
}

func TestGhostTakesFewBytesForWhatItHolds(t *testing.T) {
	for _, capacity := range []int{16, 17, 100, 1000, 1024, 1025, 10_000, 100_000} {
		var g ghost
		g.add(1, false, capacity)
		assert.LessOrEqual(t, len(g.sets)*ghostWays*4, max(64, 8*capacity), "capacity %d", capacity)
	}
}

// TestGhostFollowsItsCapacity has one that is wanted smaller and larger again.
func TestGhostFollowsItsCapacity(t *testing.T) {
	var g ghost
	hash := uint64(0)
	addMany := func(count, capacity int) {
		for range count {
			hash++
			g.add(hash, false, capacity)
		}
		require.NoError(t, g.check())
	}
	addMany(2000, 1000)
	require.Len(t, g.sets, 64)
	addMany(800, 1)
	assert.Equal(t, 900, g.capacity, "it sinks slowly")
	addMany(1, 1000)
	assert.Equal(t, 1000, g.capacity, "and rises at once")
	addMany(8*1000, 1)
	assert.Equal(t, 1, g.capacity)
	assert.Len(t, g.sets, 1)

	// What is remembered survives when the table grows, and when it shrinks.
	addMany(1, 16)
	addMany(15, 16)
	addMany(1, 1000)
	for old := hash - 15; old <= hash; old++ {
		assert.Equal(t, fromSmall, g.take(old))
	}
	addMany(40, 64)
	g.capacity, g.ways = 32, ghostWays
	g.rehash(2)
	require.NoError(t, g.check())
	remembered := 0
	for old := hash - 39; old <= hash; old++ {
		if g.take(old) != unknown {
			remembered++
		}
	}
	assert.GreaterOrEqual(t, remembered, 30)
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
			var g ghost
			random := newRandom(1)
			for range held / 2 {
				g.add(test.hash(random.Uint64()), true, held)
			}
			require.NoError(t, g.check())
			random = newRandom(1)
			remembered := 0
			for range held / 2 {
				if g.take(test.hash(random.Uint64())) != unknown {
					remembered++
				}
			}
			assert.Greater(t, float64(remembered), 0.98*held/2, "all fit but for sets that are unlucky")
			mistaken := 0
			for range held {
				if g.take(test.hash(random.Uint64())) != unknown {
					mistaken++
				}
			}
			assert.Less(t, mistaken, held/1000)
		})
	}
}

func TestGhostCheckFindsDamage(t *testing.T) {
	tests := []struct {
		name   string
		damage func(g *ghost)
	}{
		{name: "too few sets", damage: func(g *ghost) { g.sets = g.sets[:1] }},
		{name: "a number of sets that is no power of two", damage: func(g *ghost) { g.sets = append(g.sets, ghostSet{}) }},
		{name: "too many ways", damage: func(g *ghost) { g.ways = ghostWays + 1 }},
		{name: "a fingerprint of another set", damage: func(g *ghost) { g.sets[0][0] = ^g.sets[0][0] }},
		{name: "a fingerprint behind an empty place", damage: func(g *ghost) { g.sets[0][0] = 0 }},
		{name: "a fingerprint of another origin", damage: func(g *ghost) { g.sets[0][0] ^= inMainBit }},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var g ghost
			for hash := range uint64(32) {
				g.add(hash*3, false, 32)
			}
			require.NoError(t, g.check())
			test.damage(&g)
			assert.Error(t, g.check())
		})
	}
}

// newRandom returns a source that yields the same numbers in every run.
func newRandom(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, seed)) }
