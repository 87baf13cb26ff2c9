package nearcache

import (
	"context"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache/internal/messagetest"
)

// An invalidator's messages are those that a cache sends, and nothing else is sent.
func TestInvalidatorPublishes(t *testing.T) {
	tests := []struct {
		name  string
		write func(context.Context, *Invalidator[int]) error
		want  []messagetest.Operation
	}{
		{
			name:  "Remove",
			write: func(ctx context.Context, i *Invalidator[int]) error { return i.Remove(ctx, 7, 7) },
			want:  []messagetest.Operation{{Op: messagetest.RemoveKeys, Cache: "p", Values: []string{"7"}}},
		}, {
			name:  "ClearRegion",
			write: func(ctx context.Context, i *Invalidator[int]) error { return i.ClearRegion(ctx, "r", "r") },
			want:  []messagetest.Operation{{Op: messagetest.ClearRegions, Cache: "p", Values: []string{"r"}}},
		}, {
			name:  "Clear",
			write: func(ctx context.Context, i *Invalidator[int]) error { return i.Clear(ctx) },
			want:  []messagetest.Operation{{Op: messagetest.ClearCache, Cache: "p"}},
		}, {
			name:  "no keys",
			write: func(ctx context.Context, i *Invalidator[int]) error { return i.Remove(ctx) },
		}, {
			name:  "no regions",
			write: func(ctx context.Context, i *Invalidator[int]) error { return i.ClearRegion(ctx) },
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			withFakeRedis(t, func(t *testing.T, bp *Backplane, redis *fakeRedis) {
				invalidator, err := NewInvalidator[int](bp, "p")
				require.NoError(t, err)
				require.NoError(t, test.write(t.Context(), invalidator))
				require.Equal(t, test.want, redis.accepted)
			})
		})
	}
}

// newRegional returns a cache named p, on bp, that holds a, b and c, of which a and
// b are in the region r.
func newRegional(t *testing.T, bp *Backplane) *Cache[string, string] {
	t.Helper()
	cache, err := New(bp, Options[string, string]{
		Name: "p",
		Load: func(_ context.Context, key string) (string, error) { return key, nil },
		Regions: func(key, _ string) []string {
			if key == "c" {
				return nil
			}
			return []string{"r"}
		},
	})
	require.NoError(t, err)
	t.Cleanup(func() { _ = cache.Close() })
	for _, key := range []string{"a", "b", "c"} {
		_, err := cache.Get(t.Context(), key)
		require.NoError(t, err)
	}
	return cache
}

//  1. the cache here loads version 1   2. version 2 is written, and an invalidator
//     called   3. its message comes back as one of this instance's own, and is passed
//     over: the work was done before it was sent.
func TestInvalidatorEvictsHere(t *testing.T) {
	tests := []struct {
		name  string
		write func(context.Context, *Invalidator[string]) error
		held  []bool // a, b, c
	}{
		{"Remove", func(ctx context.Context, i *Invalidator[string]) error { return i.Remove(ctx, "a") }, []bool{false, true, true}},
		{"ClearRegion", func(ctx context.Context, i *Invalidator[string]) error { return i.ClearRegion(ctx, "r") }, []bool{false, false, true}},
		{"Clear", func(ctx context.Context, i *Invalidator[string]) error { return i.Clear(ctx) }, []bool{false, false, false}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			withFakeRedis(t, func(t *testing.T, bp *Backplane, redis *fakeRedis) {
				cache := newRegional(t, bp)
				other, err := New(bp, Options[string, string]{Name: "other", Load: cache.options.Load})
				require.NoError(t, err)
				defer other.Close()
				require.NoError(t, other.Set(t.Context(), "a", "a"))
				first, err := NewInvalidator[string](bp, "p")
				require.NoError(t, err)
				_, err = NewInvalidator[string](bp, "p")
				require.NoError(t, err, "there may be several")

				release := redis.holdUp()
				written := make(chan error, 1)
				go func() { written <- test.write(t.Context(), first) }()
				synctest.Wait()
				for i, key := range []string{"a", "b", "c"} {
					_, held := cache.Peek(key)
					require.Equal(t, test.held[i], held, "%s, before the message is out", key)
				}
				_, held := other.Peek("a")
				require.True(t, held, "a cache of another name")
				release()
				require.NoError(t, <-written)
			})
		})
	}
}

// A load here that an invalidator overtakes is not kept.
func TestInvalidatorOvertakesALoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bp, proceed := Local(), make(chan struct{})
		defer bp.Close()
		cache, err := New(bp, Options[string, string]{
			Name: "p",
			Load: func(context.Context, string) (string, error) { <-proceed; return "old", nil },
		})
		require.NoError(t, err)
		invalidator, err := NewInvalidator[string](bp, "p")
		require.NoError(t, err)
		ended := make(chan struct{})
		go func() { defer close(ended); _, _ = cache.Get(t.Context(), "a") }()
		synctest.Wait()
		require.NoError(t, invalidator.Remove(t.Context(), "a"))
		close(proceed)
		<-ended
		_, held := cache.Peek("a")
		require.False(t, held)
	})
}

// Keys of another type than the cache's have the cache cleared if it cannot read
// them, here as elsewhere.
func TestInvalidatorOfAnotherKeyType(t *testing.T) {
	bp := Local()
	defer bp.Close()
	cache, err := New(bp, Options[int, string]{
		Name: "p",
		Load: func(context.Context, int) (string, error) { return "value", nil },
	})
	require.NoError(t, err)
	invalidator, err := NewInvalidator[string](bp, "p")
	require.NoError(t, err)
	held := func(key int) bool {
		_, held := cache.Peek(key)
		return held
	}
	for key := range 2 {
		_, err := cache.Get(t.Context(), key)
		require.NoError(t, err)
	}
	require.NoError(t, invalidator.Remove(t.Context(), "0"))
	require.False(t, held(0))
	require.True(t, held(1))
	require.NoError(t, invalidator.Remove(t.Context(), "one"))
	require.False(t, held(1))
	require.EqualValues(t, 1, cache.Stats().Invalidations.Undecodable)
}

func TestInvalidatorWithKeysThatDoNotSurviveEncoding(t *testing.T) {
	withFakeRedis(t, func(t *testing.T, bp *Backplane, redis *fakeRedis) {
		cache := newRegional(t, bp)
		invalidator, err := NewInvalidator[oddKey](bp, "p")
		require.NoError(t, err)
		err = invalidator.Remove(t.Context(), 2, 3)
		require.ErrorIs(t, err, ErrInvalidKey)
		require.NotErrorIs(t, err, ErrUnconfirmed)
		require.Equal(t, []messagetest.Operation{{Op: messagetest.ClearCache, Cache: "p"}}, redis.accepted)
		require.Zero(t, cache.Len(), "here too")

		redis.refuse(errRefused)
		err = invalidator.Remove(t.Context(), 3)
		require.ErrorIs(t, err, ErrInvalidKey)
		require.ErrorIs(t, err, ErrUnconfirmed)
	})
}

// What an invalidator could not tell is queued, and the local part is done.
func TestUnconfirmedInvalidator(t *testing.T) {
	withFakeRedis(t, func(t *testing.T, bp *Backplane, redis *fakeRedis) {
		cache := newRegional(t, bp)
		invalidator, err := NewInvalidator[string](bp, "p")
		require.NoError(t, err)
		redis.refuse(errRefused)
		err = invalidator.Remove(t.Context(), "a")
		require.ErrorIs(t, err, ErrUnconfirmed)
		require.ErrorIs(t, err, errRefused)
		cancelled, cancel := context.WithCancel(t.Context())
		cancel()
		require.ErrorIs(t, invalidator.ClearRegion(cancelled, "r"), ErrUnconfirmed)
		require.Equal(t, 1, cache.Len())
		redis.refuse(nil)
		require.NoError(t, bp.Flush(t.Context()))
		require.Equal(t, []string{"a"}, redis.keys())
	})
}

func TestInvalidatorAfterClose(t *testing.T) {
	bp := Local()
	invalidator, err := NewInvalidator[string](bp, "p")
	require.NoError(t, err)
	require.NoError(t, invalidator.Clear(t.Context()))
	require.NoError(t, bp.Close())
	require.ErrorIs(t, invalidator.Remove(t.Context(), "a"), ErrClosed)
	require.ErrorIs(t, invalidator.Remove(t.Context()), ErrClosed)
	require.ErrorIs(t, invalidator.ClearRegion(t.Context(), "r"), ErrClosed)
	require.ErrorIs(t, invalidator.Clear(t.Context()), ErrClosed)
	_, err = NewInvalidator[string](bp, "p")
	require.ErrorIs(t, err, ErrClosed)
}
