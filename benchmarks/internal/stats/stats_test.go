package stats

import (
	"math"
	"testing"
	"time"
)

func TestQuantile(t *testing.T) {
	for _, test := range []struct {
		name  string
		found []float64
		part  float64
		want  float64
	}{
		{"the middle of three", []float64{30, 10, 20}, 0.5, 20},
		{"between the middle two of four", []float64{40, 10, 20, 30}, 0.5, 25},
		{"the least", []float64{3, 1, 2}, 0, 1},
		{"the greatest", []float64{3, 1, 2}, 1, 3},
		{"a quarter", []float64{0, 1, 2, 3, 4}, 0.25, 1},
		{"one of one", []float64{7}, 0.9, 7},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := Quantile(test.found, test.part); got != test.want {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
	if !math.IsNaN(Median(nil)) {
		t.Error("the median of nothing is a number")
	}
}

func TestSpreadIgnoresAnOutlier(t *testing.T) {
	if got := Spread([]float64{10, 11, 12, 13, 1000}); got != 1 {
		t.Errorf("got %v, want 1", got)
	}
}

func TestRatioCancelsWhatSlowsAWholeRound(t *testing.T) {
	a := []float64{10, 100, 20, 10}
	b := []float64{20, 200, 40, 20, 999}
	if got := Ratio(a, b); got != 0.5 {
		t.Errorf("got %v, want 0.5", got)
	}
}

func TestBucketsAreInOrderAndNarrow(t *testing.T) {
	last := -1
	for x := uint64(0); x < 1<<40; x += 1 + x/200 {
		bucket := bucketOf(x)
		if bucket < last {
			t.Fatalf("%d is in bucket %d, after one in %d", x, bucket, last)
		}
		last = bucket
		least := leastOf(bucket)
		if least > x || x-least > x>>fine {
			t.Fatalf("%d is in a bucket from %d on", x, least)
		}
	}
	if got := bucketOf(math.MaxUint64); got >= len(Histogram{}.counts) {
		t.Fatalf("bucket %d of %d", got, len(Histogram{}.counts))
	}
}

func TestHistogramQuantiles(t *testing.T) {
	var a, b Histogram
	for i := range 1000 {
		h := &a
		if i%2 == 1 {
			h = &b
		}
		h.Record(time.Duration(i+1) * time.Microsecond)
	}
	a.Merge(&b)
	if a.Count() != 1000 || a.Max() != time.Millisecond {
		t.Fatalf("%d recorded, the longest %v", a.Count(), a.Max())
	}
	for part, want := range map[float64]time.Duration{0.5: 500 * time.Microsecond, 0.99: 990 * time.Microsecond} {
		got := a.Quantile(part)
		if got < want*98/100 || got > want*102/100 {
			t.Errorf("the %v quantile is %v, want %v", part, got, want)
		}
	}
	if got := a.Quantile(1); got != time.Millisecond {
		t.Errorf("all are within %v, want 1ms", got)
	}
}
