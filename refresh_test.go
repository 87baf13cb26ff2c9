package nearcache

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestRefreshAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &flaky{value: 1}
		c, err := New(Local(), Options[string, int]{
			Name: "p", Load: s.load, TTL: time.Hour, RefreshAfter: time.Minute,
		})
		require.NoError(t, err)
		defer c.Close()
		require.Equal(t, 1, get(t, c))
		s.value, s.takes = 2, time.Second
		time.Sleep(time.Minute - 1)
		require.Equal(t, 1, get(t, c))
		synctest.Wait()
		require.Equal(t, 1, s.loads, "it is not due")

		time.Sleep(time.Duration(1))
		began := time.Now()
		ctx, cancel := context.WithCancel(t.Context())
		for range 10 {
			v, err := c.Get(ctx, "k")
			require.NoError(t, err)
			require.Equal(t, 1, v)
		}
		cancel() // of no concern to the load
		synctest.Wait()
		require.Equal(t, began, time.Now(), "nobody waits")
		require.Equal(t, 2, s.loads, "one hit began one load")

		time.Sleep(time.Second)
		synctest.Wait()
		require.Equal(t, 2, get(t, c))
		require.EqualValues(t, 1, c.Stats().Refreshes)
		require.EqualValues(t, 1, c.Stats().Misses.Total())

		time.Sleep(time.Minute - time.Second) // from the start of the load on
		require.Equal(t, 2, get(t, c))
		synctest.Wait()
		require.Equal(t, 3, s.loads)
		_, held := c.Peek("k")
		require.True(t, held)
		require.NoError(t, c.local.check(defaultCapacity))
	})
}

// A refresh that fails leaves the item, and the next ones come at growing intervals.
func TestRefreshAheadThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &flaky{value: 1}
		c, err := New(Local(), Options[string, int]{
			Name: "p", Load: s.load, Expiry: func(string, int) time.Duration { return time.Hour }, RefreshAfter: time.Minute,
			ErrorTTL: time.Hour,
		})
		require.NoError(t, err)
		defer c.Close()
		require.Equal(t, 1, get(t, c))
		s.err, s.loads = errSource, 0
		time.Sleep(time.Minute)
		for range 600 {
			require.Equal(t, 1, get(t, c))
			synctest.Wait()
			time.Sleep(100 * time.Millisecond)
		}
		assert.Greater(t, s.loads, 8)
		assert.Less(t, s.loads, 25)
		s.err, s.value = nil, 2
		time.Sleep(mostFailurePause)
		require.Equal(t, 1, get(t, c))
		synctest.Wait()
		require.Equal(t, 2, get(t, c))

		s.err = errSource
		time.Sleep(time.Hour)
		_, err = c.Get(t.Context(), "k")
		require.ErrorIs(t, err, errSource, "never past its time to live")
	})
}

func TestRefreshThatFindsNothing(t *testing.T) {
	for name, loaded := range map[string]func(s *flaky){
		"not found":      func(s *flaky) { s.err = fmt.Errorf("it is: %w", ErrNotFound) },
		"not to be kept": func(s *flaky) { s.value = -1 },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &flaky{value: 1}
				c, err := New(Local(), Options[string, int]{
					Name: "p", Load: s.load, RefreshAfter: time.Minute,
					Expiry: func(_ string, v int) time.Duration { return time.Duration(v) * time.Hour },
				})
				require.NoError(t, err)
				defer c.Close()
				require.Equal(t, 1, get(t, c))
				loaded(s)
				time.Sleep(time.Minute)
				require.Equal(t, 1, get(t, c))
				synctest.Wait()
				_, held := c.Peek("k")
				require.False(t, held)
				require.Zero(t, c.Len())
			})
		})
	}
}

// Whatever invalidates the item while it is refreshed overtakes the refresh.
func TestRefreshIsFencedAgainst(t *testing.T) {
	for name, invalidate := range map[string]func(t *testing.T, c *Cache[string, int]) error{
		"Remove":      func(t *testing.T, c *Cache[string, int]) error { return c.Remove(t.Context(), "k") },
		"ClearRegion": func(t *testing.T, c *Cache[string, int]) error { return c.ClearRegion(t.Context(), "region") },
		"Clear":       func(t *testing.T, c *Cache[string, int]) error { return c.Clear(t.Context()) },
		"a gap":       func(_ *testing.T, c *Cache[string, int]) error { c.backplane.missedMessages(); return nil },
		"Set":         func(t *testing.T, c *Cache[string, int]) error { return c.Set(t.Context(), "k", 3) },
		"Update": func(t *testing.T, c *Cache[string, int]) error {
			_, err := c.Update(t.Context(), "k", func(context.Context) (int, error) { return 3, nil })
			return err
		},
	} {
		for _, byHand := range []bool{false, true} {
			t.Run(fmt.Sprint(name, " ", byHand), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s := &flaky{value: 1}
					c, err := New(Local(), Options[string, int]{
						Name: "p", Load: s.load, RefreshAfter: time.Minute, TTL: time.Hour,
						Regions: func(string, int) []string { return []string{"region"} },
					})
					require.NoError(t, err)
					defer c.Close()
					require.Equal(t, 1, get(t, c))
					time.Sleep(time.Minute)
					s.value, s.takes = 2, time.Second // read before the invalidation
					if byHand {
						go func() {
							v, err := c.Refresh(t.Context(), "k")
							assert.NoError(t, err)
							assert.Equal(t, 2, v)
						}()
					} else {
						require.Equal(t, 1, get(t, c))
					}
					time.Sleep(time.Second / 2)
					synctest.Wait()
					s.value = 3
					require.NoError(t, invalidate(t, c))
					time.Sleep(time.Second)
					synctest.Wait()
					if v, held := c.Peek("k"); held {
						require.Equal(t, 3, v)
					}
					require.Equal(t, 3, get(t, c))
					require.NoError(t, c.local.check(defaultCapacity))
				})
			})
		}
	}
}

// Refreshes are few at a time, and take no place from loads that callers wait for.
func TestRefreshesAreBounded(t *testing.T) {
	for _, places := range []int{0, 3} {
		synctest.Test(t, func(t *testing.T) {
			takes := time.Duration(0)
			var mu sync.Mutex // guards the others
			under, most := 0, 0
			c, err := New(Local(), Options[int, int]{
				Name: "p", RefreshAfter: time.Minute, TTL: time.Hour, MaxConcurrentLoads: places,
				Load: func(ctx context.Context, key int) (int, error) {
					mu.Lock()
					under++
					most = max(most, under)
					mu.Unlock()
					pause(ctx, takes)
					mu.Lock()
					defer mu.Unlock()
					under--
					return key, nil
				},
			})
			require.NoError(t, err)
			defer c.Close()
			all := func() {
				for key := range 100 {
					_, err := c.Get(t.Context(), key)
					require.NoError(t, err)
				}
				synctest.Wait()
			}
			all()
			time.Sleep(time.Minute)
			takes, most = time.Second, 0
			began := time.Now()
			all()
			require.Equal(t, began, time.Now())
			want := refreshesAtOnce
			if places > 0 {
				want = places
			}
			require.Equal(t, want, most)
			for range 100 / want {
				time.Sleep(time.Second)
				synctest.Wait()
				all()
			}
			require.Equal(t, want, most)
			require.EqualValues(t, 100, c.Stats().Refreshes)
			require.EqualValues(t, 100, c.Stats().Misses.Total())
		})
	}
}

func TestRefresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &flaky{value: 1, takes: 2 * time.Second}
		c, err := New(Local(), Options[string, int]{Name: "p", Load: s.load})
		require.NoError(t, err)
		refresh := func(want int) {
			t.Helper()
			v, err := c.Refresh(t.Context(), "k")
			require.NoError(t, err)
			require.Equal(t, want, v)
		}
		refresh(1)
		require.Equal(t, 1, s.loads)
		require.Equal(t, 1, get(t, c))
		s.value = 2
		refresh(2)
		require.Equal(t, 2, get(t, c))
		require.Equal(t, 2, s.loads)

		// It waits for what began before, and does not have its result. A Get joins that.
		require.NoError(t, c.Remove(t.Context(), "k"))
		old := make(chan int)
		go func() { old <- get(t, c) }()
		time.Sleep(time.Second)
		synctest.Wait()
		s.value = 3
		young := make(chan int)
		go func() {
			time.Sleep(time.Second / 2)
			young <- get(t, c)
		}()
		go refresh(3)
		require.Equal(t, 2, <-old)
		require.Equal(t, 2, <-young)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		require.Equal(t, 4, s.loads)
		require.Equal(t, 3, get(t, c), "the younger stays")

		s.err = errSource
		_, err = c.Refresh(t.Context(), "k")
		require.Equal(t, errSource, err)
		require.Equal(t, 3, get(t, c), "what was held stays")
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err = c.Refresh(ctx, "k")
		require.ErrorIs(t, err, context.Canceled)

		require.NoError(t, c.Close())
		s.err = nil
		refresh(3)
		require.Zero(t, c.Len())
	})
}

func TestIdleTTL(t *testing.T) {
	for _, ttl := range []time.Duration{NoExpiry, time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			s := &flaky{value: 1}
			c, err := New(Local(), Options[string, int]{
				Name: "p", Load: s.load, IdleTTL: time.Minute, Expiry: func(string, int) time.Duration { return ttl },
			})
			require.NoError(t, err)
			defer c.Close()
			for i := range 200 { // 3 hours
				require.Equal(t, 1, get(t, c))
				if ttl == NoExpiry {
					require.Equal(t, 1, s.loads, "hit %d", i)
				}
				time.Sleep(54 * time.Second)
			}
			if ttl == time.Hour {
				require.Equal(t, 3, s.loads, "the time to live holds too")
			}
			require.NoError(t, c.Remove(t.Context(), "k"))
			require.Equal(t, 1, get(t, c))
			loads := s.loads
			time.Sleep(time.Minute - time.Minute/ticksPerIdle)
			_, held := c.Peek("k")
			require.True(t, held)
			time.Sleep(time.Minute / ticksPerIdle)
			_, held = c.Peek("k")
			require.False(t, held, "a Peek is no hit")
			require.Equal(t, 1, get(t, c))
			require.Equal(t, loads+1, s.loads)

			require.NoError(t, c.Set(t.Context(), "k", 2)) // in place of what was held
			time.Sleep(54 * time.Second)
			require.Equal(t, 2, get(t, c))
			time.Sleep(3 * time.Minute)
			synctest.Wait()
			require.Zero(t, c.held(), "its memory is returned")
			require.NoError(t, c.local.check(defaultCapacity))
		})
	}
}

// Hits that come at once, and in any order, keep an item alive and write little.
func TestIdleNotes(t *testing.T) {
	for _, idle := range []time.Duration{time.Millisecond, time.Second, 90 * time.Second, 1000 * time.Hour} {
		l := newLifetimes(Options[int, int]{IdleTTL: idle})
		tick := int64(1) << l.idleShift
		require.LessOrEqual(t, tick, int64(idle)/ticksPerIdle)
		require.Greater(t, 4*tick, int64(idle)/ticksPerIdle)
		for _, at := range []int64{0, 1, tick, 12345 * tick, tick * tickMask, tick*tickMask + 7, 1 << 60} {
			note := l.tick(at) << tickShift
			require.False(t, l.isIdle(note, at))
			require.False(t, l.isIdle(note, at+int64(idle)-tick))
			require.True(t, l.isIdle(note, at+int64(idle)))
			require.True(t, l.isIdle(note, at+1000*int64(idle)))
			require.False(t, l.isIdle(note, max(0, at-3*tick)), "a hit that began before the last")
		}
	}
}

// What nobody asked for is not there any more when its load fails. What is served
// while its load fails is asked for.
func TestIdleTTLAndStaleIfError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &flaky{value: 1}
		c, err := New(Local(), Options[string, int]{
			Name: "p", Load: s.load, IdleTTL: time.Minute, TTL: 2 * time.Minute, StaleIfError: time.Hour,
		})
		require.NoError(t, err)
		defer c.Close()
		require.Equal(t, 1, get(t, c))
		s.err = errSource
		for range 60 {
			time.Sleep(50 * time.Second)
			require.Equal(t, 1, get(t, c))
		}
		time.Sleep(time.Minute)
		_, err = c.Get(t.Context(), "k")
		require.ErrorIs(t, err, errSource)
	})
}

func TestAllAndKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, err := New(Local(), Options[int, string]{
			Name: "p", NotFoundTTL: time.Hour,
			Load: func(_ context.Context, key int) (string, error) {
				if key%10 == 0 {
					return "", ErrNotFound
				}
				return fmt.Sprint(key), nil
			},
			Expiry:  func(key int, _ string) time.Duration { return time.Duration(key) * time.Minute },
			Regions: func(key int, _ string) []string { return []string{fmt.Sprint(key % 2)} },
		})
		require.NoError(t, err)
		defer c.Close()
		for key := range 30 {
			_, _ = c.Get(t.Context(), key)
		}
		require.NoError(t, c.ClearRegion(t.Context(), "0"))
		time.Sleep(15 * time.Minute)
		want := map[int]string{17: "17", 19: "19", 21: "21", 23: "23", 25: "25", 27: "27", 29: "29"}
		hits := c.Stats().Hits
		require.Equal(t, want, maps.Collect(c.All()))
		require.Equal(t, slices.Sorted(maps.Keys(want)), slices.Sorted(c.Keys()))
		require.Equal(t, hits, c.Stats().Hits)
		for range c.Keys() {
			break
		}
		for key := range c.Keys() { // it holds no lock
			require.NoError(t, c.Remove(t.Context(), key))
		}
		require.Empty(t, maps.Collect(c.All()))
	})
}

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
