package benchmarks

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nearcache/nearcache"
)

// BenchmarkMiss is what a Get costs beside the load: the loader does nothing.
func BenchmarkMiss(b *testing.B) {
	b.Run("room for all", func(b *testing.B) { benchmarkMiss(b, 1<<20) })
	b.Run("with an eviction each", func(b *testing.B) { benchmarkMiss(b, 1000) })
}

func benchmarkMiss(b *testing.B, capacity int) {
	v := &value{}
	cache := newCache(b, nearcache.Options[int64, *value]{
		Capacity: capacity,
		Load:     func(context.Context, int64) (*value, error) { return v, nil },
	})
	ctx := context.Background()
	b.ReportAllocs()
	key := int64(0)
	for b.Loop() {
		if key++; key%int64(min(capacity, 1<<19)) == 0 {
			b.StopTimer() // what was loaded first is to be missed again
			_ = cache.Clear(ctx)
			for cache.Stats().Evictions.Cleared == 0 && capacity > 1000 {
				time.Sleep(time.Millisecond)
			}
			b.StartTimer()
		}
		_, _ = cache.Get(ctx, key)
	}
}

// BenchmarkStampede is 10 000 goroutines that ask for one cold key.
func BenchmarkStampede(b *testing.B) {
	const callers = 10_000
	var loads atomic.Int64
	cache := newCache(b, nearcache.Options[int64, *value]{
		Load: func(context.Context, int64) (*value, error) {
			loads.Add(1)
			time.Sleep(10 * time.Millisecond)
			return &value{}, nil
		},
	})
	ctx := context.Background()
	key := int64(0)
	for b.Loop() {
		key++
		var all sync.WaitGroup
		begin := make(chan struct{})
		for range callers {
			all.Go(func() {
				<-begin
				_, _ = cache.Get(ctx, key)
			})
		}
		close(begin)
		all.Wait()
	}
	b.ReportMetric(float64(loads.Load())/float64(b.N), "loads/op")
	b.ReportMetric(callers, "callers/op")
}
