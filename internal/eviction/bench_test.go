package eviction

import (
	"math/rand/v2"
	"testing"
)

const benchmarkEntries = 100_000

func BenchmarkAdaptiveAdd(b *testing.B) {
	benchmarkAdd(b, NewAdaptive[int](Limits{Entries: benchmarkEntries}))
}

func BenchmarkLRUAdd(b *testing.B) {
	benchmarkAdd(b, NewLRU[int](Limits{Entries: benchmarkEntries}))
}

// benchmarkAdd adds to a full policy, so that each Add evicts. A part of the
// nodes is used, and a part of the keys comes back. The one allocation is the
// node, which is the caller's.
func benchmarkAdd(b *testing.B, p Policy[int]) {
	random := rand.New(rand.NewPCG(1, 1))
	add := func() {
		key := random.IntN(4 * benchmarkEntries)
		n := &Node[int]{Item: key}
		if key%2 == 0 {
			n.Use()
		}
		for v := p.Evict(uint64(key), 1); v != nil; v = p.Evict(uint64(key), 1) {
			p.Remember(hashOfKey(&v.Item))
		}
		p.Add(n, uint64(key), 1)
	}
	for range 3 * benchmarkEntries {
		add()
	}
	b.ReportAllocs()
	for b.Loop() {
		add()
	}
}

func BenchmarkUse(b *testing.B) {
	b.Run("marked", func(b *testing.B) {
		var n Node[int]
		for b.Loop() {
			n.Use()
		}
	})
	b.Run("marking", func(b *testing.B) {
		var n Node[int]
		for b.Loop() {
			n.state.Store(0)
			n.Use()
		}
	})
	b.Run("marked, in parallel", func(b *testing.B) {
		var n Node[int]
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				n.Use()
			}
		})
	})
}
