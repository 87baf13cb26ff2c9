package nearcache

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache/internal/barrier"
	"github.com/nearcache/nearcache/internal/messagetest"
	"github.com/nearcache/nearcache/internal/raceflag"
	"github.com/nearcache/nearcache/internal/transport"
)

// withFakeRedis runs test in a bubble, on a backplane whose messages a fakeRedis
// takes.
func withFakeRedis(t *testing.T, test func(*testing.T, *Backplane, *fakeRedis)) {
	withPublisher(t, func(t *testing.T, p *publisher, redis *fakeRedis) {
		bp := Local()
		bp.publisher = p
		test(t, bp, redis)
	})
}

// idleBus is a bus of which nothing is asked but to redial and to close.
type idleBus struct{ transport.Bus }

func (idleBus) Redial()                  {}
func (idleBus) Close()                   {}
func (idleBus) Values() transport.Values { return idleValues{} }

type idleValues struct{ transport.Values }

func (idleValues) Redial() {}

// 1. a server that is cut off takes a message   2. another takes over, which has
// never seen it; the others hear of the new history, perhaps before 1   3. so does
// this instance, and tells them to clear everything, once.
func TestNewHistoryClearsEverywhere(t *testing.T) {
	withFakeRedis(t, func(t *testing.T, bp *Backplane, redis *fakeRedis) {
		bp.bus = newGuardedBus(idleBus{}, &barrier.Panics{})
		everything := messagetest.Operation{Op: messagetest.ClearAll}
		bp.newHistory()
		synctest.Wait()
		require.Empty(t, redis.accepted, "nothing was sent under the old history")

		bp.enqueue(removal("a"), nothing)
		synctest.Wait()
		bp.newHistory()
		synctest.Wait()
		require.Equal(t, everything, redis.accepted[len(redis.accepted)-1])

		redis.refuse(errRefused) // perhaps it was taken, and the answer was lost
		bp.enqueue(removal("b"), nothing)
		synctest.Wait()
		redis.refuse(nil)
		bp.newHistory()
		time.Sleep(backoffMax)
		synctest.Wait()
		require.Equal(t, everything, redis.accepted[len(redis.accepted)-1])
	})
}

// Every kind of write tells the other instances what to evict, and nothing else
// does; values never travel.
func TestWritesArePublished(t *testing.T) {
	key := messagetest.Operation{Op: messagetest.RemoveKeys, Cache: "p", Values: []string{"a"}}
	fails := func(context.Context) (string, error) { return "", errRefused }
	panics := func(context.Context) (string, error) { panic("in a write") }
	tests := []struct {
		name  string
		write func(context.Context, *Cache[string, string], *Backplane) error
		want  []messagetest.Operation
	}{
		{"Set", func(ctx context.Context, c *Cache[string, string], _ *Backplane) error {
			return c.Set(ctx, "a", "value")
		}, []messagetest.Operation{key}},
		{"Set with a panic in Regions", func(ctx context.Context, c *Cache[string, string], _ *Backplane) error {
			defer func() { _ = recover() }()
			return c.Set(ctx, "a", "panic")
		}, []messagetest.Operation{key}},
		{"Update", func(ctx context.Context, c *Cache[string, string], _ *Backplane) error {
			_, err := c.Update(ctx, "a", func(context.Context) (string, error) { return "value", nil })
			return err
		}, []messagetest.Operation{key}},
		{"Update that fails", func(ctx context.Context, c *Cache[string, string], _ *Backplane) error {
			_, err := c.Update(ctx, "a", fails)
			if err != errRefused {
				return fmt.Errorf("Update returned %w", err)
			}
			return nil
		}, []messagetest.Operation{key}},
		{"Update that panics", func(ctx context.Context, c *Cache[string, string], _ *Backplane) error {
			defer func() { _ = recover() }()
			_, err := c.Update(ctx, "a", panics)
			return err
		}, []messagetest.Operation{key}},
		{"Remove", func(ctx context.Context, c *Cache[string, string], _ *Backplane) error {
			return c.Remove(ctx, "a", "a")
		}, []messagetest.Operation{key}},
		{"ClearRegion", func(ctx context.Context, c *Cache[string, string], _ *Backplane) error {
			return c.ClearRegion(ctx, "r", "r")
		}, []messagetest.Operation{{Op: messagetest.ClearRegions, Cache: "p", Values: []string{"r"}}}},
		{"Clear", func(ctx context.Context, c *Cache[string, string], _ *Backplane) error {
			return c.Clear(ctx)
		}, []messagetest.Operation{{Op: messagetest.ClearCache, Cache: "p"}}},
		{"ClearAll", func(ctx context.Context, _ *Cache[string, string], bp *Backplane) error {
			return bp.ClearAll(ctx)
		}, []messagetest.Operation{{Op: messagetest.ClearAll}}},
		{"Get, Peek, eviction and expiry", func(ctx context.Context, c *Cache[string, string], _ *Backplane) error {
			for _, k := range []string{"a", "b", "c"} {
				_, _ = c.Get(ctx, k)
				_, _ = c.Peek(k)
			}
			time.Sleep(time.Hour)
			_, err := c.Get(ctx, "a")
			return err
		}, nil},
		{"no keys, no regions", func(ctx context.Context, c *Cache[string, string], _ *Backplane) error {
			_ = c.ClearRegion(ctx)
			return c.Remove(ctx)
		}, nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			withFakeRedis(t, func(t *testing.T, bp *Backplane, redis *fakeRedis) {
				cache, err := New(bp, Options[string, string]{
					Name: "p", Capacity: 2,
					Load: func(context.Context, string) (string, error) { return "value", nil },
					Regions: func(_, v string) []string {
						if v == "panic" {
							panic("in Regions")
						}
						return []string{"r"}
					},
				})
				require.NoError(t, err)
				defer cache.Close()
				require.NoError(t, test.write(t.Context(), cache, bp))
				require.NoError(t, bp.Flush(t.Context()))
				require.Equal(t, test.want, redis.accepted)
			})
		})
	}
}

// Whatever becomes of the message, the local part is done, and what is queued is
// a removal, never a value.
func TestUnconfirmedWrites(t *testing.T) {
	withFakeRedis(t, func(t *testing.T, bp *Backplane, redis *fakeRedis) {
		cache, err := New(bp, Options[string, string]{
			Name: "p",
			Load: func(context.Context, string) (string, error) { return "loaded", nil },
		})
		require.NoError(t, err)
		defer cache.Close()
		redis.refuse(errRefused)

		require.ErrorIs(t, cache.Set(t.Context(), "a", "set"), ErrUnconfirmed)
		v, _ := cache.Peek("a")
		require.Equal(t, "set", v)

		v, err = cache.Update(t.Context(), "b", func(context.Context) (string, error) { return "updated", nil })
		require.ErrorIs(t, err, ErrUnconfirmed)
		require.Equal(t, "updated", v, "the value is valid")
		v, _ = cache.Peek("b")
		require.Equal(t, "updated", v)

		_, err = cache.Update(t.Context(), "c", func(context.Context) (string, error) { return "", errUpdate })
		require.Equal(t, errUpdate, err, "the write's own error comes first, as it is")

		cancelled, cancel := context.WithCancel(t.Context())
		cancel()
		err = cache.Remove(cancelled, "a")
		require.ErrorIs(t, err, ErrUnconfirmed)
		_, ok := cache.Peek("a")
		require.False(t, ok, "a request that is over still invalidates")

		redis.refuse(nil)
		require.NoError(t, bp.Flush(t.Context()))
		require.Equal(t, []string{"a", "b", "c"}, redis.keys())
	})
}

var errUpdate = fmt.Errorf("the source refused")

// A load overtaken by a clear leaves nothing behind, not even an entry that is
// born dead and would only push another one out.
func TestOvertakenLoadTakesNoRoom(t *testing.T) {
	for name, overtake := range map[string]func(*Cache[string, string]){
		"a clear":                   func(c *Cache[string, string]) { _ = c.Clear(context.Background()) },
		"a region, for a not-found": func(c *Cache[string, string]) { _ = c.ClearRegion(context.Background(), "any") },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				proceed := make(chan struct{})
				cache, err := New(Local(), Options[string, string]{
					Name: "p", NotFoundTTL: time.Minute,
					Load: func(context.Context, string) (string, error) { <-proceed; return "", ErrNotFound },
				})
				require.NoError(t, err)
				defer cache.Close()
				ended := make(chan struct{})
				go func() { defer close(ended); _, _ = cache.Get(context.Background(), "a") }()
				synctest.Wait()
				overtake(cache)
				close(proceed)
				<-ended
				require.Zero(t, cache.held())
				require.EqualValues(t, 1, cache.Stats().LoadDiscarded)
			})
		})
	}
}

// 1. Get finds the cache open   2. the cache is closed   3. Get registers its
// load, which notes the generation after the close.
func TestLoadThatBeginsWhileClosingIsNotKept(t *testing.T) {
	cache, err := New(Local(), Options[string, string]{
		Name: "p",
		Load: func(context.Context, string) (string, error) { return "value", nil },
	})
	require.NoError(t, err)
	require.NoError(t, cache.Close())
	from := calledWith(t.Context())
	j := cache.loader.join(from, "a", cache.startOptions(&from.origin))
	cache.loader.start(from, j.flight)
	v, _, err := cache.await(from, "a", &j, 0)
	require.NoError(t, err)
	require.Equal(t, "value", v)
	require.Zero(t, cache.Len())
}

// oddKey survives encoding only if it is even.
type oddKey int

func (k oddKey) MarshalText() ([]byte, error) {
	if k < 0 {
		return nil, fmt.Errorf("%d is negative", int(k))
	}
	return fmt.Append(nil, int(k)/2), nil
}

func (k *oddKey) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		panic("nothing to read")
	}
	var n int
	_, err := fmt.Sscan(string(text), &n)
	*k = oddKey(2 * n)
	return err
}

func TestKeysThatDoNotSurviveEncoding(t *testing.T) {
	for _, bad := range []oddKey{3, -2} {
		t.Run(fmt.Sprint(int(bad)), func(t *testing.T) {
			withFakeRedis(t, func(t *testing.T, bp *Backplane, redis *fakeRedis) {
				loads := 0
				cache, err := New(bp, Options[oddKey, string]{
					Name: "p",
					Load: func(context.Context, oddKey) (string, error) { loads++; return "value", nil },
				})
				require.NoError(t, err)
				defer cache.Close()
				ctx := t.Context()
				for range 2 {
					v, err := cache.Get(ctx, bad)
					require.NoError(t, err)
					require.Equal(t, "value", v)
				}
				require.Equal(t, 2, loads, "never kept")

				writes := map[string]func() error{
					"Set":    func() error { return cache.Set(ctx, bad, "value") },
					"Remove": func() error { return cache.Remove(ctx, 2, bad) },
					"Update": func() error {
						v, err := cache.Update(ctx, bad, func(context.Context) (string, error) { return "written", nil })
						require.Equal(t, "written", v, "the write ran")
						return err
					},
				}
				for name, write := range writes {
					redis.accepted = nil
					_, err := cache.Get(ctx, 2)
					require.NoError(t, err)
					err = write()
					require.ErrorIs(t, err, ErrInvalidKey, name)
					require.ErrorContains(t, err, "cleared", name)
					require.Zero(t, cache.Len(), name)
					require.Equal(t, []messagetest.Operation{{Op: messagetest.ClearCache, Cache: "p"}}, redis.accepted, name)
				}

				redis.refuse(errRefused)
				err = cache.Remove(ctx, bad)
				require.ErrorIs(t, err, ErrInvalidKey)
				require.ErrorIs(t, err, ErrUnconfirmed)
				_, err = cache.Update(ctx, bad, func(context.Context) (string, error) { return "", errUpdate })
				require.Equal(t, errUpdate, err, "the write's own error comes first")
			})
		})
	}
}

type (
	namedString string
	namedInt    int8
	interfaces  struct{ V any }
)

func (interfaces) MarshalText() ([]byte, error) { return nil, nil }
func (*interfaces) UnmarshalText([]byte) error  { return nil }

func TestKeyTypes(t *testing.T) {
	survives := func(t *testing.T, err error, again, key any) {
		require.NoError(t, err)
		require.Equal(t, key, again)
	}
	t.Run("string", func(t *testing.T) { checkKeys(t, survives, "", "a", "\xff\x00", strings.Repeat("x", 1000)) })
	t.Run("named string", func(t *testing.T) { checkKeys(t, survives, namedString("a")) })
	t.Run("int64", func(t *testing.T) { checkKeys(t, survives, int64(math.MinInt64), int64(math.MaxInt64)) })
	t.Run("named int8", func(t *testing.T) { checkKeys(t, survives, namedInt(-128), namedInt(127)) })
	t.Run("uint64", func(t *testing.T) { checkKeys(t, survives, uint64(0), uint64(math.MaxUint64)) })
	t.Run("uintptr", func(t *testing.T) { checkKeys(t, survives, uintptr(7)) })
	t.Run("netip.Addr", func(t *testing.T) { checkKeys(t, survives, netip.MustParseAddr("fe80::1%eth0")) })
	t.Run("time without a monotonic part", func(t *testing.T) {
		checkKeys(t, survives, time.Date(2024, 1, 2, 3, 4, 5, 6, time.UTC))
	})
	t.Run("time with a monotonic part", func(t *testing.T) {
		checkKeys(t, func(t *testing.T, err error, _, _ any) { require.Error(t, err) }, time.Now())
	})

	reject := func(t *testing.T, err error) {
		require.ErrorIs(t, err, ErrInvalidOptions)
		require.ErrorContains(t, err, "key type")
	}
	t.Run("rejected", func(t *testing.T) {
		reject(t, newWithKey[float64]())
		reject(t, newWithKey[bool]())
		reject(t, newWithKey[struct{ ID int }]())
		reject(t, newWithKey[[2]int]())
		reject(t, newWithKey[*time.Time]())
		reject(t, newWithKey[any]())
		reject(t, newWithKey[fmt.Stringer]())
		reject(t, newWithKey[interfaces]())
	})
}

func checkKeys[K comparable](t *testing.T, check func(t *testing.T, err error, again, key any), keys ...K) {
	codec, err := newKeyCodec[K]()
	require.NoError(t, err)
	for _, key := range keys {
		wire, err := codec.wire(key)
		var again K
		if err == nil {
			again, err = codec.decode(wire)
		}
		check(t, err, again, key)
		_, keepable := codec.keepable(key)
		require.Equal(t, err == nil, keepable)
	}
}

func TestPanicInUnmarshalTextIsAnUndecodableKey(t *testing.T) {
	cache, err := New(Local(), Options[oddKey, int]{Name: "p", Load: func(context.Context, oddKey) (int, error) { return 0, nil }})
	require.NoError(t, err)
	defer cache.Close()
	require.NoError(t, cache.Set(t.Context(), 2, 1))
	require.NoError(t, cache.backplane.apply(messagetest.Body(messagetest.Operation{Op: messagetest.RemoveKeys, Cache: "p", Values: []string{""}})))
	require.Zero(t, cache.Len())
}

func newWithKey[K comparable]() error {
	_, err := New(Local(), Options[K, int]{
		Name: "p",
		Load: func(context.Context, K) (int, error) { return 0, nil },
	})
	return err
}

// What cannot be a key of this cache was meant for one of its items all the same.
func TestUndecodableKeyClearsTheCache(t *testing.T) {
	bp := Local()
	defer bp.Close()
	numbers, err := New(bp, Options[int8, int]{Name: "numbers", Load: func(context.Context, int8) (int, error) { return 0, nil }})
	require.NoError(t, err)
	words, err := New(bp, Options[string, int]{Name: "words", Load: func(context.Context, string) (int, error) { return 0, nil }})
	require.NoError(t, err)
	fill := func() {
		for k := range int8(3) {
			require.NoError(t, numbers.Set(t.Context(), k, 1))
			require.NoError(t, words.Set(t.Context(), fmt.Sprint(k), 1))
		}
	}
	for _, test := range []struct {
		keys          []string
		numbers, word int
	}{
		{[]string{"1"}, 2, 3},
		{[]string{"1", "128"}, 0, 3}, // out of range
		{[]string{"one"}, 0, 3},
		{[]string{""}, 0, 3},
	} {
		fill()
		require.NoError(t, bp.apply(messagetest.Body(messagetest.Operation{Op: messagetest.RemoveKeys, Cache: "numbers", Values: test.keys})))
		require.NoError(t, bp.apply(messagetest.Body(messagetest.Operation{Op: messagetest.RemoveKeys, Cache: "a cache that is not here", Values: test.keys})))
		require.Equal(t, test.numbers, numbers.Len(), "%q", test.keys)
		require.Equal(t, test.word, words.Len(), "%q", test.keys)
	}
}

// 1. an Update begins   2. the backplane is closed   3. the Update changes the
// source, which the other instances must hear of.
func TestCloseWaitsForWritesUnderWay(t *testing.T) {
	withFakeRedis(t, func(t *testing.T, bp *Backplane, redis *fakeRedis) {
		bp.bus, bp.unfollow = newGuardedBus(idleBus{}, &barrier.Panics{}), func() {}
		cache, err := New(bp, Options[string, string]{
			Name: "p", Load: func(context.Context, string) (string, error) { return "", nil },
		})
		require.NoError(t, err)
		_, err = cache.Get(t.Context(), "b")
		require.NoError(t, err)
		updated := make(chan error, 1)
		go func() {
			_, err := cache.Update(context.Background(), "a", func(context.Context) (string, error) {
				time.Sleep(time.Second)
				return "new", nil
			})
			updated <- err
		}()
		synctest.Wait()
		closed := make(chan error, 1)
		go func() { closed <- bp.Close() }()
		synctest.Wait()
		require.ErrorIs(t, cache.Remove(t.Context(), "b"), ErrClosed, "no other write begins")
		_, ok := cache.Peek("b")
		require.False(t, ok, "what a refused write would have evicted is not served")
		require.ErrorIs(t, bp.ClearAll(t.Context()), ErrClosed)
		require.NoError(t, <-updated)
		require.NoError(t, <-closed)
		require.Equal(t, []string{"a"}, redis.keys())
	})
}

// A write that outlasts CloseTimeout is told that it was not delivered; and one
// that closes the backplane itself does not wait for itself for ever.
func TestWriteThatOutlastsClose(t *testing.T) {
	withFakeRedis(t, func(t *testing.T, bp *Backplane, redis *fakeRedis) {
		bp.bus, bp.unfollow = newGuardedBus(idleBus{}, &barrier.Panics{}), func() {}
		cache, err := New(bp, Options[string, string]{
			Name: "p", Load: func(context.Context, string) (string, error) { return "", nil },
		})
		require.NoError(t, err)
		before := time.Now()
		var closed error
		v, err := cache.Update(context.Background(), "a", func(context.Context) (string, error) {
			closed = bp.Close()
			return "new", nil
		})
		require.ErrorIs(t, closed, ErrUnconfirmed)
		require.ErrorContains(t, closed, "1 write(s) still under way")
		require.Equal(t, "new", v)
		require.Equal(t, defaultCloseTimeout, time.Since(before))
		require.ErrorIs(t, err, ErrUnconfirmed)
		require.ErrorIs(t, err, ErrClosed)
		require.ErrorContains(t, err, "1 key(s) of p")
		require.Empty(t, redis.keys())
	})
}

func TestUpdateAcrossCloseAndNew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bp := Local()
		defer bp.Close()
		source := "old"
		options := Options[string, string]{
			Name: "p", Load: func(context.Context, string) (string, error) { return source, nil },
		}
		first, err := New(bp, options)
		require.NoError(t, err)
		var second *Cache[string, string]
		_, err = first.Update(t.Context(), "a", func(ctx context.Context) (string, error) {
			require.NoError(t, first.Close())
			second, err = New(bp, options)
			require.NoError(t, err)
			v, err := second.Get(ctx, "a")
			require.NoError(t, err)
			require.Equal(t, "old", v)
			source = "new"
			return source, nil
		})
		require.NoError(t, err)
		v, err := second.Get(t.Context(), "a")
		require.NoError(t, err)
		require.Equal(t, "new", v)
	})
}

// A handler of the log may look at the statistics.
func TestLogHandlerMayAskForStats(t *testing.T) {
	withPublisher(t, func(t *testing.T, p *publisher, redis *fakeRedis) {
		logged := 0
		p.target = newBackplane(BackplaneOptions{Logger: slog.New(statsHandler{slog.DiscardHandler, func() {
			logged++
			p.snapshot(&BackplaneStats{})
		}})})
		redis.refuse(errRefused)
		require.Error(t, p.publish(t.Context(), removal("a"), nothing))
		redis.refuse(nil)
		require.NoError(t, p.flush(t.Context()))
		require.NoError(t, p.publish(t.Context(), removal("a"), nothing)) // after the log of the round before
		require.Equal(t, 2, logged)
	})
}

type statsHandler struct {
	slog.Handler
	look func()
}

func (h statsHandler) Enabled(context.Context, slog.Level) bool { return true }

func (h statsHandler) Handle(context.Context, slog.Record) error {
	h.look()
	return nil
}

// 1. Set begins   2. Regions is called, and meanwhile everything is cleared   3. Set
// ends: its value may be older than what the clear was for.
func TestSetIsFencedAgainstClears(t *testing.T) {
	clears := map[string]func(c *Cache[string, int]) error{
		"nothing":    func(*Cache[string, int]) error { return nil },
		"Clear":      func(c *Cache[string, int]) error { return c.Clear(context.Background()) },
		"its region": func(c *Cache[string, int]) error { return c.ClearRegion(context.Background(), "r") },
		"another":    func(c *Cache[string, int]) error { return c.ClearRegion(context.Background(), "s") },
		"a gap":      func(c *Cache[string, int]) error { c.missedMessages(); return nil },
		"its Remove": func(c *Cache[string, int]) error { return c.Remove(context.Background(), "k") },
		"a gap, swept": func(c *Cache[string, int]) error {
			c.missedMessages()
			c.local.sweep(func() bool { return false })
			return nil
		},
		"Clear of none": func(c *Cache[string, int]) error { return c.ClearRegion(context.Background()) },
	}
	for name, overtake := range clears {
		t.Run(name, func(t *testing.T) {
			var cache *Cache[string, int]
			cache, err := New(Local(), Options[string, int]{
				Name: "p",
				Load: func(context.Context, string) (int, error) { return 0, nil },
				Regions: func(string, int) []string {
					require.NoError(t, overtake(cache))
					return []string{"r"}
				},
			})
			require.NoError(t, err)
			defer cache.Close()
			require.NoError(t, cache.Set(context.Background(), "k", 1))
			_, held := cache.Peek("k")
			kept := name == "nothing" || name == "another" || name == "its Remove" || name == "Clear of none"
			require.Equal(t, kept, held)
			require.NoError(t, cache.local.check(1000))
		})
	}
}

// A Set of what is in memory allocates nothing where no other instance is to be told.
func TestSetAllocatesNothing(t *testing.T) {
	if raceflag.Enabled {
		t.Skip("the race detector allocates")
	}
	c, err := New(Local(), Options[int, int]{Name: "p", Load: func(context.Context, int) (int, error) { return 0, nil }})
	require.NoError(t, err)
	defer c.Close()
	require.Zero(t, testing.AllocsPerRun(1000, func() { _ = c.Set(context.Background(), 1, 2) }))
}
