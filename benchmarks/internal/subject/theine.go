package subject

import (
	"context"

	"github.com/Yiling-J/theine-go"
)

// openTheine opens theine's simple cache, or its loading cache for reading through.
func openTheine[K Key](c Config[K]) (*Cache[K], error) {
	if c.ReadThrough {
		return openTheineLoading(c)
	}
	cache, err := theine.NewBuilder[K, *Value](int64(c.Capacity)).Build()
	if err != nil {
		return nil, err
	}
	return &Cache[K]{
		Get: func(key K) bool {
			v, held := cache.Get(key)
			return held && v != nil
		},
		Set:    func(key K, v *Value) { cache.SetWithTTL(key, v, 1, c.TTL) },
		Settle: cache.Wait,
		Len:    cache.Len,
		Close:  cache.Close,
	}, nil
}

func openTheineLoading[K Key](c Config[K]) (*Cache[K], error) {
	load := func(_ context.Context, key K) (theine.Loaded[*Value], error) {
		return theine.Loaded[*Value]{Value: c.Load(key), Cost: 1, TTL: c.TTL}, nil
	}
	cache, err := theine.NewBuilder[K, *Value](int64(c.Capacity)).Loading(load).Build()
	if err != nil {
		return nil, err
	}
	ctx, cancel := c.context()
	get := func(key K) bool {
		v, err := cache.Get(ctx, key)
		return v != nil && err == nil
	}
	return &Cache[K]{
		Get:    get,
		Load:   get,
		Set:    func(key K, v *Value) { cache.SetWithTTL(key, v, 1, c.TTL) },
		Settle: cache.Wait,
		Len:    cache.Len,
		Close:  func() { cancel(); cache.Close() },
	}, nil
}
