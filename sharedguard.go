package nearcache

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sony/gobreaker/v2"

	"github.com/nearcache/nearcache/internal/loglimit"
	"github.com/nearcache/nearcache/internal/transport"
)

const (
	// After this many failures in a row, Redis is not asked again for breakerPause.
	mostFailures = 5
	breakerPause = time.Second

	redialPause = time.Second // the shortest time between two
)

// valueGuard is a cache's access to the values in Redis. Each request is bounded by
// Timeout. Answers count only from the server that this instance follows. After several
// failures in a row, Redis is not asked again for a while.
type valueGuard struct {
	values    transport.Values
	backplane *Backplane
	lease     *lease
	cache     string
	timeout   time.Duration
	most      int // the most bytes of a value, its label included
	breaker   *gobreaker.TwoStepCircuitBreaker[any]
	redialled atomic.Int64          // when this cache last gave up connections
	failure   atomic.Pointer[error] // the last failure
	stats     *sharedCounters

	mu      sync.Mutex // guards everything below
	changes []breakerChange
	telling bool // a goroutine is reporting changes
}

// breakerChange is one change of the breaker's state.
type breakerChange struct{ from, to gobreaker.State }

// errOtherServer says why an answer does not count.
var errOtherServer = errors.New("the server is no master, or not of the history that the last echo showed")

func newValueGuard(
	bp *Backplane, cache string, timeout time.Duration, most int, stats *sharedCounters,
) *valueGuard {
	g := &valueGuard{values: bp.bus.Values(), backplane: bp, lease: bp.lease, cache: cache, timeout: timeout, most: most, stats: stats}
	g.breaker = gobreaker.NewTwoStepCircuitBreaker[any](gobreaker.Settings{
		Name:        cache,
		Timeout:     breakerPause,
		ReadyToTrip: func(n gobreaker.Counts) bool { return n.ConsecutiveFailures >= mostFailures && !bp.noBreaker },
		IsExcluded:  func(err error) bool { return err == errSaysNothing },
		OnStateChange: func(_ string, from, to gobreaker.State) {
			// The breaker's lock is held here: attempt reports the change later.
			g.mu.Lock()
			defer g.mu.Unlock()
			g.changes = append(g.changes, breakerChange{from, to})
		},
	})
	return g
}

// The breaker gets only these errors. It looks at errors under its lock, and the errors of
// an attempt may wrap a user's.
var (
	errFailed      = errors.New("the attempt has failed")
	errSaysNothing = errors.New("the attempt says nothing of Redis")
)

// isFailure reports whether an error says that Redis fails. It does not if the caller has
// left, or if the backplane is closed.
func isFailure(err error) bool {
	return err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, ErrClosed)
}

// tellChanges reports the breaker's changes in their order. The goroutine that reports one
// also reports those that come meanwhile.
func (g *valueGuard) tellChanges() {
	g.mu.Lock()
	for !g.telling && len(g.changes) > 0 {
		g.telling = true
		changes := g.changes
		g.changes = nil
		g.mu.Unlock()
		for _, c := range changes {
			g.breakerChanged(c.from, c.to)
		}
		g.mu.Lock()
		g.telling = false
	}
	g.mu.Unlock()
}

// breakerChanged reports that Redis is no longer asked, or is asked again. Each cache has
// its events. The log has one line for all caches, and one more for each minute in which
// one of them fails.
func (g *valueGuard) breakerChanged(from, to gobreaker.State) {
	bp := g.backplane
	switch to {
	case gobreaker.StateOpen:
		e := Event{Kind: EventSharedFailed, Cache: g.cache}
		if last := g.failure.Load(); last != nil {
			e.Err = *last
		}
		if from != gobreaker.StateClosed {
			e.Kind = 0 // for the log only: it still fails
		}
		caches, logged := bp.sharedOutage.failing(g)
		bp.tellIf(logged, slog.LevelWarn, "nearcache: the shared level fails; items are loaded from the source until Redis answers",
			e, "cache", g.cache, "caches", caches)
	case gobreaker.StateClosed:
		bp.tellIf(bp.sharedOutage.works(g), slog.LevelInfo, "nearcache: the shared level is used again",
			Event{Kind: EventSharedResumed, Cache: g.cache})
	}
}

// sharedOutage knows which caches' shared levels fail, and what the log has said of that. A
// Redis that is gone is gone for all caches of a backplane.
type sharedOutage struct {
	limit loglimit.Limit

	mu     sync.Mutex // guards everything below
	caches map[*valueGuard]struct{}
	said   bool // the log says that one fails, and not yet that all work
}

// failing notes that a cache's shared level fails. It returns how many fail now, and
// reports whether to log it.
func (o *sharedOutage) failing(g *valueGuard) (caches int, logged bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.caches == nil {
		o.caches = map[*valueGuard]struct{}{}
	}
	o.caches[g] = struct{}{}
	logged = o.limit.Allow()
	o.said = o.said || logged
	return len(o.caches), logged
}

// works notes that a cache's shared level works, or that the cache is closed. It reports
// whether to log that all work again.
func (o *sharedOutage) works(g *valueGuard) (logged bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.caches, g)
	if len(o.caches) > 0 {
		return false
	}
	logged, o.said = o.said, false
	return logged
}

// history returns the history that this instance follows. If Redis does not tell its
// history, it is empty. Then that many flights do without the shared level.
func (g *valueGuard) history(flights int) string {
	history := g.lease.history()
	if history == "" {
		g.stats.noHistory.Add(uint64(flights))
		if g.backplane.noHistory.Allow() { // once for all caches
			g.backplane.logger.Warn("nearcache: the shared level is not used, since Redis does not tell its history " +
				"(grant the user +info)")
		}
	}
	return history
}

// read reads values from Redis. An answer of another server than the one that this instance
// follows does not count.
func (g *valueGuard) read(ctx context.Context, history string, keys, regions []string) (transport.Reading, error) {
	var reading transport.Reading
	err := g.attempt(ctx, func(ctx context.Context) (err error) {
		reading, err = g.values.Read(ctx, g.cache, keys, regions, g.most)
		if err == nil && (!reading.Master || reading.History != history) {
			g.redial()
			err = errOtherServer
		}
		return err
	})
	return reading, err
}

func (g *valueGuard) claim(
	ctx context.Context, history string, life time.Duration, claims []transport.Claim,
) (claimed transport.Claimed, err error) {
	err = g.attempt(ctx, func(ctx context.Context) (err error) {
		claimed, err = g.values.Claim(ctx, g.cache, history, life, claims)
		return err
	})
	return claimed, err
}

// put stores values, and ends claims. No caller waits for it.
func (g *valueGuard) put(puts []transport.Put) (stored []bool, err error) {
	err = g.attempt(context.Background(), func(ctx context.Context) (err error) {
		stored, err = g.values.Put(ctx, g.cache, puts)
		return err
	})
	return stored, err
}

// attempt makes one attempt at Redis, bounded by Timeout. It makes none while the breaker
// is open.
func (g *valueGuard) attempt(ctx context.Context, attempt func(context.Context) error) error {
	done, err := g.breaker.Allow()
	if err != nil {
		g.tellChanges()
		g.stats.failing.Add(1)
		return err
	}
	said := errSaysNothing // also if a method of ctx ends the goroutine
	defer func() {
		done(said)
		g.tellChanges()
	}()
	timely, cancel := context.WithTimeout(ctx, g.timeout)
	defer cancel()
	began := time.Now()
	err = attempt(timely)
	deadline, limited := ctx.Deadline()
	switch {
	case err == nil:
		said = nil
	case !isFailure(err):
	case time.Since(began) < g.timeout && (ctx.Err() != nil || limited && !time.Now().Before(deadline)):
		err = context.Canceled // the caller's wait was over, which says nothing about Redis
	default:
		said = errFailed
		g.failure.Store(&err)
		g.stats.errors.Add(1)
	}
	return err
}

// redial gives up the connections: their server is no longer a master, or is one that this
// instance does not know yet. All requests notice that, so it does so at most once in
// redialPause.
func (g *valueGuard) redial() {
	last, now := g.redialled.Load(), g.lease.now()
	if (last == 0 || now-last > int64(redialPause)) && g.redialled.CompareAndSwap(last, now) {
		g.values.Redial()
	}
}
