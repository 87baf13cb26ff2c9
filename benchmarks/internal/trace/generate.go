package trace

import (
	"fmt"
	"math"
	"math/rand/v2"
	"sort"
)

// Generated returns the generated traces, of n accesses each.
func Generated(n int) []Trace {
	const keys = 50_000
	return []Trace{
		zipfTrace(n, keys, 0.7),
		zipfTrace(n, keys, 0.9),
		zipfTrace(n, keys, 1.1),
		{"scan and hot set", "Zipf 0.9 over 20 000 keys; every 20 000 accesses a scan of 5 000 keys never seen before", scans(n, 20_000, 20_000, 5_000)},
		{"loop", "10 000 keys in a circle, one access in five Zipf 0.9 over 10 000 others", loop(n, 10_000, 10_000)},
		{"shifting hot set", "Zipf 0.9 over 20 000 keys; every 20 000 accesses the ranks move on by 2 000 keys", shifting(n, 20_000, 20_000, 2_000)},
	}
}

func zipfTrace(n, keys int, skew float64) Trace {
	z := NewZipf(rand.New(rand.NewPCG(1, uint64(skew*100))), keys, skew)
	trace := Trace{fmt.Sprintf("Zipf %.1f", skew), fmt.Sprintf("Zipf %.1f over 50 000 keys", skew), make([]int64, n)}
	for i := range trace.Keys {
		trace.Keys[i] = z.Next()
	}
	return trace
}

func scans(n, keys, every, length int) []int64 {
	z := NewZipf(rand.New(rand.NewPCG(2, 1)), keys, 0.9)
	trace := make([]int64, 0, n+length)
	for next := int64(keys); len(trace) < n; {
		for range every {
			trace = append(trace, z.Next())
		}
		for range length {
			trace = append(trace, next)
			next++
		}
	}
	return trace[:n]
}

func loop(n, around, others int) []int64 {
	rng := rand.New(rand.NewPCG(3, 1))
	z := NewZipf(rng, others, 0.9)
	trace := make([]int64, n)
	next := 0
	for i := range trace {
		if rng.IntN(5) == 0 {
			trace[i] = int64(around) + z.Next()
			continue
		}
		trace[i] = int64(next)
		next = (next + 1) % around
	}
	return trace
}

func shifting(n, keys, every, by int) []int64 {
	z := NewZipf(rand.New(rand.NewPCG(4, 1)), keys, 0.9)
	trace := make([]int64, n)
	for i := range trace {
		trace[i] = (z.Next() + int64(i/every*by)) % int64(4*keys)
	}
	return trace
}

// Zipf draws ranks from 0 on: rank r with a weight of 1/(r+1)^skew. That of
// math/rand takes no skew of 1 or less.
type Zipf struct {
	rng   *rand.Rand
	below []float64 // the sum of the weights up to each rank
}

// NewZipf returns a source of ranks below n.
func NewZipf(rng *rand.Rand, n int, skew float64) *Zipf {
	z := &Zipf{rng, make([]float64, n)}
	sum := 0.0
	for r := range z.below {
		sum += math.Pow(float64(r+1), -skew)
		z.below[r] = sum
	}
	return z
}

// Next returns a rank.
func (z *Zipf) Next() int64 {
	at := z.rng.Float64() * z.below[len(z.below)-1]
	return int64(sort.SearchFloat64s(z.below, at))
}
