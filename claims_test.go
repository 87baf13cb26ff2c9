package nearcache

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache/internal/fakebus"
	"github.com/nearcache/nearcache/internal/transport"
)

// takes returns a loader that takes so long, whatever its context does, and counts.
func takes(d time.Duration, loads *atomic.Int32) func(context.Context, int) (int, error) {
	return func(_ context.Context, n int) (int, error) {
		loads.Add(1)
		time.Sleep(d)
		return n, nil
	}
}

// A load that takes longer than LoadWait keeps its claim: its value is stored, and no
// other instance loads, nor waits longer than for it.
func TestSharedSlowLoadKeepsItsClaim(t *testing.T) {
	tests := []struct {
		name string
		load time.Duration
		many bool
	}{
		{"a little longer", 6 * time.Second, false},
		{"many times as long", 50 * time.Second, false},
		{"LoadMany", 20 * time.Second, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var loads atomic.Int32
				_, caches := simulatedFleet(t, 4, func(int) Options[int, int] {
					load := takes(test.load, &loads)
					o := Options[int, int]{Load: load}
					if test.many {
						o.LoadMany = func(ctx context.Context, keys []int) (map[int]int, error) {
							v, err := load(ctx, keys[0])
							return map[int]int{keys[0]: v}, err
						}
					}
					return o
				})
				began := time.Now()
				var done sync.WaitGroup
				for _, c := range caches {
					done.Go(func() {
						got, err := c.GetMany(context.Background(), 7)
						require.NoError(t, err)
						require.Equal(t, 7, got[7])
					})
					time.Sleep(100 * time.Millisecond)
				}
				done.Wait()
				require.Less(t, time.Since(began), test.load+time.Second)
				require.EqualValues(t, 1, loads.Load())
				time.Sleep(time.Second)
				require.EqualValues(t, 1, caches[0].Stats().Shared.Stored)
				require.Zero(t, heldClaims(caches[0].backplane))
				require.Empty(t, caches[0].backplane.claims.newest)
			})
		})
	}
}

// A load that hangs holds the others up for a limited time: LoadTimeout, else some times
// LoadWait. The log says so once, however many there are.
func TestSharedHungLoadLosesItsClaim(t *testing.T) {
	tests := []struct {
		name        string
		loadTimeout time.Duration
		least, most time.Duration // that the others wait
	}{
		{"no LoadTimeout", 0, mostLives * defaultLoadWait, (mostLives + 1) * defaultLoadWait},
		{"LoadTimeout", 20 * time.Second, 20 * time.Second, 20*time.Second + defaultLoadWait},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				bus := fakebus.New(fakebus.Options{Instances: 3})
				defer bus.Close()
				var log bytes.Buffer
				logger := slog.New(slog.NewTextHandler(&log, nil))
				released := make(chan struct{})
				var caches [3]*Cache[int, int]
				for i := range caches {
					o, err := BackplaneOptions{Logger: logger}.withDefaults()
					require.NoError(t, err)
					in, self := bus.Instance(i), instanceID{byte(i + 1)}
					bp, err := joinBus(t.Context(), o, in.Bus(), simulatedIdentity(self, in.Jitter), in.Jitter)
					require.NoError(t, err)
					defer func() { require.NoError(t, bp.Close()) }()
					load := itself
					if i == 0 {
						load = hold(released)
					}
					caches[i], err = New(bp, Options[int, int]{
						Name: "items", Load: load, LoadTimeout: test.loadTimeout, Shared: &SharedOptions[int]{},
					})
					require.NoError(t, err)
				}
				var hung, done sync.WaitGroup
				for n := range 10 {
					hung.Go(func() { _, _ = caches[0].Get(context.Background(), n) })
				}
				time.Sleep(time.Second)
				began := time.Now()
				for _, c := range caches[1:] {
					for n := range 10 {
						done.Go(func() {
							v, err := c.Get(context.Background(), n)
							require.NoError(t, err)
							require.Equal(t, n, v)
							require.Greater(t, time.Since(began), test.least-2*time.Second)
							require.Less(t, time.Since(began), test.most+time.Second)
						})
					}
				}
				done.Wait()
				close(released)
				hung.Wait()
				synctest.Wait()
				require.Equal(t, 1, strings.Count(log.String(), "takes longer than its claim"), log.String())
				require.Contains(t, log.String(), "cache=items")
			})
		})
	}
}

// Nobody waits for a load that nobody waits for where it runs, though it goes on.
func TestSharedAbandonedLoadLosesItsClaim(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		released := make(chan struct{})
		_, caches := simulatedFleet(t, 2, func(i int) Options[int, int] {
			return Options[int, int]{Load: []func(context.Context, int) (int, error){hold(released), itself}[i]}
		})
		defer close(released)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		_, err := caches[0].Get(ctx, 7)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		began := time.Now()
		_, err = caches[1].Get(t.Context(), 7)
		require.NoError(t, err)
		require.Less(t, time.Since(began), defaultLoadWait+time.Second)
	})
}

// An instance that dies while its claim was extended holds the others up for LoadWait.
func TestSharedDeadLoaderLosesItsClaim(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		released := make(chan struct{})
		bus, caches := simulatedFleet(t, 2, func(i int) Options[int, int] {
			return Options[int, int]{Load: []func(context.Context, int) (int, error){hold(released), itself}[i]}
		})
		var held sync.WaitGroup
		held.Go(func() { _, _ = caches[0].Get(context.Background(), 7) })
		time.Sleep(3 * defaultLoadWait)
		bus.Instance(0).Partition()
		began := time.Now()
		_, err := caches[1].Get(t.Context(), 7)
		require.NoError(t, err)
		require.InDelta(t, defaultLoadWait*5/6, time.Since(began), float64(time.Second))
		close(released)
		held.Wait()
	})
}

// 1. a slow load's claim is extended   2. the item is removed   3. it would be extended
// again   4. the load ends: what it brings is old, and stored nowhere.
func TestSharedInvalidationEndsAnExtendedClaim(t *testing.T) {
	for _, late := range []time.Duration{0, 10 * time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			var loads atomic.Int32
			_, caches := simulatedFleet(t, 2, func(i int) Options[int, int] {
				return Options[int, int]{Load: takes([]time.Duration{30 * time.Second, 0}[i], &loads)}
			})
			a, b := caches[0], caches[1]
			var extended atomic.Int32
			record(a.backplane, func([]transport.Keep) {
				extended.Add(1)
				time.Sleep(late) // on its way
			})
			var done sync.WaitGroup
			done.Go(func() { _, _ = a.Get(context.Background(), 7) })
			time.Sleep(12 * time.Second)
			before := extended.Load()
			require.Greater(t, before, int32(4))
			require.NoError(t, b.Remove(t.Context(), 7))
			_, err := b.Get(t.Context(), 7)
			require.NoError(t, err)
			require.EqualValues(t, 2, loads.Load(), "B loads at once")
			done.Wait()
			time.Sleep(time.Second)
			require.Equal(t, before+1, extended.Load(), "what is lost is not extended again")
			require.Zero(t, a.Stats().Shared.Stored)
			require.EqualValues(t, 1, a.Stats().Shared.Overtaken)
			require.EqualValues(t, 1, b.Stats().Shared.Stored)
		})
	}
}

// A load whose claim is extended in time outlasts a Redis that fails once.
func TestSharedExtensionThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var loads atomic.Int32
		bus, caches := simulatedFleet(t, 2, func(int) Options[int, int] {
			return Options[int, int]{Load: takes(9*time.Second, &loads)}
		})
		var done sync.WaitGroup
		done.Go(func() { _, _ = caches[0].Get(context.Background(), 7) })
		time.Sleep(defaultLoadWait / 4)
		bus.RefuseWrites(true)
		time.Sleep(defaultLoadWait / 4)
		bus.RefuseWrites(false)
		v, err := caches[1].Get(t.Context(), 7)
		require.NoError(t, err)
		require.Equal(t, 7, v)
		done.Wait()
		require.EqualValues(t, 1, loads.Load())
	})
}

// 1. a load hangs   2. another of its key begins on the same instance, since a region was
// cleared   3. it does not wait for the claim of the first: it loads, and stores.
func TestSharedLoadsOfOneInstanceShareAClaim(t *testing.T) {
	tests := []struct {
		name   string
		second error // of the second load
		stored uint64
	}{
		{"the second brings a value", nil, 1},
		{"the second fails", context.DeadlineExceeded, 0},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				released := make(chan struct{})
				var loads atomic.Int32
				_, caches := simulatedFleet(t, 2, func(int) Options[int, int] {
					return Options[int, int]{
						Regions: func(int, int) []string { return []string{"r"} },
						Load: func(context.Context, int) (int, error) {
							n := loads.Add(1)
							if n == 1 {
								<-released
							} else if test.second != nil {
								return 0, test.second
							}
							return int(n), nil
						},
					}
				})
				a, b := caches[0], caches[1]
				var hung sync.WaitGroup
				hung.Go(func() {
					v, err := a.Get(context.Background(), 7)
					require.NoError(t, err)
					require.Equal(t, 1, v)
				})
				time.Sleep(3 * defaultLoadWait)
				require.NoError(t, b.ClearRegion(t.Context(), "another"))
				time.Sleep(100 * time.Millisecond)
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				_, err := a.Get(ctx, 7)
				require.Equal(t, test.second, err)
				time.Sleep(100 * time.Millisecond)
				require.EqualValues(t, 2, loads.Load())
				require.Equal(t, test.stored, a.Stats().Shared.Stored)
				if test.stored == 0 {
					require.Equal(t, 1, heldClaims(a.backplane), "the first load has its claim still")
				}
				close(released)
				hung.Wait()
				time.Sleep(100 * time.Millisecond)
				require.EqualValues(t, 1, a.Stats().Shared.Stored)
				require.Zero(t, heldClaims(a.backplane))
				v, err := b.Get(t.Context(), 7)
				require.NoError(t, err)
				require.Equal(t, 1+int(test.stored), v)
				require.EqualValues(t, 2, loads.Load())
			})
		})
	}
}

// manyLoading makes so many shared caches on a backplane, each of which has so many
// loads under way that it has claimed. They end when release is called.
func manyLoading(t *testing.T, bp *Backplane, caches, loads int) (all []*Cache[int, int], release func()) {
	t.Helper()
	released := make(chan struct{})
	var loading sync.WaitGroup
	for i := range caches {
		c, err := New(bp, Options[int, int]{
			Name: fmt.Sprint("items-", i), Load: hold(released), Shared: &SharedOptions[int]{},
		})
		require.NoError(t, err)
		all = append(all, c)
		for n := range loads {
			loading.Go(func() { _, _ = c.Get(context.Background(), n) })
		}
	}
	time.Sleep(100 * time.Millisecond)
	require.Equal(t, caches*loads, heldClaims(bp))
	return all, func() {
		close(released)
		loading.Wait()
	}
}

// heldClaims is how many claims a backplane has.
func heldClaims(bp *Backplane) int {
	bp.claims.mu.Lock()
	defer bp.claims.mu.Unlock()
	return len(bp.claims.held)
}

// record has each request for claims told before it is made.
func record(bp *Backplane, keep func([]transport.Keep)) {
	bp.claims.mu.Lock() // a load that makes a claim has had it
	defer bp.claims.mu.Unlock()
	bp.claims.values = keepRecorder{bp.claims.values, keep}
}

// keepRecorder notes when claims are extended or released.
type keepRecorder struct {
	transport.Values
	keep func([]transport.Keep)
}

func (r keepRecorder) Keep(ctx context.Context, keeps []transport.Keep) ([]bool, error) {
	r.keep(keeps)
	return r.Values.Keep(ctx, keeps)
}

// Everything that Close does shares one deadline, however many caches there are: the
// queue comes first, then the claims of all caches.
func TestCloseWithManySharedCaches(t *testing.T) {
	tests := []struct {
		name   string
		hangs  bool
		queued bool
		most   time.Duration // that Close takes
		keeps  int
	}{
		{"Redis answers", false, false, 100 * time.Millisecond, 2},
		{"Redis answers, and there is a queue", false, true, 100 * time.Millisecond, 2},
		{"Redis hangs", true, false, defaultSharedTimeout, 1},
		{"Redis hangs, and there is a queue", true, true, defaultCloseTimeout, 0},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				bus := fakebus.New(fakebus.Options{Instances: 2})
				defer bus.Close()
				bp := joinSimulated(t, bus, 0)
				all, release := manyLoading(t, bp, 100, 4)
				defer release()
				var keeps atomic.Int32
				record(bp, func(part []transport.Keep) {
					if part[0].Life > 0 {
						return // it is extended
					}
					keeps.Add(1)
					require.LessOrEqual(t, len(part), mostTogether)
					bp.publisher.mu.Lock()
					defer bp.publisher.mu.Unlock()
					require.True(t, bp.publisher.closing, "the queue comes first")
					require.Nil(t, bp.publisher.sending)
				})
				if test.hangs {
					bus.Instance(0).Partition()
				}
				if test.queued {
					gone, cancel := context.WithCancel(t.Context())
					cancel()
					require.ErrorIs(t, all[0].Remove(gone, 7), ErrUnconfirmed)
				}
				began := time.Now()
				err := bp.Close()
				require.LessOrEqual(t, time.Since(began), test.most)
				require.EqualValues(t, test.keeps, keeps.Load())
				if test.hangs && test.queued {
					require.ErrorIs(t, err, ErrUnconfirmed)
				} else {
					require.NoError(t, err)
				}
				if test.hangs {
					return
				}
				// What was given up is for others to take.
				other := joinSimulated(t, bus, 1)
				defer func() { require.NoError(t, other.Close()) }()
				c, err := New(other, Options[int, int]{Name: "items-99", Load: itself, Shared: &SharedOptions[int]{}})
				require.NoError(t, err)
				began = time.Now()
				v, err := c.Get(t.Context(), 3)
				require.NoError(t, err)
				require.Equal(t, 3, v)
				require.Less(t, time.Since(began), 100*time.Millisecond)
			})
		})
	}
}

// All caches stop serving before anything is waited for.
//
//  1. Close begins   2. a write to cache B is refused   3. B must not serve what that
//     would have evicted, though cache A is not closed yet.
func TestCloseStopsAllCachesFirst(t *testing.T) {
	bp := Local()
	var all []*Cache[int, int]
	for i := range 3 {
		c, err := New(bp, Options[int, int]{Name: fmt.Sprint("items-", i), Load: itself})
		require.NoError(t, err)
		_, err = c.Get(t.Context(), 1)
		require.NoError(t, err)
		all = append(all, c)
	}
	// A sweep that hangs keeps each cache from closing.
	swept := make(chan struct{})
	for _, c := range all {
		c.local.sweeper.mu.Lock()
		c.local.sweeper.running = true
		c.local.sweeper.mu.Unlock()
	}
	go func() {
		defer close(swept)
		_ = bp.Close()
	}()
	require.Eventually(t, func() bool {
		for _, c := range all {
			if _, held := c.Peek(1); held {
				return false
			}
		}
		return true
	}, 10*time.Second, time.Millisecond, "all have stopped serving")
	for _, c := range all {
		c.local.sweeper.mu.Lock()
		c.local.sweeper.running = false
		c.local.sweeper.idle.Broadcast()
		c.local.sweeper.mu.Unlock()
	}
	<-swept
}

// One that is closed alone gives up its own claims, in one request.
func TestCloseOfOneSharedCache(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := fakebus.New(fakebus.Options{})
		defer bus.Close()
		bp := joinSimulated(t, bus, 0)
		defer func() { require.NoError(t, bp.Close()) }()
		all, release := manyLoading(t, bp, 3, 5)
		defer release()
		bus.Instance(0).Partition()
		began := time.Now()
		require.NoError(t, all[1].Close())
		require.Equal(t, defaultSharedTimeout, time.Since(began))
		require.Equal(t, 10, heldClaims(bp))
		bus.Instance(0).Heal(false)
	})
}
