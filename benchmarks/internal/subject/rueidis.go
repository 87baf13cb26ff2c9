package subject

import (
	"context"

	"github.com/redis/rueidis"
)

func openRueidis(c Config[string]) (*Cache[string], error) {
	return newRueidis(c, func(r rueidis.RedisResult) error {
		_, err := r.ToString()
		return err
	})
}

func openRueidisJSON(c Config[string]) (*Cache[string], error) {
	return newRueidis(c, func(r rueidis.RedisResult) error {
		var v Value
		return r.DecodeJSON(&v)
	})
}

func newRueidis(c Config[string], read func(rueidis.RedisResult) error) (*Cache[string], error) {
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{c.Redis}})
	if err != nil {
		return nil, err
	}
	ctx := context.Background()
	get := func(key string) bool {
		return read(client.DoCache(ctx, client.B().Get().Key(key).Cache(), c.TTL)) == nil
	}
	return &Cache[string]{
		Get:   get,
		Warm:  warmBy(get),
		Close: client.Close,
	}, nil
}

// warmBy fills a cache of what Redis holds by asking for it.
func warmBy(get func(string) bool) func([]string) error {
	return func(keys []string) error {
		concurrently(keys, 64, func(key string) { get(key) })
		return nil
	}
}
