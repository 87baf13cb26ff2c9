package fakebus

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache/internal/transport"
)

// user is an instance that uses values of cache "c".
type user struct {
	transport.Bus
	t  *testing.T
	in *Instance
}

// onValues runs test in a bubble with a deployment of two instances.
func onValues(t *testing.T, test func(t *testing.T, b *Bus, one, two user)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := New(Options{Instances: 2})
		defer b.Close()
		of := func(i int) user { return user{b.Instance(i).Bus(), t, b.Instance(i)} }
		test(t, b, of(0), of(1))
	})
}

func (u user) claim(key, token string) (transport.Claimed, error) {
	return u.Values().Claim(u.t.Context(), "c", u.in.bus.history, time.Hour,
		[]transport.Claim{{Key: key, Token: token, Any: true, Life: time.Minute}})
}

func (u user) put(key, token string) (bool, error) {
	stored, err := u.Values().Put(u.t.Context(), "c",
		[]transport.Put{{Key: key, Token: token, Bytes: bytesOf(token), Life: time.Hour}})
	return err == nil && stored[0], err
}

// store puts a value, with an id, of each key.
func (u user) store(id string, keys ...string) {
	u.t.Helper()
	for _, key := range keys {
		claimed, err := u.claim(key, id)
		require.NoError(u.t, err)
		require.Equal(u.t, []transport.ClaimState{transport.ClaimTaken}, claimed.States)
		stored, err := u.put(key, id)
		require.NoError(u.t, err)
		require.True(u.t, stored)
	}
}

func (u user) read(keys ...string) transport.Reading {
	u.t.Helper()
	r, err := u.Values().Read(u.t.Context(), "c", keys, nil, 1<<20)
	require.NoError(u.t, err)
	return r
}

// ids returns the ids of the values of keys, as far as there are some.
func (u user) ids(keys ...string) (ids []string) {
	u.t.Helper()
	for _, v := range u.read(keys...).Values {
		ids = append(ids, idOf(string(v.Bytes)))
	}
	return ids
}

func (u user) publish(changes ...transport.Change) {
	u.t.Helper()
	require.NoError(u.t, u.Publish(u.t.Context(), transport.Message{Nonce: "nonce", Body: "body", Changes: changes}))
}

func TestInstancesShareValues(t *testing.T) {
	onValues(t, func(t *testing.T, b *Bus, one, two user) {
		require.Equal(t, transport.Reading{
			Values: make([]transport.Value, 1), Master: true, History: b.history,
		}, one.read("a"))
		one.store(id(1), "a", "b")
		r := two.read("a", "none")
		require.Equal(t, bytesOf(id(1)), r.Values[0].Bytes)
		require.False(t, r.Values[1].Found)
		require.Len(t, r.Epoch, 16)

		claimed, err := two.claim("a", id(2))
		require.NoError(t, err)
		require.Equal(t, r.Epoch, claimed.Epoch)
		claimed, err = one.claim("a", id(3))
		require.NoError(t, err)
		require.Equal(t, []transport.ClaimState{transport.ClaimBusy}, claimed.States)
		one.publish(transport.Change{Cache: "c", Keys: []string{"a"}})
		stored, err := two.put("a", id(2))
		require.NoError(t, err)
		require.False(t, stored, "its claim went with the value")
		require.Equal(t, []string{"", id(1)}, two.ids("a", "b"))

		two.publish(transport.Change{Cache: "c", Clear: true, Regions: []string{"r"}})
		r, err = one.Values().Read(t.Context(), "c", nil, []string{"none", "r"}, 1<<20)
		require.NoError(t, err)
		require.Equal(t, r.Count, r.Cleared)
		require.Equal(t, []uint64{0, r.Count - 1}, r.Regions)
	})
}

// What a caller does with its slices behind a call changes nothing in Redis, nor
// what others have read.
func TestValuesAreCopied(t *testing.T) {
	onValues(t, func(t *testing.T, b *Bus, one, two user) {
		_, err := one.claim("a", id(1))
		require.NoError(t, err)
		bytes := bytesOf(id(1))
		_, err = one.Values().Put(t.Context(), "c", []transport.Put{{Key: "a", Token: id(1), Bytes: bytes, Life: time.Hour}})
		require.NoError(t, err)
		bytes[3] = 'x'
		one.read("a").Values[0].Bytes[3] = 'x'
		require.Equal(t, []string{id(1)}, two.ids("a"))
	})
}

func TestEvictions(t *testing.T) {
	onValues(t, func(t *testing.T, b *Bus, one, two user) {
		one.store(id(1), "a")
		epoch := one.read().Epoch
		b.EvictValues()
		require.Equal(t, []string{""}, two.ids("a"))

		_, err := one.claim("a", id(2))
		require.NoError(t, err)
		b.EvictTokens()
		two.store(id(3), "a")
		stored, err := one.put("a", id(2))
		require.NoError(t, err)
		require.False(t, stored)
		require.Equal(t, epoch, two.read().Epoch)

		b.EvictClears()
		r := two.read("a")
		require.True(t, r.Values[0].Found)
		require.Empty(t, r.Epoch)
		one.publish(transport.Change{Cache: "c", Keys: []string{"a"}})
		require.Equal(t, []string{id(3)}, two.ids("a"), "it is not valid as it is")
		one.store(id(4), "b")
		require.Len(t, one.read().Epoch, 16)
		require.NotEqual(t, epoch, one.read().Epoch)
	})
}

// A replica that has fallen behind has values, tokens and clears of before, and the
// first probe of the new history makes all of it void.
func TestFailoverResurrects(t *testing.T) {
	onValues(t, func(t *testing.T, b *Bus, one, two user) {
		one.store(id(1), "a", "b")
		_, err := two.claim("claimed", id(2))
		require.NoError(t, err)
		before := one.read("a", "b")
		b.HoldReplica()
		one.publish(transport.Change{Cache: "c", Keys: []string{"a", "claimed"}}, transport.Change{Cache: "c", Clear: true})
		b.EvictValues()
		b.HoldReplica() // it is held
		b.Failover(true)

		after := two.read("a", "b")
		require.NotEqual(t, before.History, after.History)
		require.True(t, after.Master)
		after.History = before.History
		for i := range before.Values {
			after.Values[i].Life = before.Values[i].Life
		}
		require.Equal(t, before, after)
		stored, err := two.put("claimed", id(2))
		require.NoError(t, err)
		require.True(t, stored)

		s, err := two.Subscribe(t.Context(), transport.Identity{})
		require.NoError(t, err)
		require.NoError(t, s.Probe(t.Context(), "nonce"))
		require.Empty(t, two.read().Epoch)
		require.Equal(t, []string{id(1)}, two.ids("a"))
		b.Failover(false) // it lags no more
		time.Sleep(b.RoundTrip())
		require.Empty(t, two.read().Epoch)
	})
}

func TestRestartEmptiesRedis(t *testing.T) {
	onValues(t, func(t *testing.T, b *Bus, one, _ user) {
		one.store(id(1), "a")
		b.Stop()
		_, err := one.claim("a", id(2))
		require.ErrorIs(t, err, ErrReset)
		b.Start()
		require.Equal(t, transport.Reading{
			Values: make([]transport.Value, 1), Master: true, History: b.history,
		}, one.read("a"))
	})
}

func TestRefusals(t *testing.T) {
	onValues(t, func(t *testing.T, b *Bus, one, _ user) {
		one.store(id(1), "a")
		b.RefuseWrites(true)
		_, err := one.claim("a", id(2))
		require.ErrorIs(t, err, ErrRefused)
		_, err = one.put("a", id(2))
		require.ErrorIs(t, err, ErrRefused)
		require.ErrorIs(t, one.Publish(t.Context(), transport.Message{Changes: []transport.Change{{Cache: "c", Keys: []string{"a"}}}}), ErrRefused)
		require.Equal(t, []string{id(1)}, one.ids("a"))
		b.RefuseWrites(false)

		b.RefuseInfo(true)
		_, err = one.Values().Read(t.Context(), "c", []string{"a"}, nil, 1<<20)
		require.ErrorIs(t, err, ErrNoInfo)
		one.store(id(2), "a")

		// A probe that knows no history ends none.
		s, err := one.Subscribe(t.Context(), transport.Identity{})
		require.NoError(t, err)
		b.Failover(true)
		require.NoError(t, s.Probe(t.Context(), "nonce"))
		b.RefuseInfo(false)
		require.NotEmpty(t, one.read().Epoch)
	})
}

// Connections for values stay with a master that was demoted, until Redial, until
// Heal, or until they break. All else goes to the new one.
func TestDemote(t *testing.T) {
	tests := []struct {
		name  string
		leave func(*Bus, user)
	}{
		{"redialled", func(_ *Bus, u user) { u.Values().Redial() }},
		{"healed", func(b *Bus, _ user) { b.Heal() }},
		{"cut", func(_ *Bus, u user) { u.in.Cut() }},
		{"failed over again", func(b *Bus, _ user) { b.Failover(false) }},
		{"restarted", func(b *Bus, _ user) { b.Stop(); b.Start() }},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			onValues(t, func(t *testing.T, b *Bus, one, two user) {
				keys := []string{"a", "b", "c", "d", "e", "f"}
				one.store(id(1), keys...)
				for _, key := range keys { // over every connection
					require.Equal(t, []string{id(1)}, two.ids(key))
				}
				s, err := two.Subscribe(t.Context(), transport.Identity{})
				require.NoError(t, err)
				before := b.history
				b.Demote()
				require.NotEqual(t, before, b.history)
				one.Values().Redial()
				one.publish(transport.Change{Cache: "c", Keys: keys})
				_, _, err = s.Receive()
				require.ErrorIs(t, err, ErrReset)

				r := two.read("a")
				require.False(t, r.Master)
				require.Contains(t, []string{before, b.history}, r.History)
				time.Sleep(b.RoundTrip())
				r = two.read("a")
				require.False(t, r.Master)
				require.Equal(t, b.history, r.History)
				require.True(t, r.Values[0].Found)
				_, err = two.claim("a", id(2))
				require.ErrorIs(t, err, ErrReadOnly)
				_, err = two.put("a", id(2))
				require.ErrorIs(t, err, ErrReadOnly)
				require.Equal(t, []string{""}, one.ids("a"))

				test.leave(b, two)
				time.Sleep(b.RoundTrip()) // it has heard
				for _, key := range keys {
					r := two.read(key)
					require.True(t, r.Master)
					require.Equal(t, b.history, r.History)
					require.False(t, r.Values[0].Found)
				}
			})
		})
	}
}

// A demoted master does not know that at first.
func TestDemotedMasterHasTheOldHistory(t *testing.T) {
	var old, fresh int
	for seed := range uint64(100) {
		synctest.Test(t, func(t *testing.T) {
			b := New(Options{Seed: seed})
			defer b.Close()
			u := user{b.Instance(0).Bus(), t, b.Instance(0)}
			before := u.read("a").History
			b.Demote()
			switch u.read("a").History {
			case before:
				old++
			case b.history:
				fresh++
			}
		})
	}
	require.NotZero(t, old)
	require.NotZero(t, fresh)
	require.Equal(t, 100, old+fresh)
}

// A connection that outlives a failover does not read half a pipeline from one
// server and half from another.
func TestFailoverEndsPipelines(t *testing.T) {
	var failed int
	for seed := range uint64(100) {
		synctest.Test(t, func(t *testing.T) {
			b := New(Options{Seed: seed, MinLatency: 1, MaxLatency: 2})
			defer b.Close()
			u := user{b.Instance(0).Bus(), t, b.Instance(0)}
			u.store(id(1), "a")
			b.HoldReplica()
			u.publish(transport.Change{Cache: "c", Keys: []string{"a"}, Clear: true})
			before := b.history
			time.AfterFunc(pipelined/4, func() { b.Failover(true) })
			r, err := u.Values().Read(t.Context(), "c", []string{"a"}, nil, 1<<20)
			if err != nil {
				require.ErrorIs(t, err, ErrReset)
				failed++
				return
			}
			require.Equal(t, before, r.History)
			require.False(t, r.Values[0].Found)
		})
	}
	require.NotZero(t, failed)
}

// What goes wrong on the network fails an exchange, and does not outlast the fault.
func TestFaultsOfValues(t *testing.T) {
	const timeout = 5 * time.Second // Bus.Options's
	tests := []struct {
		name  string
		fault func(*Bus, user)
		want  error
		took  time.Duration // 0: no longer than a round trip
	}{
		{"cut", func(_ *Bus, u user) { u.in.Cut() }, ErrReset, 0},
		{"redialled", func(_ *Bus, u user) { u.Values().Redial() }, ErrReset, 0},
		{"failover", func(b *Bus, _ user) { b.Failover(false) }, ErrReset, 0},
		{"stopped", func(b *Bus, _ user) { b.Stop() }, ErrReset, 0},
		{"dead", func(_ *Bus, u user) { u.in.Deaden() }, context.DeadlineExceeded, timeout},
		{"mute upwards", func(_ *Bus, u user) { u.in.Mute(Up) }, context.DeadlineExceeded, timeout},
		{"mute downwards", func(_ *Bus, u user) { u.in.Mute(Down) }, context.DeadlineExceeded, timeout},
		{"partition", func(_ *Bus, u user) { u.in.Partition() }, context.DeadlineExceeded, timeout},
		{"paused", func(_ *Bus, u user) { u.in.Pause() }, context.DeadlineExceeded, timeout},
	}
	for _, test := range tests {
		for _, connected := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, connected %t", test.name, connected), func(t *testing.T) {
				onValues(t, func(t *testing.T, b *Bus, one, two user) {
					if connected {
						one.store(id(1), "a")
					}
					began := time.Now()
					time.AfterFunc(1, func() { test.fault(b, one) }) // the claim is on its way
					_, err := one.claim("a", id(2))
					require.ErrorIs(t, err, test.want)
					if test.took > 0 {
						require.Equal(t, test.took, time.Since(began).Truncate(time.Millisecond))
					} else {
						require.Less(t, time.Since(began), b.RoundTrip())
					}
					b.Heal()
					for i := range 20 { // over each connection, of which some may be dead
						_, _ = one.Values().Read(t.Context(), "c", []string{fmt.Sprint(i)}, nil, 1<<20)
					}
					time.Sleep(time.Hour)
					one.store(id(3), "a")
					require.Equal(t, []string{id(3)}, two.ids("a"))
				})
			})
		}
	}
}

// A command that got stuck is executed when nobody waits for it any more, unless it
// was lost.
func TestLateClaims(t *testing.T) {
	for _, lost := range []bool{false, true} {
		onValues(t, func(t *testing.T, b *Bus, one, two user) {
			one.store(id(1), "a")
			one.in.Mute(Up)
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			claim := transport.Claim{Key: "a", Token: id(2), Any: true, Life: time.Hour}
			_, err := one.Values().Claim(ctx, "c", "h", time.Hour, []transport.Claim{claim})
			require.ErrorIs(t, err, context.DeadlineExceeded)
			one.in.Heal(lost)
			time.Sleep(time.Second)
			claimed, err := two.claim("a", id(3))
			require.NoError(t, err)
			want := transport.ClaimBusy
			if lost {
				want = transport.ClaimTaken
			}
			require.Equal(t, []transport.ClaimState{want}, claimed.States)
		})
	}
}

// One that gives up does not disturb those that share its connection.
func TestGivingUpAlone(t *testing.T) {
	onValues(t, func(t *testing.T, b *Bus, one, _ user) {
		one.store(id(1), "a")
		ctx, cancel := context.WithTimeout(t.Context(), 1)
		defer cancel()
		var others sync.WaitGroup
		for range 3 {
			others.Go(func() {
				_, err := one.Values().Read(context.Background(), "c", []string{"a"}, nil, 1<<20)
				require.NoError(t, err)
			})
		}
		_, err := one.Values().Read(ctx, "c", []string{"a"}, nil, 1<<20)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		others.Wait()
		one.Close()
		require.Empty(t, one.in.open)
	})
}

func TestCloseEndsValues(t *testing.T) {
	onValues(t, func(t *testing.T, b *Bus, one, two user) {
		one.store(id(1), "a")
		one.in.Partition()
		began := time.Now()
		time.AfterFunc(time.Second, one.Close)
		for range 2 { // in the middle of it, and afterwards
			_, err := one.Values().Read(t.Context(), "c", []string{"a"}, nil, 1<<20)
			require.ErrorIs(t, err, ErrReset)
			require.Equal(t, time.Second, time.Since(began))
		}
		one.in.Heal(false)
		next := user{one.in.Bus(), t, one.in}
		require.Equal(t, []string{id(1)}, next.ids("a"), "another backplane's")
		b.Close()
		_, err := next.claim("a", id(2))
		require.ErrorIs(t, err, ErrReset)
	})
}

// A round trip is longer than an exchange takes, when the connection is there.
func TestRoundTripOfValues(t *testing.T) {
	onValues(t, func(t *testing.T, b *Bus, one, _ user) {
		one.store(id(1), "a")
		one.ids("a")
		for range 3000 {
			began := time.Now()
			one.ids("a")
			require.Less(t, time.Since(began), b.RoundTrip())
		}
	})
}

// A seed gives the same history again, in whatever order the goroutines of an
// instance run that ask at one instant.
func TestValuesRepeatThemselves(t *testing.T) {
	first := valuesHistory(t, 1, 0)
	for order := range uint64(3) {
		again := valuesHistory(t, 1, order)
		for i := range min(len(first), len(again)) {
			if first[i] != again[i] { // the rest follows from that
				require.Equal(t, first[i], again[i])
			}
		}
		require.Len(t, again, len(first))
	}
	require.NotEqual(t, first, valuesHistory(t, 2, 0))
}

// valuesHistory returns what goroutines saw that use values while faults happen.
// Those of an instance act at the same instants; order shuffles who is first.
func valuesHistory(t *testing.T, seed, order uint64) (history []string) {
	synctest.Test(t, func(t *testing.T) {
		b := New(Options{
			Seed: seed, Instances: 2, CommandTimeout: 50 * time.Millisecond, ConnectTimeout: 30 * time.Millisecond,
		})
		defer b.Close()
		logs := make([][]string, 8)
		starts := make([]func(), len(logs))
		var users sync.WaitGroup
		buses := []transport.Bus{b.Instance(0).Bus(), b.Instance(1).Bus()}
		for n := range logs {
			starts[n] = func() {
				users.Go(func() { logs[n] = useValues(b, buses[n%2], n) })
			}
		}
		starts = append(starts, func() { users.Go(func() { publishChanges(buses[1]) }) })
		rand.New(rand.NewPCG(order, 0)).Shuffle(len(starts), func(i, j int) { starts[i], starts[j] = starts[j], starts[i] })
		for _, start := range starts {
			start()
		}
		causeTrouble(b)
		users.Wait()
		for _, bus := range buses {
			bus.Close()
		}
		history = slices.Concat(logs...)
	})
	return history
}

// useValues reads, claims and puts every 5 ms, and returns what came of it.
func useValues(b *Bus, bus transport.Bus, n int) (log []string) {
	start, v := time.Now(), bus.Values()
	note := func(what string, result any, err error) {
		if err != nil {
			result = err
			if !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, ErrReset) {
				result = "refused"
			}
		}
		log = append(log, fmt.Sprint(n, what, time.Since(start), result))
	}
	for i := range 200 {
		time.Sleep(time.Until(start.Add(time.Duration(i) * 5 * time.Millisecond)))
		ctx, cancel := context.WithTimeout(context.Background(), 45*time.Millisecond)
		keys := []string{"shared", fmt.Sprint(n)}
		if i%2 == 0 {
			slices.Reverse(keys)
		}
		r, err := v.Read(ctx, "c", keys, []string{"r"}, 1<<20)
		note("reads", r, err)
		if err != nil {
			cancel()
			continue
		}
		token := id(1000*n + i)
		claimed, err := v.Claim(ctx, "c", r.History, time.Minute, []transport.Claim{
			{Key: keys[0], Token: token, Any: true, Life: 20 * time.Millisecond},
		})
		note("claims", claimed, err)
		if err == nil {
			stored, err := v.Put(ctx, "c", []transport.Put{
				{Key: keys[0], Token: token, Bytes: bytesOf(token), Life: time.Second},
			})
			note("puts", stored, err)
		}
		cancel()
	}
	return log
}

func publishChanges(bus transport.Bus) {
	for i := range 100 {
		time.Sleep(7*time.Millisecond + 1)
		change := transport.Change{Cache: "c", Keys: []string{"shared"}}
		if i%5 == 0 {
			change.Regions = []string{"r"}
		}
		_ = bus.Publish(context.Background(), transport.Message{Changes: []transport.Change{change}})
	}
}

func causeTrouble(b *Bus) {
	in := b.Instance(0)
	for _, fault := range []func(){
		in.Cut, in.Deaden, in.Pause, in.Resume, b.EvictClears, in.Partition, func() { in.Heal(false) }, b.HoldReplica,
		b.Demote, func() { in.Mute(Up) }, func() { in.Heal(true) }, b.Heal, b.HoldReplica, func() { b.Failover(true) },
		b.Stop, b.Start, b.EvictTokens, b.EvictValues, func() { b.Failover(false) },
	} {
		time.Sleep(51*time.Millisecond + 13)
		fault()
	}
}
