package nearcache

import (
	"context"
	"math/rand/v2"
	"time"
)

const (
	backoffBase = 100 * time.Millisecond

	// backoffMax bounds how long an instance stays away from a Redis that is back.
	backoffMax = 2 * time.Second
)

// backoff spaces attempts: each wait is drawn evenly from zero to a ceiling that
// doubles with every failure ("full jitter"). The first one too, so that a fleet
// that lost the same Redis at the same moment does not return at the same moment.
type backoff struct{ failures int }

func (b *backoff) reset() { b.failures = 0 }

func (b *backoff) next() time.Duration {
	ceiling := backoffMax
	if b.failures < 16 { // no overflow
		ceiling = min(ceiling, backoffBase<<b.failures)
	}
	b.failures++
	return rand.N(ceiling)
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
