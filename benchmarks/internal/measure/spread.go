package measure

import (
	"fmt"
	"slices"
	"strconv"
)

// Spread returns the median of what several runs found, and in brackets the
// lowest and the highest, all with that many decimals.
func Spread(found []float64, decimals int) string {
	sorted := slices.Sorted(slices.Values(found))
	n := len(sorted)
	low, high := number(sorted[0], decimals), number(sorted[n-1], decimals)
	if low == high {
		return low
	}
	return fmt.Sprintf("%s (%s–%s)", number((sorted[(n-1)/2]+sorted[n/2])/2, decimals), low, high)
}

// number formats x with a space between its thousands.
func number(x float64, decimals int) string {
	text := strconv.FormatFloat(x, 'f', decimals, 64)
	end := len(text)
	if decimals > 0 {
		end -= decimals + 1
	}
	for i := end - 3; i > 0; i -= 3 {
		text = text[:i] + " " + text[i:]
	}
	return text
}
