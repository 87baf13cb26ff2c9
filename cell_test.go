package nearcache

import (
	"context"
	"fmt"
	"math"
	"slices"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestPlaceOfAValue(t *testing.T) {
	type named int64
	number := numberWord
	if unsafe.Alignof(int64(0)) != 8 { // on a processor of 32 bits
		number = fixed
	}
	assert.Equal(t, pointerWord, cellKindOf[*string]())
	assert.Equal(t, pointerWord, cellKindOf[map[string]int]())
	assert.Equal(t, pointerWord, cellKindOf[chan int]())
	assert.Equal(t, pointerWord, cellKindOf[func()]())
	assert.Equal(t, number, cellKindOf[int64]())
	assert.Equal(t, number, cellKindOf[named]())
	assert.Equal(t, number, cellKindOf[float64]())
	assert.Equal(t, fixed, cellKindOf[int32]())
	assert.Equal(t, fixed, cellKindOf[bool]())
	assert.Equal(t, fixed, cellKindOf[string]())
	assert.Equal(t, fixed, cellKindOf[[]byte]())
	assert.Equal(t, fixed, cellKindOf[error]())
	assert.Equal(t, fixed, cellKindOf[[2]int32]())
	assert.Equal(t, fixed, cellKindOf[struct{}]())
}

func TestAValueInItsPlace(t *testing.T) {
	testAValueInItsPlace(t, new(1), new(2))
	testAValueInItsPlace(t, map[string]int{"a": 1}, nil)
	testAValueInItsPlace(t, int64(math.MinInt64), math.MaxInt64)
	testAValueInItsPlace(t, math.Inf(1), -0.5)
	testAValueInItsPlace(t, "one", "two")
	testAValueInItsPlace(t, []byte{1}, []byte{2, 3})
}

// testAValueInItsPlace runs for values that are replaced in place, and for others.
func testAValueInItsPlace[V any](t *testing.T, values ...V) {
	t.Run(fmt.Sprintf("%T", values[0]), func(t *testing.T) {
		cache, err := New(Local(), Options[string, V]{
			Name: "p",
			Load: func(context.Context, string) (v V, err error) { return v, ErrNotFound },
		})
		require.NoError(t, err)
		defer cache.Close()
		for range 3 {
			for _, v := range values {
				require.NoError(t, cache.Set(t.Context(), "k", v))
				require.NoError(t, cache.local.check(defaultCapacity))
				got, err := cache.Get(t.Context(), "k")
				require.NoError(t, err)
				require.Equal(t, v, got)
				require.Equal(t, 1, cache.Len())
			}
		}
	})
}

// An entry stays where it is for a value that differs in nothing that readers look
// at before it; else another takes its place. Whichever, the item is the new one.
func TestValuesAreReplacedInPlace(t *testing.T) {
	tests := []struct {
		name     string
		eviction Eviction
		before   func(s *start) // the second write
		second   outcome[int64]
		inPlace  bool
	}{
		{name: "the same region", second: outcome[int64]{ttl: time.Minute, weight: 1, regions: namesOf([]string{"a"})}, inPlace: true},
		{name: "LRU", eviction: LRU, second: outcome[int64]{ttl: time.Minute, weight: 1, regions: namesOf([]string{"a"})}, inPlace: true},
		{name: "no deadline", second: outcome[int64]{ttl: NoExpiry, weight: 1, regions: namesOf([]string{"a"})}, inPlace: true},
		{name: "another region", second: outcome[int64]{ttl: time.Minute, weight: 1, regions: namesOf([]string{"b"})}},
		{name: "no region", second: outcome[int64]{ttl: time.Minute, weight: 1}},
		{name: "one region more", second: outcome[int64]{ttl: time.Minute, weight: 1, regions: namesOf([]string{"a", "b"})}},
		{name: "another weight", second: outcome[int64]{ttl: time.Minute, weight: 2, regions: namesOf([]string{"a"})}},
		{name: "begun before the first", before: func(s *start) { s.since -= int64(3 * time.Second) }, second: outcome[int64]{ttl: time.Minute, weight: 1, regions: namesOf([]string{"a"})}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cache, err := New(Local(), Options[string, int64]{
					Name:     "p",
					Load:     func(context.Context, string) (int64, error) { return 0, ErrNotFound },
					Eviction: test.eviction,
					Regions:  func(string, int64) []string { panic("not called") },
				})
				require.NoError(t, err)
				defer cache.Close()
				l := cache.local
				write := func(value int64, o outcome[int64], before func(s *start)) *entry[string, int64] {
					time.Sleep(2 * time.Second)
					hash := l.hash("k")
					sh := l.shard(hash)
					s := l.beginWork(sh)
					if before != nil {
						before(&s)
					}
					o.value = value
					l.put(hash, "k", s, &o)
					l.endWork(sh)
					require.NoError(t, l.check(defaultCapacity))
					got, held := cache.Peek("k")
					require.True(t, held)
					require.Equal(t, value, got)
					return sh.table.Load().find(hash, "k")
				}
				first := outcome[int64]{ttl: time.Hour, weight: 1, regions: namesOf([]string{"a"})}
				old := write(1, first, nil)
				entry := write(2, test.second, test.before)
				assert.Equal(t, test.inPlace && cellKindOf[int64]() != fixed, entry == old)

				for _, region := range []string{"c", "b", "a"} {
					require.NoError(t, cache.ClearRegion(t.Context(), region))
					_, held := cache.Peek("k")
					require.Equal(t, !slices.Contains(test.second.regions.list, region), held, "region %s was cleared", region)
					if !held {
						write(3, test.second, nil)
					}
				}
				if test.second.ttl != NoExpiry {
					write(4, test.second, nil)
					time.Sleep(test.second.ttl - 1)
					_, held := cache.Peek("k")
					assert.True(t, held)
					time.Sleep(time.Duration(1))
					_, held = cache.Peek("k")
					assert.False(t, held, "it has the second one's deadline")
				}
				require.NoError(t, l.check(defaultCapacity))
			})
		})
	}
}

// A sweep that has found an entry expired does not take out what has replaced its
// value since.
func TestSweepAndReplacedValue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cache, err := New(Local(), Options[int, int]{
			Name: "p",
			Load: func(_ context.Context, key int) (int, error) { return key, nil },
			TTL:  time.Second,
		})
		require.NoError(t, err)
		defer cache.Close()
		require.NoError(t, cache.Set(t.Context(), 1, 1))
		time.Sleep(time.Second)
		asked := false
		cache.local.sweep(func() bool { // asked between the look and the removal
			asked = true
			require.NoError(t, cache.Set(t.Context(), 1, 2))
			return false
		})
		require.True(t, asked)
		v, held := cache.Peek(1)
		require.True(t, held)
		require.Equal(t, 2, v)
	})
}
