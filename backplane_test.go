package nearcache_test

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache"
)

// instance is one instance of a service, on a Redis in this process.
type instance struct {
	*nearcache.Backplane
	words, numbers *nearcache.Cache[string, string]
}

func connect(t *testing.T, redis *miniredis.Miniredis, load func(context.Context, string) (string, error)) instance {
	t.Helper()
	bp, err := nearcache.Connect(t.Context(), nearcache.BackplaneOptions{
		RedisConnectionString: redis.Addr(), Logger: slog.New(slog.DiscardHandler),
	})
	require.NoError(t, err)
	t.Cleanup(func() { _ = bp.Close() })
	in := instance{Backplane: bp}
	in.words, err = nearcache.New(bp, nearcache.Options[string, string]{
		Name: "words", Load: load, Regions: func(key, _ string) []string { return []string{key[:1]} },
	})
	require.NoError(t, err)
	in.numbers, err = nearcache.New(bp, nearcache.Options[string, string]{Name: "numbers", Load: load})
	require.NoError(t, err)
	return in
}

// held returns the keys in memory, of both caches, in order.
func (in instance) held() (keys []string) {
	for i, c := range []*nearcache.Cache[string, string]{in.words, in.numbers} {
		for _, key := range []string{"apple", "avocado", "banana"} {
			if _, held := c.Peek(key); held {
				keys = append(keys, []string{"words/", "numbers/"}[i]+key)
			}
		}
	}
	return keys
}

// An instance's write evicts on the other instances what it is about, and nothing else.
func TestInvalidationsOfOtherInstances(t *testing.T) {
	tests := []struct {
		name  string
		write func(context.Context, instance) error
		kept  []string
	}{
		{"Remove", func(ctx context.Context, in instance) error { return in.words.Remove(ctx, "apple") },
			[]string{"words/avocado", "words/banana", "numbers/apple", "numbers/avocado", "numbers/banana"}},
		{"Set", func(ctx context.Context, in instance) error { return in.words.Set(ctx, "banana", "new") },
			[]string{"words/apple", "words/avocado", "numbers/apple", "numbers/avocado", "numbers/banana"}},
		{"ClearRegion", func(ctx context.Context, in instance) error { return in.words.ClearRegion(ctx, "a") },
			[]string{"words/banana", "numbers/apple", "numbers/avocado", "numbers/banana"}},
		{"Clear", func(ctx context.Context, in instance) error { return in.words.Clear(ctx) },
			[]string{"numbers/apple", "numbers/avocado", "numbers/banana"}},
		{"ClearAll", func(ctx context.Context, in instance) error { return in.ClearAll(ctx) }, nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			ctx := t.Context()
			redis := miniredis.RunT(t)
			load := func(_ context.Context, key string) (string, error) { return key, nil }
			writer, other := connect(t, redis, load), connect(t, redis, load)
			for _, c := range []*nearcache.Cache[string, string]{other.words, other.numbers} {
				for _, key := range []string{"apple", "avocado", "banana"} {
					_, err := c.Get(ctx, key)
					require.NoError(t, err)
				}
			}
			require.NoError(t, test.write(ctx, writer))
			require.Eventually(t, func() bool { return len(other.held()) <= len(test.kept) }, 20*time.Second, time.Millisecond)
			require.Equal(t, test.kept, other.held())
		})
	}
}

// The next Get after another instance's write returns the new version.
func TestGetAfterAnInvalidation(t *testing.T) {
	ctx := t.Context()
	redis := miniredis.RunT(t)
	versions := make(chan string, 1)
	versions <- "old"
	load := func(context.Context, string) (string, error) { return <-versions, nil }
	writer, other := connect(t, redis, load), connect(t, redis, load)
	value, err := other.words.Get(ctx, "apple")
	require.NoError(t, err)
	require.Equal(t, "old", value)

	versions <- "new"
	require.NoError(t, writer.words.Remove(ctx, "apple"))
	require.Eventually(t, func() bool { return len(other.held()) == 0 }, 20*time.Second, time.Millisecond)
	value, err = other.words.Get(ctx, "apple")
	require.NoError(t, err)
	require.Equal(t, "new", value)
}

// Messages of one channel are of no concern to instances on another.
func TestChannelsAreApart(t *testing.T) {
	ctx := t.Context()
	redis := miniredis.RunT(t)
	load := func(_ context.Context, key string) (string, error) { return key, nil }
	in := connect(t, redis, load)
	_, err := in.words.Get(ctx, "apple")
	require.NoError(t, err)

	bp, err := nearcache.Connect(ctx, nearcache.BackplaneOptions{RedisConnectionString: redis.Addr(), Channel: "another"})
	require.NoError(t, err)
	t.Cleanup(func() { _ = bp.Close() })
	require.NoError(t, bp.ClearAll(ctx))
	require.NoError(t, connect(t, redis, load).words.Remove(ctx, "banana"))
	require.Eventually(t, func() bool { return in.Stats().Applied == 1 }, 20*time.Second, time.Millisecond)
	assert.Equal(t, []string{"words/apple"}, in.held())
}
