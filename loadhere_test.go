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

// Callers who run their loads wait for a turn too. Whoever is in a hurry runs such a
// load first, and its caller gets the result.
//
//  1. load 1 has the only place, in its caller's goroutine   2. a caller of 2 waits
//     for the place, to load in his   3. load 1 asks for 2, which needs no place then.
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
