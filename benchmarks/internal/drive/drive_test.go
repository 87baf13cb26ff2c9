package drive

import (
	"sync/atomic"
	"testing"
	"time"
)

func TestRunWalksTheRingInOrder(t *testing.T) {
	var got []int
	var at Cursor
	op := func(i int) bool { got = append(got, i); return i == 2 }
	turn := Run(op, Ring[int]{0, 1, 2, 3}, &at, 1, 6, 0)
	if turn.Ops != 6 || turn.True != 1 || turn.Elapsed <= 0 {
		t.Errorf("got %+v", turn)
	}
	Run(op, Ring[int]{0, 1, 2, 3}, &at, 1, 6, 0)
	for i, key := range got {
		if key != i%4 {
			t.Fatalf("got %v", got)
		}
	}
}

func TestRunCountsAllGoroutines(t *testing.T) {
	var calls atomic.Int64
	var at Cursor
	turn := Run(func(int) bool { return calls.Add(1) > 0 }, Ring[int]{0}, &at, 4, 10, time.Millisecond)
	if turn.Ops != calls.Load() || turn.True != turn.Ops || turn.Ops < 40 || turn.Elapsed < time.Millisecond {
		t.Errorf("got %+v of %d calls", turn, calls.Load())
	}
}

var sink any

func TestAllocs(t *testing.T) {
	var at Cursor
	ring := Ring[int]{0, 1}
	if objects, _ := Allocs(func(int) bool { return true }, ring, &at, 1000); objects >= 0.01 {
		t.Errorf("nothing allocates %v objects", objects)
	}
	objects, bytes := Allocs(func(int) bool { sink = new([64]byte); return true }, ring, &at, 1000)
	if objects < 1 || objects > 1.1 || bytes < 64 || bytes > 80 {
		t.Errorf("an array of 64 bytes is %v objects, %v bytes", objects, bytes)
	}
}
