package nearcache

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

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
