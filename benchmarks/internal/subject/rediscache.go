package subject

import (
	"context"

	"github.com/go-redis/cache/v9"
)

// openRedisCache opens go-redis/cache with its local level only: what it holds is
// bytes, which each hit decodes.
func openRedisCache(c Config[string]) (*Cache[string], error) {
	local := cache.New(&cache.Options{LocalCache: cache.NewTinyLFU(c.Capacity, c.TTL)})
	ctx := context.Background()
	return &Cache[string]{
		Get: func(key string) bool {
			var v Value
			return local.Get(ctx, key, &v) == nil
		},
		Set:   func(key string, v *Value) { _ = local.Set(&cache.Item{Ctx: ctx, Key: key, Value: v}) },
		Close: func() {},
	}, nil
}
