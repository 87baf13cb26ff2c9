package nearcache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache/internal/fakebus"
	"github.com/nearcache/nearcache/internal/transport"
)

// joinSimulated makes a backplane on a simulated Redis, in a bubble.
func joinSimulated(t *testing.T, bus *fakebus.Bus, number int) *Backplane {
	t.Helper()
	return joinSimulatedWith(t, bus, number, BackplaneOptions{Logger: slog.New(slog.DiscardHandler)})
}

func joinSimulatedWith(t *testing.T, bus *fakebus.Bus, number int, options BackplaneOptions) *Backplane {
	t.Helper()
	o, err := options.withDefaults()
	require.NoError(t, err)
	in := bus.Instance(number)
	self := instanceID{byte(number + 1)}
	bp, err := joinBus(t.Context(), o, in.Bus(), simulatedIdentity(self, in.Jitter), in.Jitter)
	require.NoError(t, err)
	return bp
}

func sharedNumbers(t *testing.T, bp *Backplane, load func(context.Context, int) (int, error)) *Cache[int, int] {
	t.Helper()
	c, err := New(bp, Options[int, int]{Name: "numbers", Load: load, Shared: &SharedOptions[int]{}})
	require.NoError(t, err)
	return c
}

func itself(_ context.Context, n int) (int, error) { return n, nil }

// What is read at the shared level is no younger than the lease under which it was
// read; what is loaded from the source is.
func TestSharedAgeCountsFromTheLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := fakebus.New(fakebus.Options{Instances: 2})
		defer bus.Close()
		var caches [2]*Cache[int, int]
		for i := range caches {
			bp := joinSimulated(t, bus, i)
			defer bp.Close()
			caches[i] = sharedNumbers(t, bp, itself)
		}
		time.Sleep(500 * time.Millisecond) // between two probes
		for i, c := range caches {
			_, err := c.Get(t.Context(), 1)
			require.NoError(t, err)
			synctest.Wait()
			time.Sleep(100 * time.Millisecond)
			e := c.local.find(1)
			require.NotNil(t, e)
			started, sent := e.Item.started.Load(), c.local.lease.sent.Load()
			if shared := i == 1; shared {
				require.EqualValues(t, 1, c.Stats().Shared.Hits)
				require.Equal(t, sent, started)
			} else {
				require.Greater(t, started, sent)
			}
			require.Greater(t, time.Duration(e.Item.expires.Load()-c.local.lease.now()), 4*time.Minute)
		}
	})
}

// While a write is between its local part and the queue, no load that begins goes to
// the shared level.
//
//  1. the local part is done   2. a Get begins, and reads the old value in Redis
//  3. the message is queued, and Redis accepts it.
func TestSharedIsNotReadWhileAWriteIsAnnounced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := fakebus.New(fakebus.Options{})
		defer bus.Close()
		bp := joinSimulated(t, bus, 0)
		defer bp.Close()
		version := 1
		c := sharedNumbers(t, bp, func(context.Context, int) (int, error) { return version, nil })
		_, err := c.Get(t.Context(), 7)
		require.NoError(t, err)
		time.Sleep(time.Second)
		require.EqualValues(t, 1, c.Stats().Shared.Stored)
		version = 2
		require.NoError(t, bp.publish(t.Context(), removal("7"), func() {
			c.removeLocal(7)
			got, err := c.Get(t.Context(), 7) // there is time enough
			require.NoError(t, err)
			require.Equal(t, 2, got)
		}))
	})
}

// valuesStub is a Redis that answers as a test says.
type valuesStub struct {
	read  func(keys []string) (transport.Reading, error)
	claim func(claims []transport.Claim) (transport.Claimed, error)
}

func (v *valuesStub) Read(_ context.Context, _ string, keys, _ []string, _ int) (transport.Reading, error) {
	return v.read(keys)
}

func (v *valuesStub) Claim(
	_ context.Context, _, _ string, _ time.Duration, claims []transport.Claim,
) (transport.Claimed, error) {
	return v.claim(claims)
}

func (v *valuesStub) Put(_ context.Context, _ string, puts []transport.Put) ([]bool, error) {
	return make([]bool, len(puts)), nil
}

func (v *valuesStub) Keep(_ context.Context, keeps []transport.Keep) ([]bool, error) {
	return make([]bool, len(keeps)), nil
}

func (v *valuesStub) Redial() {}

// One exchange reads no more bytes than is stated, however large values may be.
func TestSharedReadsABoundedNumberOfBytes(t *testing.T) {
	for most, together := range map[int]int{1 << 20: mostTogether, 64 << 20: 4, 512 << 20: 1} {
		synctest.Test(t, func(t *testing.T) {
			bus := fakebus.New(fakebus.Options{})
			defer bus.Close()
			bp := joinSimulated(t, bus, 0)
			defer bp.Close()
			c, err := New(bp, Options[int, int]{
				Name: "c", Load: itself, Shared: &SharedOptions[int]{MaxValueBytes: most},
				LoadMany: func(_ context.Context, keys []int) (map[int]int, error) { return nil, errors.New("none") },
			})
			require.NoError(t, err)
			read := 0
			c.loader.shared.redis.values = &valuesStub{read: func(keys []string) (transport.Reading, error) {
				require.LessOrEqual(t, len(keys), together)
				read += len(keys)
				return transport.Reading{}, errors.New("refused")
			}}
			keys := make([]int, together)
			for i := range keys {
				keys[i] = i
			}
			_, _ = c.GetMany(t.Context(), append(keys, 1000)...)
			require.Equal(t, together, read)
		})
	}
}

// A Redis that fails in the middle of a GetMany costs it nothing: what others were
// said to load is loaded here.
func TestSharedFailsInTheMiddle(t *testing.T) {
	const keys = mostTogether + 50
	tests := []struct {
		name   string
		claims func(n int) error // the number of the call
	}{
		{"the second claim", func(n int) error { return map[int]error{2: errors.New("refused")}[n] }},
		{"the first claim", func(n int) error { return map[int]error{1: errors.New("refused")}[n] }},
		{"all that come later", func(n int) error {
			if n > 2 {
				return errors.New("refused")
			}
			return nil
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				bus := fakebus.New(fakebus.Options{})
				defer bus.Close()
				bp := joinSimulated(t, bus, 0)
				defer bp.Close()
				for _, many := range []bool{true, false} {
					name := map[bool]string{true: "many", false: "one by one"}[many]
					o := Options[int, int]{Name: name[:3], Load: itself, Shared: &SharedOptions[int]{}}
					if many {
						o.LoadMany = func(_ context.Context, keys []int) (map[int]int, error) {
							got := map[int]int{}
							for _, key := range keys {
								got[key] = key
							}
							return got, nil
						}
					}
					c, err := New(bp, o)
					require.NoError(t, err)
					calls := 0
					c.loader.shared.redis.values = &valuesStub{
						read: func(keys []string) (transport.Reading, error) {
							return transport.Reading{
								Values: make([]transport.Value, len(keys)), Master: true, History: c.local.lease.history(),
							}, nil
						},
						claim: func(claims []transport.Claim) (transport.Claimed, error) {
							calls++
							states := make([]transport.ClaimState, len(claims))
							for i := range states {
								states[i] = transport.ClaimBusy
							}
							return transport.Claimed{Epoch: "e", States: states}, test.claims(calls)
						},
					}
					if !many {
						v, err := c.Get(t.Context(), 1)
						require.NoError(t, err)
						require.Equal(t, 1, v)
						continue
					}
					var all []int
					for i := range keys {
						all = append(all, i)
					}
					got, err := c.GetMany(t.Context(), all...)
					require.NoError(t, err)
					require.Len(t, got, keys)
				}
			})
		})
	}
}

// A caller who has less time than a request to Redis leaves when it is over, and the
// flight goes on for those who joined it.
func TestSharedCallerLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := fakebus.New(fakebus.Options{})
		defer bus.Close()
		bp := joinSimulated(t, bus, 0)
		defer bp.Close()
		c := sharedNumbers(t, bp, itself)
		asked := 0
		c.loader.shared.redis.values = &valuesStub{
			read: func([]string) (transport.Reading, error) {
				asked++
				time.Sleep(time.Second) // longer than any context lasts
				return transport.Reading{}, context.DeadlineExceeded
			},
			claim: func([]transport.Claim) (r transport.Claimed, err error) { return r, errors.New("refused") },
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		joined := make(chan int)
		go func() {
			time.Sleep(time.Millisecond)
			v, err := c.Get(context.Background(), 7)
			require.NoError(t, err)
			joined <- v
		}()
		_, err := c.Get(ctx, 7)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, 7, <-joined)
		require.Equal(t, 1, asked)
		require.EqualValues(t, 1, c.Stats().Shared.Errors)
	})
}

// A codec that ends the goroutine takes nobody else along.
func TestSharedCodecEndsTheGoroutine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := fakebus.New(fakebus.Options{})
		defer bus.Close()
		bp := joinSimulated(t, bus, 0)
		defer bp.Close()
		c, err := New(bp, Options[int, int]{
			Name: "numbers", Load: itself, Expiry: func(int, int) time.Duration { return time.Minute },
			Shared: &SharedOptions[int]{Codec: &endingCodec{}},
		})
		require.NoError(t, err)
		for key := range 2 {
			_, err = c.Get(t.Context(), key)
			require.NoError(t, err)
		}
		time.Sleep(time.Second)
		c.local.remove(0)
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_, _ = c.Get(t.Context(), 0) // does not return
			t.Error("the codec does not end the goroutine")
		}()
		<-ended
		v, err := c.Get(t.Context(), 0)
		require.NoError(t, err)
		require.Equal(t, 0, v)
	})
}

// endingCodec ends the first goroutines that read a value: the one that checks the first
// value that was stored, and the next.
type endingCodec struct {
	jsonCodec[int]
	ended atomic.Int32
}

func (c *endingCodec) Unmarshal(data []byte) (int, error) {
	if c.ended.Add(1) <= 2 {
		runtime.Goexit()
	}
	return c.jsonCodec.Unmarshal(data)
}

// What is wrong with the shared level is told: once in the log where it can never
// work, and as events where it fails and works again.
func TestSharedTellsWhatIsWrong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := fakebus.New(fakebus.Options{})
		defer bus.Close()
		var log bytes.Buffer
		told := make(chan Event, 100)
		o, err := BackplaneOptions{
			Logger:  slog.New(slog.NewTextHandler(&log, nil)),
			OnEvent: func(e Event) { told <- e },
		}.withDefaults()
		require.NoError(t, err)
		in := bus.Instance(0)
		bp, err := joinBus(t.Context(), o, in.Bus(), simulatedIdentity(instanceID{1}, in.Jitter), in.Jitter)
		require.NoError(t, err)
		defer bp.Close()
		c := sharedNumbers(t, bp, itself)
		stub := &valuesStub{
			read: func([]string) (transport.Reading, error) {
				return transport.Reading{}, errors.New("refused: no such right")
			},
			claim: func([]transport.Claim) (r transport.Claimed, err error) { return r, errors.New("refused") },
		}
		real := c.loader.shared.redis.values
		c.loader.shared.redis.values = stub
		for key := range 20 {
			_, err := c.Get(t.Context(), key)
			require.NoError(t, err)
		}
		synctest.Wait()
		require.EqualValues(t, mostFailures, c.Stats().Shared.Errors)
		require.NotZero(t, c.Stats().Shared.Skipped.Failing)
		c.loader.shared.redis.values = real
		time.Sleep(breakerPause + time.Millisecond)
		_, err = c.Get(t.Context(), 100)
		require.NoError(t, err)
		time.Sleep(time.Second)
		var kinds []EventKind
		for len(told) > 0 {
			if e := <-told; e.Cache == "numbers" {
				kinds = append(kinds, e.Kind)
				if e.Kind == EventSharedFailed {
					require.ErrorContains(t, e.Err, "no such right")
				}
			}
		}
		require.Equal(t, []EventKind{EventSharedFailed, EventSharedResumed}, kinds)

		bus.RefuseInfo(true)
		time.Sleep(10 * time.Second)
		for key := range 3 {
			_, err := c.Get(t.Context(), 200+key)
			require.NoError(t, err)
		}
		require.EqualValues(t, 3, c.Stats().Shared.Skipped.NoHistory)
		synctest.Wait()
		require.Equal(t, 1, strings.Count(log.String(), "does not tell its history (grant the user"))
	})
}

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
	synctest.Wait() // all that use what is there have done so
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

// A caller that may have a stale item after SoftTimeout gets it then, whatever Redis does.
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
