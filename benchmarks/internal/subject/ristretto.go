package subject

import "github.com/dgraph-io/ristretto/v2"

func openRistretto[K Key](c Config[K]) (*Cache[K], error) {
	cache, err := ristretto.NewCache(&ristretto.Config[K, *Value]{
		NumCounters:        10 * int64(c.Capacity),
		MaxCost:            int64(c.Capacity),
		BufferItems:        64,
		IgnoreInternalCost: true, // so that the cost is the number of items
	})
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
		Len: func() int {
			n := 0
			cache.IterValues(func(*Value) (stop bool) { n++; return false })
			return n
		},
		Close: cache.Close,
	}, nil
}
