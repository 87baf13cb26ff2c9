package nearcache

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache/internal/fakebus"
	"github.com/nearcache/nearcache/internal/transport"
)

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
	bp.claims.mu.Lock() // whoever makes one has had it
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
