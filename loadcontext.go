package nearcache

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// loadContext is a loader's context. It ends with its flight alone, and has the values
// of the context of the flight's first caller. It also answers to the flight itself, so
// that a loader which asks for the key that it is loading can be told from other
// callers, however many loads lie in between, if each of them was begun by the one
// before. We accept that a circle which two callers began from different ends is not
// noticed: such a loader never returns anyway. If the load has a place, it answers to
// that, too: see places.
//
// It is made for a loader that looks at nothing but Err: what can be waited for, and
// looked up in, is only made when somebody asks for it, as it costs a third of a miss.
type loadContext struct {
	values context.Context
	flight any // *flight or *bulk
	placed bool
	ended  atomic.Bool // written under mu

	mu       sync.Mutex
	over     chan struct{}      // closed at the end; nil: no caller has waited
	standard context.Context    // which ends with this one; nil: the loader has not asked for it
	cancel   context.CancelFunc // of standard
}

// ending returns what the flight's callers wait for, which costs less than Done.
func (c *loadContext) ending() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over == nil {
		c.over = make(chan struct{})
		if c.ended.Load() {
			close(c.over)
		}
	}
	return c.over
}

// library returns the context of the standard library that ends with this one. It is
// known there: contexts that are derived from it need no goroutine of their own.
func (c *loadContext) library() context.Context {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.standard == nil {
		c.standard, c.cancel = context.WithCancel(context.Background())
		if c.ended.Load() {
			c.cancel()
		}
	}
	return c.standard
}

// end ends it.
func (c *loadContext) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended.Swap(true) {
		return
	}
	if c.over != nil {
		close(c.over)
	}
	if c.cancel != nil {
		c.cancel()
	}
}

func (c *loadContext) Deadline() (deadline time.Time, ok bool) { return deadline, false }

func (c *loadContext) Done() <-chan struct{} { return c.library().Done() }

func (c *loadContext) Err() error {
	if c.ended.Load() {
		return context.Canceled
	}
	return nil
}

func (c *loadContext) Value(key any) any {
	if key == c.flight || key == any(loadingKey{}) || c.placed && key == any(placedKey{}) {
		return true
	}
	if v := c.library().Value(key); v != nil {
		return v
	}
	return c.values.Value(key)
}
