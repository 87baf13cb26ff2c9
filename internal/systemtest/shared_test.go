package systemtest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache"
)

// sharer is an instance with one shared cache.
type sharer struct {
	bp    *nearcache.Backplane
	items *nearcache.Cache[string, int]
}

// joinShared starts an instance whose cache is shared. The options come with Name,
// Load and Shared, and may be changed.
func joinShared(
	t *testing.T, addr string, load loadFunc, change func(*nearcache.Options[string, int]),
) *sharer {
	t.Helper()
	bp, err := nearcache.Connect(context.Background(), nearcache.BackplaneOptions{
		RedisConnectionString: addr, Logger: discard, CloseTimeout: 100 * time.Millisecond,
	})
	require.NoError(t, err)
	t.Cleanup(func() { _ = within(t, "Close returns", bp.Close) })
	o := nearcache.Options[string, int]{
		Name: "items", Load: load, Regions: regionsOf,
		// On a busy machine requests take their time.
		Shared: &nearcache.SharedOptions[int]{Timeout: patience},
	}
	if change != nil {
		change(&o)
	}
	items, err := nearcache.New(bp, o)
	require.NoError(t, err)
	return &sharer{bp, items}
}

func (s *sharer) get(t *testing.T, key string) int {
	t.Helper()
	v, err := s.items.Get(t.Context(), key)
	require.NoError(t, err)
	return v
}

func (s *sharer) stats() nearcache.SharedStats { return s.items.Stats().Shared }

// stored waits until so many values were stored by this instance.
func (s *sharer) stored(t *testing.T, n uint64) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d values are stored", n), func() bool { return s.stats().Stored == n })
}

func TestSharedMissIsAHitForTheNext(t *testing.T) {
	redis := startRedis(t)
	loads := newCountedLoads()
	a := joinShared(t, redis.addr, loads.load, nil)
	require.Equal(t, 1, a.get(t, "red/1"))
	a.stored(t, 1)
	for range 2 {
		b := joinShared(t, redis.addr, loads.load, nil)
		require.Equal(t, 1, b.get(t, "red/1"))
		require.Equal(t, uint64(1), b.stats().Hits)
		require.Zero(t, b.items.Stats().Loads)
	}
	require.Equal(t, 1, loads.count("red/1"))
}

// Whatever evicts an item from memory voids its value in Redis, and no other.
func TestSharedInvalidation(t *testing.T) {
	redis := startRedis(t)
	tests := []struct {
		name       string
		invalidate func(ctx context.Context, s *sharer) error
	}{
		{"Remove", func(ctx context.Context, s *sharer) error { return s.items.Remove(ctx, "red/1") }},
		{"ClearRegion", func(ctx context.Context, s *sharer) error { return s.items.ClearRegion(ctx, "red") }},
		{"Clear", func(ctx context.Context, s *sharer) error { return s.items.Clear(ctx) }},
		{"ClearAll", func(ctx context.Context, s *sharer) error { return s.bp.ClearAll(ctx) }},
		{"Set", func(ctx context.Context, s *sharer) error { return s.items.Set(ctx, "red/1", 2) }},
		{"Update", func(ctx context.Context, s *sharer) error {
			_, err := s.items.Update(ctx, "red/1", func(context.Context) (int, error) { return 2, nil })
			return err
		}},
		{"an Update that fails", func(ctx context.Context, s *sharer) error {
			_, _ = s.items.Update(ctx, "red/1", func(context.Context) (int, error) { return 0, errors.New("no") })
			return nil
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			loads := newCountedLoads()
			connection := redis.addr + ",channelPrefix=" + strings.ReplaceAll(test.name, " ", "-")
			a := joinShared(t, connection, loads.load, nil)
			require.Equal(t, 1, a.get(t, "red/1"))
			require.Equal(t, 1, a.get(t, "blue/1"))
			a.stored(t, 2)
			loads.write("red/1")
			require.NoError(t, test.invalidate(t.Context(), a))
			b := joinShared(t, connection, loads.load, nil)
			require.Equal(t, 2, b.get(t, "red/1"))
			require.Equal(t, 2, a.get(t, "red/1"))
			require.Equal(t, 1, b.get(t, "blue/1"))
			if all := strings.HasPrefix(test.name, "Clear") && test.name != "ClearRegion"; all {
				require.Equal(t, 2, loads.count("blue/1"))
			} else {
				require.Equal(t, 1, loads.count("blue/1"), "another item's value stays")
			}
		})
	}
}

// A region that is cleared voids what was loaded before, not what is loaded since.
func TestSharedRegionClearedTwice(t *testing.T) {
	redis := startRedis(t)
	loads := newCountedLoads()
	a := joinShared(t, redis.addr, loads.load, nil)
	for version := 1; version < 5; version++ {
		require.Equal(t, version, a.get(t, "red,green/1"))
		a.stored(t, uint64(2*version-1))
		require.Equal(t, version, a.get(t, "blue/1"))
		a.stored(t, uint64(2*version))
		b := joinShared(t, redis.addr, loads.load, nil)
		require.NoError(t, b.items.ClearRegion(t.Context(), "of nobody"))
		require.Equal(t, version, b.get(t, "red,green/1"))
		require.Equal(t, version, b.get(t, "blue/1"))
		require.Equal(t, uint64(2), b.stats().Hits)
		require.NoError(t, b.bp.Close())
		loads.write("red,green/1", "blue/1")
		require.NoError(t, a.items.ClearRegion(t.Context(), "green", "blue"))
	}
}

// Jobs that only publish know nothing of the shared level, and delete values all the
// same.
func TestSharedAndAPublishOnlyJob(t *testing.T) {
	redis := startRedis(t)
	loads := newCountedLoads()
	a := joinShared(t, redis.addr, loads.load, nil)
	require.Equal(t, 1, a.get(t, "red/1"))
	a.stored(t, 1)
	job, err := nearcache.Connect(t.Context(), nearcache.BackplaneOptions{
		RedisConnectionString: redis.addr, Logger: discard, PublishOnly: true,
	})
	require.NoError(t, err)
	defer func() { _ = job.Close() }()
	items, err := nearcache.NewInvalidator[string](job, "items")
	require.NoError(t, err)
	loads.write("red/1")
	require.NoError(t, items.Remove(t.Context(), "red/1"))
	b := joinShared(t, redis.addr, loads.load, nil)
	require.Equal(t, 2, b.get(t, "red/1"))
}

// One instance loads, and the others wait for its value.
func TestSharedLoadsOnce(t *testing.T) {
	redis := startRedis(t)
	loads := newHeldLoads()
	var all []*sharer
	for range 4 {
		all = append(all, joinShared(t, redis.addr, loads.load, func(o *nearcache.Options[string, int]) {
			o.Shared.LoadWait = patience
		}))
	}
	got := make(chan int)
	for _, s := range all {
		go func() {
			v, _ := s.items.Get(context.Background(), "a")
			got <- v
		}()
	}
	load := receive(t, "one loads", loads.asked)
	eventually(t, "the others have asked Redis", func() bool {
		asked := 0
		for _, s := range all {
			if s.stats().Misses > 0 {
				asked++
			}
		}
		return asked == len(all)
	})
	load <- 7
	for range all {
		require.Equal(t, 7, receive(t, "each Get returns", got))
	}
	waited := uint64(0)
	for _, s := range all {
		waited += s.stats().Waited
	}
	require.LessOrEqual(t, waited, uint64(3))
}

// 1. A claims a load and reads version 1   2. the item is removed   3. A ends: its
// callers get version 1, and nobody stores it.
func TestSharedSlowLoaderStoresNothing(t *testing.T) {
	redis := startRedis(t)
	loads := newHeldLoads()
	a := joinShared(t, redis.addr, loads.load, nil)
	got := make(chan int, 1)
	go func() {
		v, _ := a.items.Get(context.Background(), "a")
		got <- v
	}()
	load := receive(t, "A loads", loads.asked)
	b := joinShared(t, redis.addr, newCountedLoads().load, nil)
	require.NoError(t, b.items.Remove(t.Context(), "a"))
	load <- 77
	require.Equal(t, 77, receive(t, "A's Get returns", got))
	eventually(t, "A's value is refused", func() bool { return a.stats().Overtaken == 1 })
	require.Equal(t, 1, b.get(t, "a"))
}

// The same with a clear of the item's region, which knows nothing of tokens.
func TestSharedSlowLoaderAgainstAClear(t *testing.T) {
	redis := startRedis(t)
	loads := newHeldLoads()
	a := joinShared(t, redis.addr, loads.load, nil)
	go func() { _, _ = a.items.Get(context.Background(), "red/1") }()
	load := receive(t, "A loads", loads.asked)
	source := newCountedLoads()
	b := joinShared(t, redis.addr, source.load, nil)
	require.NoError(t, b.items.ClearRegion(t.Context(), "red"))
	load <- 77
	a.stored(t, 1)
	require.Equal(t, 1, b.get(t, "red/1"))
	require.Equal(t, 1, source.count("red/1"))
}

// A load that fails lets the next instance try at once.
func TestSharedFailedLoadGivesUpItsClaim(t *testing.T) {
	redis := startRedis(t)
	a := joinShared(t, redis.addr, func(context.Context, string) (int, error) { return 0, errors.New("no") }, nil)
	_, err := a.items.Get(t.Context(), "a")
	require.Error(t, err)
	panics := joinShared(t, redis.addr, func(context.Context, string) (int, error) { panic("oh") }, nil)
	require.Panics(t, func() { _, _ = panics.items.Get(t.Context(), "a") })
	eventually(t, "no claim is left", func() bool {
		return len(redis.client().Keys(t.Context(), "*token*").Val()) == 0
	})
	b := joinShared(t, redis.addr, newCountedLoads().load, nil)
	require.Equal(t, 1, b.get(t, "a"))
}

// A process that dies holds the others up for LoadWait at most.
func TestSharedDeadLoader(t *testing.T) {
	redis := startRedis(t)
	path := startProxy(t, redis.addr)
	hung := newHeldLoads()
	wait := func(o *nearcache.Options[string, int]) { o.Shared.LoadWait = brief }
	a := joinShared(t, path.addr, hung.load, wait)
	go func() { _, _ = a.items.Get(context.Background(), "a") }()
	load := receive(t, "A loads", hung.asked)
	path.hold() // it is heard of no more
	defer path.resume()
	b := joinShared(t, redis.addr, newCountedLoads().load, wait)
	require.Equal(t, 1, b.get(t, "a"))
	b.stored(t, 1)
	load <- 77
}

// A load that takes several times as long as LoadWait is one for the whole fleet.
func TestSharedSlowLoader(t *testing.T) {
	redis := startRedis(t)
	slow := newHeldLoads()
	wait := func(o *nearcache.Options[string, int]) { o.Shared.LoadWait = brief }
	a := joinShared(t, redis.addr, slow.load, wait)
	go func() { _, _ = a.items.Get(context.Background(), "a") }()
	load := receive(t, "A loads", slow.asked)
	b := joinShared(t, redis.addr, slow.load, wait)
	got := make(chan int, 1)
	go func() { got <- b.get(t, "a") }()
	raw := redis.client()
	began := time.Now()
	eventually(t, "A's claim outlasts LoadWait", func() bool {
		require.EqualValues(t, 1, raw.Exists(t.Context(), "{nearcache}:token:items:a").Val())
		return time.Since(began) > 3*brief
	})
	load <- 77
	require.Equal(t, 77, receive(t, "B's Get returns", got))
	a.stored(t, 1)
	require.Equal(t, uint64(1), b.stats().Waited)
}

// Redis gone means that the source is asked, and nobody gets an error.
func TestSharedWithoutRedis(t *testing.T) {
	redis := startRedis(t)
	loads := newCountedLoads()
	a := joinShared(t, redis.addr, loads.load, func(o *nearcache.Options[string, int]) {
		o.Shared.Timeout = brief
		o.MaxStaleness = nearcache.Unbounded // so that it goes on asking Redis
	})
	redis.kill()
	for i := range 20 {
		require.Equal(t, 1, a.get(t, fmt.Sprint(i)))
	}
	s := a.stats()
	require.NotZero(t, s.Errors)
	require.NotZero(t, s.Skipped.Failing, "after some failures it is left alone")
	redis.restart()
	eventually(t, "values are stored again", func() bool {
		_, err := a.items.Refresh(t.Context(), "again")
		require.NoError(t, err)
		return a.stats().Stored > 0
	})
}

// What is in Redis may be anything.
func TestSharedForeignValues(t *testing.T) {
	redis := startRedis(t)
	raw := redis.client()
	a := joinShared(t, redis.addr, newCountedLoads().load, nil)
	require.Equal(t, 1, a.get(t, "good"))
	a.stored(t, 1)
	good := raw.Get(t.Context(), "{nearcache}:value:items:good").Val()
	require.NotEmpty(t, good)
	tests := map[string]func(key string){
		"empty":    func(key string) { raw.Set(t.Context(), key, "", 0) },
		"text":     func(key string) { raw.Set(t.Context(), key, "hello, this is not a value of nearcache", time.Hour) },
		"list":     func(key string) { raw.RPush(t.Context(), key, "a") },
		"cut off":  func(key string) { raw.Set(t.Context(), key, good[:20], time.Hour) },
		"no JSON":  func(key string) { raw.Set(t.Context(), key, good[:len(good)-1]+"{", time.Hour) },
		"no life":  func(key string) { raw.Set(t.Context(), key, good, 0) },
		"past":     func(key string) { raw.Set(t.Context(), key, "\x01"+good[1:], time.Hour) },
		"future":   func(key string) { raw.Set(t.Context(), key, "\x03"+good[1:], time.Hour) },
		"no epoch": func(key string) { raw.Set(t.Context(), key, good[:18]+"\x00"+good[18:], time.Hour) },
	}
	stored := uint64(1)
	for name, put := range tests {
		put("{nearcache}:value:items:" + name)
		require.Equal(t, 1, a.get(t, name), name)
		stored++
		a.stored(t, stored)
		b := joinShared(t, redis.addr, newCountedLoads().load, nil)
		require.Equal(t, 1, b.get(t, name))
		require.Equal(t, uint64(1), b.stats().Hits, name)
	}
	require.NotZero(t, a.stats().Undecodable)
	// The hash may be another's, too: then nothing is shared, and nobody gets an error.
	raw.Set(t.Context(), "{nearcache}:clears", "hello", 0)
	require.Equal(t, 1, a.get(t, "without the hash"))
	require.ErrorContains(t, a.items.ClearRegion(t.Context(), "a"), "{nearcache}:clears")
	raw.Del(t.Context(), "{nearcache}:clears")
	require.NoError(t, a.bp.Flush(t.Context()))
}

// A lost hash voids all values.
func TestSharedLostClears(t *testing.T) {
	redis := startRedis(t)
	loads := newCountedLoads()
	a := joinShared(t, redis.addr, loads.load, nil)
	a.get(t, "a")
	a.stored(t, 1)
	require.Equal(t, int64(1), redis.client().Del(t.Context(), "{nearcache}:clears").Val())
	b := joinShared(t, redis.addr, loads.load, nil)
	b.get(t, "a")
	require.Equal(t, 2, loads.count("a"))
	b.stored(t, 1)
	require.Equal(t, 1, joinShared(t, redis.addr, loads.load, nil).get(t, "a"))
	require.Equal(t, 2, loads.count("a"))
}

// A new version of the values' form is loaded again, and the old one too; both hear
// of invalidations.
func TestSharedVersions(t *testing.T) {
	redis := startRedis(t)
	loads := newCountedLoads()
	a := joinShared(t, redis.addr, loads.load, nil)
	a.get(t, "a")
	a.stored(t, 1)
	b := joinShared(t, redis.addr, loads.load, func(o *nearcache.Options[string, int]) { o.Shared.Version = 1 })
	b.get(t, "a")
	require.Equal(t, 2, loads.count("a"))
	require.Equal(t, uint64(1), b.stats().Undecodable)
	loads.write("a")
	require.NoError(t, b.items.Remove(t.Context(), "a"))
	eventually(t, "A hears of it", func() bool { return a.get(t, "a") == 2 })
}

func TestSharedTimes(t *testing.T) {
	redis := startRedis(t)
	raw := redis.client()
	ttl := func(key string) time.Duration { return raw.PTTL(t.Context(), "{nearcache}:value:items:"+key).Val() }
	notFound := func(_ context.Context, key string) (int, error) {
		if key == "nothing" {
			return 0, nearcache.ErrNotFound
		}
		return 1, nil
	}
	a := joinShared(t, redis.addr, notFound, func(o *nearcache.Options[string, int]) {
		o.TTL = time.Minute
		o.Shared.TTL = time.Hour
		o.NotFoundTTL = 10 * time.Minute
		o.Expiry = func(key string, _ int) time.Duration {
			switch key {
			case "short":
				return 5 * time.Minute
			case "never":
				return 0
			}
			return nearcache.NoExpiry
		}
	})
	a.get(t, "endless")
	a.get(t, "short")
	a.get(t, "never")
	_, err := a.items.Get(t.Context(), "nothing")
	require.ErrorIs(t, err, nearcache.ErrNotFound)
	a.stored(t, 3)
	require.Greater(t, ttl("endless"), 50*time.Minute)
	require.LessOrEqual(t, ttl("endless"), time.Hour)
	require.Greater(t, ttl("short"), 4*time.Minute)
	require.LessOrEqual(t, ttl("short"), 5*time.Minute)
	require.Less(t, ttl("never"), time.Duration(0))
	require.Greater(t, ttl("nothing"), 9*time.Minute)
	require.LessOrEqual(t, ttl("nothing"), 10*time.Minute)

	// A not-found comes from Redis only where it would be kept.
	for _, keeps := range []bool{true, false} {
		loads := newCountedLoads()
		b := joinShared(t, redis.addr, loads.load, func(o *nearcache.Options[string, int]) {
			if keeps {
				o.NotFoundTTL = time.Hour
			}
		})
		_, err := b.items.Get(t.Context(), "nothing")
		if keeps {
			require.Equal(t, nearcache.ErrNotFound, err)
			require.Zero(t, loads.count("nothing"))
		} else {
			require.NoError(t, err)
		}
	}
}

// What is read in Redis lives here for no longer than there.
func TestSharedRemainingLife(t *testing.T) {
	redis := startRedis(t)
	loads := newCountedLoads()
	a := joinShared(t, redis.addr, loads.load, nil)
	a.get(t, "a")
	a.stored(t, 1)
	require.True(t, redis.client().PExpire(t.Context(), "{nearcache}:value:items:a", brief).Val())
	b := joinShared(t, redis.addr, loads.load, nil)
	b.get(t, "a")
	require.Equal(t, uint64(1), b.stats().Hits)
	eventually(t, "it expires", func() bool { _, held := b.items.Peek("a"); return !held })
}

func TestSharedSizes(t *testing.T) {
	redis := startRedis(t)
	raw := redis.client()
	bp, err := nearcache.Connect(t.Context(), nearcache.BackplaneOptions{RedisConnectionString: redis.addr, Logger: discard})
	require.NoError(t, err)
	defer func() { _ = bp.Close() }()
	load := func(_ context.Context, n int) (string, error) {
		if n < 0 {
			var b strings.Builder
			for range 1000 {
				b.WriteString(rand.Text())
			}
			return b.String(), nil
		}
		return strings.Repeat("all work and no play ", n), nil
	}
	texts, err := nearcache.New(bp, nearcache.Options[int, string]{
		Name: "texts", Load: load,
		Shared: &nearcache.SharedOptions[string]{Timeout: patience, CompressOver: 1000, MaxValueBytes: 25_000},
	})
	require.NoError(t, err)
	again, err := nearcache.Connect(t.Context(), nearcache.BackplaneOptions{RedisConnectionString: redis.addr, Logger: discard})
	require.NoError(t, err)
	defer func() { _ = again.Close() }()
	other, err := nearcache.New(again, nearcache.Options[int, string]{
		Name: "texts", Shared: &nearcache.SharedOptions[string]{Timeout: patience, MaxValueBytes: 25_000},
		Load: func(context.Context, int) (string, error) { return "", errors.New("not from the source") },
	})
	require.NoError(t, err)
	for i, n := range []int{0, 1, 1000} {
		want, err := texts.Get(t.Context(), n)
		require.NoError(t, err)
		eventually(t, "it is stored", func() bool { return texts.Stats().Shared.Stored == uint64(i+1) })
		got, err := other.Get(t.Context(), n)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	require.Less(t, raw.StrLen(t.Context(), "{nearcache}:value:texts:1000").Val(), int64(2000))
	_, err = texts.Get(t.Context(), -1)
	require.NoError(t, err)
	eventually(t, "it is too large", func() bool { return texts.Stats().Shared.TooLarge == 1 })
	eventually(t, "nothing is left of it", func() bool {
		return raw.Exists(t.Context(), "{nearcache}:value:texts:-1", "{nearcache}:token:texts:-1").Val() == 0
	})
}

// GetMany asks Redis once for all that is missing, and the source once for the rest.
func TestSharedGetMany(t *testing.T) {
	redis := startRedis(t)
	var mu sync.Mutex
	var calls [][]string
	change := func(o *nearcache.Options[string, int]) {
		o.LoadMany = func(_ context.Context, keys []string) (map[string]int, error) {
			mu.Lock()
			defer mu.Unlock()
			slices.Sort(keys)
			calls = append(calls, keys)
			found := map[string]int{}
			for _, key := range keys {
				if key != "none" {
					found[key] = len(key)
				}
			}
			return found, nil
		}
	}
	a := joinShared(t, redis.addr, nil, change)
	_, err := a.items.GetMany(t.Context(), "a", "bb", "none")
	require.NoError(t, err)
	a.stored(t, 2)
	b := joinShared(t, redis.addr, nil, change)
	got, err := b.items.GetMany(t.Context(), "a", "bb", "ccc", "dddd", "none")
	require.NoError(t, err)
	require.Equal(t, map[string]int{"a": 1, "bb": 2, "ccc": 3, "dddd": 4}, got)
	require.Equal(t, [][]string{{"a", "bb", "none"}, {"ccc", "dddd", "none"}}, calls)
	require.Equal(t, uint64(2), b.stats().Hits)
}

// GetMany waits for what another instance loads, and has the rest meanwhile.
func TestSharedGetManyWaits(t *testing.T) {
	redis := startRedis(t)
	held := newHeldLoads()
	long := func(o *nearcache.Options[string, int]) { o.Shared.LoadWait = patience }
	a := joinShared(t, redis.addr, held.load, long)
	go func() { _, _ = a.items.Get(context.Background(), "a") }()
	load := receive(t, "A loads", held.asked)
	asked := make(chan []string, 10)
	b := joinShared(t, redis.addr, nil, func(o *nearcache.Options[string, int]) {
		long(o)
		o.LoadMany = func(_ context.Context, keys []string) (map[string]int, error) {
			asked <- keys
			return map[string]int{"b": 2}, nil
		}
	})
	got := make(chan map[string]int, 1)
	go func() {
		m, _ := b.items.GetMany(context.Background(), "a", "b")
		got <- m
	}()
	require.Equal(t, []string{"b"}, receive(t, "B loads the rest", asked))
	load <- 1
	require.Equal(t, map[string]int{"a": 1, "b": 2}, receive(t, "GetMany returns", got))
	require.Empty(t, asked)
}

// Refresh asks the source, and shares what it got.
func TestSharedRefresh(t *testing.T) {
	redis := startRedis(t)
	loads := newCountedLoads()
	a := joinShared(t, redis.addr, loads.load, nil)
	a.get(t, "a")
	a.stored(t, 1)
	loads.write("a")
	v, err := a.items.Refresh(t.Context(), "a")
	require.NoError(t, err)
	require.Equal(t, 2, v)
	a.stored(t, 2)
	require.Equal(t, 2, joinShared(t, redis.addr, loads.load, nil).get(t, "a"))
	require.Equal(t, 2, loads.count("a"))
}

// An instance that has invalidated a key does not read the old value in Redis while
// its message waits: it reads its own writes.
func TestSharedReadsItsOwnWrites(t *testing.T) {
	redis := startRedis(t)
	raw := redis.client()
	loads := newCountedLoads()
	a := joinShared(t, redis.addr, loads.load, nil)
	a.get(t, "a")
	a.get(t, "b")
	a.stored(t, 2)
	// Redis takes no writes, and answers reads.
	require.NoError(t, raw.ConfigSet(t.Context(), "min-replicas-to-write", "1").Err())
	loads.write("a")
	require.ErrorIs(t, a.items.Remove(t.Context(), "a"), nearcache.ErrUnconfirmed)
	require.Equal(t, 2, a.get(t, "a"))
	require.Equal(t, uint64(1), a.stats().Skipped.OwnWrite)
	require.NoError(t, raw.ConfigSet(t.Context(), "min-replicas-to-write", "0").Err())
	require.NoError(t, a.bp.Flush(t.Context()))
	require.Equal(t, 2, joinShared(t, redis.addr, loads.load, nil).get(t, "a"))
}

// Whatever is done with one channel touches one slot of a Cluster, which refuses a script
// that touches two. (This one has a single node, so that nobody is sent elsewhere.)
func TestSharedTouchesOneSlot(t *testing.T) {
	redis := startRedis(t, "--cluster-enabled", "yes")
	require.NoError(t, redis.client().ClusterAddSlotsRange(t.Context(), 0, 16383).Err())
	eventually(t, "the cluster is there", func() bool {
		return strings.Contains(redis.client().ClusterInfo(t.Context()).Val(), "cluster_state:ok")
	})
	keys := []string{"red/1", "red/2", "blue/1"}
	for name, invalidate := range map[string]func(a *sharer) error{
		"keys":       func(a *sharer) error { return a.items.Remove(t.Context(), keys...) },
		"regions":    func(a *sharer) error { return a.items.ClearRegion(t.Context(), "red", "blue") },
		"the cache":  func(a *sharer) error { return a.items.Clear(t.Context()) },
		"everything": func(a *sharer) error { return a.bp.ClearAll(t.Context()) },
	} {
		t.Run(name, func(t *testing.T) {
			version := 1
			var fleet [2]*sharer
			for i := range fleet {
				fleet[i] = joinShared(t, redis.addr+",channelPrefix="+strings.ReplaceAll(name, " ", "-"), nil,
					func(o *nearcache.Options[string, int]) {
						o.LoadMany = func(_ context.Context, keys []string) (map[string]int, error) {
							got := map[string]int{}
							for _, key := range keys {
								got[key] = version
							}
							return got, nil
						}
					})
			}
			for version = range 2 {
				want := map[string]int{}
				for _, key := range keys {
					want[key] = version
				}
				for i, s := range fleet {
					got, err := s.items.GetMany(t.Context(), keys...)
					require.NoError(t, err)
					require.Equal(t, want, got)
					require.Zero(t, s.stats().Errors)
					if i == 0 {
						s.stored(t, uint64(3*(1+version)))
					} else {
						require.EqualValues(t, 3*(1+version), s.stats().Hits)
					}
				}
				require.NoError(t, invalidate(fleet[0]))
				eventually(t, "the other has evicted its items", func() bool { return fleet[1].items.Len() == 0 })
			}
		})
	}
}

// Fields of old clears do not pile up.
func TestSharedClearsAreTrimmed(t *testing.T) {
	redis := startRedis(t)
	raw := redis.client()
	a := joinShared(t, redis.addr, newCountedLoads().load, func(o *nearcache.Options[string, int]) {
		o.Shared.TTL, o.Shared.LoadWait = time.Millisecond, time.Millisecond
	})
	a.get(t, "a") // makes the hash
	most := int64(0)
	for i := range 100 {
		var regions []string
		for j := range 100 {
			regions = append(regions, fmt.Sprintf("%d-%d", i, j))
		}
		require.NoError(t, a.items.ClearRegion(t.Context(), regions...))
		most = max(most, raw.HLen(t.Context(), "{nearcache}:clears").Val())
	}
	require.Less(t, most, int64(5000))
}

func TestSharedOptionErrors(t *testing.T) {
	bp := nearcache.Local()
	defer func() { _ = bp.Close() }()
	tests := []struct {
		options nearcache.Options[string, int]
		says    string
	}{
		{nearcache.Options[string, int]{TTL: nearcache.NoExpiry, Shared: &nearcache.SharedOptions[int]{}}, "Shared.TTL is required"},
		{nearcache.Options[string, int]{Shared: &nearcache.SharedOptions[int]{TTL: nearcache.NoExpiry}}, "Shared.TTL"},
		{nearcache.Options[string, int]{Shared: &nearcache.SharedOptions[int]{TTL: -1}}, "Shared.TTL"},
		{nearcache.Options[string, int]{Shared: &nearcache.SharedOptions[int]{Timeout: 1}}, "Shared.Timeout"},
		{nearcache.Options[string, int]{Shared: &nearcache.SharedOptions[int]{LoadWait: -1}}, "Shared.LoadWait"},
		{nearcache.Options[string, int]{Shared: &nearcache.SharedOptions[int]{CompressOver: -1}}, "Shared.CompressOver"},
		{nearcache.Options[string, int]{Shared: &nearcache.SharedOptions[int]{MaxValueBytes: -1}}, "Shared.MaxValueBytes"},
		{nearcache.Options[string, int]{Shared: &nearcache.SharedOptions[int]{MaxValueBytes: 1 << 30}}, "Shared.MaxValueBytes"},
	}
	for _, test := range tests {
		test.options.Name, test.options.Load = "items", newSource().load
		_, err := nearcache.New(bp, test.options)
		require.ErrorIs(t, err, nearcache.ErrInvalidOptions)
		require.ErrorContains(t, err, test.says)
	}
	// A process-local backplane has nobody to share with.
	c, err := nearcache.New(bp, nearcache.Options[string, int]{
		Name: "items", Load: newSource().load, Shared: &nearcache.SharedOptions[int]{},
	})
	require.NoError(t, err)
	v, err := c.Get(t.Context(), "a")
	require.NoError(t, err)
	require.Equal(t, 1, v)
	require.Zero(t, c.Stats().Shared)
}

// TestSharedLargeRemove removes more keys at once than the script deletes with one
// command: all their values are gone when it was accepted, and all tokens.
func TestSharedLargeRemove(t *testing.T) {
	t.Parallel()
	onEachRedis(t, func(t *testing.T, addr string) {
		raw := rawClient(t, addr)
		a := joinShared(t, addr, newCountedLoads().load, nil)
		keys := make([]string, 2300) // of each, a value and a token
		for i := range keys {
			keys[i] = fmt.Sprint("/", i)
		}
		// Not by loads: miniredis tells no history, so that there nothing is shared.
		require.NoError(t, raw.HSet(t.Context(), "{nearcache}:clears", "epoch", "0123456789abcdef").Err())
		for _, kind := range []string{"value", "token"} {
			var pairs []any
			for _, key := range keys {
				pairs = append(pairs, "{nearcache}:"+kind+":items:"+key, "something")
			}
			require.NoError(t, raw.MSet(t.Context(), pairs...).Err())
		}
		require.NoError(t, raw.MSet(t.Context(), "{nearcache}:value:items:/other", "stays").Err())
		require.NoError(t, a.items.Remove(t.Context(), keys...))
		left := raw.Keys(t.Context(), "{nearcache}:*:items:*").Val()
		require.Equal(t, []string{"{nearcache}:value:items:/other"}, left)
	})
}

// TestReadmeACLShared gives users the rights that docs/redis.md names for shared caches.
func TestReadmeACLShared(t *testing.T) {
	page, err := os.ReadFile(filepath.Join(root, "docs", "redis.md"))
	require.NoError(t, err)
	more := regexp.MustCompile("needs these as well: `([^`]+)`").FindSubmatch(page)
	require.NotNil(t, more, "docs/redis.md names no rights for shared caches")
	redis := startRedis(t)
	for _, user := range []string{"app", "job"} {
		grant(t, redis.client(), documentedRights(t, user)+" "+string(more[1]))
	}
	loads := newCountedLoads()
	a := joinShared(t, redis.addr+",user=app,password=password", loads.load, nil)
	job, err := nearcache.Connect(t.Context(), nearcache.BackplaneOptions{
		RedisConnectionString: redis.addr + ",user=job,password=password", Logger: discard, PublishOnly: true,
	})
	require.NoError(t, err)
	defer func() { _ = job.Close() }()
	items, err := nearcache.NewInvalidator[string](job, "items")
	require.NoError(t, err)
	many := make([]string, 1200) // enough for old ones to be looked for
	for i := range many {
		many[i] = fmt.Sprint(i)
	}
	for n, invalidate := range []func() error{
		func() error { return items.Remove(t.Context(), "red/1") },
		func() error { return items.ClearRegion(t.Context(), append(many, "red")...) },
		func() error { return items.Clear(t.Context()) },
		func() error { return job.ClearAll(t.Context()) },
	} {
		require.Equal(t, n+1, a.get(t, "red/1"))
		a.stored(t, uint64(n+1))
		loads.write("red/1")
		require.NoError(t, invalidate())
		eventually(t, "A hears of it", func() bool { _, held := a.items.Peek("red/1"); return !held })
	}
	require.Equal(t, 5, a.get(t, "red/1"))
	require.Zero(t, a.stats().Errors)
}

// TestSharedFailover promotes a replica that has never heard of an invalidation, and
// has the value still.
func TestSharedFailover(t *testing.T) {
	t.Parallel()
	loads, pair := newCountedLoads(), startRedisPair(t)
	pair.awaitReplica() // a master's history changes when its first replica comes
	a := joinShared(t, pair.master.addr, loads.load, nil)
	require.Equal(t, 1, a.get(t, "red/1"))
	a.stored(t, 1)
	pair.holdReplication()
	loads.write("red/1")
	require.NoError(t, a.items.Remove(t.Context(), "red/1"))
	pair.failOver()
	require.NotZero(t, pair.raw.Exists(t.Context(), "{nearcache}:value:items:red/1").Val(), "the replica has the value")
	b := joinShared(t, pair.master.addr, loads.load, nil)
	require.Equal(t, 2, b.get(t, "red/1"))
	b.stored(t, 1)
	require.Equal(t, 2, joinShared(t, pair.master.addr, loads.load, nil).get(t, "red/1"))
	require.Equal(t, 2, loads.count("red/1"))
}

// TestSharedRestartWithData does the same with a Redis that comes back with what it
// had saved.
func TestSharedRestartWithData(t *testing.T) {
	t.Parallel()
	loads, redis := newCountedLoads(), startRedis(t)
	a := joinShared(t, redis.addr, loads.load, nil)
	require.Equal(t, 1, a.get(t, "red/1"))
	a.stored(t, 1)
	require.NoError(t, redis.client().Save(t.Context()).Err())
	loads.write("red/1")
	require.NoError(t, a.items.Remove(t.Context(), "red/1"))
	redis.kill()
	redis.restart()
	require.Equal(t, 2, joinShared(t, redis.addr, loads.load, nil).get(t, "red/1"))
}

// TestSharedReadsFromAMasterOnly has an instance's address lead to a replica by the time
// it asks for a value: that knows the same history, and lags.
func TestSharedReadsFromAMasterOnly(t *testing.T) {
	t.Parallel()
	loads, pair := newCountedLoads(), startRedisPair(t)
	pair.awaitReplica() // a master's history changes when its first replica comes
	path := startProxy(t, pair.master.addr)
	a, b := joinShared(t, pair.master.addr, loads.load, nil), joinShared(t, path.addr, loads.load, nil)
	require.Equal(t, 1, a.get(t, "red/1"))
	a.stored(t, 1)
	replica := pair.replica.client()
	eventually(t, "the replica has the value", func() bool {
		return replica.Exists(t.Context(), "{nearcache}:value:items:red/1").Val() == 1
	})
	pair.holdReplication()
	loads.write("red/1")
	require.NoError(t, a.items.Remove(t.Context(), "red/1"))
	path.leadTo(pair.replica.addr)
	require.Equal(t, 2, b.get(t, "red/1"))
	require.NotZero(t, b.stats().Errors)
}
