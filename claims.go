package nearcache

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/nearcache/nearcache/internal/transport"
)

// claims are what the caches of a backplane have claimed at the shared level: of each
// the load is under way here.
type claims struct {
	values transport.Values // nil in a process-local backplane, which has no claims

	mu   sync.Mutex            // guards everything below
	held map[string]*heldClaim // by token

	mostHeld int // see forget
}

// heldClaim is a claim in Redis that is this instance's.
type heldClaim struct {
	transport.Keep                 // which releases it
	timeout        time.Duration   // SharedOptions.Timeout
	stats          *sharedCounters // of its cache, which also tell it from an earlier one of its name
}

func newClaims() *claims { return &claims{held: map[string]*heldClaim{}} }

// hold notes a claim that this instance has.
func (c *claims) hold(h *heldClaim) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held[h.Token] = h
}

// letGo notes that claims end.
func (c *claims) letGo(puts []transport.Put) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range puts {
		forget(&c.held, &c.mostHeld, p.Token)
	}
}

// release ends the claims of a cache, or of all if stats are nil, for other instances to
// take: this one may be gone before the loads end. It gives up when ctx ends, or at the
// first failure. Then they end by themselves.
func (c *claims) release(ctx context.Context, stats *sharedCounters) {
	c.mu.Lock()
	var held []*heldClaim
	for token, h := range c.held {
		if stats == nil || h.stats == stats {
			held = append(held, h)
			forget(&c.held, &c.mostHeld, token)
		}
	}
	c.mu.Unlock()
	for part := range slices.Chunk(held, mostTogether) {
		if _, err := c.send(ctx, part); err != nil {
			return
		}
	}
}

// send makes one attempt at claims of any caches, for as long as the most patient of
// them allows.
func (c *claims) send(ctx context.Context, held []*heldClaim) (kept []bool, err error) {
	defer recovered("Keep", &err) // nobody is there to be told
	var keeps []transport.Keep
	timeout := time.Duration(0)
	for _, h := range held {
		keeps, timeout = append(keeps, h.Keep), max(timeout, h.timeout)
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return c.values.Keep(ctx, keeps)
}
