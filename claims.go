package nearcache

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/nearcache/nearcache/internal/transport"
)

const (
	// extensionsPerLife is how often a claim is extended in the time that it lasts, so that
	// one extension may fail.
	extensionsPerLife = 3

	// leastExtensionPause is the shortest pause between two extensions, even if LoadWait is
	// short.
	leastExtensionPause = 5 * time.Millisecond

	// mostLives bounds how long the claim of a load is extended if there is no LoadTimeout,
	// in multiples of LoadWait. So other instances do not wait for ever for a load that
	// hangs.
	mostLives = 12
)

// claims are the claims of a backplane's caches at the shared level. The loads of all of
// them are under way here.
//
// A claim lasts for LoadWait, and is extended while its load lives. So an instance that
// dies delays the others by LoadWait at most. A claim that an invalidation has removed is
// not extended, however late the extension is executed. It extends only a token that it
// finds in the same step, and Redis has made that token for one claim alone.
//
// A timer does the extensions, instead of a goroutine for each load: nearly all loads end
// before their claim has to be extended.
type claims struct {
	values   transport.Values   // nil in a process-local backplane, which has no claims
	outlived func(h *heldClaim) // told of a load that has outlived its claim; called without a lock
	lifetime context.Context    // the context of extensions
	end      context.CancelFunc // ends lifetime
	running  sync.WaitGroup     // counts the extension that is under way

	mu                   sync.Mutex             // guards everything below
	held                 map[string]*heldClaim  // by token
	newest               map[claimed]*heldClaim // the newest of each key
	mostHeld, mostNewest int                    // see forget
	timer                *time.Timer
	next                 time.Time // when timer fires; zero: it is not set
	busy                 bool      // extend is under way, and will set the timer
	closed               bool
}

// claimed is what a claim is for.
type claimed struct {
	stats *sharedCounters // of the cache; they also tell it from an earlier cache of its name
	key   string
}

// heldClaim is a claim in Redis that this instance has. claims.mu guards sharers, ended and
// due.
type heldClaim struct {
	claimed
	cache   string
	token   string
	epoch   string // the label of the value will have epoch and count
	count   uint64
	load    context.Context // ends when nothing waits for the load
	began   time.Time       // before Redis was asked for the claim
	life    time.Duration   // SharedOptions.LoadWait
	most    time.Duration   // for how long it is extended
	timeout time.Duration   // SharedOptions.Timeout

	sharers int       // loads of its key on this instance, of which one may store its value
	ended   bool      // one of them has ended the claim, or is about to
	due     time.Time // when to extend it; zero: never
}

func newClaims(outlived func(*heldClaim)) *claims {
	c := &claims{outlived: outlived, held: map[string]*heldClaim{}, newest: map[claimed]*heldClaim{}}
	c.lifetime, c.end = context.WithCancel(context.Background())
	return c
}

// hold adds a claim that this instance has got, and has it extended.
func (c *claims) hold(h *heldClaim) {
	c.mu.Lock()
	defer c.mu.Unlock()
	h.sharers, h.due = 1, h.began.Add(h.pause())
	c.held[h.token], c.newest[h.claimed] = h, h
	c.scheduleLocked(h.due)
}

// pause is the pause between two extensions.
func (h *heldClaim) pause() time.Duration { return max(h.life/extensionsPerLife, leastExtensionPause) }

// token returns the token of this instance's claim of a key. Empty: it has none.
func (c *claims) token(of claimed) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if h := c.newest[of]; h != nil {
		return h.token
	}
	return ""
}

// share has one more load use the claim with that token. It returns nil if the claim has
// ended. All loads that share a claim began after it. So each of them may store its result
// while the claim is there.
func (c *claims) share(token string) *heldClaim {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := c.held[token]
	if h == nil || h.ended {
		return nil
	}
	h.sharers++
	return h
}

// letGo notes that loads have ended, and returns which of their claims are to end in Redis
// too. A load without a value leaves its claim to the other loads that share it.
//
//  1. a load begins, and then another load of its key, which shares its claim   2. the
//     second gets its value. That ends the first, which has none   3. if the first released
//     the claim, the second might come too late to store its value.
func (c *claims) letGo(puts []transport.Put) (ending []transport.Put) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range puts {
		h := c.held[p.Token] // nil: it was released already
		last := false
		if h != nil {
			h.sharers--
			last = h.sharers == 0 && !h.ended
			if p.Bytes != nil || p.Forget {
				last, h.ended = !h.ended, true
			}
			c.forgetLocked(h)
		}
		if last || p.Bytes != nil {
			ending = append(ending, p)
		}
	}
	return ending
}

// forgetLocked forgets a claim that has ended, as far as its loads have ended.
func (c *claims) forgetLocked(h *heldClaim) {
	if h.sharers > 0 && !h.ended {
		return
	}
	h.due = time.Time{}
	if c.newest[h.claimed] == h {
		forget(&c.newest, &c.mostNewest, h.claimed)
	}
	if h.sharers == 0 {
		forget(&c.held, &c.mostHeld, h.token)
	}
}

// scheduleLocked has the timer fire at a time, or earlier.
func (c *claims) scheduleLocked(at time.Time) {
	switch {
	case c.closed || c.busy || !c.next.IsZero() && !at.Before(c.next):
		return
	case c.timer == nil:
		c.timer = time.AfterFunc(time.Until(at), c.extend)
	default:
		c.timer.Reset(time.Until(at))
	}
	c.next = at
}

// extend extends the claims that are due, and sets the timer for the others.
func (c *claims) extend() {
	due, outlived := c.takeDue()
	if due == nil && outlived == nil {
		return
	}
	defer c.running.Done()
	for _, h := range outlived {
		c.outlived(h)
	}
	for part := range slices.Chunk(due, mostTogether) {
		began := time.Now()
		kept, err := c.send(c.lifetime, part, true)
		c.mu.Lock()
		for i, h := range part {
			switch {
			case h.due.IsZero(): // it has ended meanwhile
			case err != nil:
				h.due = time.Now().Add(h.pause() / 2)
			case kept[i]:
				h.due = began.Add(h.pause())
			default:
				h.due = time.Time{} // an invalidation has removed it
			}
		}
		c.mu.Unlock()
		if err != nil {
			break // the other claims are still due; Redis gets one request at a time
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.busy = false
	c.scheduleAllLocked()
}

// takeDue returns the claims that are to be extended now, and those that their loads have
// outlived. If there are any, it counts the caller as running.
func (c *claims) takeDue() (due, outlived []*heldClaim) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.next = time.Time{}
	if c.closed || c.busy {
		return nil, nil
	}
	now := time.Now()
	for _, h := range c.held {
		switch {
		case h.due.IsZero() || h.due.After(now.Add(h.pause()/8)): // a little early counts as due, to be sent together
			continue
		case now.Sub(h.began) >= h.most:
			outlived = append(outlived, h)
			h.due = time.Time{}
		case h.load.Err() != nil:
			h.due = time.Time{} // nothing here waits for the load, so other instances need not either
		default:
			due = append(due, h)
			h.due = now
		}
	}
	if due == nil && outlived == nil {
		c.scheduleAllLocked()
		return nil, nil
	}
	c.busy = true
	c.running.Add(1)
	return due, outlived
}

// scheduleAllLocked has the timer fire when the next claim is due.
func (c *claims) scheduleAllLocked() {
	for _, h := range c.held {
		if !h.due.IsZero() {
			c.scheduleLocked(h.due)
		}
	}
}

// release ends the claims of a cache, or of all caches if stats is nil. Other instances can
// then claim the loads, which this instance may not live to finish. It gives up when ctx
// ends, and at the first failure. The remaining claims then expire.
func (c *claims) release(ctx context.Context, stats *sharedCounters) {
	c.mu.Lock()
	var held []*heldClaim
	for _, h := range c.held {
		if stats == nil || h.stats == stats {
			if !h.ended {
				held = append(held, h)
			}
			h.sharers = 0
			c.forgetLocked(h)
		}
	}
	c.mu.Unlock()
	for part := range slices.Chunk(held, mostTogether) {
		if _, err := c.send(ctx, part, false); err != nil {
			return
		}
	}
}

// send makes one attempt to extend or to release claims of any caches. It takes at most the
// longest Timeout of these caches.
func (c *claims) send(ctx context.Context, held []*heldClaim, extend bool) (kept []bool, err error) {
	var keeps []transport.Keep
	timeout := time.Duration(0)
	for _, h := range held {
		k := transport.Keep{Cache: h.cache, Key: h.key, Token: h.token}
		if extend {
			k.Life = h.life
		}
		keeps, timeout = append(keeps, k), max(timeout, h.timeout)
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return c.values.Keep(ctx, keeps)
}

// close has no more claims extended.
func (c *claims) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	if c.timer != nil {
		c.timer.Stop()
	}
	c.end()
}

// wait waits for an extension that is under way, after its connection was closed.
func (c *claims) wait() { c.running.Wait() }
