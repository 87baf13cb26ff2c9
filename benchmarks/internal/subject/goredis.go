package subject

import (
	"context"
	"encoding/json"

	"github.com/redis/go-redis/v9"
)

// openRedisGet is no cache at all: a GET for each read.
func openRedisGet(c Config[string]) (*Cache[string], error) {
	return newRedis(&redis.Options{Addr: c.Redis})
}

// openRedisTracking opens go-redis's own client-side cache.
func openRedisTracking(c Config[string]) (*Cache[string], error) {
	return newRedis(Tracking(c.Redis, c.Capacity))
}

// Tracking returns the options of go-redis for its own client-side cache.
func Tracking(address string, capacity int) *redis.Options {
	return &redis.Options{
		Addr:                  address,
		Protocol:              3,
		ClientSideCacheConfig: &redis.ClientSideCacheConfig{MaxEntries: capacity},
	}
}

func newRedis(o *redis.Options) (*Cache[string], error) {
	client := redis.NewClient(o)
	ctx := context.Background()
	get := func(key string) bool {
		text, err := client.Get(ctx, key).Result()
		return err == nil && text != ""
	}
	return &Cache[string]{
		Get: get,
		Warm: func(keys []string) error {
			if o.ClientSideCacheConfig == nil {
				return nil // there is nothing to warm
			}
			return warmBy(get)(keys)
		},
		Close: func() { _ = client.Close() },
	}, nil
}

// Seed writes the items of keys to Redis, as JSON.
func Seed[K Key](address string, keys []K, load func(K) *Value) error {
	client := redis.NewClient(&redis.Options{Addr: address})
	defer client.Close()
	ctx := context.Background()
	const batch = 1000
	for len(keys) > 0 {
		n := min(batch, len(keys))
		pairs := make([]any, 0, 2*batch)
		for _, key := range keys[:n] {
			text, err := json.Marshal(load(key))
			if err != nil {
				return err
			}
			pairs = append(pairs, any(key), text)
		}
		if err := client.MSet(ctx, pairs...).Err(); err != nil {
			return err
		}
		keys = keys[n:]
	}
	return nil
}
