package nearcache_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/nearcache/nearcache"
	"github.com/nearcache/nearcache/internal/raceflag"
)

var errSource = errors.New("the source is down")

// newCache makes a cache on a process-local backplane of its own.
func newCache[K comparable, V any](t *testing.T, options nearcache.Options[K, V]) *nearcache.Cache[K, V] {
	t.Helper()
	if options.Name == "" {
		options.Name = "products"
	}
	bp := nearcache.Local()
	t.Cleanup(func() { require.NoError(t, bp.Close()) })
	cache, err := nearcache.New(bp, options)
	require.NoError(t, err)
	return cache
}

// gate is a loader that is let through one call at a time.
type gate struct {
	calls chan *gateCall // every call, as it begins
}

type gateCall struct {
	ctx   context.Context
	key   string
	reply chan func() (string, error)
}

func newGate() *gate { return &gate{calls: make(chan *gateCall, 100)} }

func (g *gate) load(ctx context.Context, key string) (string, error) {
	call := &gateCall{ctx: ctx, key: key, reply: make(chan func() (string, error), 1)}
	g.calls <- call
	return (<-call.reply)()
}

func (c *gateCall) returns(value string, err error) {
	c.reply <- func() (string, error) { return value, err }
}

// got is what a Get in a goroutine of its own ended with.
type got struct {
	value string
	err   error
	panic any
}

func get(ctx context.Context, cache *nearcache.Cache[string, string], key string) chan got {
	result := make(chan got, 1)
	go func() {
		g := got{panic: "the goroutine was ended"}
		defer func() {
			if r := recover(); r != nil {
				g.panic = r
			}
			result <- g
		}()
		g.value, g.err = cache.Get(ctx, key)
		g.panic = nil
	}()
	return result
}

// The recipe of the documentation, once through.
func TestReadWriteRemove(t *testing.T) {
	ctx := t.Context()
	source := map[int64]string{1: "one", 2: "two"}
	loads := 0
	cache := newCache(t, nearcache.Options[int64, string]{
		Load: func(_ context.Context, id int64) (string, error) {
			loads++
			v, ok := source[id]
			if !ok {
				return "", fmt.Errorf("product %d: %w", id, nearcache.ErrNotFound)
			}
			return v, nil
		},
	})

	for range 3 {
		v, err := cache.Get(ctx, 1)
		require.NoError(t, err)
		require.Equal(t, "one", v)
	}
	require.Equal(t, 1, loads)

	source[1] = "uno"
	require.NoError(t, cache.Remove(ctx, 1))
	v, err := cache.Get(ctx, 1)
	require.NoError(t, err)
	require.Equal(t, "uno", v)
	require.Equal(t, 2, loads)

	_, err = cache.Get(ctx, 3)
	require.ErrorIs(t, err, nearcache.ErrNotFound)
	require.EqualError(t, err, "product 3: nearcache: not found", "the loader's own error")
	_, err = cache.Get(ctx, 3)
	require.Error(t, err)
	require.Equal(t, 4, loads, "a not-found is not kept unless asked for")

	require.NoError(t, cache.Set(ctx, 2, "dos"))
	v, err = cache.Get(ctx, 2)
	require.NoError(t, err)
	require.Equal(t, "dos", v)
	require.Equal(t, 4, loads)
	require.Equal(t, 2, cache.Len())

	require.NoError(t, cache.Remove(ctx))
	require.NoError(t, cache.ClearRegion(ctx))
	require.Equal(t, 2, cache.Len(), "no keys and no regions: nothing happens")

	s := cache.Stats()
	require.EqualValues(t, 3, s.Hits)
	require.EqualValues(t, 4, s.Misses.Absent)
	require.EqualValues(t, 4, s.Loads)
	require.Zero(t, s.LoadErrors, "a not-found is no failure")
	require.EqualValues(t, 2, s.Invalidations.Keys)
	require.Equal(t, 2, s.Entries)
}

func TestLoaderErrorsAreNotKept(t *testing.T) {
	fail := true
	cache := newCache(t, nearcache.Options[string, string]{
		NotFoundTTL: time.Minute,
		Load: func(context.Context, string) (string, error) {
			if fail {
				return "half", errSource
			}
			return "whole", nil
		},
	})
	_, err := cache.Get(t.Context(), "a")
	require.True(t, err == errSource, "as it is, not wrapped")
	require.EqualValues(t, 1, cache.Stats().LoadErrors)
	fail = false
	v, err := cache.Get(t.Context(), "a")
	require.NoError(t, err)
	require.Equal(t, "whole", v)
}

func TestNotFoundIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		errNoRows := errors.New("no rows")
		loads := 0
		cache := newCache(t, nearcache.Options[string, string]{
			NotFoundTTL: time.Minute,
			IsNotFound:  func(err error) bool { return errors.Is(err, errNoRows) },
			Regions:     func(string, string) []string { return []string{"a region"} },
			Load: func(context.Context, string) (string, error) {
				loads++
				return "", errNoRows
			},
		})
		miss := func(want error, wantLoads int) {
			t.Helper()
			_, err := cache.Get(t.Context(), "a")
			require.True(t, err == want, "got %v", err)
			require.Equal(t, wantLoads, loads)
		}
		miss(errNoRows, 1)
		miss(nearcache.ErrNotFound, 1)
		_, ok := cache.Peek("a")
		require.False(t, ok, "a kept not-found is not an item")

		// It has no value, so it counts as a member of every region.
		require.NoError(t, cache.ClearRegion(t.Context(), "another region"))
		miss(errNoRows, 2)
		require.NoError(t, cache.Remove(t.Context(), "a"))
		miss(errNoRows, 3)
		time.Sleep(time.Minute)
		miss(errNoRows, 4)
		miss(nearcache.ErrNotFound, 4)
	})
}

func TestTimeToLive(t *testing.T) {
	tests := []struct {
		name   string
		set    func(*nearcache.Options[int, int])
		lives  time.Duration // every item is held until here
		gone   time.Duration // and none from here on
		spread bool          // in between they go one after the other
	}{
		{
			name:  "TTL, shortened by up to a tenth",
			set:   func(o *nearcache.Options[int, int]) { o.TTL = 100 * time.Minute },
			lives: 90 * time.Minute, gone: 100*time.Minute + 1, spread: true,
		}, {
			name:  "five minutes by default",
			set:   func(*nearcache.Options[int, int]) {},
			lives: 4*time.Minute + 30*time.Second, gone: 5*time.Minute + 1, spread: true,
		}, {
			name: "Expiry, exactly, in the place of TTL",
			set: func(o *nearcache.Options[int, int]) {
				o.TTL = time.Second
				o.Expiry = func(int, int) time.Duration { return time.Hour }
			},
			lives: time.Hour - 1, gone: time.Hour,
		}, {
			name: "NoExpiry",
			set:  func(o *nearcache.Options[int, int]) { o.TTL = nearcache.NoExpiry },
			// 100 years: gone is not reached
			lives: 100 * 365 * 24 * time.Hour,
		}, {
			name: "NoExpiry from Expiry",
			set: func(o *nearcache.Options[int, int]) {
				o.Expiry = func(int, int) time.Duration { return nearcache.NoExpiry }
			},
			lives: 100 * 365 * 24 * time.Hour,
		}, {
			name: "not kept",
			set: func(o *nearcache.Options[int, int]) {
				o.Expiry = func(int, int) time.Duration { return 0 }
			},
			gone: 0,
		}, {
			name: "a nanosecond",
			set:  func(o *nearcache.Options[int, int]) { o.TTL = 1 },
			gone: 1,
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const items = 200
				o := nearcache.Options[int, int]{Load: func(_ context.Context, k int) (int, error) { return k, nil }}
				test.set(&o)
				cache := newCache(t, o)
				held := func() (n int) {
					for k := range items {
						if _, ok := cache.Peek(k); ok {
							n++
						}
					}
					return n
				}
				for k := range items {
					_, err := cache.Get(t.Context(), k)
					require.NoError(t, err)
				}
				start := time.Now()
				if test.lives > 0 {
					time.Sleep(test.lives - 1)
					require.Equal(t, items, held())
				}
				if test.spread {
					time.Sleep(time.Until(start.Add((test.lives + test.gone) / 2)))
					require.NotZero(t, held())
					require.Less(t, held(), items)
				}
				if test.gone > 0 || test.lives == 0 {
					time.Sleep(time.Until(start.Add(test.gone)))
					require.Zero(t, held())
				}
			})
		})
	}
}

// Each kind of invalidation, against a load under way: its callers get what it
// returns, nobody keeps it, and nobody who comes later has it.
func TestLoadIsFencedAgainst(t *testing.T) {
	type cache = *nearcache.Cache[string, string]
	tests := []struct {
		name       string
		invalidate func(context.Context, cache, *nearcache.Backplane) error
	}{
		{"Remove", func(ctx context.Context, c cache, _ *nearcache.Backplane) error { return c.Remove(ctx, "other", "a") }},
		{"ClearRegion", func(ctx context.Context, c cache, _ *nearcache.Backplane) error {
			return c.ClearRegion(ctx, "other", "region of a")
		}},
		{"Clear", func(ctx context.Context, c cache, _ *nearcache.Backplane) error { return c.Clear(ctx) }},
		{"ClearAll", func(ctx context.Context, _ cache, bp *nearcache.Backplane) error { return bp.ClearAll(ctx) }},
		{"a failing Update", func(ctx context.Context, c cache, _ *nearcache.Backplane) error {
			_, err := c.Update(ctx, "a", func(context.Context) (string, error) { return "", errSource })
			if err != errSource {
				return fmt.Errorf("Update returned %w", err)
			}
			return nil
		}},
	}
	for _, test := range tests {
		for _, found := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, found %v", test.name, found), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					ctx := t.Context()
					source := newGate()
					bp := nearcache.Local()
					defer bp.Close()
					cache, err := nearcache.New(bp, nearcache.Options[string, string]{
						Name: "products", Load: source.load, NotFoundTTL: time.Minute,
						Regions: func(k, _ string) []string { return []string{"shared", "region of " + k} },
					})
					require.NoError(t, err)
					value, loadErr := "old", error(nil)
					if !found {
						value, loadErr = "", nearcache.ErrNotFound
					}

					before := get(ctx, cache, "a")
					first := <-source.calls
					require.NoError(t, test.invalidate(ctx, cache, bp))
					after := get(ctx, cache, "a")
					synctest.Wait()
					waits := test.name == "ClearRegion" // since its regions are not known yet
					require.Equal(t, waits, len(source.calls) == 0)

					first.returns(value, loadErr)
					second := <-source.calls // or the bubble deadlocks: it has joined the first
					require.Equal(t, got{value: value, err: loadErr}, <-before)
					synctest.Wait()
					require.Zero(t, cache.Stats().Entries, "an overtaken load is kept")
					require.Zero(t, cache.Len())
					require.EqualValues(t, 1, cache.Stats().LoadDiscarded)

					second.returns("new", nil)
					require.Equal(t, got{value: "new"}, <-after)
					v, ok := cache.Peek("a")
					require.True(t, ok)
					require.Equal(t, "new", v)
				})
			})
		}
	}
}

// What is invalidated beside it does not keep a load from being kept.
func TestLoadIsKeptBeside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		source := newGate()
		cache := newCache(t, nearcache.Options[string, string]{
			Load:    source.load,
			Regions: func(k, _ string) []string { return []string{"region of " + k} },
		})
		result := get(ctx, cache, "a")
		call := <-source.calls
		require.NoError(t, cache.Remove(ctx, "b"))
		require.NoError(t, cache.Set(ctx, "b", "value"))
		require.NoError(t, cache.ClearRegion(ctx, "region of b"))
		call.returns("value", nil)
		require.Equal(t, got{value: "value"}, <-result)
		_, ok := cache.Peek("a")
		require.True(t, ok)
	})
}

func TestRegions(t *testing.T) {
	ctx := t.Context()
	cache := newCache(t, nearcache.Options[string, string]{
		Load:    func(_ context.Context, k string) (string, error) { return k, nil },
		Regions: func(_, v string) []string { return strings.Split(v, "+") },
	})
	fill := func() {
		for _, k := range []string{"books", "books+sale", "toys+sale+sale", "toys", "\xff"} {
			_, err := cache.Get(ctx, k)
			require.NoError(t, err)
		}
	}
	held := func() map[string]bool {
		held := map[string]bool{}
		for _, k := range []string{"books", "books+sale", "toys+sale+sale", "toys", "\xff"} {
			if _, ok := cache.Peek(k); ok {
				held[k] = true
			}
		}
		return held
	}
	tests := []struct {
		clear []string
		left  []string
	}{
		{[]string{"sale"}, []string{"books", "toys", "\xff"}},
		{[]string{"books"}, []string{"toys+sale+sale", "toys", "\xff"}},
		{[]string{"books", "sale", "toys"}, []string{"\xff"}},
		{[]string{"sale", "sale", "nothing"}, []string{"books", "toys", "\xff"}},
		{[]string{"\xff"}, []string{"books", "books+sale", "toys+sale+sale", "toys"}},
		{[]string{""}, []string{"books", "books+sale", "toys+sale+sale", "toys", "\xff"}},
	}
	for _, test := range tests {
		t.Run(fmt.Sprintf("clear %q", test.clear), func(t *testing.T) {
			fill()
			require.NoError(t, cache.ClearRegion(ctx, test.clear...))
			left := map[string]bool{}
			for _, k := range test.left {
				left[k] = true
			}
			require.Equal(t, left, held())
			require.Equal(t, len(left), cache.Len())
		})
	}
	require.NoError(t, cache.Clear(ctx))
	require.Eventually(t, func() bool { return cache.Stats().Regions == 0 }, 10*time.Second, time.Millisecond,
		"the memory is reclaimed in the background")
}

func TestWaiters(t *testing.T) {
	// bubble runs test with a cache whose loads the test lets through.
	bubble := func(t *testing.T, test func(*testing.T, *nearcache.Cache[string, string], *gate)) {
		synctest.Test(t, func(t *testing.T) {
			source := newGate()
			test(t, newCache(t, nearcache.Options[string, string]{Load: source.load}), source)
		})
	}
	type ctxKey struct{}

	t.Run("many callers, one load", func(t *testing.T) {
		bubble(t, func(t *testing.T, cache *nearcache.Cache[string, string], source *gate) {
			var results []chan got
			for range 1000 {
				results = append(results, get(t.Context(), cache, "a"))
			}
			synctest.Wait()
			require.Len(t, source.calls, 1)
			(<-source.calls).returns("value", nil)
			for _, r := range results {
				require.Equal(t, got{value: "value"}, <-r)
			}
			require.EqualValues(t, 1, cache.Stats().Loads)
		})
	})
	t.Run("a cancelled first caller harms nobody", func(t *testing.T) {
		bubble(t, func(t *testing.T, cache *nearcache.Cache[string, string], source *gate) {
			ctx, cancel := context.WithCancel(context.WithValue(t.Context(), ctxKey{}, "value of the first"))
			first := get(ctx, cache, "a")
			call := <-source.calls
			require.Equal(t, "value of the first", call.ctx.Value(ctxKey{}))
			second := get(t.Context(), cache, "a")
			synctest.Wait()
			cancel()
			require.Equal(t, got{err: context.Canceled}, <-first)
			require.NoError(t, call.ctx.Err())
			call.returns("value", nil)
			require.Equal(t, got{value: "value"}, <-second)
			_, ok := cache.Peek("a")
			require.True(t, ok)
		})
	})
	t.Run("a waiter leaves alone, by its own deadline", func(t *testing.T) {
		bubble(t, func(t *testing.T, cache *nearcache.Cache[string, string], source *gate) {
			first := get(t.Context(), cache, "a")
			call := <-source.calls
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			require.Equal(t, got{err: context.DeadlineExceeded}, <-get(ctx, cache, "a"))
			require.NoError(t, call.ctx.Err())
			call.returns("value", nil)
			require.Equal(t, got{value: "value"}, <-first)
		})
	})
	t.Run("the last waiter to leave cancels the load, and the next Get begins another", func(t *testing.T) {
		bubble(t, func(t *testing.T, cache *nearcache.Cache[string, string], source *gate) {
			ctx, cancel := context.WithCancel(t.Context())
			first, second := get(ctx, cache, "a"), get(ctx, cache, "a")
			abandoned := <-source.calls
			synctest.Wait()
			cancel()
			require.Equal(t, got{err: context.Canceled}, <-first)
			require.Equal(t, got{err: context.Canceled}, <-second)
			<-abandoned.ctx.Done()

			third := get(t.Context(), cache, "a")
			call := <-source.calls
			abandoned.returns("abandoned", nil)
			call.returns("value", nil)
			require.Equal(t, got{value: "value"}, <-third)
			v, _ := cache.Peek("a")
			require.Equal(t, "value", v)
		})
	})
	t.Run("a cancelled caller starts no load, and a hit ignores its context", func(t *testing.T) {
		bubble(t, func(t *testing.T, cache *nearcache.Cache[string, string], source *gate) {
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			require.Equal(t, got{err: context.Canceled}, <-get(ctx, cache, "a"))
			require.Empty(t, source.calls)
			require.NoError(t, cache.Set(ctx, "a", "value"))
			require.Equal(t, got{value: "value"}, <-get(ctx, cache, "a"))
		})
	})
	t.Run("a panic is raised in every caller", func(t *testing.T) {
		bubble(t, func(t *testing.T, cache *nearcache.Cache[string, string], source *gate) {
			first, second := get(t.Context(), cache, "a"), get(t.Context(), cache, "a")
			call := <-source.calls
			synctest.Wait()
			call.reply <- func() (string, error) { panic(errSource) }
			for _, result := range []chan got{first, second} {
				g := <-result
				require.ErrorIs(t, g.panic.(error), errSource)
				require.ErrorContains(t, g.panic.(error), "the source is down")
				require.ErrorContains(t, g.panic.(error), "cache_test.go", "the loader's stack")
			}
			require.Zero(t, cache.Len())
			again := get(t.Context(), cache, "a")
			(<-source.calls).returns("value", nil)
			require.Equal(t, got{value: "value"}, <-again)
		})
	})
	t.Run("Goexit becomes an error", func(t *testing.T) {
		bubble(t, func(t *testing.T, cache *nearcache.Cache[string, string], source *gate) {
			result := get(t.Context(), cache, "a")
			(<-source.calls).reply <- func() (string, error) { runtime.Goexit(); return "", nil }
			g := <-result
			require.ErrorContains(t, g.err, "Goexit")
			require.Nil(t, g.panic)
			require.Zero(t, cache.Len())
		})
	})
	t.Run("an error reaches every caller", func(t *testing.T) {
		bubble(t, func(t *testing.T, cache *nearcache.Cache[string, string], source *gate) {
			first, second := get(t.Context(), cache, "a"), get(t.Context(), cache, "a")
			call := <-source.calls
			synctest.Wait()
			call.returns("", errSource)
			require.Equal(t, got{err: errSource}, <-first)
			require.Equal(t, got{err: errSource}, <-second)
		})
	})
	t.Run("a loader's own cancellation is its error", func(t *testing.T) {
		bubble(t, func(t *testing.T, cache *nearcache.Cache[string, string], source *gate) {
			result := get(t.Context(), cache, "a")
			(<-source.calls).returns("", context.DeadlineExceeded)
			require.Equal(t, got{err: context.DeadlineExceeded}, <-result)
		})
	})
}

func TestPanicsInCallbacksCountAsTheLoaders(t *testing.T) {
	tests := []struct {
		name string
		set  func(*nearcache.Options[string, string])
		load func() (string, error)
	}{
		{"Regions", func(o *nearcache.Options[string, string]) {
			o.Regions = func(string, string) []string { panic("in a callback") }
		}, func() (string, error) { return "value", nil }},
		{"Expiry", func(o *nearcache.Options[string, string]) {
			o.Expiry = func(string, string) time.Duration { panic("in a callback") }
		}, func() (string, error) { return "value", nil }},
		{"IsNotFound", func(o *nearcache.Options[string, string]) {
			o.IsNotFound = func(error) bool { panic("in a callback") }
		}, func() (string, error) { return "", errSource }},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			o := nearcache.Options[string, string]{
				NotFoundTTL: time.Minute,
				Load:        func(context.Context, string) (string, error) { return test.load() },
			}
			test.set(&o)
			cache := newCache(t, o)
			g := <-get(t.Context(), cache, "a")
			require.ErrorContains(t, g.panic.(error), "in a callback")
			if test.name != "IsNotFound" {
				require.Panics(t, func() { _ = cache.Set(t.Context(), "a", "value") })
			}
			require.Zero(t, cache.Len())
		})
	}
}

func TestReentrantLoads(t *testing.T) {
	t.Run("of another key", func(t *testing.T) {
		var cache *nearcache.Cache[int, int]
		cache = newCache(t, nearcache.Options[int, int]{Load: func(ctx context.Context, n int) (int, error) {
			if n < 2 {
				return n, nil
			}
			a, err := cache.Get(ctx, n-1)
			if err != nil {
				return 0, err
			}
			b, err := cache.Get(ctx, n-2)
			return a + b, err
		}})
		v, err := cache.Get(t.Context(), 46)
		require.NoError(t, err)
		require.Equal(t, 1836311903, v)
		require.EqualValues(t, 47, cache.Stats().Loads)
	})
	// The loader is a waiter of its own load and must not keep it alive.
	for _, path := range []string{"a", "a b", "a b c"} {
		t.Run("in a circle of "+path, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				keys := strings.Fields(path)
				next := map[string]string{}
				for i, k := range keys {
					next[k] = keys[(i+1)%len(keys)]
				}
				var running atomic.Int64
				var cache *nearcache.Cache[string, string]
				cache = newCache(t, nearcache.Options[string, string]{Load: func(ctx context.Context, k string) (string, error) {
					running.Add(1)
					defer running.Add(-1)
					return cache.Get(ctx, next[k])
				}})
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				result := get(ctx, cache, "a")
				synctest.Wait()
				require.EqualValues(t, len(keys), running.Load(), "it waits")
				require.Equal(t, got{err: context.DeadlineExceeded}, <-result)
				synctest.Wait()
				require.Zero(t, running.Load(), "its goroutines are left behind")
			})
		})
	}
}

func TestUpdate(t *testing.T) {
	type cacheT = *nearcache.Cache[string, string]
	bubble := func(t *testing.T, test func(*testing.T, cacheT, *gate)) {
		synctest.Test(t, func(t *testing.T) {
			source := newGate()
			test(t, newCache(t, nearcache.Options[string, string]{
				Load:    source.load,
				Regions: func(k, _ string) []string { return []string{"region of " + k} },
			}), source)
		})
	}
	// update runs an Update that waits for the test.
	update := func(ctx context.Context, cache cacheT, key string) (call *gateCall, result chan got) {
		source := newGate()
		result = make(chan got, 1)
		go func() {
			var g got
			defer func() {
				g.panic = recover()
				result <- g
			}()
			g.value, g.err = cache.Update(ctx, key, func(ctx context.Context) (string, error) { return source.load(ctx, key) })
		}()
		return <-source.calls, result
	}

	t.Run("keeps what the write returned", func(t *testing.T) {
		bubble(t, func(t *testing.T, cache cacheT, _ *gate) {
			require.NoError(t, cache.Set(t.Context(), "a", "old"))
			call, result := update(t.Context(), cache, "a")
			_, ok := cache.Peek("a")
			require.False(t, ok, "evicted as soon as the write begins")
			call.returns("new", nil)
			require.Equal(t, got{value: "new"}, <-result)
			v, _ := cache.Peek("a")
			require.Equal(t, "new", v)
		})
	})
	t.Run("keeps nothing that was invalidated meanwhile", func(t *testing.T) {
		for name, invalidate := range map[string]func(context.Context, cacheT) error{
			"Remove":      func(ctx context.Context, c cacheT) error { return c.Remove(ctx, "a") },
			"Set":         func(ctx context.Context, c cacheT) error { return c.Set(ctx, "a", "of the other") },
			"ClearRegion": func(ctx context.Context, c cacheT) error { return c.ClearRegion(ctx, "region of a") },
			"Clear":       func(ctx context.Context, c cacheT) error { return c.Clear(ctx) },
		} {
			t.Run(name, func(t *testing.T) {
				bubble(t, func(t *testing.T, cache cacheT, _ *gate) {
					call, result := update(t.Context(), cache, "a")
					require.NoError(t, invalidate(t.Context(), cache))
					call.returns("new", nil)
					require.Equal(t, got{value: "new"}, <-result)
					_, ok := cache.Peek("a")
					require.False(t, ok)
				})
			})
		}
	})
	t.Run("of two that overlap neither is kept", func(t *testing.T) {
		for _, firstEndsFirst := range []bool{true, false} {
			bubble(t, func(t *testing.T, cache cacheT, _ *gate) {
				call1, result1 := update(t.Context(), cache, "a")
				call2, result2 := update(t.Context(), cache, "a")
				if firstEndsFirst {
					call1.returns("one", nil)
					require.Equal(t, got{value: "one"}, <-result1)
					call2.returns("two", nil)
					require.Equal(t, got{value: "two"}, <-result2)
				} else {
					call2.returns("two", nil)
					require.Equal(t, got{value: "two"}, <-result2)
					call1.returns("one", nil)
					require.Equal(t, got{value: "one"}, <-result1)
				}
				_, ok := cache.Peek("a")
				require.False(t, ok)
			})
		}
	})
	t.Run("a load that it overtakes is not kept", func(t *testing.T) {
		bubble(t, func(t *testing.T, cache cacheT, source *gate) {
			call, result := update(t.Context(), cache, "a")
			reader := get(t.Context(), cache, "a")
			load := <-source.calls // it may read what is there before the write
			call.returns("new", nil)
			require.Equal(t, got{value: "new"}, <-result)
			load.returns("old", nil)
			require.Equal(t, got{value: "old"}, <-reader)
			v, _ := cache.Peek("a")
			require.Equal(t, "new", v)
		})
	})
	t.Run("a failure is returned as it is, and nothing is kept", func(t *testing.T) {
		bubble(t, func(t *testing.T, cache cacheT, source *gate) {
			call, result := update(t.Context(), cache, "a")
			reader := get(t.Context(), cache, "a")
			(<-source.calls).returns("during the write", nil)
			require.Equal(t, got{value: "during the write"}, <-reader)
			call.returns("half", errSource)
			require.Equal(t, got{value: "half", err: errSource}, <-result)
			require.Zero(t, cache.Len(), "what was loaded meanwhile is evicted too")
		})
	})
	t.Run("a panic goes on, and nothing is kept", func(t *testing.T) {
		bubble(t, func(t *testing.T, cache cacheT, source *gate) {
			call, result := update(t.Context(), cache, "a")
			reader := get(t.Context(), cache, "a")
			(<-source.calls).returns("during the write", nil)
			<-reader
			call.reply <- func() (string, error) { panic("boom") }
			require.Equal(t, "boom", (<-result).panic)
			require.Zero(t, cache.Len())
		})
	})
}

func TestStrictLRU(t *testing.T) {
	cache := newCache(t, nearcache.Options[int, int]{
		Capacity: 3, Eviction: nearcache.LRU,
		Load: func(_ context.Context, k int) (int, error) { return k, nil },
	})
	read := func(keys ...int) {
		for _, k := range keys {
			_, err := cache.Get(t.Context(), k)
			require.NoError(t, err)
		}
	}
	read(1, 2, 3, 1) // 2 is now the least recently used
	cache.Peek(2)    // and a Peek changes nothing
	read(4)
	for k, want := range map[int]bool{1: true, 2: false, 3: true, 4: true} {
		_, ok := cache.Peek(k)
		require.Equal(t, want, ok, "key %d", k)
	}
}

func TestHitAllocatesNothing(t *testing.T) {
	for _, eviction := range []nearcache.Eviction{nearcache.DefaultEviction, nearcache.LRU} {
		cache := newCache(t, nearcache.Options[string, *int]{
			Eviction: eviction,
			Load:     func(context.Context, string) (*int, error) { return new(int), nil },
			Regions:  func(string, *int) []string { return []string{"a", "b"} },
		})
		ctx := t.Context()
		read := func() { _, _ = cache.Get(ctx, "a") }
		read()
		if raceflag.Enabled {
			continue // the race detector makes sync.Pool allocate at random
		}
		require.Zero(t, testing.AllocsPerRun(1000, read), "eviction %d", eviction)
	}
}

// Goroutines of every kind on a few keys; the race detector is the judge, and at
// the end nothing is stale.
func TestConcurrentUse(t *testing.T) {
	var source [8]atomic.Int64
	cache := newCache(t, nearcache.Options[int, int64]{
		Capacity: 6,
		Load:     func(_ context.Context, k int) (int64, error) { return source[k].Load(), nil },
		Regions:  func(k int, _ int64) []string { return []string{fmt.Sprint(k % 3)} },
	})
	ctx := t.Context()
	var workers sync.WaitGroup
	for w := range 8 {
		workers.Go(func() {
			for i := range 3000 {
				k := (i*7 + w) % len(source)
				switch i % 12 {
				case 0:
					source[k].Add(1)
					_ = cache.Remove(ctx, k)
				case 1:
					for j := range source {
						if j%3 == k%3 {
							source[j].Add(1)
						}
					}
					_ = cache.ClearRegion(ctx, fmt.Sprint(k%3))
				case 2:
					_, _ = cache.Update(ctx, k, func(context.Context) (int64, error) { return source[k].Add(1), nil })
				case 3:
					_ = cache.Len()
					_ = cache.Stats()
				case 4:
					if i%100 == 4 {
						_ = cache.Clear(ctx)
					}
				default:
					_, _ = cache.Get(ctx, k)
				}
			}
		})
	}
	workers.Wait()
	for k := range source {
		if v, ok := cache.Peek(k); ok {
			require.Equal(t, source[k].Load(), v, "key %d", k)
		}
	}
	require.LessOrEqual(t, cache.Len(), 6)
}

func TestClose(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	ctx := t.Context()
	bp := nearcache.Local()
	require.Equal(t, nearcache.StateLocal, bp.State())
	loads := 0
	options := nearcache.Options[string, string]{
		Name: "products",
		Load: func(_ context.Context, k string) (string, error) { loads++; return k, nil },
	}
	cache, err := nearcache.New(bp, options)
	require.NoError(t, err)
	require.NoError(t, cache.Set(ctx, "a", "value"))

	closed := func(cache *nearcache.Cache[string, string]) {
		t.Helper()
		loads = 0
		for range 2 {
			v, err := cache.Get(ctx, "a")
			require.NoError(t, err)
			require.Equal(t, "a", v)
		}
		require.Equal(t, 2, loads, "after Close every Get calls Load")
		_, ok := cache.Peek("a")
		require.False(t, ok)
		require.Zero(t, cache.Len())
		require.ErrorIs(t, cache.Set(ctx, "a", "value"), nearcache.ErrClosed)
		require.ErrorIs(t, cache.Remove(ctx, "a"), nearcache.ErrClosed)
		require.ErrorIs(t, cache.Remove(ctx), nearcache.ErrClosed)
		require.ErrorIs(t, cache.ClearRegion(ctx, "a"), nearcache.ErrClosed)
		require.ErrorIs(t, cache.Clear(ctx), nearcache.ErrClosed)
		_, err := cache.Update(ctx, "a", func(context.Context) (string, error) { panic("must not be called") })
		require.ErrorIs(t, err, nearcache.ErrClosed)
	}
	require.NoError(t, cache.Close())
	closed(cache)
	require.NoError(t, cache.Close(), "once more")

	again, err := nearcache.New(bp, options)
	require.NoError(t, err, "its name is free again")
	require.NoError(t, cache.Close())
	require.NoError(t, again.Set(ctx, "a", "value"))
	require.Len(t, bp.Stats().Caches, 1, "closing the first again does not take the name from the second")

	require.NoError(t, bp.Close())
	require.NoError(t, bp.Close())
	require.Equal(t, nearcache.StateClosed, bp.State())
	closed(again)
	require.ErrorIs(t, bp.ClearAll(ctx), nearcache.ErrClosed)
	_, err = nearcache.New(bp, options)
	require.ErrorIs(t, err, nearcache.ErrClosed)
}

// A load that runs while its cache is closed goes on for its callers.
func TestCloseDuringLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := newGate()
		cache := newCache(t, nearcache.Options[string, string]{Load: source.load})
		result := get(t.Context(), cache, "a")
		call := <-source.calls
		require.NoError(t, cache.Close())
		call.returns("value", nil)
		require.Equal(t, got{value: "value"}, <-result)
		require.Zero(t, cache.Len())
	})
}

// The table of docs/errors.md: condition, call, error, and the state after.
func TestBadInput(t *testing.T) {
	load := func(context.Context, string) (string, error) { return "", nil }
	type options = nearcache.Options[string, string]
	valid := options{Name: "products", Load: load}
	newRows := []struct {
		condition string
		set       func(*options)
		names     string
	}{
		{"no Name", func(o *options) { o.Name = "" }, "Name"},
		{"a Name with a blank", func(o *options) { o.Name = "my products" }, "Name"},
		{"a Name with a brace", func(o *options) { o.Name = "{p}" }, "Name"},
		{"a Name that is too long", func(o *options) { o.Name = strings.Repeat("n", 129) }, "Name"},
		{"a Name with a newline behind it", func(o *options) { o.Name = "n\n" }, "Name"},
		{"no Load", func(o *options) { o.Load = nil }, "Load is nil, and so is LoadMany"},
		{"negative LoadTimeout", func(o *options) { o.LoadTimeout = -1 }, "LoadTimeout"},
		{"negative MaxConcurrentLoads", func(o *options) { o.MaxConcurrentLoads = -1 }, "MaxConcurrentLoads"},
		{"negative ErrorTTL", func(o *options) { o.ErrorTTL = -1 }, "ErrorTTL"},
		{"negative RefreshAfter", func(o *options) { o.RefreshAfter = -1 }, "RefreshAfter"},
		{"negative StaleIfError", func(o *options) { o.StaleIfError = -1 }, "StaleIfError"},
		{"negative SoftTimeout", func(o *options) { o.SoftTimeout = -1 }, "SoftTimeout"},
		{"SoftTimeout with nothing to serve", func(o *options) { o.SoftTimeout = time.Second }, "SoftTimeout"},
		{"negative IdleTTL", func(o *options) { o.IdleTTL = -1 }, "IdleTTL"},
		{"IdleTTL too short", func(o *options) { o.IdleTTL = time.Millisecond - 1 }, "IdleTTL"},
		{"negative Capacity", func(o *options) { o.Capacity = -1 }, "Capacity"},
		{"negative MaxWeight", func(o *options) { o.MaxWeight = -1 }, "MaxWeight"},
		{"MaxWeight without Weigh", func(o *options) { o.MaxWeight = 1 }, "Weigh is nil"},
		{"WeighNotFound without MaxWeight", func(o *options) { o.WeighNotFound = func(string, error) uint32 { return 1 } }, "MaxWeight is 0"},
		{"Weigh without MaxWeight", func(o *options) { o.Weigh = func(string, string) uint32 { return 1 } }, "MaxWeight is 0"},
		{"unknown Eviction", func(o *options) { o.Eviction = 7 }, "Eviction"},
		{"negative TTL", func(o *options) { o.TTL = -time.Second }, "TTL"},
		{"negative MaxStaleness", func(o *options) { o.MaxStaleness = -1 }, "MaxStaleness"},
		{"MaxStaleness too short", func(o *options) { o.MaxStaleness = 100*time.Millisecond - 1 }, "MaxStaleness"},
		{"negative NotFoundTTL", func(o *options) { o.NotFoundTTL = -1 }, "NotFoundTTL"},
		{"a Name in use", func(o *options) { o.Name = "taken" }, "taken"},
	}
	for _, row := range newRows {
		t.Run("New: "+row.condition, func(t *testing.T) {
			bp := nearcache.Local()
			defer bp.Close()
			_, err := nearcache.New(bp, options{Name: "taken", Load: load})
			require.NoError(t, err)
			o := valid
			row.set(&o)
			cache, err := nearcache.New(bp, o)
			require.ErrorIs(t, err, nearcache.ErrInvalidOptions)
			require.ErrorContains(t, err, row.names)
			require.Nil(t, cache)
			require.Len(t, bp.Stats().Caches, 1, "nothing was made")
			_, err = nearcache.New(bp, valid)
			require.NoError(t, err, "and the backplane is as good as before")
		})
	}
	t.Run("New: everything wrong is named at once", func(t *testing.T) {
		_, err := nearcache.New(nearcache.Local(), options{Capacity: -1, TTL: -1})
		for _, field := range []string{"Name", "Load", "Capacity", "TTL"} {
			require.ErrorContains(t, err, field)
		}
	})
	t.Run("New: zero and nil backplane", func(t *testing.T) {
		_, err := nearcache.New(&nearcache.Backplane{}, valid)
		require.ErrorIs(t, err, nearcache.ErrInvalidOptions)
		_, err = nearcache.New(nil, valid)
		require.ErrorIs(t, err, nearcache.ErrInvalidOptions)
		require.ErrorContains(t, err, "Local")
	})

	t.Run("Update: nil write", func(t *testing.T) {
		cache := newCache(t, valid)
		require.NoError(t, cache.Set(t.Context(), "a", "value"))
		_, err := cache.Update(t.Context(), "a", nil)
		require.ErrorIs(t, err, nearcache.ErrInvalidOptions)
		_, ok := cache.Peek("a")
		require.True(t, ok, "nothing was done")
	})

	invalidatorRows := []struct {
		condition string
		make      func(*nearcache.Backplane) error
		names     string
	}{
		{"no name", func(bp *nearcache.Backplane) error {
			_, err := nearcache.NewInvalidator[string](bp, "")
			return err
		}, "name"},
		{"a name with a blank", func(bp *nearcache.Backplane) error {
			_, err := nearcache.NewInvalidator[string](bp, "my products")
			return err
		}, "name"},
		{"a key type that is none", func(bp *nearcache.Backplane) error {
			_, err := nearcache.NewInvalidator[float64](bp, "products")
			return err
		}, "float64"},
		{"zero backplane", func(*nearcache.Backplane) error {
			_, err := nearcache.NewInvalidator[string](&nearcache.Backplane{}, "products")
			return err
		}, "zero"},
		{"nil backplane", func(*nearcache.Backplane) error {
			_, err := nearcache.NewInvalidator[string](nil, "products")
			return err
		}, "nil"},
	}
	for _, row := range invalidatorRows {
		t.Run("NewInvalidator: "+row.condition, func(t *testing.T) {
			bp := nearcache.Local()
			defer bp.Close()
			err := row.make(bp)
			require.ErrorIs(t, err, nearcache.ErrInvalidOptions)
			require.ErrorContains(t, err, row.names)
		})
	}

	connectRows := []struct {
		condition string
		options   nearcache.BackplaneOptions
		names     string
	}{
		{"string and options", nearcache.BackplaneOptions{
			RedisConnectionString: "localhost", Redis: &redis.UniversalOptions{},
		}, "both"},
		{"PublishOnly without Redis", nearcache.BackplaneOptions{PublishOnly: true}, "PublishOnly"},
		{"a blank string", nearcache.BackplaneOptions{RedisConnectionString: " \t"}, "blank"},
		{"a malformed string", nearcache.BackplaneOptions{RedisConnectionString: "localhost,frobnicate=1"}, "frobnicate"},
		{"a channel with a blank", nearcache.BackplaneOptions{Channel: "my channel"}, "Channel"},
		{"negative MaxStaleness", nearcache.BackplaneOptions{MaxStaleness: -1}, "MaxStaleness"},
		{"MaxStaleness too short", nearcache.BackplaneOptions{MaxStaleness: 100*time.Millisecond - 1}, "MaxStaleness"},
		{"negative CloseTimeout", nearcache.BackplaneOptions{CloseTimeout: -1}, "CloseTimeout"},
		{"several endpoints", nearcache.BackplaneOptions{RedisConnectionString: "a:1,b:2"}, "several endpoints"},
		{"several addresses", nearcache.BackplaneOptions{
			Redis: &redis.UniversalOptions{Addrs: []string{"a:1", "b:2"}},
		}, "several addresses"},
		{"serviceName", nearcache.BackplaneOptions{RedisConnectionString: "a:1,serviceName=x"}, "serviceName"},
		{"TLS over a unix socket", nearcache.BackplaneOptions{RedisConnectionString: "!/tmp/sock,ssl=true"}, "sslHost"},
	}
	for _, row := range connectRows {
		t.Run("Connect: "+row.condition, func(t *testing.T) {
			row.options.Logger = slog.New(slog.DiscardHandler)
			bp, err := nearcache.Connect(t.Context(), row.options)
			require.ErrorIs(t, err, nearcache.ErrInvalidOptions)
			require.ErrorContains(t, err, row.names)
			require.Nil(t, bp)
		})
	}
}

func TestConnectWithoutRedisIsLocalAndSaysSo(t *testing.T) {
	var log strings.Builder
	bp, err := nearcache.Connect(t.Context(), nearcache.BackplaneOptions{
		Logger: slog.New(slog.NewTextHandler(&log, nil)),
	})
	require.NoError(t, err)
	defer bp.Close()
	require.Equal(t, nearcache.StateLocal, bp.State())
	require.Contains(t, log.String(), "level=WARN")
	require.Contains(t, log.String(), "process-local")
	require.NoError(t, bp.Flush(t.Context()))
	require.NoError(t, bp.ClearAll(t.Context()))
}

// Two loads of one key, of which the earlier had lasted too long for the later one's
// caller: both may be kept, and the one that began later stays, in whichever order they
// end.
func TestLaterLoadStays(t *testing.T) {
	for _, laterEndsFirst := range []bool{true, false} {
		t.Run(fmt.Sprint("later ends first: ", laterEndsFirst), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				source := newGate()
				cache := newCache(t, nearcache.Options[string, string]{
					Load:    source.load,
					Regions: func(string, string) []string { return []string{"own"} },
				})
				earlier := get(t.Context(), cache, "a")
				first := <-source.calls
				time.Sleep(time.Minute)
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				later := get(ctx, cache, "a")
				second := <-source.calls
				end := func(call *gateCall, result chan got, value string) {
					call.returns(value, nil)
					require.Equal(t, got{value: value}, <-result)
				}
				if laterEndsFirst {
					end(second, later, "two")
					end(first, earlier, "one")
				} else {
					end(first, earlier, "one")
					v, _ := cache.Peek("a")
					require.Equal(t, "one", v)
					end(second, later, "two")
				}
				v, _ := cache.Peek("a")
				require.Equal(t, "two", v)
				require.NoError(t, cache.Remove(t.Context(), "a"))
				require.Zero(t, cache.Len())
			})
		})
	}
}
