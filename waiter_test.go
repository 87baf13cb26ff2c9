package nearcache

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// tenants is a source of items that belong to one region each, and counts how many loads
// of a key are under way.
type tenants struct {
	mu      sync.Mutex // guards everything below
	version int
	err     error
	panics  bool
	takes   time.Duration
	loads   int
	under   map[int]int
	most    int
	calls   [][]int
}

func (s *tenants) load(ctx context.Context, key int) (int, error) {
	s.mu.Lock()
	s.loads++
	if s.under == nil {
		s.under = map[int]int{}
	}
	s.under[key]++
	s.most = max(s.most, s.under[key])
	version, err, takes, panics := s.version, s.err, s.takes, s.panics
	s.mu.Unlock()
	pause(ctx, takes)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.under[key]--
	if panics {
		panic("a bug")
	}
	if ctx.Err() != nil {
		return 0, ctx.Err()
	}
	return version, err
}

func (s *tenants) loadMany(ctx context.Context, keys []int) (map[int]int, error) {
	s.mu.Lock()
	s.calls = append(s.calls, keys)
	s.mu.Unlock()
	v, err := s.load(ctx, keys[0])
	got := map[int]int{}
	if err == nil {
		for _, key := range keys {
			got[key] = v
		}
	}
	return got, err
}

func (s *tenants) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

func (s *tenants) options() Options[int, int] {
	return Options[int, int]{
		Name: "p", Load: s.load, TTL: time.Hour,
		Regions: func(int, int) []string { return []string{"own"} },
	}
}

// Callers of one key share its load though regions of others are cleared all the time,
// and share one more if it is their own.
func TestSingleFlightBesideClearsOfRegions(t *testing.T) {
	tests := map[string]struct {
		set    func(*tenants, *Options[int, int])
		region string
		loads  int
	}{
		"of others":                   {region: "other", loads: 1},
		"of their own":                {region: "own", loads: 2},
		"of others, not kept":         {region: "other", loads: 1, set: func(_ *tenants, o *Options[int, int]) { o.Expiry = func(int, int) time.Duration { return 0 } }},
		"of their own, not kept":      {region: "own", loads: 2, set: func(_ *tenants, o *Options[int, int]) { o.Expiry = func(int, int) time.Duration { return 0 } }},
		"of others, too heavy":        {region: "other", loads: 1, set: func(_ *tenants, o *Options[int, int]) { o.MaxWeight, o.Weigh = 1, func(int, int) uint32 { return 2 } }},
		"of others, one at a time":    {region: "other", loads: 1, set: func(_ *tenants, o *Options[int, int]) { o.MaxConcurrentLoads = 1 }},
		"of their own, one at a time": {region: "own", loads: 2, set: func(_ *tenants, o *Options[int, int]) { o.MaxConcurrentLoads = 1 }},
		"of others, LoadTimeout":      {region: "other", loads: 1, set: func(_ *tenants, o *Options[int, int]) { o.LoadTimeout = time.Minute }},
		"nothing is found":            {region: "other", loads: 2, set: func(s *tenants, _ *Options[int, int]) { s.err = ErrNotFound }},
		"nothing is found, elsewhere": {region: "other", loads: 1, set: notFoundIn("own")},
		"nothing is found, here":      {region: "own", loads: 2, set: notFoundIn("own")},
		"nothing is found, in none":   {region: "own", loads: 1, set: notFoundIn()},
		"the source fails":            {region: "other", loads: 2, set: func(s *tenants, _ *Options[int, int]) { s.err = errSource }},
		"the loader panics":           {region: "other", loads: 2, set: func(s *tenants, _ *Options[int, int]) { s.panics = true }},
	}
	calls := map[string]func(context.Context, *Cache[int, int]) (int, error){
		"Get": func(ctx context.Context, c *Cache[int, int]) (int, error) { return c.Get(ctx, 1) },
		"GetMany": func(ctx context.Context, c *Cache[int, int]) (int, error) {
			values, err := c.GetMany(ctx, 1)
			return values[1], err
		},
	}
	for name, test := range tests {
		for how, call := range calls {
			for _, endless := range []bool{false, true} {
				t.Run(fmt.Sprint(how, " ", name, " ", endless), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						s := &tenants{takes: time.Second}
						o := s.options()
						if test.set != nil {
							test.set(s, &o)
						}
						c, err := New(Local(), o)
						require.NoError(t, err)
						defer c.Close()
						ctx := t.Context()
						if endless {
							ctx = context.WithoutCancel(ctx)
						}
						began := time.Now()
						var callers sync.WaitGroup
						for range 200 {
							callers.Go(func() {
								defer func() {
									if r := recover(); r != nil {
										assert.True(t, s.panics, "%v", r)
									}
								}()
								v, err := call(ctx, c)
								switch {
								case errors.Is(s.err, ErrNotFound) && how == "GetMany":
									assert.NoError(t, err)
								case s.err != nil:
									assert.ErrorIs(t, err, s.err)
								default:
									assert.NoError(t, err)
									assert.Zero(t, v)
								}
							})
							synctest.Wait()
							require.NoError(t, c.ClearRegion(t.Context(), test.region))
							time.Sleep(2 * time.Millisecond)
						}
						callers.Wait()
						require.Equal(t, test.loads, s.loads)
						require.Equal(t, 1, s.most)
						require.LessOrEqual(t, time.Since(began), 2*time.Second)
						require.NoError(t, c.local.check(defaultCapacity))
						require.Empty(t, c.local.shard(c.local.hash(1)).flights)
					})
				})
			}
		}
	}
}

func notFoundIn(regions ...string) func(*tenants, *Options[int, int]) {
	return func(s *tenants, o *Options[int, int]) {
		s.err = ErrNotFound
		o.NotFoundRegions = func(int) []string { return regions }
	}
}

// A Get that comes after a clear of the load's own region has nothing from before it.
func TestWaitersHaveNothingFromBeforeAClear(t *testing.T) {
	for _, many := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			s := &tenants{version: 1, takes: time.Second}
			o := s.options()
			if many {
				o.LoadMany = s.loadMany
			}
			c, err := New(Local(), o)
			require.NoError(t, err)
			defer c.Close()
			var callers sync.WaitGroup
			get := func(want int) {
				callers.Go(func() {
					values, err := c.GetMany(t.Context(), 1, 2, 3)
					assert.NoError(t, err)
					assert.Equal(t, map[int]int{1: want, 2: want, 3: want}, values)
				})
				synctest.Wait()
			}
			get(1)
			s.set(func() { s.version = 2 })
			require.NoError(t, c.ClearRegion(t.Context(), "own"))
			get(2)
			get(2)
			time.Sleep(time.Second + time.Second/2)
			s.set(func() { s.version = 3 })
			require.NoError(t, c.ClearRegion(t.Context(), "own"))
			get(3)
			callers.Wait()
			if many {
				require.Len(t, s.calls, 3, "what was waited for is loaded in one call")
			} else {
				require.Equal(t, 9, s.loads)
			}
			require.NoError(t, c.local.check(defaultCapacity))
		})
	}
}

// An invalidation that takes the load out wakes those that may not have its result, and
// not those that may.
func TestWaitersAndOtherInvalidations(t *testing.T) {
	for name, test := range map[string]struct {
		invalidate func(*Cache[int, int]) error
		wakes      bool
	}{
		"Remove": {func(c *Cache[int, int]) error { return c.Remove(context.Background(), 1) }, true},
		"Clear":  {func(c *Cache[int, int]) error { return c.Clear(context.Background()) }, false},
		"Set":    {func(c *Cache[int, int]) error { return c.Set(context.Background(), 1, 2) }, true},
	} {
		for _, first := range []bool{true, false} { // whether the first caller waits on
			t.Run(fmt.Sprint(name, first), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s := &tenants{version: 1, takes: time.Second}
					c, err := New(Local(), s.options())
					require.NoError(t, err)
					defer c.Close()
					var callers sync.WaitGroup
					ctx, cancel := context.WithCancel(t.Context())
					callers.Go(func() {
						v, err := c.Get(ctx, 1)
						if first {
							assert.NoError(t, err)
							assert.Equal(t, 1, v)
						}
					})
					synctest.Wait()
					require.NoError(t, c.ClearRegion(t.Context(), "other"))
					began := time.Now()
					for range 3 {
						callers.Go(func() {
							v, err := c.Get(t.Context(), 1)
							assert.NoError(t, err)
							assert.Equal(t, 2, v)
							if test.wakes {
								assert.LessOrEqual(t, time.Since(began), time.Second+time.Second/2)
							}
						})
					}
					synctest.Wait()
					if !first {
						cancel()
						synctest.Wait()
					}
					require.Equal(t, 1, s.loads)
					time.Sleep(time.Second / 2)
					s.set(func() { s.version = 2 })
					require.NoError(t, test.invalidate(c))
					callers.Wait()
					cancel()
					synctest.Wait()
					require.LessOrEqual(t, s.loads, 2)
					require.NoError(t, c.local.check(defaultCapacity))
					require.Empty(t, c.local.shard(c.local.hash(1)).flights)
				})
			})
		}
	}
}

// Waiters leave on their own contexts, and the last of all who wait ends the load.
func TestWaitersLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &tenants{takes: time.Minute}
		c, err := New(Local(), s.options())
		require.NoError(t, err)
		defer c.Close()
		first, cancelFirst := context.WithCancel(t.Context())
		waiter, cancelWaiter := context.WithCancel(t.Context())
		var callers sync.WaitGroup
		for _, ctx := range []context.Context{first, waiter, waiter} {
			callers.Go(func() {
				_, err := c.Get(ctx, 1)
				assert.ErrorIs(t, err, context.Canceled)
			})
			synctest.Wait()
			require.NoError(t, c.ClearRegion(t.Context(), "other"))
		}
		cancelFirst()
		synctest.Wait()
		require.Equal(t, 1, s.under[1], "others wait for it")
		cancelWaiter()
		callers.Wait()
		synctest.Wait()
		require.Zero(t, s.under[1])
		require.Equal(t, 1, s.loads)
		require.Empty(t, c.local.shard(c.local.hash(1)).flights)
	})
}

// 1. a load hangs   2. a caller with a deadline begins another in front of it   3. the
// region of both is cleared   4. a Get waits for the newer one, which ends. The older one
// began before 4 as well, and is not shared.
func TestWaitersShareNothingOlder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &tenants{version: 1, takes: time.Hour}
		c, err := New(Local(), s.options())
		require.NoError(t, err)
		defer c.Close()
		var callers sync.WaitGroup
		callers.Go(func() { _, _ = c.Get(t.Context(), 1) })
		synctest.Wait()
		time.Sleep(time.Minute)
		s.set(func() { s.takes = time.Second })
		callers.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			v, err := c.Get(ctx, 1)
			assert.NoError(t, err)
			assert.Equal(t, 1, v)
		})
		synctest.Wait()
		require.Equal(t, 2, s.loads)
		s.set(func() { s.version = 2 })
		require.NoError(t, c.ClearRegion(t.Context(), "own"))
		began := time.Now()
		v, err := c.Get(t.Context(), 1)
		require.NoError(t, err)
		require.Equal(t, 2, v)
		require.Equal(t, 2*time.Second, time.Since(began))
		callers.Wait()
		require.Equal(t, 3, s.loads)
	})
}

// A refresh ahead does not double a load that is under way, and a load that is slow
// spares others the wait, though regions of others are cleared.
func TestSlowLoadsBesideClearsOfRegions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &tenants{version: 1}
		o := s.options()
		o.Expiry = func(int, int) time.Duration { return time.Minute }
		o.StaleIfError, o.SoftTimeout = time.Hour, time.Second
		c, err := New(Local(), o)
		require.NoError(t, err)
		defer c.Close()
		_, err = c.Get(t.Context(), 1)
		require.NoError(t, err)
		time.Sleep(time.Minute)
		s.set(func() { s.takes, s.version = 10*time.Minute, 2 })
		for i := range 100 {
			began := time.Now()
			v, err := c.Get(t.Context(), 1)
			require.NoError(t, err)
			require.Equal(t, 1, v)
			if i > 0 {
				require.Zero(t, time.Since(began))
			}
			require.NoError(t, c.ClearRegion(t.Context(), "other"))
			time.Sleep(time.Second)
		}
		s.set(func() { require.Equal(t, 2, s.loads) })
		time.Sleep(10 * time.Minute)
		v, err := c.Get(t.Context(), 1)
		require.NoError(t, err)
		require.Equal(t, 2, v, "the load was kept")
	})
}

// Fifty calls of Refresh make two loads: the first one's, and one that the others share.
func TestRefreshesShareALoad(t *testing.T) {
	for name, under := range map[string]bool{"nothing is under way": false, "a load is": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &tenants{version: 1, takes: time.Second}
				c, err := New(Local(), s.options())
				require.NoError(t, err)
				defer c.Close()
				var callers sync.WaitGroup
				if under {
					callers.Go(func() { _, _ = c.Get(t.Context(), 1) })
					synctest.Wait()
				}
				var news atomic.Int64
				for range 50 {
					callers.Go(func() {
						v, err := c.Refresh(t.Context(), 1)
						assert.NoError(t, err)
						if v == 2 {
							news.Add(1)
						}
					})
				}
				synctest.Wait()
				s.set(func() { s.version = 2 })
				callers.Wait()
				require.Equal(t, 2, s.loads)
				require.Equal(t, 1, s.most)
				if under {
					require.EqualValues(t, 50, news.Load(), "none has what began before")
				} else {
					require.EqualValues(t, 49, news.Load())
				}
				v, held := c.Peek(1)
				require.True(t, held)
				require.Equal(t, 2, v)
				require.NoError(t, c.local.check(defaultCapacity))
			})
		})
	}
}

// Refresh asks the source, also if it shares its load with Gets that would do with what
// is in Redis.
func TestRefreshBesideWaitersAsksTheSource(t *testing.T) {
	s := &tenants{version: 1}
	_, caches := simulatedFleet(t, 1, func(int) Options[string, int] {
		return Options[string, int]{
			Load:    func(ctx context.Context, _ string) (int, error) { return s.load(ctx, 1) },
			Regions: func(string, int) []string { return []string{"own"} },
		}
	})
	c := caches[0]
	var callers sync.WaitGroup
	s.set(func() { s.takes = time.Second })
	callers.Go(func() { _, _ = c.Get(t.Context(), "k") })
	time.Sleep(time.Second / 2)
	require.NoError(t, c.ClearRegion(t.Context(), "own"))
	for range 3 {
		callers.Go(func() {
			v, err := c.Get(t.Context(), "k")
			assert.NoError(t, err)
			assert.Equal(t, 2, v)
		})
		callers.Go(func() {
			v, err := c.Refresh(t.Context(), "k")
			assert.NoError(t, err)
			assert.Equal(t, 2, v)
		})
	}
	s.set(func() { s.version = 2 })
	callers.Wait()
	s.set(func() { require.LessOrEqual(t, s.loads, 3) })
}

// A loader that asks for the key that it is loading waits for its context, and not for
// itself.
func TestWaitersAndALoaderThatAsksForItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c *Cache[int, int]
		loads := 0
		c, err := New(Local(), Options[int, int]{
			Name: "p", Regions: func(int, int) []string { return nil },
			Load: func(ctx context.Context, key int) (int, error) {
				if loads++; loads > 1 {
					return 7, nil
				}
				if err := c.ClearRegion(ctx, "other"); err != nil {
					return 0, err
				}
				return c.Get(ctx, key)
			},
		})
		require.NoError(t, err)
		defer c.Close()
		v, err := c.Get(t.Context(), 1)
		require.NoError(t, err)
		require.Equal(t, 7, v)
	})
}

// Kept not-founds outlive clears of regions that are not theirs.
func TestNotFoundRegions(t *testing.T) {
	for _, policy := range []Eviction{DefaultEviction, LRU} {
		synctest.Test(t, func(t *testing.T) {
			loads := map[int]int{}
			exists := false
			c, err := New(Local(), Options[int, int]{
				Name: "p", NotFoundTTL: time.Hour, ErrorTTL: time.Hour, Eviction: policy,
				Load: func(_ context.Context, key int) (int, error) {
					loads[key]++
					switch {
					case key == 9:
						return 0, errSource
					case !exists:
						return 0, ErrNotFound
					}
					return 1, nil
				},
				Regions: func(key, _ int) []string { return []string{fmt.Sprint("tenant ", key%2)} },
				NotFoundRegions: func(key int) []string {
					switch key {
					case 4:
						return nil
					case 5:
						return []string{"tenant 1", "all", "all"}
					}
					return []string{fmt.Sprint("tenant ", key%2)}
				},
			})
			require.NoError(t, err)
			defer c.Close()
			all := func(want map[int]int) {
				t.Helper()
				for _, key := range []int{1, 2, 4, 5, 9} {
					_, err := c.Get(t.Context(), key)
					if key == 9 {
						require.ErrorIs(t, err, errSource)
					} else {
						require.ErrorIs(t, err, ErrNotFound)
					}
				}
				require.Equal(t, want, loads)
				require.NoError(t, c.local.check(defaultCapacity))
			}
			all(map[int]int{1: 1, 2: 1, 4: 1, 5: 1, 9: 1})
			for range 100 {
				require.NoError(t, c.ClearRegion(t.Context(), "tenant 3"))
			}
			all(map[int]int{1: 1, 2: 1, 4: 1, 5: 1, 9: 2})
			require.NoError(t, c.ClearRegion(t.Context(), "tenant 1"))
			all(map[int]int{1: 2, 2: 1, 4: 1, 5: 2, 9: 3})
			require.NoError(t, c.ClearRegion(t.Context(), "all"))
			all(map[int]int{1: 2, 2: 1, 4: 1, 5: 3, 9: 4})
			require.NoError(t, c.Clear(t.Context()))
			all(map[int]int{1: 3, 2: 2, 4: 2, 5: 4, 9: 5})
			require.NoError(t, c.Remove(t.Context(), 4))
			all(map[int]int{1: 3, 2: 2, 4: 3, 5: 4, 9: 5})

			// The item comes to be: what was not found and the item do not share a scope.
			exists = true
			v, err := c.Refresh(t.Context(), 1)
			require.NoError(t, err)
			require.Equal(t, 1, v)
			v, err = c.Get(t.Context(), 1)
			require.NoError(t, err)
			require.Equal(t, 1, v)
			exists = false
			_, err = c.Refresh(t.Context(), 1)
			require.ErrorIs(t, err, ErrNotFound)
			_, err = c.Get(t.Context(), 1)
			require.ErrorIs(t, err, ErrNotFound)
			require.NoError(t, c.ClearRegion(t.Context(), "tenant 1"))
			synctest.Wait()
			require.NoError(t, c.local.check(defaultCapacity))
		})
	}
}

// The fence holds for not-founds that have regions of their own: what began before the
// clear of one of them is not kept.
func TestNotFoundRegionsAreFenced(t *testing.T) {
	for region, kept := range map[string]bool{"own": false, "other": true} {
		synctest.Test(t, func(t *testing.T) {
			s := &tenants{takes: time.Second, err: ErrNotFound}
			o := s.options()
			o.NotFoundTTL = time.Hour
			o.NotFoundRegions = func(int) []string { return []string{"own"} }
			c, err := New(Local(), o)
			require.NoError(t, err)
			defer c.Close()
			go func() { _, _ = c.Get(t.Context(), 1) }()
			synctest.Wait()
			require.NoError(t, c.ClearRegion(t.Context(), region))
			time.Sleep(time.Second)
			synctest.Wait()
			require.Equal(t, kept, c.held() == 1)
		})
	}
}

// At the shared level, too, what was not found outlives the clears of regions that are
// not its own.
func TestSharedNotFoundRegions(t *testing.T) {
	loads := 0
	_, caches := simulatedFleet(t, 2, func(int) Options[string, int] {
		return Options[string, int]{
			NotFoundTTL: time.Hour,
			Load: func(context.Context, string) (int, error) {
				loads++
				return 0, ErrNotFound
			},
			Regions:         func(string, int) []string { return []string{"own"} },
			NotFoundRegions: func(string) []string { return []string{"own"} },
		}
	})
	gets := func(want int) {
		t.Helper()
		for _, c := range caches {
			_, err := c.Get(t.Context(), "k")
			require.ErrorIs(t, err, ErrNotFound)
		}
		require.Equal(t, want, loads)
	}
	_, err := caches[0].Get(t.Context(), "k")
	require.ErrorIs(t, err, ErrNotFound)
	require.NoError(t, caches[0].ClearRegion(t.Context(), "other"))
	time.Sleep(time.Second)
	gets(1)
	require.NoError(t, caches[0].ClearRegion(t.Context(), "own"))
	time.Sleep(time.Second)
	gets(2)
}
