// Package striped has a counter for events that all processors count at the same time,
// many times in a microsecond.
package striped

import (
	"math/bits"
	"runtime"
	"sync/atomic"
	"unsafe"
)

// Counter counts up. Its methods are safe for concurrent use.
// If it were a single word, that word's cache line would move from processor to processor
// at each count, which takes longer than the rest of a hit. So a Counter has several words
// in different cache lines, and a goroutine keeps to one of them.
type Counter struct {
	stripes []stripe // a power of two
	shift   int      // 64 minus the logarithm of their number
}

// stripe fills two cache lines, since processors fetch them in pairs.
type stripe struct {
	count atomic.Uint64
	_     [120]byte
}

// NewCounter returns a counter of value zero.
func NewCounter() *Counter {
	// Goroutines that run at the same time should rarely share a stripe, and no more of
	// them run than there are processors. The bound of 256 keeps a counter within 32 KB.
	const perProcessor, most = 16, 256
	logarithm := bits.Len(uint(min(perProcessor*runtime.GOMAXPROCS(0), most) - 1))
	return &Counter{stripes: make([]stripe, 1<<logarithm), shift: 64 - logarithm}
}

// Inc counts one.
func (c *Counter) Inc() {
	// Go does not tell a goroutine which processor it runs on, nor its own number. But each
	// goroutine has its own stack, so the address of a local variable tells goroutines
	// apart. That takes unsafe. It is sound: the address becomes a number at once, so here
	// stays on the stack, and nothing is ever read by it. If the stack moves, the goroutine
	// just counts on another stripe.
	//
	// A random stripe for each count would spread the counts as well, but would move each
	// stripe through all processors.
	const spread = 0x9E3779B97F4A7C15 // 2^64 over the golden ratio
	const smallestStack = 11          // logarithm
	var here byte
	address := uint64(uintptr(unsafe.Pointer(&here)))
	c.stripes[address>>smallestStack*spread>>c.shift].count.Add(1)
}

// Value returns the count. Counts during the call may be included or not.
func (c *Counter) Value() (sum uint64) {
	for i := range c.stripes {
		sum += c.stripes[i].count.Load()
	}
	return sum
}
