package nearcachetest_test

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache"
	"github.com/nearcache/nearcache/nearcachetest"
)

func TestPartition(t *testing.T) {
	onFleet(t, nearcachetest.Config{}, 3, func(t *testing.T, f *fleet) {
		f.serves(1, "a", 0)
		f.serves(2, "a", 0)
		f.Partition(1)
		require.NoError(t, f.change(0, "a"))
		f.Settle()
		f.serves(1, "a", 0) // nothing has come
		f.serves(2, "a", 1)
		require.Equal(t, nearcache.StateLive, f.stateOf(1), "it does not know")

		time.Sleep(maxStaleness)
		f.serves(1, "a", 1)
		require.Equal(t, nearcache.StateNoLease, f.stateOf(1))
		require.Equal(t, nearcache.StateLive, f.stateOf(2))

		f.Heal(1)
		f.Settle()
		require.Equal(t, nearcache.StateLive, f.stateOf(1))
		require.NoError(t, f.change(0, "a"))
		f.Settle()
		f.serves(1, "a", 2)
	})
}

// What a short partition has held up arrives, and nothing was missed.
func TestShortPartition(t *testing.T) {
	onFleet(t, nearcachetest.Config{}, 2, func(t *testing.T, f *fleet) {
		f.serves(1, "a", 0)
		f.serves(1, "b", 0)
		f.Partition(1)
		require.NoError(t, f.change(0, "a"))
		time.Sleep(maxStaleness / 2)
		f.serves(1, "a", 0)
		f.Heal()
		f.Settle()
		f.serves(1, "a", 1)
		_, held := f.caches[1].Peek("b")
		require.True(t, held)
		require.Zero(t, f.gapsOf(1))
	})
}

// The writes of an instance that is cut off are told to the others when it is not
// any more.
func TestPartitionOfTheWriter(t *testing.T) {
	tests := []struct {
		name string
		heal func(*fleet)
	}{
		{"healed by name", func(f *fleet) { f.Heal(0) }},
		{"all healed", func(f *fleet) { f.Heal() }},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			onFleet(t, nearcachetest.Config{}, 2, func(t *testing.T, f *fleet) {
				f.serves(0, "a", 0)
				f.serves(1, "a", 0)
				f.Partition(0)
				require.ErrorIs(t, f.change(0, "a"), nearcache.ErrUnconfirmed)
				f.serves(0, "a", 1)
				f.Settle()
				f.serves(1, "a", 0) // Redis has not accepted it
				test.heal(f)
				f.Settle()
				f.serves(1, "a", 1)
			})
		})
	}
}

func TestPartitionOfAll(t *testing.T) {
	onFleet(t, nearcachetest.Config{}, 3, func(t *testing.T, f *fleet) {
		f.Partition()
		time.Sleep(maxStaleness)
		for i := range 3 {
			require.Equal(t, nearcache.StateNoLease, f.stateOf(i))
		}
		f.Heal(0, 2)
		f.Settle()
		require.Equal(t, nearcache.StateLive, f.stateOf(0))
		require.Equal(t, nearcache.StateNoLease, f.stateOf(1))
		require.Equal(t, nearcache.StateLive, f.stateOf(2))
	})
}

func TestDrop(t *testing.T) {
	onFleet(t, nearcachetest.Config{}, 3, func(t *testing.T, f *fleet) {
		for i := range 3 {
			f.serves(i, "a", 0)
			f.serves(i, "b", 0)
		}
		f.Drop(1, 2)
		require.NoError(t, f.change(0, "a"))
		require.NoError(t, f.change(2, "a"))
		f.Settle()
		f.serves(1, "a", 0)
		f.serves(2, "a", 2)

		time.Sleep(maxStaleness)
		require.EqualValues(t, 1, f.gapsOf(1))
		require.Zero(t, f.gapsOf(2))
		_, held := f.caches[1].Peek("b")
		require.False(t, held, "all is cleared")
		f.serves(1, "a", 2)
		require.NoError(t, f.change(0, "a"))
		f.Settle()
		f.serves(1, "a", 3)
		require.EqualValues(t, 1, f.gapsOf(1))
	})
}

// The message after the one that was lost shows it at once.
func TestDropIsNoticedByTheNextMessage(t *testing.T) {
	onFleet(t, nearcachetest.Config{}, 2, func(t *testing.T, f *fleet) {
		f.serves(1, "a", 0)
		f.Drop(1, 1)
		require.NoError(t, f.change(0, "a"))
		require.NoError(t, f.change(0, "b"))
		f.Settle()
		f.serves(1, "a", 1)
		require.EqualValues(t, 1, f.gapsOf(1))
	})
}

func TestWhatDropLeavesAlone(t *testing.T) {
	tests := []struct {
		name string
		do   func(*testing.T, *fleet)
	}{
		{"what comes after Heal", func(t *testing.T, f *fleet) { f.Drop(1, 1); f.Heal(1) }},
		{"what comes after Heal of all", func(t *testing.T, f *fleet) { f.Drop(1, 1); f.Heal() }},
		{"what comes after another Drop", func(t *testing.T, f *fleet) { f.Drop(1, 1); f.Drop(1, 0) }},
		{"answers to probes", func(t *testing.T, f *fleet) { f.Drop(1, 1); time.Sleep(time.Hour); f.Heal(1) }},
		{"the instance's own messages", func(t *testing.T, f *fleet) {
			f.Drop(1, 1)
			require.NoError(t, f.change(1, "own"))
			f.Settle()
			f.Heal(1)
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			onFleet(t, nearcachetest.Config{}, 2, func(t *testing.T, f *fleet) {
				f.serves(1, "a", 0)
				test.do(t, f)
				require.NoError(t, f.change(0, "a"))
				f.Settle()
				f.serves(1, "a", 1)
				require.Zero(t, f.gapsOf(1))
				require.Zero(t, f.Backplane(1).Stats().Lease.Lost)
			})
		})
	}
}

// While Redis is not well writes are unconfirmed, and nobody else hears of them.
// When it is well again everybody does.
func TestRedisIsNotWell(t *testing.T) {
	tests := []struct {
		name        string
		begin, end  func(*fleet)
		keepsMemory bool
	}{
		{"refused writes", func(f *fleet) { f.RefuseWrites(true) }, func(f *fleet) { f.RefuseWrites(false) }, true},
		{"refused writes, healed", func(f *fleet) { f.RefuseWrites(true) }, func(f *fleet) { f.Heal() }, true},
		{"stopped and started", (*fleet).stop, (*fleet).start, false},
		{"stopped and healed", (*fleet).stop, func(f *fleet) { f.Heal() }, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			for _, long := range []bool{false, true} {
				onFleet(t, nearcachetest.Config{}, 2, func(t *testing.T, f *fleet) {
					f.serves(1, "a", 0)
					f.serves(1, "b", 0)
					test.begin(f)
					require.ErrorIs(t, f.change(0, "a"), nearcache.ErrUnconfirmed)
					f.serves(0, "a", 1)
					f.Settle()
					f.serves(1, "a", 0)
					if long {
						time.Sleep(maxStaleness)
						require.Equal(t, nearcache.StateNoLease, f.stateOf(1))
						f.serves(1, "a", 1)
					}
					f.Heal(0, 1) // their network is well, and Redis is not
					f.Settle()
					require.NotZero(t, f.Backplane(0).Stats().Queued)

					test.end(f)
					f.Settle()
					require.Equal(t, nearcache.StateLive, f.stateOf(1))
					require.Zero(t, f.Backplane(0).Stats().Queued)
					f.serves(1, "a", 1)
					if !long {
						_, held := f.caches[1].Peek("b")
						require.Equal(t, test.keepsMemory, held)
					}
				})
			}
		})
	}
}

func (f *fleet) stop()  { f.StopRedis() }
func (f *fleet) start() { f.StartRedis() }

func TestRestart(t *testing.T) {
	onFleet(t, nearcachetest.Config{}, 2, func(t *testing.T, f *fleet) {
		f.serves(1, "a", 0)
		f.StopRedis()
		f.StartRedis()
		f.Settle()
		for i := range 2 {
			require.Equal(t, nearcache.StateLive, f.stateOf(i))
			s := f.Backplane(i).Stats()
			require.EqualValues(t, 1, s.Reconnects)
			require.NotZero(t, s.Clears.Gaps())
		}
		require.NoError(t, f.change(0, "a"))
		f.Settle()
		f.serves(1, "a", 1)
	})
}

// Whatever was wrong, and however often, a fleet that is healed and has settled
// serves what the source says.
func TestHealedFleetsAreAtRest(t *testing.T) {
	for seed := range uint64(50) {
		c := nearcachetest.Config{Seed: seed}
		c.Backplane.MaxStaleness = time.Second
		onFleet(t, c, 3, func(t *testing.T, f *fleet) {
			t.Logf("seed %d", seed)
			r := rand.New(rand.NewPCG(seed, 0))
			ctx, cancel := context.WithCancel(t.Context())
			cancel() // writes do not wait
			for version := range 10 {
				for range 1 + r.IntN(5) {
					switch r.IntN(6) {
					case 0, 1:
						f.Partition(r.IntN(3))
					case 2:
						f.Heal(r.IntN(3))
					case 3:
						f.StopRedis()
					case 4:
						f.StartRedis()
					case 5:
						f.RefuseWrites(r.IntN(2) == 0)
					}
					time.Sleep(time.Duration(r.Int64N(int64(2 * time.Second))))
					f.serves(r.IntN(3), "other", 0)
				}
				f.mu.Lock()
				f.versions["a"]++
				f.mu.Unlock()
				require.ErrorIs(t, f.caches[r.IntN(3)].Remove(ctx, "a"), nearcache.ErrUnconfirmed)
				f.Heal()
				f.Settle()
				for i := range 3 {
					require.Equal(t, nearcache.StateLive, f.stateOf(i))
					f.serves(i, "a", version+1)
				}
			}
		})
	}
}
