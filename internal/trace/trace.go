// Package trace has sequences of cache accesses, to measure hit ratios: generated ones,
// which are the same in every run, and recorded ones, which are read from files.
//
// A trace is a list of keys, in the order in which they are asked for. A key's number has
// no other meaning. It is not a hash.
package trace

import (
	"bufio"
	"cmp"
	"compress/gzip"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Trace is a sequence of accesses.
type Trace struct {
	Name  string
	About string // where it comes from, in a few words
	Keys  []uint64
}

// Unique returns the number of different keys.
func (t Trace) Unique() int {
	seen := make(map[uint64]struct{})
	for _, key := range t.Keys {
		seen[key] = struct{}{}
	}
	return len(seen)
}

const (
	generatedKeys     = 10_000
	generatedAccesses = 100_000
)

// Generated returns the generated traces, of about a hundred thousand accesses each. Some
// are easy for caches, some are hard, and some are mixtures.
func Generated() []Trace {
	const keys, accesses = generatedKeys, generatedAccesses
	return []Trace{
		{Name: "zipf 0.7", About: "Zipf of skew 0.7", Keys: Zipf(1, 0.7, keys, accesses)},
		{Name: "zipf 0.9", About: "Zipf of skew 0.9", Keys: Zipf(2, 0.9, keys, accesses)},
		{Name: "zipf 1.0", About: "Zipf of skew 1.0", Keys: Zipf(3, 1, keys, accesses)},
		{Name: "zipf 1.2", About: "Zipf of skew 1.2", Keys: Zipf(4, 1.2, keys, accesses)},
		{Name: "once", About: "half Zipf 1.0, half keys that are asked for once", Keys: Mix(5, Zipf(6, 1, keys, accesses/2), Loop(accesses/2, accesses/2))},
		{Name: "scans", About: "Zipf 1.0, and ten scans of 4000 keys that never come back", Keys: Insert(Zipf(7, 1, keys, accesses*6/10), Loop(accesses*4/10, accesses*4/10), 10)},
		{Name: "loop", About: "10 000 keys in turn, ten times over", Keys: Loop(keys, accesses)},
		{Name: "loop and zipf", About: "Zipf 1.0, mixed with a loop over 5000 keys", Keys: Mix(8, Zipf(9, 1, keys, accesses/2), Loop(keys/2, accesses/2))},
		{Name: "loops in turn", About: "Zipf 0.9, in turn with a loop over 2500 keys", Keys: Insert(Zipf(10, 0.9, keys, accesses/2), Loop(keys/4, accesses/2), 5)},
		{Name: "shifting", About: "Zipf 1.0 whose popular keys become others, 20 times", Keys: Shifting(11, 1, keys, accesses, 20)},
		{Name: "drifting", About: "Zipf 1.0 whose popular keys become others, 1000 times", Keys: Shifting(12, 1, keys, accesses, 1000)},
		{Name: "recent", About: "the more recently asked for, the likelier", Keys: Recent(13, keys, accesses)},
		{Name: "short lives", About: "keys that are asked for one to eight times within 10 000 accesses, and never again", Keys: ShortLives(14, keys, accesses)},
	}
}

// Zipf returns independent random accesses to keys 0, 1, 2…. The frequency of key i is
// proportional to 1/(i+1)^skew.
func Zipf(seed uint64, skew float64, keys, accesses int) []uint64 {
	random := rand.New(rand.NewPCG(seed, seed))
	up := make([]float64, keys) // the sum of the weights up to a key
	sum := 0.0
	for i := range up {
		sum += math.Pow(float64(i+1), -skew)
		up[i] = sum
	}
	trace := make([]uint64, accesses)
	for i := range trace {
		key, _ := slices.BinarySearch(up, random.Float64()*sum)
		trace[i] = uint64(min(key, keys-1))
	}
	return trace
}

// Loop returns accesses to the keys 0, 1, 2…, again and again. With as many keys as
// accesses it is a scan.
func Loop(keys, accesses int) []uint64 {
	trace := make([]uint64, accesses)
	for i := range trace {
		trace[i] = uint64(i % keys)
	}
	return trace
}

// Shifting returns Zipf accesses whose popular keys change. That many times, evenly spaced,
// all ranks move by a part of the keys, so that every rank has moved through all keys in
// the end.
func Shifting(seed uint64, skew float64, keys, accesses, times int) []uint64 {
	trace := Zipf(seed, skew, keys, accesses)
	for i := range trace {
		shift := i * times / accesses * keys / times
		trace[i] = (trace[i] + uint64(shift)) % uint64(keys)
	}
	return trace
}

// Recent returns accesses, nine in ten of which are to a key of an earlier access. The more
// recent that access, the likelier it is. LRU is best at this.
func Recent(seed uint64, keys, accesses int) []uint64 {
	random := rand.New(rand.NewPCG(seed, seed))
	trace := make([]uint64, 0, accesses)
	next := uint64(0)
	for len(trace) < accesses {
		back := int(math.Pow(float64(keys), random.Float64()))
		if back > len(trace) || random.IntN(10) == 0 {
			trace = append(trace, next)
			next++
			continue
		}
		trace = append(trace, trace[len(trace)-back])
	}
	return trace
}

// ShortLives returns accesses to new keys. Each is asked for a few times within the next
// alive accesses, and never again, as news or sessions are.
func ShortLives(seed uint64, alive, accesses int) []uint64 {
	type access struct{ at, key uint64 }
	random := rand.New(rand.NewPCG(seed, seed))
	var all []access
	for key := 0; len(all) < accesses; key++ {
		born := uint64(len(all))
		for range 1 + random.IntN(8) {
			all = append(all, access{at: born + random.Uint64N(uint64(alive)), key: uint64(key)})
		}
	}
	slices.SortStableFunc(all, func(a, b access) int { return cmp.Compare(a.at, b.at) })
	trace := make([]uint64, accesses)
	for i := range trace {
		trace[i] = all[i].key
	}
	return trace
}

// Mix returns the accesses of two traces in a random order that keeps the order within each
// trace. The keys are changed so that the traces share none.
func Mix(seed uint64, a, b []uint64) []uint64 {
	random := rand.New(rand.NewPCG(seed, seed))
	trace := make([]uint64, 0, len(a)+len(b))
	for len(a)+len(b) > 0 {
		if random.IntN(len(a)+len(b)) < len(a) {
			trace, a = append(trace, 2*a[0]), a[1:]
		} else {
			trace, b = append(trace, 2*b[0]+1), b[1:]
		}
	}
	return trace
}

// Insert returns the accesses of two traces, in turns: a part of one, then a part of the
// other. The keys are changed so that the traces share none.
func Insert(a, b []uint64, turns int) []uint64 {
	trace := make([]uint64, 0, len(a)+len(b))
	for turn := range turns {
		for _, key := range a[turn*len(a)/turns : (turn+1)*len(a)/turns] {
			trace = append(trace, 2*key)
		}
		for _, key := range b[turn*len(b)/turns : (turn+1)*len(b)/turns] {
			trace = append(trace, 2*key+1)
		}
	}
	return trace
}

// Read returns the recorded traces of a folder: its files NAME.gz, ordered by name. A file
// has one key number on each line.
func Read(folder string) ([]Trace, error) {
	files, err := filepath.Glob(filepath.Join(folder, "*.gz"))
	if err != nil {
		return nil, err
	}
	var traces []Trace
	for _, file := range files {
		keys, err := readFile(file)
		if err != nil {
			return nil, fmt.Errorf("trace: %s: %w", file, err)
		}
		traces = append(traces, Trace{Name: strings.TrimSuffix(filepath.Base(file), ".gz"), About: "recorded", Keys: keys})
	}
	return traces, nil
}

func readFile(file string) (keys []uint64, err error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	unzipped, err := gzip.NewReader(f)
	if err != nil {
		return nil, err
	}
	lines := bufio.NewScanner(unzipped)
	for lines.Scan() {
		key, err := strconv.ParseUint(lines.Text(), 10, 64)
		if err != nil {
			return nil, err
		}
		keys = append(keys, key)
	}
	return keys, lines.Err()
}
