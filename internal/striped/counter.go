// Package striped has a counter for what all processors count at once, many
// times in a microsecond.
package striped

import (
	"math/bits"
	"runtime"
	"sync/atomic"
	"unsafe"
)

// Counter counts up. Its methods may be called from any number of goroutines.
// One word for all of them would be passed from processor to processor at each
// count, which takes longer than all else that a hit does; so it has several, far
// apart, and a goroutine sticks to one of them.
type Counter struct {
	stripes []stripe // a power of two
	shift   int      // 64 minus its logarithm
}

// stripe fills two cache lines, since processors fetch them in pairs.
type stripe struct {
	count atomic.Uint64
	_     [120]byte
}

// NewCounter returns a counter that stands at zero.
func NewCounter() *Counter {
	// Goroutines that run at the same time should seldom meet, and no more of them
	// run than there are processors. The bound keeps a counter within 32 KB.
	const perProcessor, most = 16, 256
	logarithm := bits.Len(uint(min(perProcessor*runtime.GOMAXPROCS(0), most) - 1))
	return &Counter{stripes: make([]stripe, 1<<logarithm), shift: 64 - logarithm}
}

// Inc counts one.
func (c *Counter) Inc() {
	// Go tells nobody which processor or goroutine they run on, but a goroutine's
	// stack is its own. The address becomes a number at once, so that here stays on
	// the stack; nothing is ever read by it. A random stripe each time would do as
	// well for spreading, but each of them would visit every processor.
	const spread = 0x9E3779B97F4A7C15 // 2^64 over the golden ratio
	const smallestStack = 11          // logarithm
	var here byte
	address := uint64(uintptr(unsafe.Pointer(&here)))
	c.stripes[address>>smallestStack*spread>>c.shift].count.Add(1)
}

// Value returns the count. Of what is counted meanwhile a part may be in it.
func (c *Counter) Value() (sum uint64) {
	for i := range c.stripes {
		sum += c.stripes[i].count.Load()
	}
	return sum
}
