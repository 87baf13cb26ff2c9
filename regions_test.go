package nearcache

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// TestRegionNames: each name once, in whatever order, and the list that was given
// stays as it was.
func TestRegionNames(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		list := rapid.SliceOfN(rapid.SampledFrom(strings.Split("abcdefghijklmnopqrstuvwxyz", "")), 0, 40).Draw(t, "list")
		before := slices.Clone(list)
		names := namesOf(list)
		if !slices.Equal(list, before) {
			t.Fatalf("%q was made %q", before, list)
		}
		want := slices.Compact(slices.Sorted(slices.Values(list)))
		if !slices.Equal(slices.Sorted(slices.Values(names.list)), want) {
			t.Fatalf("%q became %q", list, names.list)
		}
		for _, name := range append(want, "none of them", "A", "") {
			if names.has(name) != slices.Contains(list, name) {
				t.Fatalf("%q among %q: %v", name, list, names.has(name))
			}
		}
	})
}

func TestFewRegionNamesAllocateNothing(t *testing.T) {
	for n := range fewNames + 1 {
		list := make([]string, n)
		for i := range list {
			list[i] = fmt.Sprint(n - i)
		}
		require.Zero(t, testing.AllocsPerRun(100, func() { _ = namesOf(list).has("none") }), "%d names", n)
	}
}

// ClearRegion with many names marks the same regions as with each of them alone,
// whether a shard has more regions than there are names, or fewer.
func TestManyRegionsAreCleared(t *testing.T) {
	for _, items := range []int{3, 300, 20_000} {
		for _, cleared := range []int{1, fewNames + 1, 3000} {
			t.Run(fmt.Sprintf("%d regions, %d names", items, cleared), func(t *testing.T) {
				cache := regionPerItem(t, Local(), 30_000)
				for key := range items {
					_, err := cache.Get(t.Context(), key)
					require.NoError(t, err)
				}
				names := make([]string, 0, 2*cleared)
				for i := range cleared {
					names = append(names, fmt.Sprint(2*i), fmt.Sprint(2*i)) // every other one, twice
				}
				require.NoError(t, cache.ClearRegion(t.Context(), names...))
				require.NoError(t, cache.local.check(30_000))
				for key := range items {
					_, held := cache.Peek(key)
					require.Equal(t, key%2 != 0 || key >= 2*cleared, held, "item %d", key)
				}
			})
		}
	}
}

func regionPerItem(tb testing.TB, bp *Backplane, capacity int) *Cache[int, int] {
	tb.Cleanup(func() { _ = bp.Close() })
	cache, err := New(bp, Options[int, int]{
		Name: "p", Capacity: capacity,
		Load:    func(_ context.Context, key int) (int, error) { return key, nil },
		Regions: func(_, v int) []string { return []string{fmt.Sprint(v)} },
	})
	require.NoError(tb, err)
	return cache
}

// A load is not kept if one of its many regions was among the many that were cleared
// meanwhile, and only then.
func TestManyRegionsOvertakeALoad(t *testing.T) {
	numbers := func(from, to int) (names []string) {
		for i := from; i < to; i++ {
			names = append(names, fmt.Sprint("region ", i))
		}
		return names
	}
	for _, test := range []struct {
		name           string
		regions, clear []string
		kept           bool
	}{
		{"few of few", numbers(0, 3), numbers(2, 4), false},
		{"few beside few", numbers(0, 3), numbers(3, 5), true},
		{"few of many", numbers(0, 10_000), numbers(9_999, 10_001), false},
		{"few beside many", numbers(0, 10_000), numbers(10_000, 10_002), true},
		{"many of few", numbers(0, 3), numbers(2, 1000), false},
		{"many beside few", numbers(0, 3), numbers(3, 1000), true},
		{"many of many", numbers(0, 10_000), numbers(9_999, 10_999), false},
		{"many beside many", numbers(0, 10_000), numbers(10_000, 11_000), true},
		{"more than are remembered", numbers(0, 3), numbers(3, 4+maxClearLog), false},
		{"larger than is remembered", numbers(0, 3), []string{strings.Repeat("x", maxClearLogBytes+1)}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			began, hold := make(chan struct{}), make(chan struct{})
			bp := Local()
			defer bp.Close()
			cache, err := New(bp, Options[int, int]{
				Name: "p",
				Load: func(context.Context, int) (int, error) {
					close(began)
					<-hold
					return 1, nil
				},
				Regions: func(int, int) []string { return test.regions },
			})
			require.NoError(t, err)
			done := make(chan error)
			go func() {
				_, err := cache.Get(context.Background(), 1)
				done <- err
			}()
			<-began
			require.NoError(t, cache.ClearRegion(t.Context(), test.clear...))
			close(hold)
			require.NoError(t, <-done)
			_, kept := cache.Peek(1)
			require.Equal(t, test.kept, kept)
			require.NoError(t, cache.local.check(defaultCapacity))
		})
	}
}

// What is remembered of the names of cleared regions is bounded in bytes too.
func TestRegionLogIsBoundedInBytes(t *testing.T) {
	var underWay atomic.Int64
	log := clearLog{underWay: func() bool { return underWay.Load() > 0 }}
	log.begin(&underWay)
	since := log.count.Load()
	name := strings.Repeat("x", maxClearLogBytes/10)
	for i := range 100 {
		s := log.count.Load()
		log.record([]string{name + fmt.Sprint(i)})
		require.LessOrEqual(t, log.bytes, maxClearLogBytes)
		require.True(t, log.overtook(s, namesOf([]string{name + fmt.Sprint(i)})))
		require.False(t, log.overtook(log.count.Load(), namesOf([]string{name + fmt.Sprint(i)})))
	}
	require.True(t, log.overtook(since, namesOf([]string{"untouched"})), "too long ago to know")
	log.end(&underWay)
	require.Zero(t, log.size())
	require.Zero(t, log.bytes)
}

// fastest returns the shortest time that do takes in a few runs.
func fastest(runs int, do func()) time.Duration {
	least := time.Duration(1<<63 - 1)
	for range runs {
		began := time.Now()
		do()
		least = min(least, time.Since(began))
	}
	return max(least, time.Microsecond)
}

// The time to keep an item grows with its regions, and not with their square; nor
// does it with the regions times those that were cleared during its load.
func TestManyRegionsOfOneItem(t *testing.T) {
	const few, many = 1000, 50_000
	regions := make([]string, many)
	for i := range regions {
		regions[i] = fmt.Sprintf("region %08d", (i*7919)%many)
	}
	bp := Local()
	defer bp.Close()
	n := 0
	cache, err := New(bp, Options[int, int]{
		Name:    "p",
		Load:    func(context.Context, int) (int, error) { return 1, nil },
		Regions: func(int, int) []string { return regions[:n] },
	})
	require.NoError(t, err)
	put := func(count int) time.Duration {
		n = count
		return fastest(3, func() {
			require.Zero(t, cache.local.clears.size()) // nothing is under way
			sh := cache.local.shard(cache.local.hash(count))
			s := cache.local.beginWork(sh)
			for i := range 500 {
				require.NoError(t, cache.ClearRegion(t.Context(), fmt.Sprint("another ", i)))
			}
			var o outcome[int]
			cache.keeper.of(count, 1, nil, &o)
			cache.local.put(cache.local.hash(count), count, s, &o)
			cache.local.endWork(sh)
			_, held := cache.Peek(count)
			require.True(t, held)
		})
	}
	short, long := put(few), put(many)
	t.Logf("%d regions %v, %d regions %v", few, short, many, long)
	require.Less(t, long, many/few*10*short, "fifty times as many regions")
}

// The time to clear regions does not grow with names times shards.
func TestManyRegionsInManyShards(t *testing.T) {
	names := make([]string, maxBatchEntries)
	for i := range names {
		names[i] = fmt.Sprint("region ", i)
	}
	clear := func(capacity int) (time.Duration, int) {
		cache := regionPerItem(t, Local(), capacity)
		for key := range 1000 {
			_, err := cache.Get(t.Context(), key)
			require.NoError(t, err)
		}
		sh := &cache.local.shards[0] // a load is under way
		cache.local.beginWork(sh)
		defer cache.local.endWork(sh)
		return fastest(3, func() { cache.local.clearRegions(names) }), len(cache.local.shards)
	}
	one, shards := clear(1)
	require.Equal(t, 1, shards)
	most, shards := clear(1 << 27)
	require.Equal(t, mostShards, shards)
	t.Logf("%d names: in one shard %v, in %d shards %v", len(names), one, shards, most)
	require.Less(t, most, time.Duration(shards/16)*one)
}
