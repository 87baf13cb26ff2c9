package main

import (
	"context"
	"testing"
	"time"

	"github.com/nearcache/nearcache"
)

// BenchmarkHitLifetimes is what the options cost a hit that have to do with an
// item's times.
func BenchmarkHitLifetimes(b *testing.B) {
	for name, set := range map[string]func(o *nearcache.Options[int64, *int64]){
		"none":         func(*nearcache.Options[int64, *int64]) {},
		"RefreshAfter": func(o *nearcache.Options[int64, *int64]) { o.RefreshAfter = time.Hour },
		"IdleTTL":      func(o *nearcache.Options[int64, *int64]) { o.IdleTTL = time.Minute },
		"StaleIfError": func(o *nearcache.Options[int64, *int64]) { o.StaleIfError = time.Hour },
		"all": func(o *nearcache.Options[int64, *int64]) {
			o.RefreshAfter, o.IdleTTL, o.StaleIfError = time.Hour, time.Minute, time.Hour
		},
	} {
		b.Run(name, func(b *testing.B) {
			cache := openCache(b, set)
			ctx := context.Background()
			b.Run("serial", func(b *testing.B) {
				b.ReportAllocs()
				for i := int64(0); b.Loop(); i++ {
					_, _ = cache.Get(ctx, i&63)
				}
			})
			b.Run("parallel", func(b *testing.B) {
				b.RunParallel(func(p *testing.PB) {
					for i := int64(0); p.Next(); i++ {
						_, _ = cache.Get(ctx, i&63)
					}
				})
			})
		})
	}
}

// BenchmarkGetMany is a GetMany of 100 items beside as many Gets: of items that are
// held, and of such that are not.
func BenchmarkGetMany(b *testing.B) {
	keys := make([]int64, 100)
	for i := range keys {
		keys[i] = int64(i)
	}
	ctx := context.Background()
	for _, held := range []bool{true, false} {
		name := map[bool]string{true: "held", false: "missing"}[held]
		cache := openCache(b, func(o *nearcache.Options[int64, *int64]) {
			o.LoadMany = func(_ context.Context, keys []int64) (map[int64]*int64, error) {
				got := make(map[int64]*int64, len(keys))
				for _, key := range keys {
					got[key] = new(key)
				}
				return got, nil
			}
		})
		prepare := func() {
			if !held {
				_ = cache.Clear(ctx)
			}
		}
		b.Run(name+"/GetMany", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				prepare()
				_, _ = cache.GetMany(ctx, keys...)
			}
		})
		b.Run(name+"/Get", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				prepare()
				for _, key := range keys {
					_, _ = cache.Get(ctx, key)
				}
			}
		})
	}
}

// openCache returns a cache on Local whose loader returns its key.
func openCache(b *testing.B, set func(o *nearcache.Options[int64, *int64])) *nearcache.Cache[int64, *int64] {
	bp := nearcache.Local()
	b.Cleanup(func() { _ = bp.Close() })
	o := nearcache.Options[int64, *int64]{
		Name: "bench", TTL: time.Hour,
		Load: func(_ context.Context, key int64) (*int64, error) { return new(key), nil },
	}
	set(&o)
	cache, err := nearcache.New(bp, o)
	if err != nil {
		b.Fatal(err)
	}
	return cache
}
