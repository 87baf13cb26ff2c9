package nearcache

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var errSource = errors.New("the source is away")

// flaky is a source that a test can have fail or take its time. While it is asked it
// is changed under mu.
type flaky struct {
	mu    sync.Mutex
	value int
	err   error
	takes time.Duration
	loads int
}

func (s *flaky) load(ctx context.Context, _ string) (int, error) {
	s.mu.Lock()
	s.loads++
	value, err, takes := s.value, s.err, s.takes
	s.mu.Unlock()
	pause(ctx, takes)
	return value, err
}

// expire sleeps until an item with a TTL of a minute has expired.
func expire() { time.Sleep(time.Minute) }

func TestStaleIfError(t *testing.T) {
	tests := []struct {
		name   string
		during func(t *testing.T, c *Cache[string, int]) // the load that fails
		served bool
	}{
		{name: "nothing happens", during: func(*testing.T, *Cache[string, int]) {}, served: true},
		{name: "another key is removed", during: func(t *testing.T, c *Cache[string, int]) { require.NoError(t, c.Remove(t.Context(), "other")) }, served: true},
		{name: "another region is cleared", during: func(t *testing.T, c *Cache[string, int]) { require.NoError(t, c.ClearRegion(t.Context(), "other")) }, served: true},
		{name: "the item is removed", during: func(t *testing.T, c *Cache[string, int]) { require.NoError(t, c.Remove(t.Context(), "k")) }},
		{name: "its region is cleared", during: func(t *testing.T, c *Cache[string, int]) { require.NoError(t, c.ClearRegion(t.Context(), "region")) }},
		{name: "the cache is cleared", during: func(t *testing.T, c *Cache[string, int]) { require.NoError(t, c.Clear(t.Context())) }},
		{name: "everything is cleared", during: func(t *testing.T, c *Cache[string, int]) { require.NoError(t, c.backplane.ClearAll(t.Context())) }},
		{name: "a message was missed", during: func(_ *testing.T, c *Cache[string, int]) { c.backplane.missedMessages() }},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &flaky{value: 1}
				c, err := New(Local(), Options[string, int]{
					Name: "p", Load: s.load, Expiry: func(string, int) time.Duration { return time.Minute }, StaleIfError: time.Hour,
					Regions: func(string, int) []string { return []string{"region"} },
				})
				require.NoError(t, err)
				defer c.Close()
				require.Equal(t, 1, get(t, c))
				expire()
				s.err, s.value, s.takes = errSource, 2, time.Second
				go func() {
					time.Sleep(time.Second / 2)
					test.during(t, c)
				}()
				v, err := c.Get(t.Context(), "k")
				if test.served {
					require.NoError(t, err)
					require.Equal(t, 1, v)
					assert.EqualValues(t, 1, c.Stats().Stale)
				} else {
					require.ErrorIs(t, err, errSource)
					_, err = c.Get(t.Context(), "k")
					require.ErrorIs(t, err, errSource, "nor ever")
					assert.Zero(t, c.Stats().Stale)
				}
				_, held := c.Peek("k")
				assert.False(t, held, "an expired item is none to Peek")
			})
		})
	}
}

// After a failure the source has peace for a while, and for longer after the next.
func TestStaleIfErrorBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &flaky{value: 1}
		c, err := New(Local(), Options[string, int]{
			Name: "p", Load: s.load, Expiry: func(string, int) time.Duration { return time.Minute }, StaleIfError: time.Hour,
		})
		require.NoError(t, err)
		defer c.Close()
		require.Equal(t, 1, get(t, c))
		expire()
		s.err, s.loads = errSource, 0
		for range 600 {
			require.Equal(t, 1, get(t, c))
			time.Sleep(100 * time.Millisecond)
		}
		assert.Greater(t, s.loads, 8, "it is tried again")
		assert.Less(t, s.loads, 25, "but seldom, in a minute")
		assert.EqualValues(t, 600, c.Stats().Stale)
		assert.EqualValues(t, s.loads, c.Stats().LoadErrors)

		s.err, s.value = nil, 2
		time.Sleep(mostFailurePause)
		require.Equal(t, 2, get(t, c))
		expire()
		s.err, s.loads = errSource, 0
		for range 5 {
			require.Equal(t, 2, get(t, c))
			time.Sleep(failurePause)
		}
		assert.Greater(t, s.loads, 1, "a success makes the pauses short again")

		time.Sleep(time.Hour)
		_, err = c.Get(t.Context(), "k")
		require.ErrorIs(t, err, errSource, "past StaleIfError")
		s.err = ErrNotFound
		_, err = c.Get(t.Context(), "k")
		require.ErrorIs(t, err, ErrNotFound)
	})
}

// That there is no such item is no failure.
func TestStaleIfErrorAndNotFound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &flaky{value: 1}
		c, err := New(Local(), Options[string, int]{
			Name: "p", Load: s.load, TTL: time.Minute, StaleIfError: time.Hour,
		})
		require.NoError(t, err)
		defer c.Close()
		require.Equal(t, 1, get(t, c))
		expire()
		s.err = ErrNotFound
		_, err = c.Get(t.Context(), "k")
		require.ErrorIs(t, err, ErrNotFound)
		s.err = errSource
		_, err = c.Get(t.Context(), "k")
		require.ErrorIs(t, err, errSource, "the old item has gone with that")
	})
}

func TestStaleIfErrorAndPanic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fails := false
		c, err := New(Local(), Options[string, int]{
			Name: "p", TTL: time.Minute, StaleIfError: time.Hour,
			Load: func(context.Context, string) (int, error) {
				if fails {
					panic("a bug")
				}
				return 1, nil
			},
		})
		require.NoError(t, err)
		defer c.Close()
		require.Equal(t, 1, get(t, c))
		expire()
		fails = true
		require.Panics(t, func() { _, _ = c.Get(t.Context(), "k") })
	})
}

// Without a lease the bound rules, unless it is given up.
func TestStaleIfErrorWithoutALease(t *testing.T) {
	for _, unleased := range []bool{false, true} {
		for _, expired := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				bp := Local()
				defer bp.Close()
				bp.lease = newLease(5 * time.Second)
				defer bp.lease.close()
				s := &flaky{value: 1}
				c, err := New(bp, Options[string, int]{
					Name: "p", Load: s.load, TTL: time.Minute, StaleIfError: time.Hour, StaleWithoutLease: unleased,
				})
				require.NoError(t, err)
				renew(t, bp.lease)
				require.Equal(t, 1, get(t, c))
				time.Sleep(10 * time.Second) // the lease is lost
				if expired {
					time.Sleep(time.Minute)
				}
				s.err = errSource
				for range 3 {
					v, err := c.Get(t.Context(), "k")
					if unleased {
						require.NoError(t, err)
						require.Equal(t, 1, v)
					} else {
						require.ErrorIs(t, err, errSource)
					}
				}
				renew(t, bp.lease)
				require.Equal(t, 1, get(t, c), "with a lease it may be served again")

				time.Sleep(10 * time.Second)
				require.NoError(t, c.Remove(t.Context(), "k"))
				_, err = c.Get(t.Context(), "k")
				require.ErrorIs(t, err, errSource, "what was invalidated is never served")
			})
		}
	}
}

func TestSoftTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &flaky{value: 1}
		c, err := New(Local(), Options[string, int]{
			Name: "p", Load: s.load, TTL: time.Minute, StaleIfError: time.Hour, SoftTimeout: time.Second,
		})
		require.NoError(t, err)
		defer c.Close()
		s.takes = 3 * time.Second
		began := time.Now()
		require.Equal(t, 1, get(t, c))
		require.Equal(t, 3*time.Second, time.Since(began), "there is nothing else to serve")
		expire()

		s.value, s.loads = 2, 0
		began = time.Now()
		ctx, cancel := context.WithCancel(t.Context())
		v, err := c.Get(ctx, "k")
		cancel() // the load goes on
		require.NoError(t, err)
		require.Equal(t, 1, v)
		require.Equal(t, time.Second, time.Since(began))
		require.Equal(t, 1, get(t, c))
		require.Equal(t, time.Second, time.Since(began), "others need not wait")
		require.EqualValues(t, 2, c.Stats().Stale)

		time.Sleep(2 * time.Second)
		synctest.Wait()
		v, held := c.Peek("k")
		require.True(t, held, "the load was kept")
		require.Equal(t, 2, v)
		require.Equal(t, 1, s.loads)
		expire()

		// What is invalidated meanwhile is not served: the wait goes on.
		began, s.value = time.Now(), 3
		go func() {
			time.Sleep(time.Second / 2)
			require.NoError(t, c.Remove(t.Context(), "k"))
			s.mu.Lock()
			defer s.mu.Unlock()
			s.value = 4
		}()
		require.Equal(t, 3, get(t, c), "it came before")
		require.Equal(t, 3*time.Second, time.Since(began))
		require.Equal(t, 4, get(t, c))
	})
}

func TestErrorTTL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &flaky{err: errSource}
		c, err := New(Local(), Options[string, int]{
			Name: "p", Load: s.load, TTL: time.Minute, ErrorTTL: time.Second,
			Regions: func(string, int) []string { return nil },
		})
		require.NoError(t, err)
		defer c.Close()
		fails := func(loads int) {
			t.Helper()
			_, err := c.Get(t.Context(), "k")
			require.Equal(t, errSource, err)
			require.Equal(t, loads, s.loads)
		}
		fails(1)
		fails(1)
		_, held := c.Peek("k")
		require.False(t, held)
		time.Sleep(time.Second)
		fails(2)

		for i, invalidate := range []func() error{
			func() error { return c.Remove(t.Context(), "k") },
			func() error { return c.ClearRegion(t.Context(), "any") },
			func() error { return c.Clear(t.Context()) },
		} {
			require.NoError(t, invalidate())
			fails(3 + i)
			fails(3 + i)
		}
		time.Sleep(time.Second)
		s.err, s.value = nil, 7
		require.Equal(t, 7, get(t, c))
		expire()

		// The source's own timeouts are kept: no caller's deadline reaches a load.
		for _, err := range []error{context.Canceled, context.DeadlineExceeded, fmt.Errorf("query: %w", context.DeadlineExceeded)} {
			time.Sleep(time.Second)
			s.err, s.loads = err, 0
			for range 2 {
				_, got := c.Get(t.Context(), "k")
				require.Equal(t, err, got)
				require.Equal(t, 1, s.loads)
			}
		}
		time.Sleep(time.Second)

		// The loss of all callers is not kept.
		s.err, s.takes, s.loads = errSource, time.Second, 0
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		_, err = c.Get(ctx, "k")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		synctest.Wait()
		s.err, s.takes = nil, 0
		require.Equal(t, 7, get(t, c), "the load of a caller that has gone leaves nothing")
	})
}

// An error takes no item's place.
func TestErrorTTLAndStaleIfError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &flaky{value: 1}
		c, err := New(Local(), Options[string, int]{
			Name: "p", Load: s.load, Expiry: func(string, int) time.Duration { return time.Minute },
			ErrorTTL: time.Hour, StaleIfError: time.Minute,
		})
		require.NoError(t, err)
		defer c.Close()
		require.Equal(t, 1, get(t, c))
		expire()
		s.err = errSource
		require.Equal(t, 1, get(t, c))
		expire()
		for range 2 {
			_, err = c.Get(t.Context(), "k")
			require.ErrorIs(t, err, errSource)
		}
		require.Equal(t, 3, s.loads, "now there is nothing but the error")
	})
}

// A load that takes longer than its item lives brings something for later all the same.
func TestStaleIfErrorAndSlowLoads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &flaky{value: 1, takes: time.Minute}
		c, err := New(Local(), Options[string, int]{
			Name: "p", Load: s.load, TTL: time.Second, ErrorTTL: time.Second, StaleIfError: time.Hour,
		})
		require.NoError(t, err)
		defer c.Close()
		require.Equal(t, 1, get(t, c))
		s.err = errSource
		require.Equal(t, 1, get(t, c))
		require.NoError(t, c.Remove(t.Context(), "k"))
		for range 2 {
			_, err = c.Get(t.Context(), "k")
			require.ErrorIs(t, err, errSource)
		}
		require.Equal(t, 4, s.loads, "an error has no such use")
	})
}
