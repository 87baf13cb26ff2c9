package nearcache

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/nearcache/nearcache/internal/transport"
)

const (
	// extensionsPerLife is how often a claim is extended while it would last, so that one
	// extension may fail.
	extensionsPerLife = 3

	// leastExtensionPause is between two extensions, also if LoadWait is short.
	leastExtensionPause = 5 * time.Millisecond

	// mostLives bounds for how many times LoadWait the claim of a load is kept, if there is
	// no LoadTimeout that bounds the load: others are not to wait for ever for one that
	// hangs.
	mostLives = 12
)

// claims are what the caches of a backplane have claimed at the shared level: of each
// the load is under way here.
//
// A claim lasts for LoadWait, and is extended while its load lives, so an instance that
// dies holds the others up for LoadWait. What an invalidation has taken away is not
// extended, whenever an extension is executed: it sets only a token that it finds in the
// same step, and Redis has made that token for one claim alone.
//
// A timer extends, and not a goroutine of each load: nearly all loads end before their
// claim has to be extended.
type claims struct {
	values   transport.Values   // nil in a process-local backplane, which has no claims
	outlived func(h *heldClaim) // tells that a load has outlived its claim; without a lock
	lifetime context.Context    // of extensions
	end      context.CancelFunc // ends it
	running  sync.WaitGroup     // an extension, or none

	mu                   sync.Mutex             // guards everything below
	held                 map[string]*heldClaim  // by token
	newest               map[claimed]*heldClaim // of each key
	mostHeld, mostNewest int                    // see forget
	timer                *time.Timer
	next                 time.Time // when timer fires; zero: it does not
	busy                 bool      // it has fired, and sets itself again
	closed               bool
}

// claimed is what was claimed.
type claimed struct {
	stats *sharedCounters // of its cache, which also tell it from an earlier one of its name
	key   string
}

// heldClaim is a claim in Redis that is this instance's. Guarded by claims.mu is what is
// below.
type heldClaim struct {
	claimed
	cache   string
	token   string
	epoch   string // and count: how the value will be labelled
	count   uint64
	load    context.Context // ends when nobody waits for the load any more
	began   time.Time       // before Redis was asked for the claim
	life    time.Duration   // SharedOptions.LoadWait
	most    time.Duration   // for how long it is kept
	timeout time.Duration   // SharedOptions.Timeout

	sharers int       // loads of its key, all on this instance, of which one may store its value
	ended   bool      // one has, or is about to
	due     time.Time // to be extended; zero: never
}

func newClaims(outlived func(*heldClaim)) *claims {
	c := &claims{outlived: outlived, held: map[string]*heldClaim{}, newest: map[claimed]*heldClaim{}}
	c.lifetime, c.end = context.WithCancel(context.Background())
	return c
}

// hold notes a claim that this instance has, and has it extended.
func (c *claims) hold(h *heldClaim) {
	c.mu.Lock()
	defer c.mu.Unlock()
	h.sharers, h.due = 1, h.began.Add(h.pause())
	c.held[h.token], c.newest[h.claimed] = h, h
	c.scheduleLocked(h.due)
}

// pause is between two extensions.
func (h *heldClaim) pause() time.Duration { return max(h.life/extensionsPerLife, leastExtensionPause) }

// token returns the token of the claim that this instance has of a key; empty: it has
// none.
func (c *claims) token(of claimed) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if h := c.newest[of]; h != nil {
		return h.token
	}
	return ""
}

// share has one more load use a claim that this instance has; nil: it has ended
// meanwhile. Both loads began after the claim, so what either brings may be stored while
// the claim is there.
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

// letGo notes that loads end, and returns what of their claims is to end in Redis too. A
// load without a value leaves its claim to the others that share it.
//
//  1. a load begins, and another one of its key, which shares its claim   2. the second
//     has its value, which ends the first, without one   3. were the claim released for
//     that, the value might come too late.
func (c *claims) letGo(puts []transport.Put) (ending []transport.Put) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range puts {
		h := c.held[p.Token] // nil: it was released
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

// forgetLocked forgets a claim that has ended, as far as its loads have.
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

// scheduleLocked has the timer fire at a time, or before.
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

// extend extends the claims that are due, and has itself called again for the others.
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
				h.due = time.Time{} // an invalidation has taken it away
			}
		}
		c.mu.Unlock()
		if err != nil {
			break // the others are due again at once, and Redis is asked one at a time
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.busy = false
	c.scheduleAllLocked()
}

// takeDue returns the claims that are to be extended now, and those whose loads have
// outlived them, and counts the caller as running if there are any.
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
		case h.due.IsZero() || h.due.After(now.Add(h.pause()/8)): // a little early: together with others
			continue
		case now.Sub(h.began) >= h.most:
			outlived = append(outlived, h)
			h.due = time.Time{}
		case h.load.Err() != nil:
			h.due = time.Time{} // nobody here waits for the load: others need not
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

// release ends the claims of a cache, or of all if stats are nil, for other instances to
// take: this one may be gone before the loads end. It gives up when ctx ends, or at the
// first failure. Then they end by themselves.
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

// send makes one attempt at claims of any caches, to extend or to release them, for as
// long as the most patient of the caches allows.
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

// wait waits for an extension that is under way, once its connection is closed.
func (c *claims) wait() { c.running.Wait() }
