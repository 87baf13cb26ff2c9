package nearcache

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// loadContext is a loader's context. It ends with its flight alone, and has the values
// of the context of the flight's first caller. It knows the load that this caller
// belongs to, so that a loader which asks for the key that it is loading can be told from
// other callers, however many loads lie in between, if each of them was begun by the one
// before. We accept that a circle which two callers began from different ends is not
// noticed: such a loader never returns anyway.
//
// It is made for a loader that looks at nothing but Err: what can be waited for, and
// looked up in, is only made when somebody asks for it, as it costs a third of a miss.
type loadContext struct {
	values  context.Context
	parent  *loadContext // of the load whose loader began this one; nil: none did
	batch   *loadContext // of the call of LoadMany that the load is a part of; nil: of none
	hasSlot bool         // the load has a place, or its parent has: see places
	ended   atomic.Bool  // written under mu

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
	if key == any(loadKey{}) {
		return c
	}
	if v := c.library().Value(key); v != nil {
		return v
	}
	return c.values.Value(key)
}

// begunBy reports whether c is the context of that load's loader, or of a load that
// was begun with it, by however many others. Nil was begun by none.
func (c *loadContext) begunBy(load *loadContext) bool {
	for call := load.call(); c != nil; c = c.parent {
		if c.call() == call {
			return true
		}
	}
	return false
}

// call returns the context of the call of LoadMany that the load is a part of, or c.
func (c *loadContext) call() *loadContext {
	if c.batch != nil {
		return c.batch
	}
	return c
}

// loadKey is what the contexts of loads answer to, with themselves.
type loadKey struct{}

// origin is the context of a call, and the innermost load that it belongs to.
type origin struct {
	ctx  context.Context
	load *loadContext // nil: none
}

// originOf asks ctx, which may be nil, for the load that it belongs to.
func originOf(ctx context.Context) origin {
	if ctx == nil { // which a hit does not look at
		ctx = context.Background()
	}
	load, _ := ctx.Value(loadKey{}).(*loadContext)
	return origin{ctx, load}
}

// caller is what has to be known of a call that may wait for a load. A context may be of
// a user's own type, and its methods may use the cache, block, or panic. So all of them
// are called here, before a lock is taken and before a load is registered:
//
//  1. a lock of the cache is held   2. a method of the context is called, and reads
//     the cache   3. it waits for the lock, for ever.
//
// Only Err is called later, when nobody waits for the caller any more.
type caller struct {
	origin
	done     <-chan struct{}
	deadline time.Time
	limited  bool // there is a deadline
}

func callerOf(ctx context.Context) caller {
	c := caller{origin: originOf(ctx), done: ctx.Done()}
	c.deadline, c.limited = ctx.Deadline()
	return c
}
