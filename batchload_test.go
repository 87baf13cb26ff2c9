package nearcache

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// shop is a source of many items: a multiple of 10 does not exist.
type shop struct {
	mu      sync.Mutex // guards the others
	version int
	calls   [][]int // what LoadMany was asked for
	loads   []int   // what Load was
	under   int
	most    int
	takes   time.Duration
	err     error
	many    func(keys []int) // called by LoadMany, without mu
}

func (s *shop) enter() (version int, takes time.Duration, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.under++
	s.most = max(s.most, s.under)
	return s.version, s.takes, s.err
}

func (s *shop) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.under--
}

func (s *shop) loadMany(ctx context.Context, keys []int) (map[int]string, error) {
	version, takes, err := s.enter()
	defer s.leave()
	s.mu.Lock()
	s.calls = append(s.calls, slices.Clone(keys))
	many := s.many
	s.mu.Unlock()
	pause(ctx, takes)
	if many != nil {
		many(keys)
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	got := map[int]string{-1: "never asked for"}
	for _, key := range keys {
		switch {
		case key%10 == 0:
		case err != nil && key%2 == 0: // half of it fails
		default:
			got[key] = fmt.Sprint(key, "v", version)
		}
	}
	clear(keys) // they are its own
	return got, err
}

func (s *shop) load(ctx context.Context, key int) (string, error) {
	version, takes, err := s.enter()
	defer s.leave()
	s.mu.Lock()
	s.loads = append(s.loads, key)
	s.mu.Unlock()
	pause(ctx, takes)
	switch {
	case ctx.Err() != nil:
		return "", ctx.Err()
	case key%10 == 0:
		return "", fmt.Errorf("item %d: %w", key, ErrNotFound)
	case err != nil && key%2 == 0:
		return "", err
	}
	return fmt.Sprint(key, "v", version), nil
}

// items are what a shop has under keys.
func items(version int, keys ...int) map[int]string {
	want := map[int]string{}
	for _, key := range keys {
		want[key] = fmt.Sprint(key, "v", version)
	}
	return want
}

// in runs a test in a bubble, on a cache with each of the loaders: "many" has both,
// "only many" no Load, "one" no LoadMany.
func (s *shop) in(t *testing.T, o Options[int, string], test func(t *testing.T, s *shop, c *Cache[int, string])) {
	for _, name := range []string{"many", "only many", "one"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, o := &shop{version: 1}, o
				o.Name = "p"
				if name != "one" {
					o.LoadMany = s.loadMany
				}
				if name != "only many" {
					o.Load = s.load
				}
				c, err := New(Local(), o)
				require.NoError(t, err)
				defer c.Close()
				test(t, s, c)
				synctest.Wait()
				require.NoError(t, c.local.check(defaultCapacity))
			})
		})
	}
}

func TestGetMany(t *testing.T) {
	new(shop).in(t, Options[int, string]{NotFoundTTL: time.Minute}, func(t *testing.T, s *shop, c *Cache[int, string]) {
		ctx := t.Context()
		got, err := c.GetMany(ctx)
		require.NoError(t, err)
		require.NotNil(t, got)
		require.Empty(t, got)

		got, err = c.GetMany(ctx, 1, 2, 1, 10, 3)
		require.NoError(t, err)
		require.Equal(t, items(1, 1, 2, 3), got)
		if c.options.LoadMany != nil {
			require.Equal(t, [][]int{{1, 2, 10, 3}}, s.calls, "each once, in one call")
			require.Empty(t, s.loads)
		} else {
			require.Equal(t, []int{1, 2, 3, 10}, slices.Sorted(slices.Values(s.loads)))
		}
		s.calls, s.loads, s.version = nil, nil, 2
		got, err = c.GetMany(ctx, 3, 10, 4, 2)
		require.NoError(t, err)
		require.Equal(t, map[int]string{2: "2v1", 3: "3v1", 4: "4v2"}, got, "what is held is not loaded")
		require.Equal(t, 1, len(s.calls)+len(s.loads))
		got[2] = "changed" // the map is the caller's
		v, err := c.Get(ctx, 2)
		require.NoError(t, err)
		require.Equal(t, "2v1", v)
		_, err = c.Get(ctx, 10)
		require.Equal(t, ErrNotFound, err, "kept, as NotFoundTTL says")
		_, err = c.Get(ctx, 20)
		require.ErrorIs(t, err, ErrNotFound)

		stats := c.Stats()
		require.EqualValues(t, 6, stats.Loads)
		require.EqualValues(t, 6, stats.Misses.Absent)
		require.EqualValues(t, 5, stats.Hits)
		require.Zero(t, stats.LoadErrors)
	})
}

func TestGetManyThatFails(t *testing.T) {
	new(shop).in(t, Options[int, string]{}, func(t *testing.T, s *shop, c *Cache[int, string]) {
		s.err = errSource
		got, err := c.GetMany(t.Context(), 1, 2, 3, 4, 10)
		require.ErrorIs(t, err, errSource)
		require.Equal(t, items(1, 1, 3), got)
		var failed *KeysError[int]
		require.ErrorAs(t, err, &failed)
		want := []int{2, 4}
		if c.options.LoadMany != nil {
			want = append(want, 10) // whether it exists is not known
		}
		require.Equal(t, &KeysError[int]{Cache: "p", Keys: want, Err: errSource}, failed)
		require.ErrorContains(t, err, `nearcache: cache "p": not loaded: 2, 4`)
		require.ErrorContains(t, err, errSource.Error())
		require.Equal(t, items(1, 1, 3), maps.Collect(c.All()))

		many := make([]int, 100)
		for i := range many {
			many[i] = 2 + 20*i
		}
		_, err = c.GetMany(t.Context(), many...)
		require.ErrorContains(t, err, "142, 162, 182 and 90 more: "+errSource.Error())

		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		got, err = c.GetMany(ctx, 1, 5, 7)
		require.Equal(t, items(1, 1), got)
		require.ErrorIs(t, err, context.Canceled)
		require.ErrorAs(t, err, &failed)
		require.Equal(t, []int{5, 7}, failed.Keys)
	})
}

// Different causes are told apart.
func TestGetManyThatFailsInSeveralWays(t *testing.T) {
	errOdd, errEven := errors.New("odd"), errors.New("even")
	c, err := New(Local(), Options[int, string]{Name: "p", Load: func(_ context.Context, key int) (string, error) {
		return "", []error{errEven, errOdd}[key%2]
	}})
	require.NoError(t, err)
	defer c.Close()
	got, err := c.GetMany(t.Context(), 1, 2, 3)
	require.Empty(t, got)
	require.ErrorIs(t, err, errOdd)
	require.ErrorIs(t, err, errEven)
	require.Equal(t, "nearcache: cache \"p\": not loaded: 1, 3: odd\nnearcache: cache \"p\": not loaded: 2: even", err.Error())
}

// A key is loaded once, whether callers ask for it alone or with others.
func TestGetManyAndGetShareLoads(t *testing.T) {
	new(shop).in(t, Options[int, string]{}, func(t *testing.T, s *shop, c *Cache[int, string]) {
		s.takes = time.Second
		var all sync.WaitGroup
		get := func(key int) {
			v, err := c.Get(t.Context(), key)
			assert.NoError(t, err)
			assert.Equal(t, fmt.Sprint(key, "v1"), v)
		}
		getMany := func(keys ...int) {
			got, err := c.GetMany(t.Context(), keys...)
			assert.NoError(t, err)
			assert.Equal(t, items(1, keys...), got)
		}
		all.Go(func() { get(1) })
		synctest.Wait()
		all.Go(func() { getMany(1, 2, 3) })
		synctest.Wait()
		all.Go(func() { get(2) })
		all.Go(func() { getMany(2, 3, 4) })
		synctest.Wait()
		began := time.Now()
		all.Wait()
		require.Equal(t, time.Second, time.Since(began), "all at once")
		asked := slices.Concat(append(s.calls, s.loads)...)
		require.Equal(t, []int{1, 2, 3, 4}, slices.Sorted(slices.Values(asked)))
	})
}

// An invalidation in the middle of a bulk load concerns what it names, and a caller
// who comes after it gets nothing from before.
func TestGetManyIsFenced(t *testing.T) {
	tests := map[string]struct {
		invalidate func(c *Cache[int, string]) error
		left       []int
	}{
		"Remove":      {func(c *Cache[int, string]) error { return c.Remove(context.Background(), 2) }, []int{1, 3}},
		"ClearRegion": {func(c *Cache[int, string]) error { return c.ClearRegion(context.Background(), "odd") }, []int{2}},
		"Clear":       {func(c *Cache[int, string]) error { return c.Clear(context.Background()) }, nil},
		"a gap":       {func(c *Cache[int, string]) error { c.backplane.missedMessages(); return nil }, nil},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			regions := func(key int, _ string) []string { return []string{[]string{"even", "odd"}[key%2]} }
			new(shop).in(t, Options[int, string]{Regions: regions}, func(t *testing.T, s *shop, c *Cache[int, string]) {
				s.takes = time.Second
				early := make(chan map[int]string)
				go func() {
					got, err := c.GetMany(t.Context(), 1, 2, 3)
					assert.NoError(t, err)
					early <- got
				}()
				time.Sleep(time.Second / 2)
				synctest.Wait()
				s.mu.Lock()
				s.version = 2
				s.mu.Unlock()
				require.NoError(t, test.invalidate(c))
				late := make(chan map[int]string)
				go func() {
					got, err := c.GetMany(t.Context(), 2)
					assert.NoError(t, err)
					late <- got
				}()
				require.Equal(t, items(1, 1, 2, 3), <-early)
				synctest.Wait()
				held := items(1, test.left...)
				require.Equal(t, held, maps.Collect(c.All()))
				got := <-late
				if name == "ClearRegion" { // which it belongs to was not known
					require.Contains(t, []string{"2v1", "2v2"}, got[2])
				} else {
					require.Equal(t, items(2, 2), got)
				}
			})
		})
	}
}

// A caller that leaves harms nobody, and when all have left the load is cancelled.
func TestGetManyAndCallersThatLeave(t *testing.T) {
	new(shop).in(t, Options[int, string]{}, func(t *testing.T, s *shop, c *Cache[int, string]) {
		s.takes = time.Hour
		ctx, cancel := context.WithCancel(t.Context())
		stays, stay := context.WithCancel(t.Context())
		left, ended := make(chan error, 1), make(chan error, 1)
		go func() {
			_, err := c.GetMany(ctx, 1, 2, 3)
			left <- err
		}()
		synctest.Wait()
		go func() {
			_, err := c.Get(stays, 2)
			ended <- err
		}()
		synctest.Wait()
		cancel()
		require.ErrorIs(t, <-left, context.Canceled)
		synctest.Wait()
		s.mu.Lock()
		require.Equal(t, 1, s.under, "the load of 2 goes on")
		s.mu.Unlock()
		stay()
		require.ErrorIs(t, <-ended, context.Canceled)
		synctest.Wait()
		require.Zero(t, s.under, "and was cancelled")
		s.takes = 0
		got, err := c.GetMany(t.Context(), 1, 2, 3)
		require.NoError(t, err)
		require.Equal(t, items(1, 1, 2, 3), got)
	})
}

func TestGetManyWhoseLoaderDies(t *testing.T) {
	for name, die := range map[string]func(){"panic": func() { panic("a bug") }, "Goexit": runtime.Goexit} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dies := true
				loads := func(key int) string {
					if dies && key == 2 {
						die()
					}
					return fmt.Sprint(key)
				}
				c, err := New(Local(), Options[int, string]{
					Name: "p",
					Load: func(_ context.Context, key int) (string, error) { return loads(key), nil },
				})
				require.NoError(t, err)
				defer c.Close()
				m, err := New(c.backplane, Options[int, string]{
					Name: "m",
					LoadMany: func(_ context.Context, keys []int) (map[int]string, error) {
						got := map[int]string{}
						for _, key := range keys {
							got[key] = loads(key)
						}
						return got, nil
					},
				})
				require.NoError(t, err)
				defer m.Close()
				for _, c := range []*Cache[int, string]{c, m} {
					dies = true
					if name == "panic" {
						require.Panics(t, func() { _, _ = c.GetMany(t.Context(), 1, 2, 3) })
					} else {
						_, err := c.GetMany(t.Context(), 1, 2, 3)
						require.ErrorIs(t, err, errGoexit)
					}
					synctest.Wait()
					require.NoError(t, c.local.check(defaultCapacity))
					dies = false
					got, err := c.GetMany(t.Context(), 1, 2, 3)
					require.NoError(t, err)
					require.Len(t, got, 3)
				}
			})
		})
	}
}

// A callback that panics for one item is that item's misfortune.
func TestGetManyAndACallbackThatPanics(t *testing.T) {
	s := &shop{version: 1}
	c, err := New(Local(), Options[int, string]{
		Name: "p", LoadMany: s.loadMany,
		Regions: func(key int, _ string) []string {
			if key == 2 {
				panic("a bug")
			}
			return nil
		},
	})
	require.NoError(t, err)
	defer c.Close()
	require.Panics(t, func() { _, _ = c.GetMany(t.Context(), 1, 2, 3) })
	got, err := c.GetMany(t.Context(), 1, 3)
	require.NoError(t, err)
	require.Equal(t, items(1, 1, 3), got)
}

// With StaleIfError what has expired stands in, key by key.
func TestGetManyAndStaleIfError(t *testing.T) {
	o := Options[int, string]{StaleIfError: time.Hour, Expiry: func(int, string) time.Duration { return time.Minute }}
	new(shop).in(t, o, func(t *testing.T, s *shop, c *Cache[int, string]) {
		_, err := c.GetMany(t.Context(), 1, 2, 4)
		require.NoError(t, err)
		require.NoError(t, c.Remove(t.Context(), 4))
		time.Sleep(time.Minute)
		s.err, s.version = errSource, 2
		got, err := c.GetMany(t.Context(), 1, 2, 3, 4)
		require.ErrorIs(t, err, errSource)
		require.Equal(t, map[int]string{1: "1v2", 2: "2v1", 3: "3v2"}, got)
	})
}

// After Close, and for keys that no message could name, nothing is kept.
func TestGetManyWithoutMemory(t *testing.T) {
	new(shop).in(t, Options[int, string]{}, func(t *testing.T, s *shop, c *Cache[int, string]) {
		require.NoError(t, c.Close())
		for version := range 2 {
			s.version = version
			got, err := c.GetMany(t.Context(), 1, 2, 10)
			require.NoError(t, err)
			require.Equal(t, items(version, 1, 2), got)
		}
		require.Zero(t, c.Len())
	})
	var asked int
	c, err := New(Local(), Options[oddKey, string]{
		Name: "p", LoadMany: func(_ context.Context, keys []oddKey) (map[oddKey]string, error) {
			asked += len(keys)
			return map[oddKey]string{1: "one", 2: "two"}, nil
		},
	})
	require.NoError(t, err)
	defer c.Close()
	for range 2 {
		got, err := c.GetMany(t.Context(), 1, 2)
		require.NoError(t, err)
		require.Len(t, got, 2)
	}
	require.Equal(t, 3, asked, "the one that does not survive encoding is loaded each time")
}

// Without LoadMany some loads run at a time.
func TestGetManyIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &shop{takes: time.Second}
		c, err := New(Local(), Options[int, string]{Name: "p", Load: s.load})
		require.NoError(t, err)
		defer c.Close()
		keys := make([]int, 3*loadsAtOnce)
		for i := range keys {
			keys[i] = 2*i + 1
		}
		began := time.Now()
		got, err := c.GetMany(t.Context(), keys...)
		require.NoError(t, err)
		require.Len(t, got, len(keys))
		require.Equal(t, loadsAtOnce, s.most)
		require.Equal(t, 3*time.Second, time.Since(began))
	})
}
