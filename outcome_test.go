package nearcache

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"strconv"
	"strings"
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

// What is kept in place of a value weighs what it takes in bytes, unless WeighNotFound
// says otherwise.
func TestWeightOfNotFoundsAndErrors(t *testing.T) {
	const key = "0123456789"
	layer := int64(errorBytes[string, string]())
	long := errors.New(strings.Repeat("x", 2000))
	tests := []struct {
		name   string
		err    error
		weigh  func(string, error) uint32
		max    int64
		weight int64 // 0: not kept
	}{
		{name: "a not-found", err: ErrNotFound, max: 1 << 20, weight: layer + 10},
		{name: "a not-found with a text that is not kept", err: fmt.Errorf("no such item: %w", ErrNotFound), max: 1 << 20, weight: layer + 10},
		{name: "an error", err: long, max: 1 << 20, weight: layer + 10 + 2000},
		{name: "one that fits exactly", err: long, max: layer + 10 + 2000, weight: layer + 10 + 2000},
		{name: "one that alone is too heavy", err: long, max: layer + 10 + 1999},
		{name: "a not-found in a unit of its own", err: ErrNotFound, max: 3, weight: 2,
			weigh: func(k string, err error) uint32 {
				require.Equal(t, key, k)
				require.Equal(t, ErrNotFound, err)
				return 2
			}},
		{name: "an error in a unit of its own", err: long, max: 3, weight: 3,
			weigh: func(_ string, err error) uint32 {
				require.Equal(t, long, err)
				return 3
			}},
		{name: "too heavy in a unit of its own", err: ErrNotFound, max: 3, weigh: func(string, error) uint32 { return 4 }},
		{name: "without a weight", err: ErrNotFound, max: 3, weight: -1, weigh: func(string, error) uint32 { return 0 }},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			cache := newWeighed(t, Options[string, string]{
				MaxWeight: test.max, WeighNotFound: test.weigh, NotFoundTTL: time.Hour, ErrorTTL: time.Hour,
				Load: func(context.Context, string) (string, error) { return "", test.err },
			})
			_, err := cache.Get(t.Context(), key)
			require.Equal(t, test.err, err)
			s := cache.Stats()
			assert.Equal(t, max(test.weight, 0), s.Weight)
			if test.weight == 0 {
				assert.Zero(t, s.Entries)
				assert.EqualValues(t, 1, s.TooHeavy)
			} else {
				assert.Equal(t, 1, s.Entries)
				assert.Zero(t, s.TooHeavy)
			}
		})
	}
}

// A text key weighs its encoded form, and a number nothing beside the entry.
func TestWeightOfKeys(t *testing.T) {
	number, err := New(Local(), Options[int64, [100]byte]{
		Name: "numbers", NotFoundTTL: time.Hour, MaxWeight: 1 << 20, Weigh: func(int64, [100]byte) uint32 { return 0 },
		Load: func(context.Context, int64) (v [100]byte, err error) { return v, ErrNotFound },
	})
	require.NoError(t, err)
	_, err = number.Get(t.Context(), 1)
	require.ErrorIs(t, err, ErrNotFound)
	require.EqualValues(t, errorBytes[int64, [100]byte](), number.Stats().Weight)

	address, err := New(Local(), Options[netip.Addr, int]{
		Name: "addresses", NotFoundTTL: time.Hour, MaxWeight: 1 << 20, Weigh: func(netip.Addr, int) uint32 { return 0 },
		Load: func(context.Context, netip.Addr) (int, error) { return 0, ErrNotFound },
	})
	require.NoError(t, err)
	_, err = address.Get(t.Context(), netip.MustParseAddr("10.20.30.40"))
	require.ErrorIs(t, err, ErrNotFound)
	require.EqualValues(t, errorBytes[netip.Addr, int]()+len("10.20.30.40"), address.Stats().Weight)
}

// A panic in WeighNotFound is one of the loader: it is raised in the callers, and nothing
// is kept. Where a load is given up there is no caller to raise it in.
func TestWeighNotFoundPanics(t *testing.T) {
	weigh := func(string, error) uint32 { panic("heavy") }
	cache := newWeighed(t, Options[string, string]{
		MaxWeight: 100, WeighNotFound: weigh, NotFoundTTL: time.Hour,
		Load: func(context.Context, string) (string, error) { return "", ErrNotFound },
	})
	func() {
		defer func() { require.ErrorContains(t, recover().(error), "the loader panicked: heavy") }()
		_, _ = cache.Get(t.Context(), "a")
	}()
	require.Zero(t, cache.Len())

	synctest.Test(t, func(t *testing.T) {
		cache := newWeighed(t, Options[string, string]{
			MaxWeight: 100, WeighNotFound: weigh, ErrorTTL: time.Hour, LoadTimeout: time.Second,
			Load: func(ctx context.Context, _ string) (string, error) {
				time.Sleep(time.Minute)
				return "", nil
			},
		})
		_, err := cache.Get(t.Context(), "a")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Zero(t, cache.Len())
		time.Sleep(time.Minute)
	})
}

// A load that LoadTimeout ended weighs its key and the text of its error.
func TestWeightOfATimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cache := newWeighed(t, Options[string, string]{
			MaxWeight: 1 << 20, ErrorTTL: time.Hour, LoadTimeout: time.Second,
			Load: func(ctx context.Context, _ string) (string, error) {
				time.Sleep(time.Minute)
				return "", nil
			},
		})
		_, err := cache.Get(t.Context(), "abc")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.EqualValues(t, errorBytes[string, string]()+3+len(err.Error()), cache.Stats().Weight)
		time.Sleep(time.Minute)
	})
}

// A client that asks for a million keys that do not exist, or whose loads fail, fills no
// memory: MaxWeight bounds what is kept of them, in number, in weight and in bytes.
func TestMissingKeysAreBoundedByWeight(t *testing.T) {
	const maxWeight = 1 << 20
	for name, test := range map[string]struct {
		err  error
		keys int
	}{
		"not-founds": {err: ErrNotFound, keys: 1_000_000},
		"errors":     {keys: 100_000}, // of 2 KB each
	} {
		t.Run(name, func(t *testing.T) {
			if testing.Short() {
				test.keys /= 10
			}
			cache := newWeighed(t, Options[string, string]{
				MaxWeight: maxWeight, NotFoundTTL: time.Hour, ErrorTTL: time.Hour,
				Load: func(_ context.Context, key string) (string, error) {
					if test.err != nil {
						return "", test.err
					}
					return "", errors.New(key + strings.Repeat("x", 2000))
				},
			})
			before := heapInUse()
			for range test.keys {
				_, err := cache.Get(context.Background(), fmt.Sprintf("%016x", rand.Uint64()))
				require.Error(t, err)
			}
			grown := int64(heapInUse()) - int64(before)
			s := cache.Stats()
			weight, entries := int64(0), 0
			for e := range cache.local.tables[0].Load().all() {
				n := errorBytes[string, string]() + len(e.Item.key)
				if test.err == nil {
					n += len(e.Item.scope.err.Error())
				}
				weight += int64(n)
				entries++
			}
			assert.Equal(t, weight, s.Weight)
			assert.LessOrEqual(t, weight, int64(maxWeight))
			assert.Equal(t, entries, s.Entries)
			assert.Greater(t, weight, int64(maxWeight*9/10), "what there is room for is kept")
			assert.Less(t, grown, int64(4*maxWeight))
			t.Logf("%d entries of weight %d grew the heap by %d", entries, weight, grown)
			runtime.KeepAlive(cache)
		})
	}
}

// The weight of a not-found is what it takes in memory, or a little more.
func TestErrorBytesAreMeasured(t *testing.T) {
	const keys = 60_000 // of as many, in a table that has just grown
	measure := func(name string, expect int, fill func() any) {
		before := heapInUse()
		kept := fill()
		took := float64(int64(heapInUse())-int64(before)) / keys
		runtime.KeepAlive(kept)
		t.Logf("%s: an entry takes %.0f bytes, and weighs %d", name, took, expect)
		assert.InEpsilon(t, expect, took, 0.3, name)
	}
	measure("int64, int64", errorBytes[int64, int64](), func() any { return fillWithNotFounds[int64, int64](t, keys, func(i int) int64 { return int64(i) }) })
	measure("string, string", errorBytes[string, string]()+32, func() any {
		return fillWithNotFounds[string, string](t, keys, func(i int) string { return fmt.Sprintf("%032d", i) })
	})
	measure("int64, [50]int64", errorBytes[int64, [50]int64](), func() any {
		return fillWithNotFounds[int64, [50]int64](t, keys, func(i int) int64 { return int64(i) })
	})
}

func fillWithNotFounds[K comparable, V any](t *testing.T, n int, key func(int) K) any {
	cache, err := New(Local(), Options[K, V]{
		Name: "p", NotFoundTTL: time.Hour, Load: func(context.Context, K) (v V, err error) { return v, ErrNotFound },
	})
	require.NoError(t, err)
	t.Cleanup(func() { _ = cache.Close() })
	for i := range n {
		_, err := cache.Get(context.Background(), key(i))
		require.ErrorIs(t, err, ErrNotFound)
	}
	return cache
}

// heapInUse returns the bytes of what is reachable.
func heapInUse() uint64 {
	runtime.GC()
	runtime.GC() // what the first one finalized
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// The default Capacity holds beside MaxWeight, so items without a weight are bounded too.
func TestCapacityBesideMaxWeight(t *testing.T) {
	cache := newWeighed(t, Options[string, string]{
		MaxWeight: 10, Load: func(context.Context, string) (string, error) { return "", nil },
	})
	require.Equal(t, defaultCapacity, cache.Stats().Capacity)
	for i := range defaultCapacity + 10 {
		_, err := cache.Get(context.Background(), strconv.Itoa(i))
		require.NoError(t, err)
	}
	require.Equal(t, defaultCapacity, cache.Len())
	require.Zero(t, cache.Stats().Weight)
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
