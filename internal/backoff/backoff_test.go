package backoff

import (
	"context"
	"math"
	"testing"
	"testing/synctest"
	"time"
)

// longest draws the longest pause that may be.
func longest(n int64) int64 { return n - 1 }

func TestCeiling(t *testing.T) {
	for _, test := range []struct {
		base, most time.Duration
		failures   int
		want       time.Duration
	}{
		{100, 2000, 0, 100},
		{100, 2000, 1, 200},
		{100, 2000, 4, 1600},
		{100, 2000, 5, 2000},
		{100, 2000, math.MaxInt32, 2000},
		{100, 50, 0, 50},
		{math.MaxInt64 / 2, math.MaxInt64, 3, math.MaxInt64},
	} {
		if got := Ceiling(test.base, test.most, test.failures); got != test.want {
			t.Errorf("Ceiling(%d, %d, %d) is %d, want %d", test.base, test.most, test.failures, got, test.want)
		}
	}
}

func TestBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := Backoff{Random: longest, Base: 100, Max: 500}
		pause := func() time.Duration {
			began := time.Now()
			if !b.Wait(t.Context(), nil) {
				t.Fatal("the context has not ended")
			}
			return time.Since(began)
		}
		for _, want := range []time.Duration{99, 199, 399, 499, 499} {
			if got := pause(); got != want {
				t.Fatalf("a pause of %d, want %d", got, want)
			}
		}
		b.Retreat(1)
		if got := pause(); got != 199 {
			t.Fatalf("a pause of %d after Retreat(1)", got)
		}
		b.Reset()
		if got := pause(); got != 99 || b.Failures() != 1 {
			t.Fatalf("a pause of %d after Reset, %d failures", got, b.Failures())
		}
	})
}

func TestWaitEndsEarly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		early := make(chan struct{}, 1)
		early <- struct{}{}
		began := time.Now()
		if !Wait(t.Context(), time.Hour, early) || time.Since(began) > 0 {
			t.Fatal("it waits though it may end early")
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if Wait(ctx, time.Hour, early) || time.Since(began) > 0 {
			t.Fatal("it waits though the context has ended")
		}
	})
}

func TestLess(t *testing.T) {
	none := func(int64) int64 { return 0 }
	if got := Less(none, 1000, 10); got != 1000 {
		t.Errorf("nothing is taken off, and %d is left", got)
	}
	if got := Less(longest, 1000, 10); got != 900 {
		t.Errorf("a tenth is taken off, and %d is left", got)
	}
}
