package nearcache

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// newWeighed returns a cache of strings that weigh as much as they are long.
func newWeighed(t *testing.T, o Options[string, string]) *Cache[string, string] {
	t.Helper()
	o.Name = "weighed"
	if o.Load == nil {
		o.Load = func(_ context.Context, key string) (string, error) { return key, nil }
	}
	o.Weigh = func(_, value string) uint32 { return uint32(len(value)) }
	cache, err := New(Local(), o)
	require.NoError(t, err)
	t.Cleanup(func() { _ = cache.Close() })
	return cache
}

// Both bounds hold after each step, whatever comes in, and nothing leaves while
// there is room.
func TestMaxWeightIsExact(t *testing.T) {
	const maxWeight = 1000
	for _, eviction := range []Eviction{DefaultEviction, LRU} {
		for _, capacity := range []int{0, 1, 7, 1000} {
			t.Run(fmt.Sprintf("eviction %d, capacity %d", eviction, capacity), func(t *testing.T) {
				cache := newWeighed(t, Options[string, string]{Eviction: eviction, MaxWeight: maxWeight, Capacity: capacity})
				seed := rand.Uint64()
				t.Logf("seed %d", seed)
				random := rand.New(rand.NewPCG(seed, 1))
				made := make([]byte, maxWeight+100)
				before := cache.Stats()
				for range 3000 {
					key := fmt.Sprint(random.IntN(100))
					switch random.IntN(4) {
					case 0, 1:
						_, _ = cache.Get(t.Context(), key)
					case 2:
						value := string(made[:int(random.ExpFloat64()*50)%len(made)])
						require.NoError(t, cache.Set(t.Context(), key, value))
						_, held := cache.Peek(key)
						require.Equal(t, len(value) <= maxWeight, held)
					case 3:
						require.NoError(t, cache.Remove(t.Context(), key))
					}
					s := cache.Stats()
					require.LessOrEqual(t, s.Weight, int64(maxWeight))
					require.EqualValues(t, maxWeight, s.MaxWeight)
					if capacity > 0 {
						require.LessOrEqual(t, s.Entries, capacity)
					}
					require.NoError(t, cache.local.check(math.MaxInt))
					weight := int64(0)
					for e := range cache.local.tables[0].Load().all() {
						weight += int64(len(e.Item.value))
					}
					require.Equal(t, weight, s.Weight)
					if s.Evictions.Capacity > before.Evictions.Capacity {
						full := before.Weight+maxWeight/2 > maxWeight || capacity > 0 && before.Entries >= capacity
						require.True(t, full, "an item of weight %d was evicted at %d", before.Weight-s.Weight, before.Weight)
					}
					before = s
				}
			})
		}
	}
}

// An item that is heavier than the cache is served, and evicts nothing.
func TestTooHeavy(t *testing.T) {
	cache := newWeighed(t, Options[string, string]{MaxWeight: 10})
	ctx := t.Context()
	for _, key := range []string{"a", "bb", "0123456"} {
		_, err := cache.Get(ctx, key)
		require.NoError(t, err)
	}
	require.EqualValues(t, 10, cache.Stats().Weight)

	const heavy = "0123456789+"
	for range 2 {
		v, err := cache.Get(ctx, heavy)
		require.NoError(t, err)
		require.Equal(t, heavy, v)
	}
	s := cache.Stats()
	assert.EqualValues(t, 10, s.Weight)
	assert.Equal(t, 3, s.Entries)
	assert.EqualValues(t, 2, s.TooHeavy)
	assert.Zero(t, s.LoadDiscarded)

	require.NoError(t, cache.Set(ctx, "a", heavy), "the value is valid")
	_, held := cache.Peek("a")
	assert.False(t, held, "and so is not the old one")
	assert.EqualValues(t, 9, cache.Stats().Weight)

	v, err := cache.Get(ctx, "0123456789")
	require.NoError(t, err)
	require.Equal(t, "0123456789", v)
	assert.Equal(t, 1, cache.Len(), "one of the very weight has all the room")
	require.NoError(t, cache.Set(ctx, "nothing", ""))
	assert.Equal(t, 2, cache.Len(), "what weighs nothing has room beside it")
}

func TestNotFoundWeighsOne(t *testing.T) {
	cache := newWeighed(t, Options[string, string]{
		MaxWeight:   3,
		NotFoundTTL: time.Hour,
		Load:        func(context.Context, string) (string, error) { return "", ErrNotFound },
	})
	for i := range 10 {
		_, err := cache.Get(t.Context(), fmt.Sprint(i))
		require.ErrorIs(t, err, ErrNotFound)
	}
	assert.Equal(t, 3, cache.Len())
	assert.EqualValues(t, 3, cache.Stats().Weight)
}

// The weight goes with what it is of: by Clear at once, by expiry with the sweep.
func TestWeightIsGivenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cache := newWeighed(t, Options[string, string]{MaxWeight: 100, TTL: time.Minute})
		fill := func() {
			for _, key := range []string{"a", "bb", "ccc"} {
				_, err := cache.Get(t.Context(), key)
				require.NoError(t, err)
			}
			require.EqualValues(t, 6, cache.Stats().Weight)
		}
		fill()
		require.NoError(t, cache.Clear(t.Context()))
		require.Zero(t, cache.Stats().Weight)
		fill()
		time.Sleep(time.Minute + 2*sweepInterval)
		synctest.Wait()
		require.Zero(t, cache.Stats().Weight)
		fill()
		require.NoError(t, cache.Remove(t.Context(), "bb"))
		require.EqualValues(t, 4, cache.Stats().Weight)
		require.NoError(t, cache.Close())
		require.Zero(t, cache.Stats().Weight)
	})
}

// Weigh is called for what may be kept, once, and a panic in it is the loader's.
func TestWeighIsCalledLikeTheLoader(t *testing.T) {
	calls := 0
	cache, err := New(Local(), Options[string, int]{
		Name:      "p",
		MaxWeight: 10,
		Load:      func(_ context.Context, key string) (int, error) { return len(key), nil },
		Expiry:    func(_ string, value int) time.Duration { return time.Duration(value) * time.Hour },
		Weigh: func(key string, _ int) uint32 {
			if calls++; key == "panics" {
				panic("no scales")
			}
			return 1
		},
	})
	require.NoError(t, err)
	defer cache.Close()
	for _, key := range []string{"a", "a", ""} { // that of "" is not kept
		_, err := cache.Get(t.Context(), key)
		require.NoError(t, err)
	}
	assert.Equal(t, 1, calls)
	assert.Panics(t, func() { _, _ = cache.Get(t.Context(), "panics") })
	assert.Equal(t, 1, cache.Len())
}
