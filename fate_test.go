package nearcache

import (
	"context"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache/internal/clock"
)

// withLease runs test in a bubble of its own, with a cache whose lease the test
// renews by hand, and a source whose value is the time of its last write. A load
// waits for hold, if there is one.
func withLease(t *testing.T, o Options[string, int], test func(t *testing.T, c *Cache[string, int], s *leasedSource)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		bp := Local()
		defer bp.Close()
		bp.staleness = time.Second
		bp.lease = newLease(time.Second)
		defer bp.lease.close()
		s := &leasedSource{}
		o.Name, o.Load = "p", s.load
		c, err := New(bp, o)
		require.NoError(t, err)
		test(t, c, s)
	})
}

type leasedSource struct {
	value, loads int
	hold         chan struct{}
}

func (s *leasedSource) load(context.Context, string) (int, error) {
	s.loads++
	v := s.value
	if hold := s.hold; hold != nil {
		<-hold
	}
	return v, nil
}

func get(t *testing.T, c *Cache[string, int]) int {
	t.Helper()
	v, err := c.Get(t.Context(), "k")
	require.NoError(t, err)
	return v
}

// lapse is for how long the item of "k" is served without a lease.
func lapse(c *Cache[string, int]) time.Duration {
	return time.Duration(c.local.stalenessOf(c.local.hash("k")))
}

// Without a lease an item is served for up to MaxStaleness after its load began,
// and then loaded again, once in that time. With a lease it is served until it expires.
func TestServingRule(t *testing.T) {
	withLease(t, Options[string, int]{}, func(t *testing.T, c *Cache[string, int], s *leasedSource) {
		lapse := lapse(c)
		for range 3 {
			s.loads = 0
			s.value++
			require.Equal(t, s.value, get(t, c))
			time.Sleep(lapse - 1)
			require.Equal(t, s.value, get(t, c))
			require.Equal(t, 1, s.loads)
			time.Sleep(time.Nanosecond)
			_, ok := c.Peek("k")
			require.False(t, ok)
		}
		require.EqualValues(t, 2, c.Stats().Misses.NoLease)

		renew(t, c.backplane.lease)
		_, ok := c.Peek("k")
		require.True(t, ok, "nothing was missed, so it is served again")
		for range 10 {
			time.Sleep(lapse - 1)
			require.Equal(t, s.value, get(t, c))
			renew(t, c.backplane.lease)
		}
		require.Equal(t, 1, s.loads)
		require.Zero(t, c.Stats().Evictions)
		time.Sleep(lapse)
		_, ok = c.Peek("k")
		require.False(t, ok, "a lease lasts for as long")
	})
}

// What counts is when the load began, not when it ended: the source was read at
// any time in between.
func TestServingRuleCountsFromTheLoadsStart(t *testing.T) {
	withLease(t, Options[string, int]{}, func(t *testing.T, c *Cache[string, int], s *leasedSource) {
		const slow = 600 * time.Millisecond
		s.hold = make(chan struct{})
		go func() {
			time.Sleep(slow)
			close(s.hold)
		}()
		get(t, c)
		s.hold = nil
		time.Sleep(lapse(c) - slow - 1)
		get(t, c)
		require.Equal(t, 1, s.loads)
		time.Sleep(time.Nanosecond)
		get(t, c)
		require.Equal(t, 2, s.loads)

		v, err := c.Update(t.Context(), "k", func(context.Context) (int, error) {
			time.Sleep(slow)
			return 9, nil
		})
		require.NoError(t, err)
		require.Equal(t, 9, v)
		time.Sleep(lapse(c) - slow - 1)
		_, ok := c.Peek("k")
		require.True(t, ok)
		time.Sleep(time.Nanosecond)
		_, ok = c.Peek("k")
		require.False(t, ok)
	})
}

// Each cache has its own bound; Unbounded is served until it expires.
func TestServingRuleOfEachCache(t *testing.T) {
	for _, test := range []struct {
		name      string
		staleness time.Duration
		most      time.Duration
	}{
		{"the backplane's", 0, time.Second},
		{"shorter", 100 * time.Millisecond, 100 * time.Millisecond},
		{"longer", time.Minute, time.Minute},
		{"unbounded", Unbounded, time.Hour},
	} {
		t.Run(test.name, func(t *testing.T) {
			o := Options[string, int]{MaxStaleness: test.staleness, Expiry: func(string, int) time.Duration { return time.Hour }}
			withLease(t, o, func(t *testing.T, c *Cache[string, int], s *leasedSource) {
				served := min(lapse(c), test.most)
				require.LessOrEqual(t, served, test.most)
				require.Greater(t, served, test.most*4/5-1)
				get(t, c)
				time.Sleep(served - 1)
				_, ok := c.Peek("k")
				require.True(t, ok)
				time.Sleep(time.Nanosecond)
				_, ok = c.Peek("k")
				require.False(t, ok)
			})
		})
	}
}

// When the lease is lost, what is held lapses over a fifth of MaxStaleness, so that
// the source is not asked for all of it at once.
func TestLapsesAreSpread(t *testing.T) {
	withLease(t, Options[string, int]{}, func(t *testing.T, c *Cache[string, int], _ *leasedSource) {
		const keys = 1000
		for i := range keys {
			_, err := c.Get(t.Context(), strconv.Itoa(i))
			require.NoError(t, err)
		}
		held := func() (n int) {
			for i := range keys {
				if _, ok := c.Peek(strconv.Itoa(i)); ok {
					n++
				}
			}
			return n
		}
		time.Sleep(800*time.Millisecond - 1)
		require.Equal(t, keys, held())
		for tenth := 1; tenth < 10; tenth++ {
			time.Sleep(20 * time.Millisecond)
			require.InDelta(t, keys-tenth*keys/10, held(), keys/10)
		}
		time.Sleep(20*time.Millisecond + 1)
		require.Zero(t, held())
	})
}

//  1. a load begins and reads the source   2. the lease is lost, an item changes and
//     its message is missed   3. a Get begins, more than MaxStaleness after 1. It
//     does not join that load, but one of its own.
func TestHungLoadIsNotJoinedWithoutALease(t *testing.T) {
	withLease(t, Options[string, int]{}, func(t *testing.T, c *Cache[string, int], s *leasedSource) {
		old, young := make(chan struct{}), make(chan struct{})
		results := make(chan int, 3)
		ask := func() {
			go func() {
				v, _ := c.Get(context.Background(), "k")
				results <- v
			}()
			synctest.Wait()
		}
		s.hold = old
		ask()
		time.Sleep(time.Second - 1)
		ask()
		require.Equal(t, 1, s.loads, "younger than MaxStaleness, it is joined")

		time.Sleep(time.Nanosecond)
		s.hold, s.value = young, 2
		ask()
		require.Equal(t, 2, s.loads)

		close(young)
		require.Equal(t, 2, <-results)
		close(old)
		require.Zero(t, <-results)
		require.Zero(t, <-results)
		require.Equal(t, 2, get(t, c))
		require.Equal(t, 2, s.loads, "the older result does not replace the younger")

		// With a lease nothing was missed, so a load may be joined however old it is.
		s.hold, s.loads = make(chan struct{}), 0
		require.NoError(t, c.Remove(t.Context(), "k"))
		ask()
		time.Sleep(time.Minute)
		renew(t, c.backplane.lease)
		ask()
		require.Equal(t, 1, s.loads)
		close(s.hold)
		require.Equal(t, 2, <-results)
		require.Equal(t, 2, <-results)
	})
}

//  1. a read looks an entry up   2. the lease has run out; the message that evicts
//     the entry comes late   3. an echo renews the lease   4. the read asks for the
//     lease, which is valid, and returns the entry.
//
// And of a value that is replaced where it lies:
//
//  1. a read looks the entry up, whose start is too old without a lease   2. a newer
//     load begins to replace it   3. the read goes by the newer start, and returns
//     the older value.
//
// More readers than processors, so that many a read is preempted between its
// steps. Each state of the lease lasts long enough for reads to begin in it.
func TestReadsHaveNothingOfBefore(t *testing.T) {
	for name, read := range versionReaders() {
		length := time.Second / 4
		if name == "Peek" {
			length *= 2
		}
		t.Run(name, func(t *testing.T) {
			t.Run("the lease was renewed", func(t *testing.T) { testReadsHaveNothingOfBefore(t, length, true, read) })
			t.Run("the value was replaced", func(t *testing.T) { testReadsHaveNothingOfBefore(t, length, false, read) })
		})
	}
}

// versionReaders returns all kinds of reads. Each notes the version that it has of item 0.
func versionReaders() map[string]func(c *Cache[int64, int64], note func(version int64)) {
	return map[string]func(c *Cache[int64, int64], note func(version int64)){
		"Peek": func(c *Cache[int64, int64], note func(int64)) {
			if v, ok := c.Peek(0); ok {
				note(v)
			}
		},
		"Get": func(c *Cache[int64, int64], note func(int64)) {
			if v, err := c.Get(context.Background(), 0); err == nil {
				note(v)
			}
		},
		"GetMany": func(c *Cache[int64, int64], note func(int64)) {
			got, _ := c.GetMany(context.Background(), 0, 1)
			if v, ok := got[0]; ok {
				note(v)
			}
		},
		"in place of an error": func(c *Cache[int64, int64], note func(int64)) {
			if e := c.local.lastResort(0); e != nil {
				v, _ := c.local.result(e)
				note(v)
			}
		},
		"All": func(c *Cache[int64, int64], note func(int64)) {
			for _, v := range c.All() {
				note(v)
			}
		},
	}
}

// Every read looks at the lease first, also those that list what is held.
//
//  1. a read looks an entry up   2. the message that it missed before comes, and the lease
//     is renewed   3. the read finds the lease valid, and has the old entry in its hands.
//
// Here 2 comes when the read looks at the clock.
func TestReadsBeginWithTheLease(t *testing.T) {
	readers := versionReaders()
	readers["Keys"] = func(c *Cache[int64, int64], note func(int64)) {
		for range c.Keys() {
			note(1)
		}
	}
	for name, read := range readers {
		t.Run(name, func(t *testing.T) {
			bp := Local()
			defer bp.Close()
			bp.lease = newLease(time.Hour)
			defer bp.lease.close()
			c, err := New(bp, Options[int64, int64]{
				Name: "p", Load: func(context.Context, int64) (int64, error) { return 0, ErrNotFound }, StaleIfError: time.Hour,
			})
			require.NoError(t, err)
			var noted []int64
			note := func(v int64) { noted = append(noted, v) }
			armed, interrupted := false, false
			bp.lease.clock = clock.Interrupted(func() {
				if armed {
					armed, interrupted = false, true
					c.local.remove(0)
					bp.lease.sent.Store(bp.lease.now())
				}
			})
			require.NoError(t, c.Set(t.Context(), 0, 1))
			bp.lease.sent.Store(bp.lease.now())
			read(c, note)
			require.Equal(t, []int64{1}, noted, "it is served while nothing is wrong")

			bp.lease.floor.Store(bp.lease.now()) // what was loaded before counts as old
			bp.lease.sent.Store(neverHeld)
			armed, noted = true, nil
			read(c, note)
			require.True(t, interrupted)
			require.Empty(t, noted)
		})
	}
}

// testReadsHaveNothingOfBefore has many read while a lease runs out, a message is
// accepted, maybe comes, and the lease is renewed. read notes the versions that it has.
func testReadsHaveNothingOfBefore(
	t *testing.T, length time.Duration, message bool, read func(c *Cache[int64, int64], note func(version int64)),
) {
	bp := Local()
	defer bp.Close()
	bp.staleness = time.Hour // no read is slow enough to lose it by the clock
	bp.lease = newLease(time.Hour)
	defer bp.lease.close()
	c, err := New(bp, Options[int64, int64]{
		Name: "p", Load: func(context.Context, int64) (int64, error) { return 0, ErrNotFound },
		StaleIfError: time.Hour,
		Capacity:     8, // so that listing all there is does not take long
	})
	require.NoError(t, err)

	var accepted atomic.Int64 // the version that is to be served by reads that begin from here on
	var stop atomic.Bool
	var reading sync.WaitGroup
	for range 4 * runtime.GOMAXPROCS(0) {
		reading.Go(func() {
			for !stop.Load() {
				least := accepted.Load()
				read(c, func(v int64) {
					if v < least {
						t.Errorf("version %d was served after the message for %d was accepted and the lease had run out", v, least)
						stop.Store(true)
					}
				})
			}
		})
	}
	linger := func() {
		if !message {
			return // the more versions the better
		}
		for began := time.Now(); time.Since(began) < 20*time.Microsecond; {
		}
	}
	hash := c.local.hash(0)
	sh := c.local.shard(hash)
	began := time.Now()
	for version := int64(1); time.Since(began) < length && !stop.Load(); version++ {
		bp.lease.floor.Store(bp.lease.now())
		bp.lease.sent.Store(neverHeld) // the lease has run out...
		accepted.Store(version)        // ... since this was accepted
		linger()
		if message {
			c.local.remove(0) // it comes
		}
		s := c.local.beginWork(sh)
		sh.mu.Lock()
		c.local.storeLocked(sh, &pendingStore[int64, int64]{hash: hash}, &s, &outcome[int64]{value: version, ttl: NoExpiry})
		sh.mu.Unlock()
		c.local.endWork(sh)
		bp.lease.sent.Store(bp.lease.now()) // and so does an echo
		linger()
	}
	stop.Store(true)
	reading.Wait()
}

// The lease is renewed for the sake of the cache that needs it most often.
func TestLifeOfTheLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bp := Local()
		defer bp.Close()
		open := func(name string, staleness time.Duration) *Cache[int, int] {
			c, err := New(bp, Options[int, int]{
				Name: name, MaxStaleness: staleness, Load: func(context.Context, int) (int, error) { return 0, nil },
			})
			require.NoError(t, err)
			return c
		}
		open("default", 0)
		require.Equal(t, defaultMaxStaleness, bp.lease.lifetime())
		open("long", time.Hour)
		open("unbounded", Unbounded)
		require.Equal(t, defaultMaxStaleness, bp.lease.lifetime())
		short := open("short", 100*time.Millisecond)
		require.Equal(t, 100*time.Millisecond, bp.lease.lifetime())
		require.NoError(t, short.Close())
		require.Equal(t, defaultMaxStaleness, bp.lease.lifetime())

		bp = Local()
		defer bp.Close()
		bp.staleness = Unbounded
		open("unbounded", 0)
		require.Equal(t, defaultMaxStaleness, bp.lease.lifetime(), "dead connections are noticed all the same")
		open("long", time.Hour)
		require.Equal(t, maxLeaseLife, bp.lease.lifetime(), "however long items may be served")
	})
}
