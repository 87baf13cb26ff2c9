package stats

import (
	"math/bits"
	"time"
)

// fine is the number of bits that a bucket tells apart: values are kept to
// within 1/64 of themselves.
const fine = 6

// A Histogram counts durations in buckets whose width grows with the duration.
// The zero value is ready. It is for one goroutine.
type Histogram struct {
	counts [(64 - fine + 1) << fine]uint32
	total  uint64
	max    time.Duration
}

// Record counts one duration.
func (h *Histogram) Record(d time.Duration) {
	d = max(d, 0)
	h.counts[bucketOf(uint64(d))]++
	h.total++
	h.max = max(h.max, d)
}

// Merge adds what another has counted.
func (h *Histogram) Merge(other *Histogram) {
	for i, n := range other.counts {
		h.counts[i] += n
	}
	h.total += other.total
	h.max = max(h.max, other.max)
}

// Count returns how many durations were recorded.
func (h *Histogram) Count() uint64 { return h.total }

// Max returns the longest, exactly.
func (h *Histogram) Max() time.Duration { return h.max }

// Quantile returns the duration that this part of all, 0 to 1, does not exceed:
// the least that its bucket holds.
func (h *Histogram) Quantile(part float64) time.Duration {
	rank := uint64(part * float64(h.total))
	seen := uint64(0)
	for i, n := range h.counts {
		if seen += uint64(n); seen > rank {
			return time.Duration(leastOf(i))
		}
	}
	return h.max
}

// bucketOf keeps the leading bits of x and how many were cut off behind them.
func bucketOf(x uint64) int {
	cut := max(0, bits.Len64(x)-fine-1)
	return cut<<fine + int(x>>cut)
}

// leastOf returns the smallest value of a bucket.
func leastOf(bucket int) uint64 {
	cut := max(0, bucket>>fine-1)
	return uint64(bucket-cut<<fine) << cut
}
