package trace

import (
	"compress/gzip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestGeneratedIsTheSameEveryTime(t *testing.T) {
	again := Generated()
	for i, generated := range Generated() {
		assert.Len(t, generated.Keys, generatedAccesses, generated.Name)
		assert.Greater(t, generated.Unique(), generatedKeys/2, generated.Name)
		assert.Equal(t, again[i].Name, generated.Name)
		assert.True(t, slices.Equal(again[i].Keys, generated.Keys), generated.Name)
	}
}

// counts returns how often each key is asked for.
func counts(keys []uint64) map[uint64]int {
	counts := map[uint64]int{}
	for _, key := range keys {
		counts[key]++
	}
	return counts
}

func TestZipf(t *testing.T) {
	counts := counts(Zipf(1, 1, 1000, 1_000_000))
	require.LessOrEqual(t, len(counts), 1000)
	assert.InEpsilon(t, 2, float64(counts[0])/float64(counts[1]), 0.05)
	assert.InEpsilon(t, 10, float64(counts[0])/float64(counts[9]), 0.05)
	assert.InEpsilon(t, 100, float64(counts[0])/float64(counts[99]), 0.1)
}

func TestLoop(t *testing.T) {
	assert.Equal(t, []uint64{0, 1, 2, 0, 1, 2, 0}, Loop(3, 7))
}

func TestShifting(t *testing.T) {
	const keys, accesses = 1000, 100_000
	trace := Shifting(1, 1, keys, accesses, 10)
	for part := range 10 {
		counts := counts(trace[part*accesses/10 : (part+1)*accesses/10])
		most := uint64(0)
		for key, count := range counts {
			if count > counts[most] {
				most = key
			}
		}
		assert.Equal(t, uint64(part*keys/10), most, "the most popular key of part %d", part)
	}
}

func TestRecent(t *testing.T) {
	trace := Recent(1, 1000, 100_000)
	last := map[uint64]int{}
	near, far := 0, 0
	for i, key := range trace {
		if before, seen := last[key]; seen && i-before <= 30 {
			near++
		} else if seen {
			far++
		}
		last[key] = i
	}
	assert.Greater(t, near, far)
	assert.InDelta(t, 0.1, float64(len(last))/float64(len(trace)), 0.01, "keys that are new")
}

func TestShortLives(t *testing.T) {
	const alive = 500
	first, last := map[uint64]int{}, map[uint64]int{}
	trace := ShortLives(1, alive, 20_000)
	for i, key := range trace {
		if _, seen := first[key]; !seen {
			first[key] = i
		}
		last[key] = i
	}
	for key := range first {
		require.LessOrEqual(t, last[key]-first[key], 2*alive)
	}
	assert.InDelta(t, 4.5, float64(len(trace))/float64(len(first)), 0.2, "accesses to a key")
}

func TestMix(t *testing.T) {
	trace := Mix(1, Loop(100, 100), Loop(300, 300))
	next := []uint64{0, 0}
	early := 0
	for i, key := range trace {
		require.Equal(t, next[key%2], key/2, "each in its order")
		next[key%2]++
		if key%2 == 0 && i < 200 {
			early++
		}
	}
	assert.Equal(t, []uint64{100, 300}, next)
	assert.InDelta(t, 50, early, 20)
}

func TestInsert(t *testing.T) {
	assert.Equal(t, []uint64{0, 2, 1, 4, 6, 3, 5}, Insert(Loop(4, 4), Loop(3, 3), 2))
}

func TestRead(t *testing.T) {
	write := func(folder, name, text string) {
		f, err := os.Create(filepath.Join(folder, name))
		require.NoError(t, err)
		zip := gzip.NewWriter(f)
		_, err = zip.Write([]byte(text))
		require.NoError(t, err)
		require.NoError(t, zip.Close())
		require.NoError(t, f.Close())
	}

	t.Run("every file, by name", func(t *testing.T) {
		folder := t.TempDir()
		write(folder, "b.gz", "7\n8\n7\n")
		write(folder, "a.gz", "1\n")
		traces, err := Read(folder)
		require.NoError(t, err)
		assert.Equal(t, []Trace{{Name: "a", About: "recorded", Keys: []uint64{1}}, {Name: "b", About: "recorded", Keys: []uint64{7, 8, 7}}}, traces)
		assert.Equal(t, 2, traces[1].Unique())
	})

	t.Run("what is no trace", func(t *testing.T) {
		folder := t.TempDir()
		write(folder, "a.gz", "one\n")
		_, err := Read(folder)
		assert.ErrorContains(t, err, "a.gz")

		folder = t.TempDir()
		require.NoError(t, os.WriteFile(filepath.Join(folder, "a.gz"), []byte("1\n"), 0o600))
		_, err = Read(folder)
		assert.ErrorContains(t, err, "a.gz")
	})

	t.Run("an empty folder", func(t *testing.T) {
		traces, err := Read(t.TempDir())
		assert.NoError(t, err)
		assert.Empty(t, traces)
	})
}
