package nearcache

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// loadContext is the context that a loader gets. It ends only when its flight ends. It has
// the values of the context of the flight's first caller.
//
// It knows the load that this caller belongs to. So a loader that asks for the key that it
// is loading can be told from other callers, even through a chain of loads of which each
// has begun the next. A circle of loads that two callers began at different points is not
// noticed. We accept that, because such a loader never returns anyway.
//
// It is made for loaders that look at nothing but Err. The channel to wait on and the
// context to look values up in are made only on demand: they cost a third of a miss.
type loadContext struct {
	values  context.Context
	parent  *loadContext // of the load whose loader began this one; nil: none did
	batch   *loadContext // of the batch load that the load is a part of; nil: none
	hasSlot bool         // the load has a slot, or its parent has: see slots
	ended   atomic.Bool  // written under mu

	mu       sync.Mutex
	over     chan struct{}      // closed at the end; nil: no caller has waited yet
	standard context.Context    // ends with this one; nil: the loader has not needed it yet
	cancel   context.CancelFunc // of standard
}

// ending returns the channel on which the flight's callers wait. It costs less than Done.
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

// library returns a context of the standard library that ends with this one. Contexts that
// are derived from such a context need no goroutine of their own.
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

// end ends the context.
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
	if key == any(loadKey{}) {
		return c
	}
	if v := c.library().Value(key); v != nil {
		return v
	}
	return c.values.Value(key)
}

// begunBy reports whether c is the context of the given load's loader, or of a load that
// this loader has begun, however indirectly. It reports false if c is nil.
func (c *loadContext) begunBy(load *loadContext) bool {
	for call := load.call(); c != nil; c = c.parent {
		if c.call() == call {
			return true
		}
	}
	return false
}

// call returns the context of the batch load that the load is a part of, or else c.
func (c *loadContext) call() *loadContext {
	if c.batch != nil {
		return c.batch
	}
	return c
}

// loadKey is the key under which the context of a load has itself as its value.
type loadKey struct{}

// origin is the context of a call, and the innermost load that the call belongs to.
type origin struct {
	ctx  context.Context
	load *loadContext // nil: none
}

// originOf asks ctx for the load that it belongs to. ctx may be nil.
func originOf(ctx context.Context) origin {
	if ctx == nil { // allowed for a hit, which does not use it
		ctx = context.Background()
	}
	load, _ := ctx.Value(loadKey{}).(*loadContext)
	return origin{ctx, load}
}

// caller is what the cache needs to know of a call that may wait for a load. A context may
// be of a user's own type. Its methods may use the cache, block, or panic. So all of them
// are called here, before a lock is taken and before a load is registered:
//
//  1. a lock of the cache is taken   2. a method of the context is called, and reads the
//     cache   3. it waits for that lock, for ever.
//
// Only Err is called later, when the call has left its load.
type caller struct {
	origin
	done     <-chan struct{}
	deadline time.Time
	limited  bool // the context has a deadline
}

func callerOf(ctx context.Context) caller {
	c := caller{origin: originOf(ctx), done: ctx.Done()}
	c.deadline, c.limited = ctx.Deadline()
	return c
}
