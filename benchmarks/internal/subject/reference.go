package subject

import (
	"sync"
	"time"
)

// openTimedMap is the reference that hits are compared with: a map, a lock, one
// read of the clock and a deadline.
func openTimedMap[K Key](c Config[K]) (*Cache[K], error) {
	type item struct {
		value   *Value
		expires time.Duration
	}
	var mu sync.RWMutex
	items := map[K]item{}
	epoch := time.Now()
	return &Cache[K]{
		Get: func(key K) bool {
			mu.RLock()
			it, held := items[key]
			mu.RUnlock()
			return held && time.Since(epoch) < it.expires && it.value != nil
		},
		Set: func(key K, v *Value) {
			expires := time.Since(epoch) + c.TTL
			mu.Lock()
			items[key] = item{v, expires}
			mu.Unlock()
		},
		Len:   func() int { return len(items) },
		Close: func() {},
	}, nil
}

func openLockedMap[K Key](Config[K]) (*Cache[K], error) {
	var mu sync.RWMutex
	items := map[K]*Value{}
	return &Cache[K]{
		Get: func(key K) bool {
			mu.RLock()
			v := items[key]
			mu.RUnlock()
			return v != nil
		},
		Set: func(key K, v *Value) {
			mu.Lock()
			items[key] = v
			mu.Unlock()
		},
		Len:   func() int { return len(items) },
		Close: func() {},
	}, nil
}

func openSyncMap[K Key](Config[K]) (*Cache[K], error) {
	var items sync.Map
	return &Cache[K]{
		Get: func(key K) bool {
			v, held := items.Load(key)
			return held && v.(*Value) != nil
		},
		Set: func(key K, v *Value) { items.Store(key, v) },
		Len: func() int {
			n := 0
			items.Range(func(any, any) bool { n++; return true })
			return n
		},
		Close: func() {},
	}, nil
}

// openEmptyLoop shows what the measuring itself costs.
func openEmptyLoop[K Key](Config[K]) (*Cache[K], error) {
	return &Cache[K]{
		Get:   func(K) bool { return true },
		Set:   func(K, *Value) {},
		Len:   func() int { return 0 },
		Close: func() {},
	}, nil
}
