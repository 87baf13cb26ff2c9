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

// hanging is a source whose loads hang while it says so.
type hanging struct {
	hangs   atomic.Bool
	ignores atomic.Bool // its loads do not heed their contexts
	loads   atomic.Int64
	under   atomic.Int64
	release chan struct{}
}

func (h *hanging) load(ctx context.Context, _ string) (int, error) {
	n := h.loads.Add(1)
	h.under.Add(1)
	defer h.under.Add(-1)
	if h.hangs.Load() {
		done := ctx.Done()
		if h.ignores.Load() {
			done = nil
		}
		select {
		case <-done:
			return 0, ctx.Err()
		case <-h.release:
		}
	}
	return int(n), nil
}

func (h *hanging) in(t *testing.T, o Options[string, int], f func(*testing.T, *Cache[string, int])) {
	for _, ignores := range []bool{false, true} {
		t.Run(fmt.Sprint("ignores ", ignores), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h.hangs.Store(false)
				h.ignores.Store(ignores)
				h.loads.Store(0)
				h.release = make(chan struct{})
				o.Name, o.Load = "p", h.load
				c, err := New(Local(), o)
				require.NoError(t, err)
				f(t, c)
				require.NoError(t, c.local.check(defaultCapacity))
				require.NoError(t, c.Close())
				close(h.release)
				synctest.Wait()
				require.Zero(t, h.under.Load())
				require.Zero(t, c.loader.refreshes.Load())
			})
		})
	}
}

// getSoon is get for a caller that waits for a second at most.
func getSoon(t *testing.T, c *Cache[string, int], key string) (int, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	return c.Get(ctx, key)
}

func anHour(string, int) time.Duration { return time.Hour }

// A refresh that hangs ends with its item: the next Get begins a new load, and is
// served.
func TestRefreshAheadThatHangs(t *testing.T) {
	h := &hanging{}
	h.in(t, Options[string, int]{Expiry: anHour, RefreshAfter: time.Minute}, func(t *testing.T, c *Cache[string, int]) {
		require.Equal(t, 1, get(t, c))
		time.Sleep(time.Minute)
		h.hangs.Store(true)
		require.Equal(t, 1, get(t, c))
		synctest.Wait()
		require.EqualValues(t, 1, h.under.Load())
		h.hangs.Store(false)
		time.Sleep(59*time.Minute - 1)
		require.Equal(t, 1, get(t, c))
		require.EqualValues(t, 2, h.loads.Load())
		time.Sleep(time.Nanosecond)
		require.Equal(t, 3, get(t, c), "at the very moment at which its item ends")
		if !h.ignores.Load() {
			synctest.Wait()
			require.Zero(t, h.under.Load(), "it was cancelled")
		}
	})
}

// It ends though nobody asks for the item any more.
func TestRefreshAheadThatHangsEndsByItself(t *testing.T) {
	h := &hanging{}
	h.in(t, Options[string, int]{Expiry: anHour, RefreshAfter: time.Minute}, func(t *testing.T, c *Cache[string, int]) {
		require.Equal(t, 1, get(t, c))
		time.Sleep(time.Minute)
		h.hangs.Store(true)
		require.Equal(t, 1, get(t, c))
		time.Sleep(time.Hour)
		synctest.Wait()
		require.Zero(t, c.loader.refreshes.Load())
		require.Empty(t, c.local.shard(c.local.hash("k")).flights)
		if !h.ignores.Load() {
			require.Zero(t, h.under.Load())
		}
	})
}

// As many refreshes as there may be at a time hang, and end with their items. Then
// others begin.
func TestSixteenRefreshesThatHang(t *testing.T) {
	h := &hanging{}
	lives := func(key string, _ int) time.Duration {
		if key == "later" {
			return 3 * time.Hour
		}
		return time.Hour
	}
	h.in(t, Options[string, int]{Expiry: lives, RefreshAfter: time.Minute}, func(t *testing.T, c *Cache[string, int]) {
		for i := range refreshesAtOnce {
			_, err := getSoon(t, c, fmt.Sprint(i))
			require.NoError(t, err)
		}
		_, err := getSoon(t, c, "later")
		require.NoError(t, err)
		time.Sleep(time.Minute)
		h.hangs.Store(true)
		for i := range refreshesAtOnce {
			_, err := getSoon(t, c, fmt.Sprint(i))
			require.NoError(t, err)
		}
		synctest.Wait()
		require.EqualValues(t, refreshesAtOnce, h.under.Load())
		h.hangs.Store(false)
		loads := h.loads.Load()
		_, err = getSoon(t, c, "later")
		require.NoError(t, err)
		synctest.Wait()
		require.Equal(t, loads, h.loads.Load(), "there is no room")
		time.Sleep(time.Hour)
		_, err = getSoon(t, c, "later")
		require.NoError(t, err)
		synctest.Wait()
		require.Equal(t, loads+1, h.loads.Load(), "there is again")
	})
}

// Whatever ends an item early ends its refresh for those that come then, or at once.
func TestRefreshAheadThatHangsAndLosesItsItem(t *testing.T) {
	for name, lose := range map[string]func(t *testing.T, c *Cache[string, int]){
		"Remove":      func(t *testing.T, c *Cache[string, int]) { require.NoError(t, c.Remove(t.Context(), "k")) },
		"Clear":       func(t *testing.T, c *Cache[string, int]) { require.NoError(t, c.Clear(t.Context())) },
		"ClearRegion": func(t *testing.T, c *Cache[string, int]) { require.NoError(t, c.ClearRegion(t.Context(), "region")) },
		"eviction": func(t *testing.T, c *Cache[string, int]) {
			for i := range 100 {
				_, err := getSoon(t, c, fmt.Sprint(i))
				require.NoError(t, err)
			}
		},
		"IdleTTL": func(*testing.T, *Cache[string, int]) { time.Sleep(10 * time.Minute) },
	} {
		for _, life := range []time.Duration{time.Hour, NoExpiry} {
			t.Run(fmt.Sprint(name, life), func(t *testing.T) {
				h := &hanging{}
				h.in(t, Options[string, int]{
					Expiry: func(string, int) time.Duration { return life }, RefreshAfter: time.Minute, IdleTTL: 5 * time.Minute, Capacity: 4, Eviction: LRU,
					Regions: func(string, int) []string { return []string{"region"} },
				}, func(t *testing.T, c *Cache[string, int]) {
					require.Equal(t, 1, get(t, c))
					time.Sleep(time.Minute)
					h.hangs.Store(true)
					require.Equal(t, 1, get(t, c))
					synctest.Wait()
					h.hangs.Store(false)
					lose(t, c)
					v, err := c.Get(context.Background(), "k") // without a deadline
					require.NoError(t, err)
					require.Greater(t, v, 1)
					synctest.Wait()
					require.Empty(t, c.local.shard(c.local.hash("k")).flights)
					if name != "Clear" {
						require.Zero(t, c.loader.refreshes.Load(), "its place is free")
					}
					time.Sleep(time.Hour)
					require.Zero(t, c.loader.refreshes.Load(), "its place is free")
				})
			})
		}
	}
}

// A refresh of an item that never expires ends, too, and another begins.
func TestRefreshAheadOfAnEndlessItemThatHangs(t *testing.T) {
	h := &hanging{}
	h.in(t, Options[string, int]{TTL: NoExpiry, RefreshAfter: time.Minute}, func(t *testing.T, c *Cache[string, int]) {
		require.Equal(t, 1, get(t, c))
		time.Sleep(time.Minute)
		h.hangs.Store(true)
		require.Equal(t, 1, get(t, c))
		synctest.Wait()
		h.hangs.Store(false)
		time.Sleep(longestRefresh)
		synctest.Wait()
		require.Zero(t, c.loader.refreshes.Load())
		require.Equal(t, 1, get(t, c))
		synctest.Wait()
		require.Equal(t, 3, get(t, c))
	})
}

// Who waits for a refresh makes an ordinary load of it, which lasts as long as they
// wait and no longer.
func TestRefreshAheadThatIsWaitedFor(t *testing.T) {
	h := &hanging{}
	h.in(t, Options[string, int]{
		Expiry: anHour, RefreshAfter: time.Minute,
	}, func(t *testing.T, c *Cache[string, int]) {
		require.Equal(t, 1, get(t, c))
		time.Sleep(59 * time.Minute)
		h.hangs.Store(true)
		require.Equal(t, 1, get(t, c))
		synctest.Wait()
		key := "k"
		from := calledWith(t.Context())
		j := c.loader.join(from, key, startOptions{})
		require.NotNil(t, j.entry)
		f := c.local.shard(c.local.hash(key)).flights[key]
		c.local.shard(c.local.hash(key)).mu.Lock()
		f.waiters++ // a caller that has found its item unleased
		c.local.shard(c.local.hash(key)).mu.Unlock()
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		require.NoError(t, f.ctx.Err(), "it is waited for")
		require.Zero(t, c.loader.refreshes.Load(), "it is no refresh any more")
		c.loader.leave(from, &lookup[string, int]{flight: f})
		require.Error(t, f.ctx.Err(), "nobody waits for it any more")
	})
}

// A load that goes on after SoftTimeout is joined until the last use of its item is
// over, and not after that.
func TestDetachedLoadThatHangs(t *testing.T) {
	h := &hanging{}
	h.in(t, Options[string, int]{
		Expiry: anHour, StaleIfError: time.Hour, SoftTimeout: time.Second,
	}, func(t *testing.T, c *Cache[string, int]) {
		require.Equal(t, 1, get(t, c))
		time.Sleep(time.Hour)
		h.hangs.Store(true)
		require.Equal(t, 1, get(t, c))
		h.hangs.Store(false)
		for range 10 {
			time.Sleep(5 * time.Minute)
			began := time.Now()
			require.Equal(t, 1, get(t, c))
			require.Equal(t, began, time.Now(), "others need not wait")
		}
		require.EqualValues(t, 2, h.loads.Load())
		time.Sleep(10 * time.Minute)
		require.Equal(t, 3, get(t, c), "there is nothing left to serve")
		if !h.ignores.Load() {
			synctest.Wait()
			require.Zero(t, h.under.Load())
		}
	})
}

// A hung refresh does not hold up what comes later, and one that its loader never ends
// keeps its turn of MaxConcurrentLoads, which says how many calls are under way.
func TestRefreshAheadThatHangsAndMaxConcurrentLoads(t *testing.T) {
	h := &hanging{}
	h.in(t, Options[string, int]{
		Expiry: anHour, RefreshAfter: time.Minute, MaxConcurrentLoads: 2,
	}, func(t *testing.T, c *Cache[string, int]) {
		require.Equal(t, 1, get(t, c))
		time.Sleep(time.Minute)
		h.hangs.Store(true)
		require.Equal(t, 1, get(t, c))
		synctest.Wait()
		h.hangs.Store(false)
		time.Sleep(time.Hour)
		synctest.Wait()
		want := 0
		if h.ignores.Load() {
			want = 1
		}
		require.Len(t, c.loader.slots, want)
		require.Equal(t, 3, get(t, c))
	})
}

// Loads that several callers have let go are ended once, and callers that come at that
// moment are served.
func TestDetachedLoadsAtTheirLastMoment(t *testing.T) {
	for range 20 {
		synctest.Test(t, func(t *testing.T) {
			h := &hanging{release: make(chan struct{})}
			c, err := New(Local(), Options[string, int]{
				Name: "p", Load: h.load, Expiry: func(string, int) time.Duration { return time.Minute },
				RefreshAfter: time.Second, StaleIfError: time.Minute, SoftTimeout: time.Second,
			})
			require.NoError(t, err)
			defer c.Close()
			require.Equal(t, 1, get(t, c))
			time.Sleep(time.Second)
			h.hangs.Store(true)
			require.Equal(t, 1, get(t, c))
			time.Sleep(59 * time.Second)
			var callers sync.WaitGroup
			for range 10 {
				callers.Go(func() { require.Equal(t, 1, get(t, c)) })
			}
			callers.Wait()
			h.hangs.Store(false)
			time.Sleep(59 * time.Second)
			for range 10 {
				callers.Go(func() {
					v, err := c.Get(t.Context(), "k")
					assert.NoError(t, err)
					assert.Greater(t, v, 1)
				})
			}
			callers.Wait()
			synctest.Wait()
			require.Zero(t, h.under.Load())
			require.NoError(t, c.local.check(defaultCapacity))
		})
	}
}
