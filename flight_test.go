package nearcache

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// 1. Get(1) takes the only place   2. Get(2) waits for its turn   3. the loader of 1
// asks for 2, and joins what waits for its own place.
func TestCornerLoaderJoinsLoadThatWaitsForItsPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		var c *Cache[int, int]
		c, err := New(Local(), Options[int, int]{
			Name: "p", MaxConcurrentLoads: 1,
			Load: func(ctx context.Context, n int) (int, error) {
				pause(ctx, time.Second)
				if n == 1 {
					return c.Get(ctx, 2)
				}
				return n, nil
			},
		})
		require.NoError(t, err)
		defer c.Close()
		go func() { _, _ = c.Get(ctx, 1) }()
		synctest.Wait()
		go func() { _, _ = c.Get(ctx, 2) }()
		synctest.Wait()
		v, err := c.Get(ctx, 1)
		assert.NoError(t, err)
		assert.Equal(t, 2, v)
	})
}

// The same in one GetMany, without any MaxConcurrentLoads: each of the first 16 asks for
// one of those that wait until one of the 16 has ended.
func TestCornerGetManyOfItemsThatNeedOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		var c *Cache[int, int]
		c, err := New(Local(), Options[int, int]{
			Name: "p",
			Load: func(ctx context.Context, n int) (int, error) {
				if n < 16 {
					return c.Get(ctx, n+16) // its parent
				}
				return n, nil
			},
		})
		require.NoError(t, err)
		defer c.Close()
		keys := make([]int, 32)
		for i := range keys {
			keys[i] = i
		}
		got, err := c.GetMany(ctx, keys...)
		assert.NoError(t, err)
		assert.Len(t, got, 32)
	})
}

// A loads that needs B, B one that needs A: different keys, no circle.
func TestCornerTwoCachesWithPlaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		bp := Local()
		var a, b *Cache[int, int]
		a, err := New(bp, Options[int, int]{Name: "a", MaxConcurrentLoads: 1, Load: func(ctx context.Context, n int) (int, error) {
			pause(ctx, time.Second)
			if n == 1 {
				return b.Get(ctx, 1)
			}
			return n, nil
		}})
		require.NoError(t, err)
		defer a.Close()
		b, err = New(bp, Options[int, int]{Name: "b", MaxConcurrentLoads: 1, Load: func(ctx context.Context, n int) (int, error) {
			pause(ctx, time.Second)
			if n == 2 {
				return a.Get(ctx, 2)
			}
			return n, nil
		}})
		require.NoError(t, err)
		defer b.Close()
		go func() { _, _ = a.Get(ctx, 1) }()
		_, err = b.Get(ctx, 2)
		assert.NoError(t, err)
	})
}

// A loader that asks for its own key, and serves what has expired after SoftTimeout, was
// never counted as one that waits, but is counted as one that the load goes on for.
// Then a Remove cancels the load though Refresh waits for it.
func TestCornerSoftTimeoutOfALoaderThatAsksForItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c *Cache[string, int]
		loads := 0
		c, err := New(Local(), Options[string, int]{
			Name: "p", Expiry: func(string, int) time.Duration { return time.Minute }, StaleIfError: time.Hour, SoftTimeout: time.Second,
			Load: func(ctx context.Context, key string) (int, error) {
				if loads++; loads == 1 {
					return 1, nil
				}
				old, err := c.Get(ctx, key)
				if err != nil {
					return 0, err
				}
				pause(ctx, time.Minute)
				return old + 1, ctx.Err()
			},
		})
		require.NoError(t, err)
		defer c.Close()
		require.Equal(t, 1, get(t, c))
		expire()
		go func() {
			time.Sleep(10 * time.Second)
			assert.NoError(t, c.Remove(context.Background(), "k"))
		}()
		v, err := c.Refresh(t.Context(), "k")
		assert.NoError(t, err, "its caller has not gone")
		assert.Equal(t, 2, v)
	})
}

// 1. a Get waits for SoftTimeout   2. it finds what to serve   3. the key is removed
// 4. it lets the load go, which nobody waits for and which will not be kept.
func TestCornerLetGoAfterRemove(t *testing.T) {
	for name, during := range map[string]func(c *Cache[string, int]){
		"Remove": func(c *Cache[string, int]) { _ = c.Remove(context.Background(), "k") },
		"Close":  func(c *Cache[string, int]) { _ = c.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &flaky{value: 1, takes: time.Hour}
				c, err := New(Local(), Options[string, int]{
					Name: "p", Load: s.load, StaleIfError: time.Hour, SoftTimeout: time.Second,
				})
				require.NoError(t, err)
				defer c.Close()
				from := calledWith(t.Context())
				j := c.loader.join(from, "k", startOptions{})
				c.loader.start(from, j.flight)
				synctest.Wait()
				during(c)
				c.loader.leaveDetached(from, &j, newEntry("k", 1, 0, never))
				assert.Error(t, j.flight.ctx.Err(), "cancelled")
				j.flight.ctx.end()
			})
		})
	}
}

// While a load is slow other callers need not wait, whatever began it.
func TestCornerSoftTimeoutOfARefreshAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &flaky{value: 1}
		c, err := New(Local(), Options[string, int]{
			Name: "p", Load: s.load, Expiry: func(string, int) time.Duration { return time.Minute },
			RefreshAfter: 30 * time.Second, StaleIfError: time.Hour, SoftTimeout: time.Second,
		})
		require.NoError(t, err)
		defer c.Close()
		require.Equal(t, 1, get(t, c))
		time.Sleep(59 * time.Second)
		s.takes = 10 * time.Minute
		require.Equal(t, 1, get(t, c)) // begins a refresh
		time.Sleep(time.Second)
		require.Equal(t, 1, get(t, c)) // waits for SoftTimeout
		began := time.Now()
		require.Equal(t, 1, get(t, c))
		assert.Zero(t, time.Since(began), "one has waited for it already")
	})
}

// GetMany waits for SoftTimeout once, not once for each item.
func TestCornerSoftTimeoutOfGetMany(t *testing.T) {
	s := &shop{version: 1}
	s.in(t, Options[int, string]{
		Expiry: func(int, string) time.Duration { return time.Minute }, StaleIfError: time.Hour, SoftTimeout: time.Second,
	}, func(t *testing.T, s *shop, c *Cache[int, string]) {
		keys := []int{1, 2, 3, 4, 5, 6, 7, 8, 9}
		_, err := c.GetMany(t.Context(), keys...)
		require.NoError(t, err)
		expire()
		s.mu.Lock()
		s.takes = time.Minute
		s.mu.Unlock()
		began := time.Now()
		got, err := c.GetMany(t.Context(), keys...)
		require.NoError(t, err)
		require.Equal(t, items(1, keys...), got)
		assert.Equal(t, time.Second, time.Since(began))
	})
}

// An item that was dead for want of hits is not served long after StaleIfError, nor
// held for ever.
func TestCornerIdleAndStaleIfError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &flaky{value: 1}
		c, err := New(Local(), Options[string, int]{
			Name: "p", Load: s.load, TTL: NoExpiry, IdleTTL: time.Minute, StaleIfError: time.Minute,
		})
		require.NoError(t, err)
		defer c.Close()
		require.Equal(t, 1, get(t, c))
		time.Sleep(24 * time.Hour)
		assert.Zero(t, c.Len(), "nobody has asked for a day")
		s.err = errSource
		_, err = c.Get(t.Context(), "k")
		assert.ErrorIs(t, err, errSource)
	})
}

// Ticks wrap, and what was idle lives again.
func TestCornerIdleWraps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &flaky{value: 1}
		c, err := New(Local(), Options[string, int]{
			Name: "p", Load: s.load, TTL: time.Hour, IdleTTL: time.Millisecond, StaleIfError: time.Hour,
		})
		require.NoError(t, err)
		defer c.Close()
		require.Equal(t, 1, get(t, c))
		time.Sleep(time.Minute)
		_, held := c.Peek("k")
		require.False(t, held)
		time.Sleep(2 * time.Minute)
		_, held = c.Peek("k")
		assert.False(t, held, "idle for three minutes")
	})
}

// 1. a Get waits for SoftTimeout, the load for its turn   2. Close   3. another Get, which
// found the cache open, joins the load.
func TestCornerJoinAfterClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &flaky{value: 1}
		c, err := New(Local(), Options[string, int]{
			Name: "p", Load: s.load, Expiry: func(string, int) time.Duration { return time.Minute },
			StaleIfError: time.Hour, SoftTimeout: time.Second, MaxConcurrentLoads: 1,
		})
		require.NoError(t, err)
		require.Equal(t, 1, get(t, c))
		expire()
		s.takes, s.value = time.Hour, 2
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() { _, _ = c.Get(ctx, "other") }()
		synctest.Wait()
		require.Equal(t, 1, get(t, c)) // lets it go
		require.NoError(t, c.Close())
		from := calledWith(t.Context())
		j := c.loader.join(from, "k", c.startOptions(&from.origin))
		if j.mustStart {
			c.loader.start(from, j.flight)
		}
		v, _, err := c.await(from, "k", &j, 0)
		assert.NoError(t, err)
		assert.Equal(t, 2, v, "it was loaded")
		synctest.Wait()
	})
}

// Close may be called again, and cancels no load that a caller waits for.
func TestCornerCloseTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &shop{version: 1}
		c, err := New(Local(), Options[int, string]{
			Name: "p", LoadMany: s.loadMany, StaleIfError: time.Hour, SoftTimeout: time.Second,
			Expiry: func(int, string) time.Duration { return time.Minute },
		})
		require.NoError(t, err)
		_, err = c.GetMany(t.Context(), 1)
		require.NoError(t, err)
		expire()
		s.mu.Lock()
		s.takes = time.Minute
		s.mu.Unlock()
		go func() {
			time.Sleep(2 * time.Second)
			_ = c.Close()
			_ = c.Close()
		}()
		got, err := c.GetMany(t.Context(), 1, 2) // 2 is not held, and waited for
		assert.NoError(t, err)
		assert.Equal(t, items(1, 1, 2), got)
	})
}

// A MarshalText that panics leaves no load of other keys behind that nobody flies.
type touchy int

func (k touchy) MarshalText() ([]byte, error) {
	if k < 0 {
		panic("negative")
	}
	return fmt.Append(nil, int(k)), nil
}

func (k *touchy) UnmarshalText(text []byte) error {
	_, err := fmt.Sscan(string(text), (*int)(k))
	return err
}

func TestCornerGetManyOfAKeyThatPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		c, err := New(Local(), Options[touchy, int]{
			Name: "p", Load: func(_ context.Context, key touchy) (int, error) { return int(key), nil },
		})
		require.NoError(t, err)
		defer c.Close()
		assert.Panics(t, func() { _, _ = c.GetMany(ctx, 1, -1) })
		v, err := c.Get(ctx, 1)
		assert.NoError(t, err)
		assert.Equal(t, 1, v)
	})
}

// Each item's error has its own text.
func TestCornerGetManyOfManyErrors(t *testing.T) {
	c, err := New(Local(), Options[int, int]{
		Name: "p", Load: func(_ context.Context, key int) (int, error) { return 0, fmt.Errorf("item %d: %w", key, errSource) },
	})
	require.NoError(t, err)
	defer c.Close()
	keys := make([]int, 100_000)
	for i := range keys {
		keys[i] = i
	}
	_, err = c.GetMany(t.Context(), keys...) // which takes minutes if each is compared with all
	require.ErrorIs(t, err, errSource)
}

// A refresh that a loader's hit begins counts against MaxConcurrentLoads.
func TestCornerRefreshAheadFromALoader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		under, most := 0, 0
		count := func(by int) {
			mu.Lock()
			defer mu.Unlock()
			under += by
			most = max(most, under)
		}
		var c *Cache[int, int]
		c, err := New(Local(), Options[int, int]{
			Name: "p", MaxConcurrentLoads: 2, TTL: time.Hour, RefreshAfter: time.Minute,
			Load: func(ctx context.Context, n int) (int, error) {
				count(1)
				defer count(-1)
				if n == 100 {
					for i := range 10 {
						if _, err := c.Get(ctx, i); err != nil {
							return 0, err
						}
					}
				}
				pause(ctx, time.Second)
				return n, nil
			},
		})
		require.NoError(t, err)
		defer c.Close()
		for i := range 10 {
			_, err := c.Get(t.Context(), i)
			require.NoError(t, err)
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		most = 0
		_, err = c.Get(t.Context(), 100)
		require.NoError(t, err)
		synctest.Wait()
		assert.LessOrEqual(t, most, 2)
	})
}

// Callers whose waits overlap do not keep a hung load alive: 1. a load hangs   2. its
// callers leave one by one, and before the last has left another has come   3. a caller
// comes when the load has lasted as long as that caller will wait. It begins another.
func TestOverlappingCallersOfAHungLoad(t *testing.T) {
	calls := map[string]func(context.Context, *Cache[string, int]) (int, error){
		"Get":     func(ctx context.Context, c *Cache[string, int]) (int, error) { return c.Get(ctx, "k") },
		"Refresh": func(ctx context.Context, c *Cache[string, int]) (int, error) { return c.Refresh(ctx, "k") },
		"GetMany": func(ctx context.Context, c *Cache[string, int]) (int, error) {
			values, err := c.GetMany(ctx, "k")
			return values["k"], err
		},
	}
	for name, call := range calls {
		for _, many := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var loads, cancelled atomic.Int64
					load := func(ctx context.Context, _ string) (int, error) {
						if loads.Add(1) == 1 {
							<-ctx.Done() // it hangs
							cancelled.Add(1)
							return 0, ctx.Err()
						}
						pause(ctx, 20*time.Millisecond)
						return 2, ctx.Err()
					}
					o := Options[string, int]{Name: "p", Load: load}
					if many {
						o.LoadMany = func(ctx context.Context, keys []string) (map[string]int, error) {
							v, err := load(ctx, keys[0])
							return map[string]int{keys[0]: v}, err
						}
						o.Load = nil
					}
					c, err := New(Local(), o)
					require.NoError(t, err)
					defer c.Close()
					var callers sync.WaitGroup
					var served atomic.Int64
					for range 150 {
						callers.Go(func() {
							ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
							defer cancel()
							if v, err := call(ctx, c); err == nil {
								assert.Equal(t, 2, v)
								served.Add(1)
							}
						})
						time.Sleep(10 * time.Millisecond)
						require.NoError(t, c.local.check(defaultCapacity))
					}
					callers.Wait()
					require.GreaterOrEqual(t, served.Load(), int64(130))
					require.EqualValues(t, 1, cancelled.Load(), "the hung load ends when its last caller has left")
				})
			})
		}
	}
}

// The rule is about the callers' own deadlines.
func TestWhoJoinsALongLoad(t *testing.T) {
	tests := map[string]struct {
		lasted, deadline time.Duration // no deadline: 0
		joins            bool
	}{
		"no deadline":            {lasted: time.Hour, joins: true},
		"a later deadline":       {lasted: time.Second, deadline: time.Second + 1, joins: true},
		"one as long":            {lasted: time.Second, deadline: time.Second},
		"a sooner one":           {lasted: time.Second, deadline: time.Millisecond},
		"a load that just began": {deadline: time.Millisecond, joins: true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var loads atomic.Int64
				c, err := New(Local(), Options[string, int]{Name: "p", Load: func(ctx context.Context, _ string) (int, error) {
					loads.Add(1)
					<-ctx.Done()
					return 0, ctx.Err()
				}})
				require.NoError(t, err)
				defer c.Close()
				first, cancelFirst := context.WithCancel(t.Context())
				go func() { _, _ = c.Get(first, "k") }()
				synctest.Wait()
				time.Sleep(test.lasted)
				ctx, cancel := context.WithCancel(t.Context())
				if test.deadline > 0 {
					ctx, cancel = context.WithTimeout(t.Context(), test.deadline)
				}
				go func() { _, _ = c.Get(ctx, "k") }()
				synctest.Wait()
				want := int64(2)
				if test.joins {
					want = 1
				}
				require.Equal(t, want, loads.Load())
				cancel()
				cancelFirst()
				synctest.Wait()
			})
		})
	}
}

// A load that waits for its turn has not begun, and any caller joins it.
func TestWaitingLoadsAreJoinedWhateverTheDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &shop{version: 1, takes: time.Minute}
		c, err := New(Local(), Options[int, string]{Name: "p", Load: s.load, MaxConcurrentLoads: 1})
		require.NoError(t, err)
		defer c.Close()
		var callers sync.WaitGroup
		for _, key := range []int{1, 2} {
			callers.Go(func() { _, _ = c.Get(t.Context(), key) })
			synctest.Wait()
		}
		time.Sleep(time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		_, err = c.Get(ctx, 2)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		callers.Wait()
		require.Equal(t, []int{1, 2}, s.loads)
	})
}
