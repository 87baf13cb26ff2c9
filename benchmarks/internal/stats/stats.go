// Package stats is the arithmetic of the report: medians over rounds, ratios taken
// round by round, and a histogram for latencies.
package stats

import (
	"math"
	"slices"
)

// Median returns the middle of what was found, and NaN of nothing.
func Median(found []float64) float64 { return Quantile(found, 0.5) }

// Quantile returns the value below which that part of what was found lies, 0 to
// 1, with straight lines between neighbours. It is NaN of nothing.
func Quantile(found []float64, part float64) float64 {
	if len(found) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(found))
	at := part * float64(len(sorted)-1)
	below := int(at)
	if below >= len(sorted)-1 {
		return sorted[len(sorted)-1]
	}
	return sorted[below] + (at-float64(below))*(sorted[below+1]-sorted[below])
}

// Spread returns half of the distance between the quartiles: what one round is
// off by, give or take, when noise strikes as it usually does.
func Spread(found []float64) float64 {
	return (Quantile(found, 0.75) - Quantile(found, 0.25)) / 2
}

// Ratio returns the median of a/b, round by round: what slows a whole round down
// slows both, and cancels out. Rounds that one of the two lacks are left out.
func Ratio(a, b []float64) float64 {
	n := min(len(a), len(b))
	ratios := make([]float64, 0, n)
	for i := range n {
		if b[i] != 0 {
			ratios = append(ratios, a[i]/b[i])
		}
	}
	return Median(ratios)
}

// Least returns the smallest of what was found, and NaN of nothing.
func Least(found []float64) float64 { return Quantile(found, 0) }

// Greatest returns the largest of what was found, and NaN of nothing.
func Greatest(found []float64) float64 { return Quantile(found, 1) }
