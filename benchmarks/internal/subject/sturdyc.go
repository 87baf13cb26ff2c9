package subject

import (
	"context"

	"github.com/viccon/sturdyc"
)

// openSturdyc opens sturdyc as its README does. Its goroutine cannot be stopped, so
// closing it leaves an empty cache behind.
func openSturdyc(c Config[string]) (*Cache[string], error) {
	const shards, evictionPercentage = 10, 10
	cache := sturdyc.New[*Value](c.Capacity, shards, c.TTL, evictionPercentage)
	ctx, cancel := c.context()
	get := func(key string) bool {
		v, err := cache.GetOrFetch(ctx, key, func(context.Context) (*Value, error) { return c.Load(key), nil })
		return v != nil && err == nil
	}
	return &Cache[string]{
		Get:  get,
		Load: get,
		Set:  func(key string, v *Value) { cache.Set(key, v) },
		Len:  cache.Size,
		Close: func() {
			cancel()
			for _, key := range cache.ScanKeys() {
				cache.Delete(key)
			}
		},
	}, nil
}
