package nearcache

import (
	"context"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestLoadTimeout(t *testing.T) {
	for _, obedient := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			takes := time.Hour
			release := make(chan struct{})
			c, err := New(Local(), Options[string, int]{
				Name: "p", LoadTimeout: time.Second, ErrorTTL: time.Minute,
				Load: func(ctx context.Context, _ string) (int, error) {
					if !obedient && takes > 0 {
						<-release
						return 1, nil
					}
					pause(ctx, takes)
					return 2, ctx.Err()
				},
			})
			require.NoError(t, err)
			defer c.Close()
			began := time.Now()
			var callers sync.WaitGroup
			for range 3 {
				callers.Go(func() {
					_, err := c.Get(t.Context(), "k")
					assert.ErrorIs(t, err, context.DeadlineExceeded)
					if !obedient {
						assert.ErrorContains(t, err, `cache "p": the load took longer than LoadTimeout, 1s`)
					}
				})
			}
			callers.Wait()
			require.Equal(t, time.Second, time.Since(began))
			synctest.Wait()
			takes = 0
			_, err = c.Get(t.Context(), "k")
			require.ErrorIs(t, err, context.DeadlineExceeded, "it is kept, as ErrorTTL says")
			time.Sleep(time.Minute)
			require.Equal(t, 2, get(t, c), "another load begins")
			close(release)
			synctest.Wait()
			require.Equal(t, 2, get(t, c), "what comes too late is not kept")
		})
	}
}

// pause waits for d or the end of ctx.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// An item that has expired stands in for a load that hangs.
func TestLoadTimeoutAndStaleIfError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		hangs, loads := false, 0
		c, err := New(Local(), Options[string, int]{
			Name: "p", LoadTimeout: time.Second, TTL: time.Minute, StaleIfError: time.Hour,
			Load: func(context.Context, string) (int, error) {
				loads++
				if hangs {
					<-release
				}
				return loads, nil
			},
		})
		require.NoError(t, err)
		defer c.Close()
		require.Equal(t, 1, get(t, c))
		expire()
		hangs = true
		began := time.Now()
		require.Equal(t, 1, get(t, c))
		require.Equal(t, time.Second, time.Since(began))
		require.Equal(t, 1, get(t, c))
		require.Equal(t, time.Second, time.Since(began), "after a failure there is a pause")
		close(release)
		synctest.Wait()
		time.Sleep(failurePause)
		require.Equal(t, 3, get(t, c))
	})
}

func TestLoadTimeoutOfLoadMany(t *testing.T) {
	for _, obedient := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			release := make(chan struct{})
			c, err := New(Local(), Options[int, string]{
				Name: "p", LoadTimeout: time.Second,
				LoadMany: func(ctx context.Context, _ []int) (map[int]string, error) {
					if obedient {
						<-ctx.Done()
						return nil, context.Cause(ctx)
					}
					<-release
					return nil, nil
				},
			})
			require.NoError(t, err)
			defer c.Close()
			began := time.Now()
			got, err := c.GetMany(t.Context(), 1, 2)
			require.Empty(t, got)
			require.ErrorIs(t, err, context.DeadlineExceeded)
			require.ErrorContains(t, err, "not loaded: 1, 2: nearcache: cache \"p\": the load took longer than LoadTimeout")
			require.Equal(t, time.Second, time.Since(began))
			close(release)
			synctest.Wait()
			require.NoError(t, c.local.check(defaultCapacity))
		})
	}
}

// The loads under way are bounded, the others come in turn, and who leaves leaves
// the queue.
func TestMaxConcurrentLoads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &shop{takes: time.Second}
		c, err := New(Local(), Options[int, string]{Name: "p", Load: s.load, MaxConcurrentLoads: 2, LoadTimeout: 2 * time.Second})
		require.NoError(t, err)
		defer c.Close()
		began := time.Now()
		var callers sync.WaitGroup
		for key := range 9 {
			callers.Go(func() {
				_, err := c.Get(t.Context(), key+1)
				assert.NoError(t, err, "the time in the queue does not count")
			})
			synctest.Wait()
		}
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second/2)
		defer cancel()
		_, err = c.Get(ctx, 99)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		callers.Wait()
		require.Equal(t, 5*time.Second, time.Since(began))
		require.Equal(t, []int{1, 2, 3, 4, 5, 6, 7, 8, 9}, sortedInPairs(s.loads), "first come, first served; 99 had gone")
		require.Equal(t, 2, s.most)
		require.NoError(t, c.local.check(defaultCapacity))
		require.EqualValues(t, 9, c.Stats().Loads)
	})
}

// sortedInPairs sorts each two, which began at one moment.
func sortedInPairs(s []int) []int {
	for i := 0; i+1 < len(s); i += 2 {
		s[i], s[i+1] = min(s[i], s[i+1]), max(s[i], s[i+1])
	}
	return s
}

// A loader that dies gives its place back.
func TestMaxConcurrentLoadsAndLoadersThatDie(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		how := 0
		c, err := New(Local(), Options[int, string]{
			Name: "p", MaxConcurrentLoads: 1,
			Load: func(context.Context, int) (string, error) {
				switch how++; how {
				case 1:
					panic("a bug")
				case 2:
					runtime.Goexit()
				case 3:
					return "", errSource
				}
				return "", nil
			},
		})
		require.NoError(t, err)
		defer c.Close()
		require.Panics(t, func() { _, _ = c.Get(t.Context(), 1) })
		_, err = c.Get(t.Context(), 1)
		require.ErrorIs(t, err, errGoexit)
		_, err = c.Get(t.Context(), 1)
		require.ErrorIs(t, err, errSource)
		_, err = c.Get(t.Context(), 1)
		require.NoError(t, err)
	})
}

// A load that asks for other items of its cache needs no place for them, or it would
// wait for its own.
func TestMaxConcurrentLoadsAndLoadsThatLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c *Cache[int, int]
		c, err := New(Local(), Options[int, int]{
			Name: "p", MaxConcurrentLoads: 1,
			Load: func(ctx context.Context, n int) (int, error) {
				if n < 2 {
					return n, nil
				}
				values, err := c.GetMany(ctx, n-1, n-2)
				if err != nil {
					return 0, err
				}
				again, err := c.Get(ctx, n-2)
				return values[n-1] + again, err
			},
		})
		require.NoError(t, err)
		defer c.Close()
		v, err := c.Get(t.Context(), 20)
		require.NoError(t, err)
		require.Equal(t, 6765, v)
	})
}

// A load that waits for its turn has read nothing: what is invalidated meanwhile is
// no concern of its, and who comes after that may join it.
func TestLoadsThatWaitForTheirTurn(t *testing.T) {
	for name, invalidate := range map[string]func(c *Cache[int, string]) error{
		"Remove":      func(c *Cache[int, string]) error { return c.Remove(context.Background(), 2) },
		"ClearRegion": func(c *Cache[int, string]) error { return c.ClearRegion(context.Background(), "region") },
		"Clear":       func(c *Cache[int, string]) error { return c.Clear(context.Background()) },
		"a gap":       func(c *Cache[int, string]) error { c.backplane.missedMessages(); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &shop{version: 1, takes: time.Second}
				c, err := New(Local(), Options[int, string]{
					Name: "p", Load: s.load, MaxConcurrentLoads: 1,
					Regions: func(int, string) []string { return []string{"region"} },
				})
				require.NoError(t, err)
				defer c.Close()
				var callers sync.WaitGroup
				get := func(key int, want string) {
					callers.Go(func() {
						v, err := c.Get(t.Context(), key)
						assert.NoError(t, err)
						assert.Equal(t, want, v)
					})
					synctest.Wait()
				}
				get(1, "1v1")
				get(2, "2v2")
				s.mu.Lock()
				s.version = 2
				s.mu.Unlock()
				require.NoError(t, invalidate(c))
				get(2, "2v2")
				time.Sleep(time.Second + time.Second/2) // now it is under way
				synctest.Wait()
				s.mu.Lock()
				s.version = 3
				s.mu.Unlock()
				require.NoError(t, invalidate(c))
				get(2, "2v3")
				callers.Wait()
				synctest.Wait()
				v, held := c.Peek(2)
				require.True(t, held)
				require.Equal(t, "2v3", v)
				require.Equal(t, []int{1, 2, 2}, s.loads)
				require.NoError(t, c.local.check(defaultCapacity))
			})
		})
	}
}

// What waits for its turn and is not overtaken is kept: it counts from its turn on.
func TestLoadThatWaitedIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &shop{version: 1, takes: time.Second}
		c, err := New(Local(), Options[int, string]{
			Name: "p", Load: s.load, MaxConcurrentLoads: 1, TTL: 10 * time.Second,
			Regions: func(int, string) []string { return []string{"region"} },
		})
		require.NoError(t, err)
		defer c.Close()
		for key := 1; key < 10; key++ {
			go func() { _, _ = c.Get(t.Context(), key) }()
			synctest.Wait()
		}
		require.NoError(t, c.ClearRegion(t.Context(), "region"))
		time.Sleep(9*time.Second + 1)
		require.NoError(t, c.local.check(defaultCapacity))
		require.Equal(t, 8, c.Len(), "all but the first, which was overtaken")
		time.Sleep(5 * time.Second)
		_, held := c.Peek(9)
		require.True(t, held)
	})
}

// Background loads end with their cache.
func TestCloseCancelsLoadsInTheBackground(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &flaky{value: 1}
		c, err := New(Local(), Options[string, int]{
			Name: "p", Load: s.load, TTL: time.Hour, RefreshAfter: time.Minute, StaleIfError: time.Hour, SoftTimeout: time.Second,
		})
		require.NoError(t, err)
		require.Equal(t, 1, get(t, c))
		time.Sleep(time.Minute)
		s.takes = 100 * time.Hour
		require.Equal(t, 1, get(t, c)) // begins a refresh
		time.Sleep(time.Hour)
		require.Equal(t, 1, get(t, c)) // waits for it, and no longer
		require.NoError(t, c.Close())
		synctest.Wait() // the bubble ends only if nothing is left
	})
}

// endless is a context that has the values of a test's, and never ends.
func endless(t *testing.T) context.Context { return context.WithoutCancel(t.Context()) }

// A load runs in the caller's goroutine if the caller cannot leave before it ends, and
// in no other case.
func TestWhereLoadsRun(t *testing.T) {
	tests := map[string]struct {
		ctx  func(*testing.T) context.Context
		set  func(*Options[string, int])
		held bool // and expired
		call func(context.Context, *Cache[string, int]) error
		here bool
	}{
		"a context that never ends":  {here: true},
		"a context that can end":     {ctx: (*testing.T).Context},
		"LoadTimeout":                {set: func(o *Options[string, int]) { o.LoadTimeout = time.Second }},
		"MaxConcurrentLoads":         {set: func(o *Options[string, int]) { o.MaxConcurrentLoads = 1 }, here: true},
		"SoftTimeout, nothing held":  {set: softly, here: true},
		"SoftTimeout, something is":  {set: softly, held: true},
		"StaleIfError":               {set: func(o *Options[string, int]) { o.StaleIfError = time.Hour }, held: true, here: true},
		"Refresh":                    {call: refreshHere, here: true},
		"Refresh, SoftTimeout":       {set: softly, held: true, call: refreshHere, here: true}, // it waits for the new value
		"Refresh, a context can end": {ctx: (*testing.T).Context, call: refreshHere},
		"Refresh, LoadTimeout":       {set: func(o *Options[string, int]) { o.LoadTimeout = time.Second }, call: refreshHere},
		"GetMany":                    {call: getManyHere},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var stack string
				o := Options[string, int]{Name: "p", TTL: time.Minute, Load: func(context.Context, string) (int, error) {
					stack = string(debug.Stack())
					return 1, nil
				}}
				if test.set != nil {
					test.set(&o)
				}
				c, err := New(Local(), o)
				require.NoError(t, err)
				defer c.Close()
				if test.held {
					require.NoError(t, c.Set(t.Context(), "k", 0))
					time.Sleep(2 * time.Minute)
				}
				ctx, call := endless(t), getHere
				if test.ctx != nil {
					ctx = test.ctx(t)
				}
				if test.call != nil {
					call = test.call
				}
				require.NoError(t, call(ctx, c))
				require.NotEmpty(t, stack)
				require.Equal(t, test.here, strings.Contains(stack, "Here("), stack)
				require.NoError(t, c.local.check(defaultCapacity))
			})
		})
	}
}

func softly(o *Options[string, int]) { o.StaleIfError, o.SoftTimeout = time.Hour, time.Second }

func getHere(ctx context.Context, c *Cache[string, int]) error {
	_, err := c.Get(ctx, "k")
	return err
}

func refreshHere(ctx context.Context, c *Cache[string, int]) error {
	_, err := c.Refresh(ctx, "k")
	return err
}

func getManyHere(ctx context.Context, c *Cache[string, int]) error {
	_, err := c.GetMany(ctx, "k")
	return err
}

// With a shared level, claims and waits for others come first, in another goroutine.
func TestSharedLoadsRunElsewhere(t *testing.T) {
	for _, lease := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			var stack string
			bus, caches := simulatedFleet(t, 1, func(int) Options[string, int] {
				return Options[string, int]{Load: func(context.Context, string) (int, error) {
					stack = string(debug.Stack())
					return 1, nil
				}}
			})
			if !lease {
				bus.Stop()
				time.Sleep(2 * defaultMaxStaleness)
			}
			require.NoError(t, getHere(endless(t), caches[0]))
			require.NotEmpty(t, stack)
			require.NotContains(t, stack, "Here(")
			if !lease {
				bus.Start()
				time.Sleep(defaultMaxStaleness)
			}
		})
	}
}

// Of the callers of a load that runs in the goroutine of one, the others leave as ever,
// and who comes after an invalidation does not join it.
func TestLoadInTheCallersGoroutine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &shop{version: 1, takes: time.Second}
		c, err := New(Local(), Options[int, string]{Name: "p", Load: s.load})
		require.NoError(t, err)
		defer c.Close()
		var callers sync.WaitGroup
		get := func(ctx context.Context, want string, wantErr error) {
			callers.Go(func() {
				v, err := c.Get(ctx, 1)
				assert.Equal(t, wantErr, err)
				assert.Equal(t, want, v)
			})
			synctest.Wait()
		}
		get(endless(t), "1v1", nil)
		short, cancel := context.WithTimeout(t.Context(), time.Second/2)
		defer cancel()
		get(short, "", context.DeadlineExceeded)
		get(t.Context(), "1v1", nil)
		get(endless(t), "1v1", nil)
		require.Equal(t, []int{1}, s.loads)

		time.Sleep(3 * time.Second / 4)
		s.mu.Lock()
		s.version = 2
		s.mu.Unlock()
		require.NoError(t, c.Remove(t.Context(), 1))
		get(endless(t), "1v2", nil)
		callers.Wait()
		require.Equal(t, []int{1, 1}, s.loads)
		v, held := c.Peek(1)
		require.True(t, held)
		require.Equal(t, "1v2", v)
		require.NoError(t, c.local.check(defaultCapacity))
	})
}

// Callers that run their loads inline wait for a slot too. A caller that needs no slot may
// run such a load before them. The caller that waits for the slot then gets its result.
//
//  1. load 1 has the only slot, in its caller's goroutine   2. a caller of 2 waits for
//     the slot, to load inline   3. load 1 asks for 2, which then needs no slot.
func TestLoadInTheCallersGoroutineWaitsForItsTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ask := make(chan struct{})
		var c *Cache[int, int]
		loads := 0
		c, err := New(Local(), Options[int, int]{Name: "p", MaxConcurrentLoads: 1, Load: func(ctx context.Context, key int) (int, error) {
			loads++
			if key != 1 {
				return 10 * key, nil
			}
			<-ask
			other, err := c.Get(ctx, 2)
			return 1 + other, err
		}})
		require.NoError(t, err)
		defer c.Close()
		var callers sync.WaitGroup
		get := func(key, want int) {
			callers.Go(func() {
				v, err := c.Get(endless(t), key)
				assert.NoError(t, err)
				assert.Equal(t, want, v)
			})
			synctest.Wait()
		}
		get(1, 21)
		get(2, 20)
		get(3, 30)
		require.Equal(t, 1, loads)
		close(ask)
		callers.Wait()
		require.Equal(t, 3, loads)
		require.Empty(t, c.loader.slots)
	})
}

// A load that has the only place needs no other one for what it asks for with its own
// context's values, though that is to be loaded in its goroutine.
func TestLoadInTheCallersGoroutineThatLoads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c *Cache[int, int]
		c, err := New(Local(), Options[int, int]{Name: "p", MaxConcurrentLoads: 1, Load: func(ctx context.Context, key int) (int, error) {
			if key == 3 {
				return 3, nil
			}
			return c.Get(context.WithoutCancel(ctx), key+1)
		}})
		require.NoError(t, err)
		defer c.Close()
		v, err := c.Get(endless(t), 0)
		require.NoError(t, err)
		require.Equal(t, 3, v)
		require.Empty(t, c.loader.slots)
	})
}

// Goexit ends the goroutine that it is called in. Nothing is left behind: the others
// have an error, the place is free, and the next Get loads.
func TestGoexitInTheCallersGoroutine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		exits := true
		c, err := New(Local(), Options[int, int]{Name: "p", MaxConcurrentLoads: 1, Load: func(context.Context, int) (int, error) {
			if exits {
				<-release
				runtime.Goexit()
			}
			return 1, nil
		}})
		require.NoError(t, err)
		defer c.Close()
		var callers sync.WaitGroup
		returned := false
		callers.Go(func() {
			_, _ = c.Get(endless(t), 1)
			returned = true
		})
		synctest.Wait()
		callers.Go(func() {
			_, err := c.Get(t.Context(), 1)
			assert.ErrorIs(t, err, errGoexit)
		})
		synctest.Wait()
		close(release)
		callers.Wait()
		require.False(t, returned)
		exits = false
		v, err := c.Get(endless(t), 1)
		require.NoError(t, err)
		require.Equal(t, 1, v)
		require.NoError(t, c.local.check(defaultCapacity))
	})
}
