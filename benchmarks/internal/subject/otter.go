package subject

import (
	"context"

	"github.com/maypok86/otter/v2"
	"github.com/maypok86/otter/v2/stats"
)

func openOtter[K Key](c Config[K]) (*Cache[K], error) { return newOtter(c, nil) }

func openOtterCounting[K Key](c Config[K]) (*Cache[K], error) { return newOtter(c, stats.NewCounter()) }

func newOtter[K Key](c Config[K], recorder stats.Recorder) (*Cache[K], error) {
	options := &otter.Options[K, *Value]{
		MaximumSize:      c.Capacity,
		ExpiryCalculator: otter.ExpiryWriting[K, *Value](c.TTL),
		StatsRecorder:    recorder,
	}
	if c.Exact {
		options.Executor = func(task func()) { task() } // maintenance in the call that causes it
	}
	cache, err := otter.New(options)
	if err != nil {
		return nil, err
	}
	ctx, cancel := c.context()
	loader := otter.LoaderFunc[K, *Value](func(_ context.Context, key K) (*Value, error) { return c.Load(key), nil })
	return &Cache[K]{
		Get: func(key K) bool {
			v, held := cache.GetIfPresent(key)
			return held && v != nil
		},
		Load: func(key K) bool {
			v, err := cache.Get(ctx, key, loader)
			return v != nil && err == nil
		},
		Set:    func(key K, v *Value) { cache.Set(key, v) },
		Settle: cache.CleanUp,
		Len:    cache.EstimatedSize,
		Close: func() {
			cache.InvalidateAll()
			cache.StopAllGoroutines()
			cancel()
		},
	}, nil
}
