package nearcache

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache/internal/fakebus"
	"github.com/nearcache/nearcache/internal/transport"
)

// simulatedFleet makes a shared cache on each of so many instances, in a bubble.
func simulatedFleet[K comparable](
	t *testing.T, instances int, options func(instance int) Options[K, int],
) (*fakebus.Bus, []*Cache[K, int]) {
	t.Helper()
	bus := fakebus.New(fakebus.Options{Instances: instances})
	t.Cleanup(bus.Close)
	var caches []*Cache[K, int]
	for i := range instances {
		bp := joinSimulated(t, bus, i)
		t.Cleanup(func() { require.NoError(t, bp.Close()) })
		o := options(i)
		o.Name = "items"
		if o.Shared == nil {
			o.Shared = &SharedOptions[int]{}
		}
		c, err := New(bp, o)
		require.NoError(t, err)
		caches = append(caches, c)
	}
	return bus, caches
}

// hold returns a loader that does not return before released is closed.
func hold(released <-chan struct{}) func(context.Context, int) (int, error) {
	return func(_ context.Context, n int) (int, error) {
		<-released
		return n, nil
	}
}

// holdLoad makes two instances, of which A has begun to load item 1. It ends when it
// is released.
func holdLoad(t *testing.T) (bus *fakebus.Bus, a, b *Cache[int, int], release func()) {
	t.Helper()
	released := make(chan struct{})
	bus, caches := simulatedFleet(t, 2, func(i int) Options[int, int] {
		return Options[int, int]{Load: []func(context.Context, int) (int, error){hold(released), itself}[i]}
	})
	var held sync.WaitGroup
	held.Go(func() {
		v, err := caches[0].Get(context.Background(), 1)
		assert.NoError(t, err)
		assert.Equal(t, 1, v)
	})
	time.Sleep(100 * time.Millisecond)
	return bus, caches[0], caches[1], func() {
		close(released)
		held.Wait()
	}
}

// 1. A loads item 1   2. B asks for items 1 and 2, and loads 2   3. C asks for 2. It
// must not wait for what B waits for.
func TestSharedGetManyStoresBeforeItWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		released := make(chan struct{})
		_, caches := simulatedFleet(t, 3, func(i int) Options[int, int] {
			o := Options[int, int]{Load: itself}
			switch i {
			case 0:
				o.Load = hold(released)
			case 1:
				o.LoadMany = eachItself(nil)
			}
			return o
		})
		a, b, c := caches[0], caches[1], caches[2]
		var done sync.WaitGroup
		done.Go(func() { _, _ = a.Get(context.Background(), 1) })
		time.Sleep(100 * time.Millisecond)
		done.Go(func() {
			got, err := b.GetMany(context.Background(), 1, 2)
			require.NoError(t, err)
			require.Len(t, got, 2)
		})
		time.Sleep(100 * time.Millisecond)
		v, err := c.Get(t.Context(), 2)
		require.NoError(t, err)
		require.Equal(t, 2, v)
		require.EqualValues(t, 1, c.Stats().Shared.Hits)
		close(released)
		done.Wait()
		require.EqualValues(t, 1, b.Stats().Shared.Waited)
	})
}

// eachItself is a LoadMany that counts how often each key is loaded.
func eachItself(count func(n int)) func(context.Context, []int) (map[int]int, error) {
	return func(_ context.Context, keys []int) (map[int]int, error) {
		time.Sleep(20 * time.Millisecond)
		got := map[int]int{}
		for _, key := range keys {
			got[key] = key
			if count != nil {
				count(key)
			}
		}
		return got, nil
	}
}

// Two that ask for the same items, each beginning with those that the other asks for
// last, wait for each other's and load each once.
func TestSharedGetManyCross(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const keys = 2 * mostTogether
		var mu sync.Mutex
		loads := map[int]int{}
		count := func(n int) {
			mu.Lock()
			defer mu.Unlock()
			loads[n]++
		}
		_, caches := simulatedFleet(t, 2, func(int) Options[int, int] {
			return Options[int, int]{LoadMany: eachItself(count)}
		})
		var done sync.WaitGroup
		began := time.Now()
		for i, c := range caches {
			done.Go(func() {
				var all []int
				for key := range keys {
					all = append(all, []int{key, keys - 1 - key}[i])
				}
				got, err := c.GetMany(context.Background(), all...)
				require.NoError(t, err)
				require.Len(t, got, keys)
			})
		}
		done.Wait()
		require.Less(t, time.Since(began), time.Second)
		require.Len(t, loads, keys)
		for key, n := range loads {
			require.Equal(t, 1, n, "loads of %d", key)
		}
		require.NotZero(t, caches[0].Stats().Shared.Waited)
		require.NotZero(t, caches[1].Stats().Shared.Waited)
	})
}

// A function that ends its goroutine leaves no claim behind, and nobody waiting.
func TestSharedGoexitLeavesNoClaim(t *testing.T) {
	exits := func(context.Context, int) (int, error) { runtime.Goexit(); return 0, nil }
	exitsMany := func(context.Context, []int) (map[int]int, error) { runtime.Goexit(); return nil, nil }
	tests := []struct {
		name    string
		options Options[int, int]
		fails   bool
	}{
		{"Load", Options[int, int]{Load: exits}, true},
		{"LoadMany", Options[int, int]{LoadMany: exitsMany}, true},
		{"Marshal", Options[int, int]{Load: itself, Shared: &SharedOptions[int]{Codec: exitingMarshal{}}}, false},
		{"Marshal after LoadMany", Options[int, int]{
			LoadMany: eachItself(nil), Shared: &SharedOptions[int]{Codec: exitingMarshal{}},
		}, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				_, caches := simulatedFleet(t, 2, func(i int) Options[int, int] {
					if i == 0 {
						return test.options
					}
					return Options[int, int]{Load: itself}
				})
				got, err := caches[0].GetMany(t.Context(), 1, 2)
				if test.fails {
					require.ErrorIs(t, err, errGoexit)
				} else {
					require.NoError(t, err)
					require.Len(t, got, 2)
				}
				began := time.Now()
				for key := range 2 {
					v, err := caches[1].Get(t.Context(), 1+key)
					require.NoError(t, err)
					require.Equal(t, 1+key, v)
				}
				require.Less(t, time.Since(began), time.Second)
			})
		})
	}
}

type exitingMarshal struct{ jsonCodec[int] }

func (exitingMarshal) Marshal(int) ([]byte, error) { runtime.Goexit(); return nil, nil }

// A key whose MarshalText panics, but not where a caller would be told, costs him no more
// than the shared level.
func TestSharedKeyThatPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, caches := simulatedFleet(t, 1, func(int) Options[panickyKey, int] {
			return Options[panickyKey, int]{Load: func(_ context.Context, key panickyKey) (int, error) { return key.n, nil }}
		})
		v, err := caches[0].Get(t.Context(), panickyKey{7, new(int)})
		require.NoError(t, err)
		require.Equal(t, 7, v)
		require.EqualValues(t, 1, caches[0].Stats().Shared.Skipped.NoLease)
	})
}

// panickyKey has a text only once.
type panickyKey struct {
	n    int
	told *int
}

func (k panickyKey) MarshalText() ([]byte, error) {
	if *k.told++; *k.told > 1 {
		panic("told already")
	}
	lastPanicky = k
	return nil, nil
}

func (k *panickyKey) UnmarshalText([]byte) error { *k = lastPanicky; return nil }

var lastPanicky panickyKey

// tooLarge is a value that takes more than 8 bytes, and is an int everywhere; so many
// minutes are a time.Duration.
const tooLarge = 100_000_000

// A Refresh that finds nothing, or nothing that is to be kept, leaves no older value to
// the others.
func TestSharedRefreshForgets(t *testing.T) {
	tests := []struct {
		name string
		now  func() (int, error)
	}{
		{"not found", func() (int, error) { return 0, ErrNotFound }},
		{"not to be kept", func() (int, error) { return -1, nil }},
		{"too large", func() (int, error) { return tooLarge, nil }},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				load := func() (int, error) { return 1, nil }
				_, caches := simulatedFleet(t, 2, func(int) Options[int, int] {
					return Options[int, int]{
						Load: func(context.Context, int) (int, error) { return load() },
						Expiry: func(_, value int) time.Duration {
							return time.Duration(value) * time.Minute // those below 0 are not kept
						},
						Shared: &SharedOptions[int]{MaxValueBytes: 8},
					}
				})
				_, err := caches[0].Get(t.Context(), 7)
				require.NoError(t, err)
				time.Sleep(time.Second)
				require.EqualValues(t, 1, caches[0].Stats().Shared.Stored)
				load = test.now
				want, wantErr := load()
				_, _ = caches[0].Refresh(t.Context(), 7)
				time.Sleep(time.Second)
				v, err := caches[1].Get(t.Context(), 7)
				require.Equal(t, want, v)
				require.ErrorIs(t, err, wantErr)
			})
		})
	}
}

// slowDown makes each look at Redis take so much longer. It ends at its deadline, but
// does not heed who cancels it.
func slowDown[K comparable](c *Cache[K, int], d time.Duration) {
	synctest.Wait() // whoever has used what is there
	c.loader.shared.redis.values = slowValues{c.loader.shared.redis.values, d}
}

type slowValues struct {
	transport.Values
	d time.Duration
}

func (v slowValues) Read(
	ctx context.Context, cache string, keys, regions []string, most int,
) (transport.Reading, error) {
	if deadline, _ := ctx.Deadline(); time.Until(deadline) < v.d {
		time.Sleep(time.Until(deadline))
		return transport.Reading{}, os.ErrDeadlineExceeded
	}
	time.Sleep(v.d)
	return v.Values.Read(context.WithoutCancel(ctx), cache, keys, regions, most)
}

// Whoever may have a stale item after SoftTimeout has it then, whatever Redis does.
func TestSharedSoftTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, caches := simulatedFleet(t, 1, func(int) Options[int, int] {
			return Options[int, int]{
				Load: itself, Expiry: func(int, int) time.Duration { return time.Minute },
				StaleIfError: time.Hour, SoftTimeout: 10 * time.Millisecond,
			}
		})
		c := caches[0]
		_, err := c.Get(t.Context(), 1)
		require.NoError(t, err)
		time.Sleep(61 * time.Second)
		slowDown(c, time.Second)
		began := time.Now()
		v, err := c.Get(t.Context(), 1)
		require.NoError(t, err)
		require.Equal(t, 1, v)
		require.Equal(t, 10*time.Millisecond, time.Since(began))
		time.Sleep(time.Second) // the load goes on
	})
}

// What is read from the source before a clear is of no use after it, so nobody waits
// for it.
func TestSharedClearInMidLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, _, b, release := holdLoad(t)
		require.NoError(t, b.Clear(t.Context()))
		began := time.Now()
		_, err := b.Get(t.Context(), 1)
		require.NoError(t, err)
		require.Less(t, time.Since(began), 100*time.Millisecond)
		release()
	})
}

// Nobody waits for a load of an instance that has closed its cache: it may be gone
// before the load ends.
func TestSharedCloseEndsClaims(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, a, b, release := holdLoad(t)
		require.NoError(t, a.Close())
		began := time.Now()
		_, err := b.Get(t.Context(), 1)
		require.NoError(t, err)
		require.Less(t, time.Since(began), 100*time.Millisecond)
		release()
		time.Sleep(time.Second)
		require.EqualValues(t, 1, b.Stats().Shared.Stored)
		require.Zero(t, a.Stats().Shared.Stored)
	})
}

// Items that cannot be stored, and loads that fail, are not waited for by one instance
// after another.
func TestSharedUnstorableLoadsRunAtOnce(t *testing.T) {
	const instances, load = 8, 20 * time.Millisecond
	for _, test := range []struct {
		name  string
		value int
		err   error
	}{{"too large", tooLarge, nil}, {"not found", 0, ErrNotFound}, {"an error", 0, errors.New("broken")}, {"an error of the source's context", 0, context.Canceled}} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				_, caches := simulatedFleet(t, instances, func(int) Options[int, int] {
					return Options[int, int]{
						Load: func(context.Context, int) (int, error) {
							time.Sleep(load)
							return test.value, test.err
						},
						Shared: &SharedOptions[int]{MaxValueBytes: 8},
					}
				})
				began := time.Now()
				var done sync.WaitGroup
				for _, c := range caches {
					done.Go(func() {
						v, err := c.Get(context.Background(), 1)
						require.ErrorIs(t, err, test.err)
						require.Equal(t, test.value, v)
					})
				}
				done.Wait()
				require.Less(t, time.Since(began), 4*load)
			})
		})
	}
}

// A Redis that is slower than its callers have time for is not one that fails; one that
// takes longer than Timeout is, though its callers leave.
func TestSharedWhoseFault(t *testing.T) {
	tests := []struct {
		name    string
		slow    time.Duration
		callers func(context.Context, time.Duration) (context.Context, context.CancelFunc)
		time    time.Duration // that they have
		fails   bool
	}{
		{"deadlines", 30 * time.Millisecond, context.WithTimeout, 10 * time.Millisecond, false},
		{"callers that leave", 30 * time.Millisecond, leaving, 10 * time.Millisecond, false},
		{"late deadlines", time.Second, context.WithTimeout, 300 * time.Millisecond, true},
		{"callers that leave a Redis that hangs", time.Second, leaving, 10 * time.Millisecond, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				released := make(chan struct{})
				_, caches := simulatedFleet(t, 1, func(int) Options[int, int] {
					return Options[int, int]{Load: hold(released)}
				})
				defer close(released)
				slowDown(caches[0], test.slow)
				for n := range 2 * mostFailures {
					ctx, cancel := test.callers(t.Context(), test.time)
					_, err := caches[0].Get(ctx, n)
					require.Error(t, err)
					cancel()
				}
				time.Sleep(time.Second)
				require.Equal(t, test.fails, caches[0].Stats().Shared.Errors > 0)
				require.Equal(t, test.fails, caches[0].Stats().Shared.Skipped.Failing > 0)
			})
		})
	}
}

// leaving returns a context that is cancelled after some time.
func leaving(ctx context.Context, after time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	time.AfterFunc(after, cancel)
	return ctx, cancel
}

// That an item does not exist is said in the form of a version, too: it is one of the
// version's items.
func TestSharedNotFoundOfAnotherVersion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, caches := simulatedFleet(t, 2, func(i int) Options[int, int] {
			return Options[int, int]{
				NotFoundTTL: time.Minute, Shared: &SharedOptions[int]{Version: uint32(i)},
				Load: func(context.Context, int) (int, error) { return []int{0, 7}[i], []error{ErrNotFound, nil}[i] },
			}
		})
		_, err := caches[0].Get(t.Context(), 1)
		require.ErrorIs(t, err, ErrNotFound)
		time.Sleep(time.Second)
		require.EqualValues(t, 1, caches[0].Stats().Shared.Stored)
		v, err := caches[1].Get(t.Context(), 1)
		require.NoError(t, err)
		require.Equal(t, 7, v)
	})
}

// 1. a load has the only place   2. a Get has another one begin, in its turn   3. the
// first asks for that, and flies it at once. It must not be in a data race with 2.
func TestSharedLoadsThatAskForOthers(t *testing.T) {
	for _, shares := range []bool{true, false} {
		t.Run(fmt.Sprintf("shared %t", shares), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const rounds = 300
				var c *Cache[int, int]
				o := Options[int, int]{
					Name: "items", MaxConcurrentLoads: 1,
					Load: func(ctx context.Context, n int) (int, error) {
						if n < rounds {
							return n, nil
						}
						return c.Get(ctx, n-rounds)
					},
				}
				if shares {
					_, caches := simulatedFleet(t, 1, func(int) Options[int, int] { return o })
					c = caches[0]
				} else {
					var err error
					c, err = New(Local(), o)
					require.NoError(t, err)
				}
				defer c.Close()
				for n := range rounds {
					var done sync.WaitGroup
					for _, key := range []int{n + rounds, n, n, n} {
						done.Go(func() {
							v, err := c.Get(context.Background(), key)
							assert.NoError(t, err)
							assert.Equal(t, n, v)
						})
					}
					done.Wait()
				}
			})
		})
	}
}

// A load is waited for no longer than it may take.
func TestSharedLoadWaitIsWithinLoadTimeout(t *testing.T) {
	for _, test := range []struct{ given, loadTimeout, want time.Duration }{
		{0, 0, defaultLoadWait},
		{0, time.Minute, defaultLoadWait},
		{0, time.Second, time.Second},
		{time.Minute, 0, time.Minute},
		{time.Minute, 2 * time.Minute, time.Minute},
		{time.Minute, time.Second, time.Second},
		{time.Second, time.Microsecond, time.Millisecond},
	} {
		c, err := New(Local(), Options[int, int]{
			Name: "items", Load: itself, LoadTimeout: test.loadTimeout, Shared: &SharedOptions[int]{LoadWait: test.given},
		})
		require.NoError(t, err)
		require.Equal(t, test.want, c.options.Shared.LoadWait, "%+v", test)
		require.NoError(t, c.Close())
	}
}

// An instance that could not end its claim in time, as Redis was gone, is waited for
// until the claim has expired, and not longer.
func TestSharedClaimThatIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus, _, b, release := holdLoad(t)
		bus.Instance(0).Partition()
		release()
		began := time.Now()
		_, err := b.Get(t.Context(), 1)
		require.NoError(t, err)
		require.InDelta(t, defaultLoadWait, time.Since(began), float64(time.Second))
	})
}

// A clear of the cache voids the values of one whose items have no regions, too.
func TestSharedClearWithoutRegions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		loads := 0
		_, caches := simulatedFleet(t, 2, func(int) Options[int, int] {
			return Options[int, int]{Load: func(context.Context, int) (int, error) { loads++; return loads, nil }}
		})
		_, err := caches[0].Get(t.Context(), 7)
		require.NoError(t, err)
		time.Sleep(time.Second)
		require.EqualValues(t, 1, caches[0].Stats().Shared.Stored)
		require.NoError(t, caches[1].Clear(t.Context()))
		for _, c := range caches {
			v, err := c.Get(t.Context(), 7)
			require.NoError(t, err)
			require.Equal(t, 2, v)
			time.Sleep(time.Second)
		}
	})
}

// An instance without a lease does not know whether Redis has accepted what others
// invalidated: it reads no values.
//
//  1. the master is cut off from the others, and takes no writes any more; another one
//     accepts an invalidation   2. the lease ends   3. the old value is still there.
func TestSharedNeedsALease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		version := 1
		bus, caches := simulatedFleet(t, 2, func(int) Options[int, int] {
			return Options[int, int]{Load: func(context.Context, int) (int, error) { return version, nil }}
		})
		_, err := caches[0].Get(t.Context(), 7)
		require.NoError(t, err)
		time.Sleep(time.Second)
		require.EqualValues(t, 1, caches[0].Stats().Shared.Stored)
		version = 2
		bus.RefuseWrites(true)
		time.Sleep(time.Minute)
		v, err := caches[1].Get(t.Context(), 7)
		require.NoError(t, err)
		require.Equal(t, 2, v)
		s := caches[1].Stats().Shared
		require.EqualValues(t, 1, s.Skipped.NoLease)
		require.Zero(t, s.Hits)
	})
}
