package nearcache

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sony/gobreaker/v2"

	"github.com/nearcache/nearcache/internal/transport"
)

const (
	// After so many failures in a row Redis is left alone for a while.
	mostFailures = 5
	breakerPause = time.Second

	redialPause = time.Second // at least, between two
)

// valueGuard is a cache's way to the values in Redis: within Timeout, from the server
// that this instance follows alone, and not at all for a while after some failures.
type valueGuard struct {
	values    transport.Values
	backplane *Backplane
	lease     *lease
	cache     string
	timeout   time.Duration
	most      int // bytes of a value, its label included
	breaker   *gobreaker.TwoStepCircuitBreaker[any]
	redialled atomic.Int64          // when connections were last given up here
	failure   atomic.Pointer[error] // the last one
	stats     *sharedCounters

	mu      sync.Mutex // guards everything below
	changes []breakerChange
	telling bool // somebody tells of them
}

// breakerChange is one of the breaker's state.
type breakerChange struct{ from, to gobreaker.State }

// errOtherServer is why an answer does not count.
var errOtherServer = errors.New("the server is no master, or not of the history that the last echo showed")

func newValueGuard(
	bp *Backplane, l *lease, cache string, timeout time.Duration, most int, stats *sharedCounters,
) *valueGuard {
	g := &valueGuard{values: bp.bus.Values(), backplane: bp, lease: l, cache: cache, timeout: timeout, most: most, stats: stats}
	g.breaker = gobreaker.NewTwoStepCircuitBreaker[any](gobreaker.Settings{
		Name:        cache,
		Timeout:     breakerPause,
		ReadyToTrip: func(n gobreaker.Counts) bool { return n.ConsecutiveFailures >= mostFailures && !bp.noBreaker },
		IsExcluded:  func(err error) bool { return err == errSaysNothing },
		OnStateChange: func(_ string, from, to gobreaker.State) {
			// It is called with the breaker's lock: attempt tells of it.
			g.mu.Lock()
			defer g.mu.Unlock()
			g.changes = append(g.changes, breakerChange{from, to})
		},
	})
	return g
}

// The breaker hears of these alone: it looks at errors under its lock, and those of an
// attempt may wrap a user's.
var (
	errFailed      = errors.New("the attempt has failed")
	errSaysNothing = errors.New("the attempt says nothing of Redis")
)

// isFailure reports whether an error says something of Redis: not if whoever waited has
// left, or the backplane is closed.
func isFailure(err error) bool {
	return err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, ErrClosed)
}

// tellChanges tells how the breaker has changed, in that order: whoever tells of one
// change tells of those that come meanwhile.
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

// breakerChanged tells that Redis is left alone from here on, or asked again. Each cache
// has its events. The log has a line for all caches, and one more for each minute in which
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
			e.Kind = 0 // for the log alone: it fails still
		}
		caches, logged := bp.sharedOutage.failing(g)
		bp.tellIf(logged, slog.LevelWarn, "nearcache: the shared level fails; items are loaded from the source until Redis answers",
			e, "cache", g.cache, "caches", caches)
	case gobreaker.StateClosed:
		bp.tellIf(bp.sharedOutage.works(g), slog.LevelInfo, "nearcache: the shared level is used again",
			Event{Kind: EventSharedResumed, Cache: g.cache})
	}
}

// sharedOutage is which caches' shared levels fail, and what the log says of that: a
// Redis that is gone is gone for all caches of a backplane.
type sharedOutage struct {
	limit logLimit

	mu     sync.Mutex // guards everything below
	caches map[*valueGuard]struct{}
	said   bool // that one fails, and not yet that all work
}

// failing notes that a cache's shared level fails. It returns how many do, and reports
// whether to log it.
func (o *sharedOutage) failing(g *valueGuard) (caches int, logged bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.caches == nil {
		o.caches = map[*valueGuard]struct{}{}
	}
	o.caches[g] = struct{}{}
	logged = o.limit.allow()
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

// history returns the history that this instance follows, for so many flights; empty:
// Redis does not tell it, and they do without the shared level.
func (g *valueGuard) history(flights int) string {
	history := g.lease.history()
	if history == "" {
		g.stats.noHistory.Add(uint64(flights))
		if g.backplane.noHistory.allow() { // for all its caches
			g.backplane.logger.Warn("nearcache: the shared level is not used, since Redis does not tell its history " +
				"(grant the user +info)")
		}
	}
	return history
}

// read asks Redis, and takes no answer from another server than the one that this
// instance follows.
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

// put is not for anybody who waits.
func (g *valueGuard) put(puts []transport.Put) (stored []bool, err error) {
	err = g.attempt(context.Background(), func(ctx context.Context) (err error) {
		stored, err = g.values.Put(ctx, g.cache, puts)
		return err
	})
	return stored, err
}

// attempt makes one attempt at Redis, within Timeout and unless it is left alone.
func (g *valueGuard) attempt(ctx context.Context, attempt func(context.Context) error) error {
	done, err := g.breaker.Allow()
	if err != nil {
		g.tellChanges()
		g.stats.failing.Add(1)
		return err
	}
	said := errSaysNothing // also if the goroutine ends, in a method of ctx
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
		err = context.Canceled // by whoever waited, which says nothing of Redis
	default:
		said = errFailed
		g.failure.Store(&err)
		g.stats.errors.Add(1)
	}
	return err
}

// redial gives up the connections, which lead to a server that is none any more, or
// is not known to this instance yet; now and then, since all who ask find out.
func (g *valueGuard) redial() {
	last, now := g.redialled.Load(), g.lease.now()
	if (last == 0 || now-last > int64(redialPause)) && g.redialled.CompareAndSwap(last, now) {
		g.values.Redial()
	}
}
