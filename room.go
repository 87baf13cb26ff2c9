package nearcache

import (
	"context"
	"sync"
	"time"
)

// room bounds how many bytes are in use at a time.
type room struct {
	size int

	mu    sync.Mutex // guards everything below
	taken int
	freed chan struct{} // closed when bytes are given back; nil: nothing waits
}

// take waits until n bytes are free, and takes them. It reports false if ctx ends first, or
// at until. More bytes than there are in all count as all of them. The caller gives the
// bytes back.
func (r *room) take(ctx context.Context, n int, until time.Time) bool {
	n = min(n, r.size)
	var timer *time.Timer
	for {
		r.mu.Lock()
		if r.taken+n <= r.size {
			r.taken += n
			r.mu.Unlock()
			return true
		}
		if r.freed == nil {
			r.freed = make(chan struct{})
		}
		freed := r.freed
		r.mu.Unlock()
		if timer == nil {
			timer = time.NewTimer(time.Until(until))
			defer timer.Stop()
		}
		select {
		case <-freed:
		case <-timer.C:
			return false
		case <-ctx.Done():
			return false
		}
	}
}

// give gives back what take has taken.
func (r *room) give(n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.taken -= min(n, r.size)
	if r.freed != nil {
		close(r.freed)
		r.freed = nil
	}
}
