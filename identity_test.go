package nearcache

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache/internal/fakebus"
	"github.com/nearcache/nearcache/internal/transport"
)

// An instance knows what it has sent: each message once, and what it sent under the id of
// its subscription. What it remembers does not grow.
func TestIdentity(t *testing.T) {
	i := newIdentity()
	back := func(m transport.Message, previous string) bool {
		t.Helper()
		e, err := decodeEnvelope(m.Head + string(byte(len(previous))) + previous + "\x28" + positionOf(previous, m.Nonce))
		require.NoError(t, err)
		return i.sent(e)
	}
	unheard := i.message(greeting, nil)
	require.Empty(t, i.nonces, "nothing comes back to an instance without a subscription")
	i.become(i.identify())
	require.False(t, back(unheard, positionA))

	m := i.message(greeting, nil)
	require.Len(t, m.Nonce, 16)
	require.NotEqual(t, m.Nonce, i.message(greeting, nil).Nonce)
	clone := m
	clone.Nonce = "0123456789abcdef"
	require.False(t, back(clone, positionA), "it has the id, and another nonce")
	require.True(t, back(m, positionA))
	require.False(t, back(m, positionB), "a second execution")
	first := i.message(greeting, nil)
	require.True(t, back(first, ""), "there was no position")

	m = i.message(greeting, nil)
	i.become(i.identify())
	require.False(t, back(m, positionA), "it is from before the subscription")

	old := i.message(greeting, nil)
	var newest transport.Message
	for range maxOwn {
		newest = i.message(greeting, nil)
	}
	require.Len(t, i.nonces, maxOwn)
	require.False(t, back(old, positionA))
	require.True(t, back(newest, positionA))
}

// Instances with one seed have one identity, in every run the same, and nonces of their
// own.
func TestSimulatedIdentities(t *testing.T) {
	of := func(random int64) *identity {
		return simulatedIdentity(instanceID{1}, func(int64) int64 { return random })
	}
	a, clone, again := of(1), of(2), of(1)
	require.Equal(t, a.id, clone.id)
	require.Equal(t, a.identify(), clone.identify())
	require.NotEqual(t, a.identify(), a.id)
	nonce := a.draw()
	require.NotEqual(t, nonce, clone.draw())
	require.Equal(t, nonce, again.draw())
	require.NotEqual(t, nonce, a.draw())
}

// What Set and Update keep outlasts their own message. If the script ran more than once,
// or nobody knows whether it ran, a message comes that is not known for one's own: then
// the value may go.
func TestValuesOutlastTheirOwnMessages(t *testing.T) {
	writes := map[string]func(context.Context, *Cache[int, int]) error{
		"Set": func(ctx context.Context, c *Cache[int, int]) error { return c.Set(ctx, 1, 2) },
		"Update": func(ctx context.Context, c *Cache[int, int]) error {
			_, err := c.Update(ctx, 1, func(context.Context) (int, error) { return 2, nil })
			return err
		},
	}
	tests := []struct {
		name         string
		fault        func(*fakebus.Instance)
		own, applied uint64
		kept         bool
	}{
		{"nothing is wrong", func(*fakebus.Instance) {}, 1, 0, true},
		{"the script runs twice", (*fakebus.Instance).Twice, 1, 1, false},
		{"its answer is lost", (*fakebus.Instance).LoseReply, 1, 1, false}, // it is run again, since the connection was kept
		{"it is slow", func(in *fakebus.Instance) { in.Slow(100 * time.Millisecond) }, 1, 0, true},
		{"it runs late, after another attempt", func(in *fakebus.Instance) { in.Late(200 * time.Millisecond) }, 1, 1, false},
	}
	for name, write := range writes {
		for _, test := range tests {
			t.Run(fmt.Sprint(name, ", ", test.name), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					bus := fakebus.New(fakebus.Options{Instances: 1})
					defer bus.Close()
					bp := joinSimulated(t, bus, 0)
					defer bp.Close()
					c, err := New(bp, Options[int, int]{Name: "numbers", Load: itself})
					require.NoError(t, err)
					require.NoError(t, c.Set(t.Context(), 7, 7)) // the publisher has its connection
					time.Sleep(bus.RoundTrip())
					before := bp.Stats()
					require.EqualValues(t, 1, before.Own)

					time.Sleep(10 * time.Millisecond) // no probe is under way
					test.fault(bus.Instance(0))
					if err := write(t.Context(), c); err != nil {
						require.ErrorIs(t, err, ErrUnconfirmed)
						require.NoError(t, bp.Flush(t.Context()))
					}
					time.Sleep(time.Second)
					after := bp.Stats()
					require.Equal(t, test.own, after.Own-before.Own)
					require.Equal(t, test.applied, after.Applied-before.Applied)
					require.Zero(t, after.Clears.Gaps())
					value, kept := c.Peek(1)
					require.Equal(t, test.kept, kept)
					if kept {
						require.Equal(t, 2, value)
					}
				})
			})
		}
	}
}

//  1. the snapshot of a machine is resumed twice: two processes have one identity, and
//     one channel for echoes   2. one of them invalidates   3. the other takes the
//     message for its own, and goes on serving what it holds.
//
// They go on having one identity after each reconnect, since their random numbers go on
// alike too.
func TestClones(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := fakebus.New(fakebus.Options{Instances: 2})
		defer bus.Close()
		o, err := BackplaneOptions{MaxStaleness: time.Second, Logger: slog.New(slog.DiscardHandler)}.withDefaults()
		require.NoError(t, err)
		version := 1
		var backplanes [2]*Backplane
		var caches [2]*Cache[int, int]
		for i := range caches {
			in := bus.Instance(i)
			backplanes[i], err = joinBus(t.Context(), o, in.Bus(), simulatedIdentity(instanceID{1}, in.Jitter), in.Jitter)
			require.NoError(t, err)
			defer backplanes[i].Close()
			caches[i], err = New(backplanes[i], Options[int, int]{
				Name: "numbers", Load: func(context.Context, int) (int, error) { return version, nil },
			})
			require.NoError(t, err)
		}
		require.Equal(t, backplanes[0].subscriber.self.id, backplanes[1].subscriber.self.id)
		for round := range 6 {
			for _, c := range caches {
				_, err := c.Get(t.Context(), 1)
				require.NoError(t, err)
			}
			version++
			require.NoError(t, caches[round%2].Remove(t.Context(), 1))
			time.Sleep(bus.RoundTrip())
			for _, c := range caches {
				got, err := c.Get(t.Context(), 1)
				require.NoError(t, err)
				require.Equal(t, version, got)
			}
			if round%2 == 1 { // each subscribes again
				for i, bp := range backplanes {
					subscribed := bp.Stats().Subscribed
					bus.Instance(i).Cut()
					time.Sleep(time.Second)
					require.Equal(t, subscribed+1, bp.Stats().Subscribed)
				}
			}
		}
		for _, bp := range backplanes {
			s := bp.Stats()
			require.Equal(t, StateLive, s.State)
			require.Zero(t, s.Clears.Gaps(), "echoes of the other's probes clear nothing")
			require.Zero(t, s.Lease.Lost)
			require.EqualValues(t, 3, s.Own)
			require.EqualValues(t, 3, s.Applied)
			require.NotZero(t, s.Foreign, "the other's echoes")
		}
	})
}

// What gathers while Redis is not reached goes out as one message of many operations, on
// several caches. Each of them is applied.
func TestEveryOperationOfAMessage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := fakebus.New(fakebus.Options{Instances: 2})
		defer bus.Close()
		writer, reader := joinSimulated(t, bus, 0), joinSimulated(t, bus, 1)
		defer writer.Close()
		defer reader.Close()
		const caches, keys = 4, 6
		var write, read [caches]*Cache[int, int]
		for i := range caches {
			o := Options[int, int]{
				Name: fmt.Sprint("c", i), Load: itself,
				Regions: func(key, _ int) []string { return []string{fmt.Sprint("r", key)} },
			}
			var err error
			write[i], err = New(writer, o)
			require.NoError(t, err)
			read[i], err = New(reader, o)
			require.NoError(t, err)
			for key := range keys {
				_, err := read[i].Get(t.Context(), key)
				require.NoError(t, err)
			}
		}
		before := writer.Stats().Published
		bus.Instance(0).Mute(fakebus.Down)
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		require.Error(t, write[0].Remove(ctx, 1000)) // it is on its way, and the others gather behind it
		for i := range caches {
			if i == caches-1 {
				require.Error(t, write[i].Clear(ctx))
				continue
			}
			require.Error(t, write[i].Remove(ctx, 0, 1))
			require.Error(t, write[i].ClearRegion(ctx, "r2", "r3"))
		}
		bus.Instance(0).Heal(false)
		require.NoError(t, writer.Flush(t.Context()))
		time.Sleep(bus.RoundTrip())
		require.EqualValues(t, 2, writer.Stats().Published-before)
		for i := range caches {
			for key := range keys {
				_, held := read[i].Peek(key)
				require.Equal(t, key > 3 && i < caches-1, held, "item %d of cache %d", key, i)
			}
		}
		require.Zero(t, reader.Stats().Clears.Gaps())
	})
}
