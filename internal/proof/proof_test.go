// Package proof runs the library on a simulated Redis, under random schedules of reads,
// writes and faults, and checks every read against the bound on staleness.
package proof

import (
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache/internal/raceflag"
)

// defaultSeeds is how many schedules TestProof runs; under the race detector it runs a
// fifth. They take about half a minute of two processors.
const defaultSeeds = 1000

// TestProof runs the library, as it is, through one schedule for each seed: a fleet
// on a simulated Redis that fails in every way that Redis and networks do, and
// checks the promise on staleness for every read (see history). After each
// schedule all faults are healed, and every instance must become live and hold
// what the source says.
//
// NEARCACHE_PROOF_SEEDS sets how many schedules are run, NEARCACHE_PROOF_SEED runs
// one and prints all that happens in it.
func TestProof(t *testing.T) {
	if text, set := os.LookupEnv("NEARCACHE_PROOF_SEED"); set {
		seed, err := strconv.ParseUint(text, 10, 64)
		require.NoError(t, err)
		run := runInBubble(t, seed, &journal{})
		t.Logf("seed %d:\n%s", seed, run.journal)
		return
	}
	seeds := defaultSeeds
	if raceflag.Enabled {
		seeds /= 5
	}
	if text, set := os.LookupEnv("NEARCACHE_PROOF_SEEDS"); set {
		n, err := strconv.Atoi(text)
		require.NoError(t, err)
		seeds = n
	} else if testing.Short() {
		seeds /= 10
	}
	var sum totals
	var mu sync.Mutex // guards sum
	first := uint64(time.Now().UnixNano()) / 1e6 * 1e6
	var next atomic.Int64
	var failed atomic.Bool
	t.Run("schedules", func(t *testing.T) {
		for range runtime.GOMAXPROCS(0) {
			t.Run("shard", func(t *testing.T) {
				t.Parallel()
				for i := next.Add(1); i <= int64(seeds) && !failed.Load(); i = next.Add(1) {
					run := runInBubble(t, first+uint64(i), &journal{keep: 40})
					if t.Failed() {
						failed.Store(true)
					}
					mu.Lock()
					sum.add(run.totals)
					mu.Unlock()
				}
			})
		}
	})
	t.Logf("from seed %d: %+v", first+1, sum)
	if !t.Failed() && seeds >= 100 {
		require.NotZero(t, sum.hits, "hits")
		require.NotZero(t, sum.joins, "Gets that joined a load")
		require.NotZero(t, sum.warm, "hits on what was kept over a reconnect")
		require.NotZero(t, sum.notFounds, "hits on kept not-founds")
		require.NotZero(t, sum.updates, "hits on what Update kept")
		require.NotZero(t, sum.gaps, "gaps")
		require.NotZero(t, sum.lost, "lost leases")
		require.NotZero(t, sum.paused, "paused instances")
		require.NotZero(t, sum.stale, "expired items, served as their load failed or was slow")
		require.NotZero(t, sum.refreshes, "refreshes ahead")
		require.NotZero(t, sum.events, "events")
		require.NotZero(t, sum.sharedHits, "values found in Redis")
		require.NotZero(t, sum.sharedWaits, "values that another instance was waited for")
		require.NotZero(t, sum.sharedStores, "values put into Redis")
		require.NotZero(t, sum.sharedOvertaken, "values that were invalidated before they were put into Redis")
		require.NotZero(t, sum.together, "items that were asked for with others")
		require.NotZero(t, sum.listed, "items that All yielded")
		require.NotZero(t, sum.several, "messages of several operations")
		require.NotZero(t, sum.large, "messages of more than a thousand keys")
		require.NotZero(t, sum.forged, "forged messages")
		require.NotZero(t, sum.astray, "instances whose address led to a replica that takes writes")
		require.NotZero(t, sum.clones, "fleets with one identity")
	}
}

// TestProofReplays runs schedules twice: a seed that failed fails again. There are two
// exceptions, which these schedules are without. At one instant, two loads ask for the
// last slot (see nearcache.Options.MaxConcurrentLoads), or for a Redis that the breaker
// has left alone (see transport.StandIn.NoBreaker).
func TestProofReplays(t *testing.T) {
	t.Parallel()
	for seed := range uint64(10) {
		var hashes [2]string
		for i := range hashes {
			journal := &journal{keep: 40, hashed: true, hashes: map[string]uint64{}}
			runInBubble(t, seed, journal)
			hashes[i] = journal.hash()
		}
		require.Equal(t, hashes[0], hashes[1], "seed %d", seed)
	}
}

// runInBubble runs one schedule in a bubble of its own, which panics if a
// goroutine is left behind.
func runInBubble(t *testing.T, seed uint64, journal *journal) (run *schedule) {
	t.Helper()
	defer func() {
		if r := recover(); r != nil {
			t.Logf("seed %d:\n%s", seed, journal)
			panic(r)
		}
	}()
	synctest.Test(t, func(*testing.T) { run = runSchedule(seed, journal) })
	if failure := journal.failed(); failure != "" {
		t.Errorf("seed %d: %s\n\nReplay it with NEARCACHE_PROOF_SEED=%d. What happened last:\n\n%s",
			seed, failure, seed, journal)
	}
	return run
}
