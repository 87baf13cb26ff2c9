package nearcache

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

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
