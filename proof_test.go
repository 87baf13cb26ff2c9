package nearcache

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

// proofSeeds is how many schedules TestProof runs, and five times as many as under the
// race detector: about half a minute of two processors is enough for them.
const proofSeeds = 1000

// TestProof runs the library, as it is, through one schedule for each seed: a fleet
// on a simulated Redis that fails in every way that Redis and networks do, and
// checks the promise on staleness for every read (see proofHistory). After each
// schedule all faults are healed, and every instance must become live and hold
// what the source says.
//
// NEARCACHE_PROOF_SEEDS sets how many schedules are run, NEARCACHE_PROOF_SEED runs
// one and prints all that happens in it.
func TestProof(t *testing.T) {
	if text, set := os.LookupEnv("NEARCACHE_PROOF_SEED"); set {
		seed, err := strconv.ParseUint(text, 10, 64)
		require.NoError(t, err)
		run := runProofBubble(t, seed, &proofJournal{})
		t.Logf("seed %d:\n%s", seed, run.journal)
		return
	}
	seeds := proofSeeds
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
	var totals proofTotals
	var mu sync.Mutex // guards totals
	first := uint64(time.Now().UnixNano()) / 1e6 * 1e6
	var next atomic.Int64
	var failed atomic.Bool
	t.Run("schedules", func(t *testing.T) {
		for range runtime.GOMAXPROCS(0) {
			t.Run("shard", func(t *testing.T) {
				t.Parallel()
				for i := next.Add(1); i <= int64(seeds) && !failed.Load(); i = next.Add(1) {
					run := runProofBubble(t, first+uint64(i), &proofJournal{keep: 40})
					if t.Failed() {
						failed.Store(true)
					}
					mu.Lock()
					totals.add(run.totals)
					mu.Unlock()
				}
			})
		}
	})
	t.Logf("from seed %d: %+v", first+1, totals)
	if !t.Failed() && seeds >= 100 {
		require.NotZero(t, totals.hits, "hits")
		require.NotZero(t, totals.joins, "Gets that joined a load")
		require.NotZero(t, totals.warm, "hits on what was kept over a reconnect")
		require.NotZero(t, totals.notFounds, "hits on kept not-founds")
		require.NotZero(t, totals.updates, "hits on what Update kept")
		require.NotZero(t, totals.gaps, "gaps")
		require.NotZero(t, totals.lost, "lost leases")
		require.NotZero(t, totals.paused, "paused instances")
		require.NotZero(t, totals.stale, "expired items, served as their load failed or was slow")
		require.NotZero(t, totals.refreshes, "refreshes ahead")
		require.NotZero(t, totals.events, "events")
		require.NotZero(t, totals.sharedHits, "values found in Redis")
		require.NotZero(t, totals.sharedWaits, "values that another instance was waited for")
		require.NotZero(t, totals.sharedStores, "values put into Redis")
		require.NotZero(t, totals.sharedOvertaken, "values that were invalidated before they were put into Redis")
		require.NotZero(t, totals.bulk, "items that were asked for with others")
		require.NotZero(t, totals.listed, "items that All yielded")
		require.NotZero(t, totals.several, "messages of several operations")
		require.NotZero(t, totals.large, "messages of more than a thousand keys")
		require.NotZero(t, totals.forged, "forged messages")
		require.NotZero(t, totals.astray, "instances whose address led to a replica that takes writes")
		require.NotZero(t, totals.clones, "fleets with one identity")
	}
}

// TestProofReplays runs schedules twice: a seed that failed fails again, unless loads
// came for a place (see Options.MaxConcurrentLoads), or to a Redis that was left alone
// until then, at one instant.
func TestProofReplays(t *testing.T) {
	t.Parallel()
	for seed := range uint64(10) {
		var hashes [2]string
		for i := range hashes {
			journal := &proofJournal{keep: 40, hashed: true, hashes: map[string]uint64{}}
			runProofBubble(t, seed, journal)
			hashes[i] = journal.hash()
		}
		require.Equal(t, hashes[0], hashes[1], "seed %d", seed)
	}
}

// runProofBubble runs one schedule in a bubble of its own, which panics if a
// goroutine is left behind.
func runProofBubble(t *testing.T, seed uint64, journal *proofJournal) (run *proofRun) {
	t.Helper()
	defer func() {
		if r := recover(); r != nil {
			t.Logf("seed %d:\n%s", seed, journal)
			panic(r)
		}
	}()
	synctest.Test(t, func(*testing.T) { run = runProof(seed, journal) })
	if failure := journal.failed(); failure != "" {
		t.Errorf("seed %d: %s\n\nReplay it with NEARCACHE_PROOF_SEED=%d. What happened last:\n\n%s",
			seed, failure, seed, journal)
	}
	return run
}
