//go:build !race

// One goroutine has no races, and under the detector this would take a minute.

package eviction

import (
	"fmt"
	"math"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache/internal/trace"
)

// tracesVariable names a folder of recorded traces to measure beside the
// generated ones: NAME.gz with one key number a line.
const tracesVariable = "NEARCACHE_TRACES"

// workload is a trace whose keys are numbered 0, 1, 2… as they first appear, and
// have hashes that tell nothing.
type workload struct {
	name   string
	keys   []int32
	hashes []uint64 // by key
}

// workloads returns the generated traces, and the recorded ones if there are any.
func workloads(t *testing.T) (all []workload) {
	t.Helper()
	traces := trace.Generated()
	if folder := os.Getenv(tracesVariable); folder != "" {
		recorded, err := trace.Read(folder)
		require.NoError(t, err)
		require.NotEmpty(t, recorded)
		traces = append(traces, recorded...)
	}
	random := newRandom(1)
	for _, tr := range traces {
		w := workload{name: tr.Name}
		numbers := map[uint64]int32{}
		for _, key := range tr.Keys {
			number, seen := numbers[key]
			if !seen {
				number = int32(len(numbers))
				numbers[key] = number
				w.hashes = append(w.hashes, random.Uint64())
			}
			w.keys = append(w.keys, number)
		}
		all = append(all, w)
	}
	return all
}

// percent returns the part of the accesses that are hits.
func (w workload) percent(access func(key int32) (hit bool)) float64 {
	hits := 0
	for _, key := range w.keys {
		if access(key) {
			hits++
		}
	}
	return 100 * float64(hits) / float64(len(w.keys))
}

type newPolicy func(capacity int) Policy[int32]

func newLRU(capacity int) Policy[int32] {
	return NewLRU[int32](Limits{Entries: capacity})
}

func newAdaptive(capacity int) Policy[int32] {
	return NewAdaptive[int32](Limits{Entries: capacity})
}

// hitRatio asks a cache of that many shards for each key in turn.
func (w workload) hitRatio(policy newPolicy, capacity, shards int) float64 {
	policies := make([]Policy[int32], shards)
	for i := range policies {
		policies[i] = policy((capacity + i) / shards)
	}
	held := make([]*Node[int32], len(w.hashes))
	return w.percent(func(key int32) bool {
		hash := w.hashes[key]
		p := policies[hash%uint64(shards)]
		if n := held[key]; n != nil {
			p.Touch(n)
			return true
		}
		for v := p.Evict(hash, 1); v != nil; v = p.Evict(hash, 1) {
			held[v.Item] = nil
			p.Remember(w.hashes[v.Item])
		}
		held[key] = &Node[int32]{Item: key}
		p.Add(held[key], hash, 1)
		return false
	})
}

// TestHitRatio asserts that nobody loses much by leaving LRU: Adaptive's hit ratio
// is a point below at most, at capacities from half a percent to half of the keys.
// If verbose, it prints the hit ratios, beside those of S3-FIFO as in the paper.
func TestHitRatio(t *testing.T) {
	perMille := []int{5, 10, 20, 50, 100, 200, 500}
	means := map[string]float64{}
	all := workloads(t)
	for _, w := range all {
		var lines [3]strings.Builder
		print := func(line int, name string, percent float64) {
			fmt.Fprintf(&lines[line], "%7.2f", percent)
			means[name] += percent / float64(len(perMille)*len(all))
		}
		for _, part := range perMille {
			capacity := max(1, len(w.hashes)*part/1000)
			lru, adaptive := w.hitRatio(newLRU, capacity, 1), w.hitRatio(newAdaptive, capacity, 1)
			assert.GreaterOrEqual(t, adaptive, lru-1, "%s at %d of %d keys", w.name, capacity, len(w.hashes))
			print(0, "LRU", lru)
			print(1, "Adaptive", adaptive)
			if testing.Verbose() {
				plain := newPlainS3FIFO(capacity)
				print(2, "S3-FIFO", w.percent(func(key int32) bool { return plain.access(uint64(key)) }))
			}
		}
		t.Logf("%-14s %7d accesses %6d keys   LRU%s   S3-FIFO%s   Adaptive%s",
			w.name, len(w.keys), len(w.hashes), lines[0].String(), lines[2].String(), lines[1].String())
	}
	for _, name := range []string{"LRU", "S3-FIFO", "Adaptive"} {
		t.Logf("mean of %-8s %6.2f", name, means[name])
	}
}

// TestHitRatioOfShards asserts that shards cost next to nothing: half a point at
// most. Where the hit ratio depends on every single entry, as with a loop that
// nearly fits, it is half a point below what a little more or less capacity
// brings: keys do not spread evenly over shards, whatever the policy.
func TestHitRatioOfShards(t *testing.T) {
	const (
		entriesPerShard = 1024
		mostShards      = 32
		unevenness      = 0.05
	)
	for _, w := range workloads(t) {
		for _, capacity := range []int{2048, 4096, 8192, 16384} {
			if capacity > len(w.hashes)/2 {
				continue
			}
			shards := min(capacity/entriesPerShard, mostShards)
			sharded := w.hitRatio(newAdaptive, capacity, shards)
			whole := w.hitRatio(newAdaptive, capacity, 1)
			least := whole
			if sharded < whole-0.5 {
				for _, other := range []float64{-unevenness, -unevenness / 2, unevenness / 2, unevenness} {
					least = math.Min(least, w.hitRatio(newAdaptive, int((1+other)*float64(capacity)), 1))
				}
			}
			t.Logf("%-14s %5d entries   whole %6.2f   %2d shards %+5.2f", w.name, capacity, whole, shards, sharded-whole)
			assert.GreaterOrEqual(t, sharded, least-0.5, "%s with %d entries in %d shards", w.name, capacity, shards)
		}
	}
}
