package subject

import (
	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/hashicorp/golang-lru/v2/expirable"
)

func openLRU[K Key](c Config[K]) (*Cache[K], error) {
	cache, err := lru.New[K, *Value](c.Capacity)
	if err != nil {
		return nil, err
	}
	return &Cache[K]{
		Get: func(key K) bool {
			v, held := cache.Get(key)
			return held && v != nil
		},
		Set:   func(key K, v *Value) { cache.Add(key, v) },
		Len:   cache.Len,
		Close: cache.Purge,
	}, nil
}

// openExpirable opens the LRU with a TTL. Its goroutine cannot be stopped, so
// closing it leaves an empty cache behind.
func openExpirable[K Key](c Config[K]) (*Cache[K], error) {
	cache := expirable.NewLRU[K, *Value](c.Capacity, nil, c.TTL)
	return &Cache[K]{
		Get: func(key K) bool {
			v, held := cache.Get(key)
			return held && v != nil
		},
		Set:   func(key K, v *Value) { cache.Add(key, v) },
		Len:   cache.Len,
		Close: cache.Purge,
	}, nil
}
