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
	breaker   *gobreaker.CircuitBreaker[any]
	redialled atomic.Int64          // when connections were last given up here
	failure   atomic.Pointer[error] // the last one
	noHistory sync.Once             // for the log
	stats     *sharedCounters
}

// errOtherServer is why an answer does not count.
var errOtherServer = errors.New("the server is no master, or not of the history that the last echo showed")

func newValueGuard(bp *Backplane, l *lease, cache string, timeout time.Duration, stats *sharedCounters) *valueGuard {
	g := &valueGuard{values: bp.bus.Values(), backplane: bp, lease: l, cache: cache, timeout: timeout, stats: stats}
	g.breaker = gobreaker.NewCircuitBreaker[any](gobreaker.Settings{
		Name:        cache,
		Timeout:     breakerPause,
		ReadyToTrip: func(n gobreaker.Counts) bool { return n.ConsecutiveFailures >= mostFailures },
		IsExcluded:  func(err error) bool { return err != nil && !isFailure(err) },
		OnStateChange: func(_ string, from, to gobreaker.State) {
			go g.breakerChanged(from, to) // it is called with the breaker's lock
		},
	})
	return g
}

// isFailure reports whether an error says something of Redis: not if whoever waited has
// left, or the backplane is closed.
func isFailure(err error) bool {
	return err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, ErrClosed)
}

// breakerChanged tells that Redis is left alone from here on, or asked again.
func (g *valueGuard) breakerChanged(from, to gobreaker.State) {
	switch {
	case to == gobreaker.StateOpen && from == gobreaker.StateClosed:
		var err error
		if last := g.failure.Load(); last != nil {
			err = *last
		}
		g.backplane.tell(slog.LevelWarn, "nearcache: the shared level fails; items are loaded from the source until Redis answers",
			Event{Kind: EventSharedFailed, Cache: g.cache, Err: err})
	case to == gobreaker.StateClosed:
		g.backplane.tell(slog.LevelInfo, "nearcache: the shared level is used again",
			Event{Kind: EventSharedResumed, Cache: g.cache})
	}
}

// history returns the history that this instance follows, for so many flights; empty:
// Redis does not tell it, and they do without the shared level.
func (g *valueGuard) history(flights int) string {
	history := g.lease.history()
	if history == "" {
		g.stats.noHistory.Add(uint64(flights))
		g.noHistory.Do(func() {
			g.backplane.logger.Warn("nearcache: the shared level is not used, since Redis does not tell its history "+
				"(grant the user +info)", "cache", g.cache)
		})
	}
	return history
}

// read asks Redis, and takes no answer from another server than the one that this
// instance follows.
func (g *valueGuard) read(ctx context.Context, history string, keys, regions []string) (transport.Reading, error) {
	var reading transport.Reading
	err := g.attempt(ctx, func(ctx context.Context) (err error) {
		reading, err = g.values.Read(ctx, g.cache, keys, regions)
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
	_, err := g.breaker.Execute(func() (any, error) {
		timely, cancel := context.WithTimeout(ctx, g.timeout)
		defer cancel()
		began := time.Now()
		err := attempt(timely)
		deadline, limited := ctx.Deadline()
		switch {
		case !isFailure(err):
		case time.Since(began) < g.timeout && (ctx.Err() != nil || limited && !time.Now().Before(deadline)):
			err = context.Canceled // by whoever waited, which says nothing of Redis
		default:
			g.failure.Store(&err)
		}
		return nil, err
	})
	switch {
	case !isFailure(err):
	case errors.Is(err, gobreaker.ErrOpenState) || errors.Is(err, gobreaker.ErrTooManyRequests):
		g.stats.failing.Add(1)
	default:
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
