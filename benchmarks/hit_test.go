package benchmarks

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/nearcache/nearcache"
)

type value struct{ n int }

func newCache(b *testing.B, o nearcache.Options[int64, *value]) *nearcache.Cache[int64, *value] {
	b.Helper()
	bp := nearcache.Local()
	b.Cleanup(func() { _ = bp.Close() })
	o.Name = "bench"
	if o.Load == nil {
		o.Load = func(_ context.Context, key int64) (*value, error) { return &value{int(key)}, nil }
	}
	cache, err := nearcache.New(bp, o)
	if err != nil {
		b.Fatal(err)
	}
	return cache
}

// lockedMap is the reference: a map, a lock, a deadline against one clock read.
type lockedMap struct {
	mu    sync.RWMutex
	items map[int64]lockedItem
	epoch time.Time
}

type lockedItem struct {
	value   *value
	expires time.Duration
}

func (m *lockedMap) get(key int64) *value {
	m.mu.RLock()
	it, ok := m.items[key]
	m.mu.RUnlock()
	if !ok || time.Since(m.epoch) >= it.expires {
		return nil
	}
	return it.value
}

// workloads are the orders in which hits come.
func workloads() []struct {
	name string
	keys []int64
} {
	sequence := func(n int) []int64 {
		keys := make([]int64, n)
		for i := range keys {
			keys[i] = int64(i)
		}
		return keys
	}
	zipf := rand.NewZipf(rand.New(rand.NewPCG(1, 2)), 1.01, 1, 99_999)
	skewed := make([]int64, 1<<20)
	for i := range skewed {
		skewed[i] = int64(zipf.Uint64())
	}
	return []struct {
		name string
		keys []int64
	}{
		{"keys=1", sequence(1)},
		{"keys=64", sequence(64)},
		{"keys=100k-zipf", skewed},
	}
}

// BenchmarkHit is Get of what is in memory, with the default options.
func BenchmarkHit(b *testing.B) {
	ctx := context.Background()
	for _, w := range workloads() {
		cache := newCache(b, nearcache.Options[int64, *value]{Capacity: 200_000, TTL: time.Hour})
		lru := newCache(b, nearcache.Options[int64, *value]{Capacity: 200_000, TTL: time.Hour, Eviction: nearcache.LRU})
		reference := &lockedMap{items: map[int64]lockedItem{}, epoch: time.Now()}
		for _, key := range w.keys {
			_, _ = cache.Get(ctx, key)
			_, _ = lru.Get(ctx, key)
			reference.items[key] = lockedItem{&value{int(key)}, time.Hour}
		}
		subjects := []struct {
			name string
			get  func(int64)
		}{
			{"nearcache", func(key int64) { _, _ = cache.Get(ctx, key) }},
			{"nearcache-LRU", func(key int64) { _, _ = lru.Get(ctx, key) }},
			{"map+RWMutex", func(key int64) { reference.get(key) }},
		}
		for _, s := range subjects {
			b.Run(fmt.Sprintf("%s/%s/serial", w.name, s.name), func(b *testing.B) {
				b.ReportAllocs()
				i := 0
				for b.Loop() {
					s.get(w.keys[i])
					if i++; i == len(w.keys) {
						i = 0
					}
				}
			})
			b.Run(fmt.Sprintf("%s/%s/parallel", w.name, s.name), func(b *testing.B) {
				b.ReportAllocs()
				b.RunParallel(func(p *testing.PB) {
					i := rand.IntN(len(w.keys))
					for p.Next() {
						s.get(w.keys[i])
						if i++; i == len(w.keys) {
							i = 0
						}
					}
				})
			})
		}
	}
}
