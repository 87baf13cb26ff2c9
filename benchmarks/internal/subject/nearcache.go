package subject

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nearcache/nearcache"
)

// openNearcache opens nearcache on Redis if there is one, else on Local.
func openNearcache[K Key](c Config[K]) (*Cache[K], error) {
	return newNearcache(c, nearcache.DefaultEviction)
}

func openNearcacheLRU[K Key](c Config[K]) (*Cache[K], error) {
	return newNearcache(c, nearcache.LRU)
}

func openNearcacheLocal[K Key](c Config[K]) (*Cache[K], error) {
	c.Redis = ""
	return openNearcache(c)
}

func newNearcache[K Key](c Config[K], eviction nearcache.Eviction) (*Cache[K], error) {
	bp := nearcache.Local()
	if c.Redis != "" {
		var err error
		if bp, err = Join(c.Redis); err != nil {
			return nil, err
		}
	}
	options := nearcache.Options[K, *Value]{
		Name:     "bench",
		Load:     func(_ context.Context, key K) (*Value, error) { return c.Load(key), nil },
		Capacity: c.Capacity,
		TTL:      c.TTL,
		Eviction: eviction,
	}
	if c.Regions {
		options.Regions = func(key K, _ *Value) []string { return regionOf(IDOf(key)) }
	}
	cache, err := nearcache.New(bp, options)
	if err != nil {
		_ = bp.Close()
		return nil, err
	}
	ctx, cancel := c.context()
	get := func(key K) bool {
		v, err := cache.Get(ctx, key)
		return v != nil && err == nil
	}
	opened := &Cache[K]{
		Get:   get,
		Load:  get,
		Set:   func(key K, v *Value) { _ = cache.Set(ctx, key, v) },
		Len:   cache.Len,
		Close: func() { cancel(); _ = bp.Close() },
	}
	if c.Redis != "" {
		opened.Warm = func(keys []K) error { // by loads: each Set would be published
			concurrently(keys, runtime.GOMAXPROCS(0), func(key K) { get(key) })
			return nil
		}
	}
	return opened, nil
}

// Join connects to Redis, with MaxStaleness and all else as by default, and
// without a word to the log.
func Join(address string) (*nearcache.Backplane, error) { return JoinChannel(address, "") }

// JoinChannel is Join of another channel than the default.
func JoinChannel(address, channel string) (*nearcache.Backplane, error) {
	bp, err := nearcache.Connect(context.Background(), nearcache.BackplaneOptions{
		RedisConnectionString: address,
		Channel:               channel,
		Logger:                slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return nil, err
	}
	for deadline := time.Now().Add(10 * time.Second); bp.State() != nearcache.StateLive; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			_ = bp.Close()
			return nil, fmt.Errorf("no lease within 10 s: %v", bp.State())
		}
	}
	return bp, nil
}

// regionOf returns the region of an item: one of 16, always the same slice.
func regionOf(id int64) []string { return regions[uint64(id)%uint64(len(regions))] }

var regions = func() (all [16][]string) {
	for i := range all {
		all[i] = []string{fmt.Sprintf("region-%d", i)}
	}
	return all
}()

// concurrently calls do for all keys on so many goroutines.
func concurrently[K Key](keys []K, goroutines int, do func(K)) {
	var all sync.WaitGroup
	var next atomic.Int64
	for range goroutines {
		all.Go(func() {
			for i := next.Add(1) - 1; i < int64(len(keys)); i = next.Add(1) - 1 {
				do(keys[i])
			}
		})
	}
	all.Wait()
}
