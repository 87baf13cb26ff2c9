package nearcache

import (
	"context"
	"time"
)

const (
	backoffBase = 100 * time.Millisecond

	// backoffMax bounds how long an instance stays away from a Redis that is back.
	backoffMax = 2 * time.Second
)

// random returns a number from 0 to n-1. All jitter comes from the one that the
// backplane holds, so that a test can have it repeat itself.
type random func(n int64) int64

// backoff spaces attempts: each wait is drawn evenly from zero to a ceiling that
// doubles with every failure ("full jitter"). The first one too, so that a fleet
// that lost the same Redis at the same moment does not return at the same moment.
type backoff struct {
	random   random
	failures int
}

func (b *backoff) reset() { b.failures = 0 }

func (b *backoff) next() time.Duration {
	ceiling := backoffMax
	if b.failures < 16 { // no overflow
		ceiling = min(ceiling, backoffBase<<b.failures)
	}
	b.failures++
	return time.Duration(b.random(int64(ceiling)))
}

// wait waits for the next attempt's turn, for early, or for ctx, and reports
// whether ctx is still alive.
func (b *backoff) wait(ctx context.Context, early <-chan struct{}) bool {
	timer := time.NewTimer(b.next())
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-early:
	case <-ctx.Done():
	}
	return ctx.Err() == nil
}
