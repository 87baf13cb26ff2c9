package striped

import (
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestCounterCountsAll(t *testing.T) {
	const goroutines, each = 100, 1000
	c := NewCounter()
	assert.Zero(t, c.Value())
	var all sync.WaitGroup
	for range goroutines {
		all.Go(func() {
			for range each {
				c.Inc()
			}
		})
	}
	all.Wait()
	assert.EqualValues(t, goroutines*each, c.Value())
}

// Goroutines are spread over the stripes, and one that counts on stays where it
// is.
func TestGoroutinesHaveStripesOfTheirOwn(t *testing.T) {
	c := NewCounter()
	const goroutines, each = 64, 100
	begin := make(chan struct{})
	var all, ready sync.WaitGroup
	ready.Add(goroutines)
	for range goroutines { // all at once, so that no stack is used twice
		all.Go(func() {
			ready.Done()
			<-begin
			for range each {
				c.Inc()
			}
		})
	}
	ready.Wait()
	close(begin)
	all.Wait()
	used := 0
	for i := range c.stripes {
		count := c.stripes[i].count.Load()
		assert.Zero(t, count%each, "a goroutine has counted on two stripes")
		if count > 0 {
			used++
		}
	}
	assert.Greater(t, used, len(c.stripes)/2)
}

func TestIncDoesNotAllocate(t *testing.T) {
	c := NewCounter()
	assert.Zero(t, testing.AllocsPerRun(1000, c.Inc))
}

func BenchmarkInc(b *testing.B) {
	c := NewCounter()
	for b.Loop() {
		c.Inc()
	}
}

func BenchmarkIncParallel(b *testing.B) {
	c := NewCounter()
	b.RunParallel(func(p *testing.PB) {
		for p.Next() {
			c.Inc()
		}
	})
}
