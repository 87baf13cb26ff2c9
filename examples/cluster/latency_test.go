package main

import (
	"math/rand/v2"
	"testing"
	"time"
)

func TestPercentile(t *testing.T) {
	var hundred latencies
	for _, n := range rand.Perm(100) {
		hundred = append(hundred, time.Duration(n+1))
	}
	tests := []struct {
		name    string
		of      latencies
		percent float64
		want    time.Duration
	}{
		{"nothing measured", nil, 99, 0},
		{"one, the median", latencies{7}, 50, 7},
		{"one, the worst", latencies{7}, 100, 7},
		{"two, the median is the lower", latencies{9, 3}, 50, 3},
		{"three, the median is the middle", latencies{9, 1, 3}, 50, 3},
		{"three, p99 is the worst", latencies{9, 1, 3}, 99, 9},
		{"hundred, p50", hundred, 50, 50},
		{"hundred, p99", hundred, 99, 99},
		{"hundred, p99.1", hundred, 99.1, 100},
		{"hundred, worst", hundred, 100, 100},
		{"hundred, best", hundred, 0, 1},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := test.of.percentile(test.percent); got != test.want {
				t.Errorf("got %d, want %d", got, test.want)
			}
		})
	}
}

func TestPercentileLeavesTheOrder(t *testing.T) {
	l := latencies{3, 1, 2}
	l.percentile(50)
	if l[0] != 3 || l[1] != 1 || l[2] != 2 {
		t.Errorf("reordered: %v", l)
	}
}

func TestBrief(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0:                       "-",
		250 * time.Microsecond:  "0.25 ms",
		6060 * time.Microsecond: "6.06 ms",
		9999 * time.Microsecond: "10.0 ms",
		42 * time.Millisecond:   "42.0 ms",
		420 * time.Millisecond:  "420 ms",
		3 * time.Second:         "3.00 s",
	} {
		if got := brief(d); got != want {
			t.Errorf("%v: got %q, want %q", d, got, want)
		}
	}
}
