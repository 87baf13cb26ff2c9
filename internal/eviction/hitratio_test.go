package eviction

import (
	"bufio"
	"compress/gzip"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// tracesVariable names a folder of access traces, NAME.gz with one key number a
// line.
const tracesVariable = "NEARCACHE_TRACES"

// newRandom returns a source that yields the same numbers in every run.
func newRandom(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, seed)) }

// hitRatio asks a cache under p for each key of the trace in turn.
func hitRatio(p Policy[uint64], trace []uint64) float64 {
	held := map[uint64]*Node[uint64]{}
	hits := 0
	for _, key := range trace {
		if n := held[key]; n != nil {
			p.Touch(n)
			hits++
			continue
		}
		for v := p.Evict(key, 1); v != nil; v = p.Evict(key, 1) {
			delete(held, v.Item)
		}
		n := &Node[uint64]{Item: key}
		p.Add(n, key, 1)
		held[key] = n
	}
	return float64(hits) / float64(len(trace))
}

// hitRatios returns what the policies make of a trace at the same capacity.
func hitRatios(trace []uint64, capacity int) (lru, s3fifo float64) {
	limits := Limits{Entries: capacity}
	own := func(key *uint64) uint64 { return *key }
	return hitRatio(NewLRU[uint64](limits), trace), hitRatio(NewS3FIFO(limits, own), trace)
}

func TestHitRatio(t *testing.T) {
	const (
		seed     = 1
		accesses = 400_000
		keys     = 20_000
		capacity = keys / 10
	)
	tests := []struct {
		name string
		// trace calls access for each key that is asked for.
		trace func(zipf *rand.Zipf, access func(key uint64), i int)
		gain  float64 // S3FIFO's lead over LRU, at least
	}{
		{
			name:  "Zipf",
			trace: func(zipf *rand.Zipf, access func(uint64), _ int) { access(zipf.Uint64()) },
			gain:  0.03,
		},
		{
			name: "Zipf with scans",
			trace: func(zipf *rand.Zipf, access func(uint64), i int) {
				access(zipf.Uint64())
				if i%20_000 == 0 {
					for key := range uint64(2 * capacity) {
						access(keys + uint64(i) + key)
					}
				}
			},
			gain: 0.04,
		},
		{
			name: "Zipf with a hot set that shifts",
			trace: func(zipf *rand.Zipf, access func(uint64), i int) {
				access((zipf.Uint64() + uint64(i/50_000*1000)) % keys)
			},
			gain: 0,
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			zipf := rand.NewZipf(newRandom(seed), 1.05, 1, keys-1)
			var trace []uint64
			for i := range accesses {
				test.trace(zipf, func(key uint64) { trace = append(trace, key) }, i)
			}
			lru, s3fifo := hitRatios(trace, capacity)
			t.Logf("seed %d: LRU %.4f, S3FIFO %.4f", seed, lru, s3fifo)
			assert.GreaterOrEqual(t, s3fifo, lru+test.gain)
		})
	}
}

// TestHitRatioOfTraces prints what the policies make of recorded traces, each at
// a capacity of a tenth of its keys.
func TestHitRatioOfTraces(t *testing.T) {
	folder := os.Getenv(tracesVariable)
	if folder == "" {
		t.Skipf("%s names no folder of traces", tracesVariable)
	}
	files, err := filepath.Glob(filepath.Join(folder, "*.gz"))
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		trace := readTrace(t, file)
		unique := map[uint64]struct{}{}
		for _, key := range trace {
			unique[key] = struct{}{}
		}
		lru, s3fifo := hitRatios(trace, max(1, len(unique)/10))
		t.Logf("%-16s %8d accesses %7d keys   LRU %5.1f %%   S3FIFO %5.1f %%",
			filepath.Base(file), len(trace), len(unique), 100*lru, 100*s3fifo)
	}
}

func readTrace(t *testing.T, file string) (trace []uint64) {
	t.Helper()
	f, err := os.Open(file)
	require.NoError(t, err)
	defer f.Close()
	unzipped, err := gzip.NewReader(f)
	require.NoError(t, err)
	lines := bufio.NewScanner(unzipped)
	for lines.Scan() {
		key, err := strconv.ParseUint(lines.Text(), 10, 64)
		require.NoError(t, err)
		trace = append(trace, key)
	}
	require.NoError(t, lines.Err())
	return trace
}
