// Package backoff spaces attempts, and draws the random parts of all pauses.
package backoff

import (
	"context"
	"time"
)

// Random returns a random number from 0 to n-1.
type Random func(n int64) int64

// Backoff spaces attempts at something that fails. Each pause is drawn evenly from zero
// to a ceiling that doubles with every failure ("full jitter", see
// https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/). The first
// pause too, so that a fleet that lost the same Redis at the same moment does not return
// at the same moment.
type Backoff struct {
	Random Random
	Base   time.Duration // the first ceiling
	Max    time.Duration // the last

	failures int
}

// Reset is called after a success.
func (b *Backoff) Reset() { b.failures = 0 }

// Retreat is called after a success that may not last: as many failures count as before,
// but at most most.
func (b *Backoff) Retreat(most int) { b.failures = min(b.failures, most) }

// Failures returns how many pauses there have been since the last success.
func (b *Backoff) Failures() int { return b.failures }

// Wait waits for the next attempt's turn, for early, which may be nil, or for ctx. It
// reports whether ctx is still alive.
func (b *Backoff) Wait(ctx context.Context, early <-chan struct{}) bool {
	pause := time.Duration(b.Random(int64(Ceiling(b.Base, b.Max, b.failures))))
	b.failures++
	return Wait(ctx, pause, early)
}

// Ceiling returns base, doubled for each failure, but at most most.
func Ceiling(base, most time.Duration, failures int) time.Duration {
	for range failures {
		if base >= most/2 { // before it overflows
			return most
		}
		base *= 2
	}
	return min(base, most)
}

// Less returns d less a random part of it, of at most the given fraction: 10 stands for
// a tenth. Pauses of many instances, or of many keys, do not end at one moment then.
func Less(random Random, d time.Duration, fraction int64) time.Duration {
	return d - time.Duration(random(int64(d)/fraction+1))
}

// Wait waits for d, for early, which may be nil, or for ctx. It reports whether ctx is
// still alive.
func Wait(ctx context.Context, d time.Duration, early <-chan struct{}) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-early:
	case <-ctx.Done():
	}
	return ctx.Err() == nil
}
