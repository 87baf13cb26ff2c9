package nearcache

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// dueItems makes a cache with a LoadMany that has items 1 to n, all due for a refresh.
func dueItems(t *testing.T, s *tenants, n int, o Options[int, int]) (*Cache[int, int], []int) {
	t.Helper()
	o.Name, o.LoadMany, o.RefreshAfter = "p", s.loadMany, time.Minute
	if o.Expiry == nil {
		o.Expiry = func(int, int) time.Duration { return time.Hour }
	}
	c, err := New(Local(), o)
	require.NoError(t, err)
	keys := make([]int, n)
	for i := range keys {
		keys[i] = i + 1
	}
	getAll(t, c, keys, 0)
	time.Sleep(time.Minute)
	s.set(func() { s.calls, s.loads, s.version = nil, 0, 1 })
	return c, keys
}

func getAll(t *testing.T, c *Cache[int, int], keys []int, want int) {
	t.Helper()
	values, err := c.GetMany(t.Context(), keys...)
	require.NoError(t, err)
	require.Len(t, values, len(keys))
	for key, v := range values {
		require.Equal(t, want, v, "key %d", key)
	}
}

// What is due of one GetMany is loaded in one call, or in as few as may be.
func TestGetManyRefreshesTogether(t *testing.T) {
	for n, calls := range map[int]int{2: 1, 100: 1, mostGathered: 1, mostGathered + 1: 2, 1000: 4} {
		synctest.Test(t, func(t *testing.T) {
			s := &tenants{}
			c, keys := dueItems(t, s, n, Options[int, int]{})
			defer c.Close()
			getAll(t, c, keys, 0)
			time.Sleep(2 * gatherPause)
			synctest.Wait()
			require.Len(t, s.calls, calls)
			seen := map[int]int{}
			for _, call := range s.calls {
				require.LessOrEqual(t, len(call), mostGathered)
				for _, key := range call {
					seen[key]++
				}
			}
			require.Len(t, seen, n, "each once")
			getAll(t, c, keys, 1)
			require.EqualValues(t, n, c.Stats().Refreshes)
			require.Zero(t, c.loader.refreshes.Load())
			require.NoError(t, c.local.check(defaultCapacity))
		})
	}
}

// So are items that single hits find due within a moment. Nobody waits.
func TestHitsRefreshTogether(t *testing.T) {
	for name, one := range map[string]bool{"Load and LoadMany": true, "LoadMany": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &tenants{}
				o := Options[int, int]{}
				if one {
					o.Load = s.load
				}
				c, keys := dueItems(t, s, 51, o)
				defer c.Close()
				began := time.Now()
				for _, key := range keys[:50] {
					for range 3 {
						v, err := c.Get(t.Context(), key)
						require.NoError(t, err)
						require.Zero(t, v)
					}
				}
				require.Equal(t, began, time.Now())
				s.set(func() { require.Empty(t, s.calls) })
				time.Sleep(gatherPause)
				synctest.Wait()
				require.Len(t, s.calls, 1)
				require.ElementsMatch(t, keys[:50], s.calls[0])
				getAll(t, c, keys[:50], 1)

				_, err := c.Get(t.Context(), 51)
				require.NoError(t, err)
				time.Sleep(gatherPause)
				synctest.Wait()
				require.Equal(t, 2, s.loads)
				if one {
					require.Len(t, s.calls, 1, "a single item is Load's")
				}
				getAll(t, c, keys, 1)
			})
		})
	}
}

// One call takes one turn of MaxConcurrentLoads, and begins only if there is one.
func TestRefreshesTogetherTakeOneTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &tenants{}
		c, keys := dueItems(t, s, 100, Options[int, int]{MaxConcurrentLoads: 1})
		defer c.Close()
		s.set(func() { s.takes = time.Second })
		var callers sync.WaitGroup
		callers.Go(func() { _, _ = c.Get(t.Context(), 1000) })
		synctest.Wait()
		getAll(t, c, keys, 0)
		synctest.Wait()
		require.Len(t, s.calls, 1, "there is no turn")
		callers.Wait()
		synctest.Wait()
		getAll(t, c, keys, 0)
		synctest.Wait()
		require.Len(t, s.calls, 2)
		require.Len(t, s.calls[1], 100)
		require.Len(t, c.loader.slots, 1)
		time.Sleep(time.Second)
		synctest.Wait()
		require.Empty(t, c.loader.slots)
		getAll(t, c, keys, 1)
	})
}

// Each of them ends with its own item, and the call when nobody needs it: its place is
// free then, whether the loader heeds its context or not.
func TestRefreshesTogetherThatHang(t *testing.T) {
	for _, ignores := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			hangs := false
			var under, calls int
			var mu sync.Mutex // guards the others
			release := make(chan struct{})
			c, err := New(Local(), Options[int, int]{
				Name: "p", RefreshAfter: time.Minute,
				Expiry: func(key, _ int) time.Duration { return time.Duration(key) * time.Hour },
				LoadMany: func(ctx context.Context, keys []int) (map[int]int, error) {
					mu.Lock()
					under, calls = under+1, calls+1
					hang, version := hangs, calls
					mu.Unlock()
					if hang {
						done := ctx.Done()
						if ignores {
							done = nil
						}
						select {
						case <-done:
						case <-release:
						}
					}
					mu.Lock()
					defer mu.Unlock()
					under--
					values := map[int]int{}
					for _, key := range keys {
						values[key] = version
					}
					return values, ctx.Err()
				},
			})
			require.NoError(t, err)
			defer c.Close()
			keys := []int{1, 2, 3}
			getAll(t, c, keys, 1)
			time.Sleep(time.Minute)
			hangs = true
			getAll(t, c, keys, 1)
			synctest.Wait()
			require.Equal(t, 1, under)
			require.EqualValues(t, 1, c.loader.refreshes.Load())
			hangs = false
			time.Sleep(59 * time.Minute)
			v, err := c.Get(t.Context(), 1)
			require.NoError(t, err)
			require.Equal(t, 3, v, "its item has ended")
			synctest.Wait()
			require.Equal(t, 1, under, "others have not")
			require.NoError(t, c.Remove(t.Context(), 2))
			time.Sleep(2 * time.Hour)
			synctest.Wait()
			require.Zero(t, c.loader.refreshes.Load())
			if !ignores {
				require.Zero(t, under)
			}
			close(release)
			synctest.Wait()
			_, held := c.Peek(3)
			require.False(t, held, "what comes too late is not kept")
			require.NoError(t, c.local.check(defaultCapacity))
		})
	}
}

// A loader that dies gives everything back, and the items stay until the next try.
func TestRefreshesTogetherThatPanic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &tenants{}
		c, keys := dueItems(t, s, 10, Options[int, int]{MaxConcurrentLoads: 1})
		defer c.Close()
		s.set(func() { s.panics = true })
		getAll(t, c, keys, 0)
		synctest.Wait()
		require.Len(t, s.calls, 1)
		require.Zero(t, c.loader.refreshes.Load())
		require.Empty(t, c.loader.slots)
		s.set(func() { s.panics = false })
		time.Sleep(time.Minute)
		getAll(t, c, keys, 0)
		synctest.Wait()
		getAll(t, c, keys, 1)
	})
}

// What was gathered when the cache is closed is not loaded.
func TestGatheredWhileClosing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &tenants{}
		c, keys := dueItems(t, s, 10, Options[int, int]{})
		for _, key := range keys {
			_, err := c.Get(t.Context(), key)
			require.NoError(t, err)
		}
		require.NoError(t, c.Close())
		time.Sleep(gatherPause)
		synctest.Wait()
		require.Empty(t, s.calls)
		require.Zero(t, c.loader.refreshes.Load())
	})
}
