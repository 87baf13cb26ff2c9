package subject

import "github.com/jellydator/ttlcache/v3"

func openTTLCache[K Key](c Config[K]) (*Cache[K], error) {
	cache := ttlcache.New(
		ttlcache.WithTTL[K, *Value](c.TTL),
		ttlcache.WithCapacity[K, *Value](uint64(c.Capacity)),
		ttlcache.WithDisableTouchOnHit[K, *Value](), // the TTL of all others counts from the write
	)
	go cache.Start()
	return &Cache[K]{
		Get: func(key K) bool {
			item := cache.Get(key)
			return item != nil && item.Value() != nil
		},
		Set: func(key K, v *Value) { cache.Set(key, v, ttlcache.DefaultTTL) },
		Len: cache.Len,
		Close: func() {
			cache.Stop()
			cache.DeleteAll()
		},
	}, nil
}
