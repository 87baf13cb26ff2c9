// Package subject has what is measured: nearcache, its peers and plain references,
// each behind the same few functions.
package subject

import (
	"context"
	"strconv"
	"strings"
	"time"
)

// Key is a kind of key. Some peers know strings only.
type Key interface{ int64 | string }

// Value is an item. All caches hold pointers to it.
type Value struct {
	ID    int64
	Name  string
	Price float64
}

// KeyOf returns the key of an item's number.
func KeyOf[K Key](id int64) K {
	var key K
	switch k := any(&key).(type) {
	case *int64:
		*k = id
	case *string:
		*k = "item:" + strconv.FormatInt(id, 10)
	}
	return key
}

// IDOf returns the number of the item of a key.
func IDOf[K Key](key K) int64 {
	switch k := any(key).(type) {
	case int64:
		return k
	case string:
		id, _ := strconv.ParseInt(strings.TrimPrefix(k, "item:"), 10, 64)
		return id
	}
	return 0
}

// A Config says what kind of cache is wanted.
type Config[K Key] struct {
	Capacity int
	TTL      time.Duration

	// Load makes the item of a key. Caches with a loader call it.
	Load func(K) *Value

	// ReadThrough says that the cache will be asked through Cache.Load only, for
	// peers that have a type of its own for that.
	ReadThrough bool

	// Exact says that each write is to have its effect before the next call, for
	// measuring hit ratios: see Cache.Settle.
	Exact bool

	// Leaves says that reads have a context that can end, as those of a service do, so
	// that a caller may leave before a load ends. Else they have one that cannot.
	Leaves bool

	// Regions puts each item of nearcache into one of 16 regions.
	Regions bool

	// Redis is the address of a server, for those that have to do with one.
	Redis string
}

// context returns the context of the reads, and what ends it.
func (c Config[K]) context() (context.Context, context.CancelFunc) {
	if c.Leaves {
		return context.WithCancel(context.Background())
	}
	return context.Background(), func() {}
}

// A Cache is one cache, as functions.
type Cache[K Key] struct {
	// Get asks for what is held, and reports whether it was.
	Get func(K) bool

	// Load asks for an item, has it loaded if it is not held, and reports success.
	// nil: the peer has no loader, see ReadThrough.
	Load func(K) bool

	// Set puts an item in.
	Set func(K, *Value)

	// Warm fills the cache with the items of keys. nil: by Set.
	Warm func([]K) error

	// Settle waits for what earlier calls left to the background. nil: nothing is.
	Settle func()

	// Len returns how many items are held.
	Len func() int

	Close func()
}

// A Subject is a way to open a cache.
type Subject[K Key] struct {
	Name string
	Open func(Config[K]) (*Cache[K], error)

	// NeedsRedis says that it cannot be opened without Config.Redis.
	NeedsRedis bool

	// Unbounded says that Capacity means nothing to it.
	Unbounded bool

	// Network says that each Get is a round trip.
	Network bool
}

// Fill puts the items of keys in, all that there is room for.
func (c *Cache[K]) Fill(keys []K, load func(K) *Value) error {
	if c.Warm != nil {
		return c.Warm(keys)
	}
	for i, key := range keys {
		c.Set(key, load(key))
		if i%256 == 255 {
			c.settle() // some drop what comes too fast
		}
	}
	c.settle()
	return nil
}

func (c *Cache[K]) settle() {
	if c.Settle != nil {
		c.Settle()
	}
}

// ReadThrough returns a Get that loads what is not held: the cache's own, or Get
// and then Set, as an application would write it for one without a loader.
func (c *Cache[K]) ReadThrough(load func(K) *Value) func(K) bool {
	if c.Load != nil {
		return c.Load
	}
	return func(key K) bool {
		if !c.Get(key) {
			c.Set(key, load(key))
		}
		return true
	}
}
