package nearcache

import (
	"context"
	"errors"
	"math/rand/v2"
	"runtime"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache/internal/transport"
)

// A map from which is deleted by forget holds what a map does, and is replaced when it is
// much too large.
func TestForget(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	m, want, most, replaced := map[int]int{}, map[int]int{}, 0, 0
	for range 50 {
		size := r.IntN(5000)
		for len(m) < size {
			key := r.Int()
			m[key], want[key] = key, key
		}
		left := r.IntN(size + 1)
		if r.IntN(2) == 0 {
			left = 0
		}
		for key := range want {
			if len(m) <= left {
				break
			}
			before := most
			forget(&m, &most, key)
			delete(want, key)
			if most < before {
				replaced++
				require.Equal(t, len(m), most)
			}
			require.True(t, most < leastShrunk || len(m) > most/shrinkShare, "%d of %d", len(m), most)
		}
		require.Equal(t, want, m)
	}
	require.Positive(t, replaced)
	forget(&m, &most, -1)
	require.Equal(t, want, m)
}

// A burst leaves no memory behind: the maps of loads and writes under way, of failures,
// of regions and of claims shrink when it is over.
func TestMapsGiveTheirMemoryBack(t *testing.T) {
	const burst = 200_000
	const allowed = 1 << 20 // the maps alone took many times as much
	grown := func(t *testing.T, do func()) {
		t.Helper()
		before := heapInUse()
		do()
		now := heapInUse()
		require.Less(t, int64(now)-int64(before), int64(allowed))
	}
	keys := make([]int, burst)
	for i := range keys {
		keys[i] = i
	}
	newCache := func(t *testing.T, o Options[int, int]) *Cache[int, int] {
		o.Name, o.Capacity = "p", 2*burst // keys do not spread evenly
		c, err := New(Local(), o)
		require.NoError(t, err)
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	missing := func(context.Context, []int) (map[int]int, error) { return nil, nil }

	t.Run("loads", func(t *testing.T) {
		c := newCache(t, Options[int, int]{LoadMany: missing})
		grown(t, func() {
			got, err := c.GetMany(context.Background(), keys...)
			require.NoError(t, err)
			require.Empty(t, got)
		})
		runtime.KeepAlive(c)
	})
	t.Run("loads that are overtaken by Clear", func(t *testing.T) {
		c := newCache(t, Options[int, int]{LoadMany: missing})
		grown(t, func() {
			c.loader.loadMany = func(ctx context.Context, _ []int) (map[int]int, error) { return nil, c.Clear(ctx) }
			_, err := c.GetMany(context.Background(), keys...)
			require.NoError(t, err)
		})
		runtime.KeepAlive(c)
	})
	t.Run("loads that are overtaken by Remove", func(t *testing.T) {
		c := newCache(t, Options[int, int]{LoadMany: missing})
		grown(t, func() {
			c.loader.loadMany = func(ctx context.Context, keys []int) (map[int]int, error) { return nil, c.Remove(ctx, keys...) }
			_, err := c.GetMany(context.Background(), keys...)
			require.NoError(t, err)
		})
		runtime.KeepAlive(c)
	})
	t.Run("writes", func(t *testing.T) {
		c := newCache(t, Options[int, int]{LoadMany: missing})
		grown(t, func() {
			writes := make([]*pendingWrite, burst)
			for i := range writes {
				writes[i] = c.local.beginWrite(i)
			}
			for i, w := range writes {
				c.local.endWrite(i, w, &outcome[int]{})
			}
		})
		runtime.KeepAlive(c)
	})
	t.Run("failures", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			fails := false
			c := newCache(t, Options[int, int]{
				TTL: time.Second, StaleIfError: time.Hour,
				LoadMany: func(_ context.Context, keys []int) (map[int]int, error) {
					if fails {
						return nil, errors.New("fails")
					}
					values := make(map[int]int, len(keys))
					for _, key := range keys {
						values[key] = key
					}
					return values, nil
				},
			})
			before := heapInUse()
			got, err := c.GetMany(context.Background(), keys...)
			require.NoError(t, err)
			require.Len(t, got, burst)
			time.Sleep(time.Second)
			fails = true
			again, err := c.GetMany(context.Background(), keys...)
			require.NoError(t, err)
			require.Len(t, again, burst)
			require.NoError(t, c.Remove(context.Background(), keys...))
			for i := range c.local.shards {
				require.Empty(t, c.local.shards[i].failedLoads)
			}
			require.Less(t, int64(heapInUse())-int64(before), int64(4<<20)) // the policy remembers hashes
			runtime.KeepAlive(c)
		})
	})
	t.Run("regions", func(t *testing.T) {
		c := newCache(t, Options[int, int]{
			LoadMany: missing, Regions: func(key, _ int) []string { return []string{strconv.Itoa(key)} },
		})
		before := heapInUse()
		for _, key := range keys {
			require.NoError(t, c.Set(context.Background(), key, key))
		}
		require.NoError(t, c.Remove(context.Background(), keys...))
		require.Less(t, int64(heapInUse())-int64(before), int64(4<<20))
		runtime.KeepAlive(c)
	})
	t.Run("claims", func(t *testing.T) {
		c := newClaims(func(*heldClaim) {})
		defer c.close()
		grown(t, func() {
			puts := make([]transport.Put, burst)
			for i := range puts {
				token := "token " + strconv.Itoa(i)
				c.hold(&heldClaim{claimed: claimed{key: strconv.Itoa(i)}, token: token, began: time.Now(), life: time.Hour, most: time.Hour})
				puts[i] = transport.Put{Token: token}
			}
			c.letGo(puts)
			require.Empty(t, c.held)
			require.Empty(t, c.newest)
		})
		runtime.KeepAlive(c)
	})
	runtime.KeepAlive(keys)
}
