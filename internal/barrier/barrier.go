// Package barrier keeps faults on the way to Redis from ending the process, or one of the
// library's goroutines.
package barrier

import (
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync/atomic"

	"github.com/nearcache/nearcache/internal/loglimit"
)

// Panics turns panics on the way to Redis into errors: those of this library, of go-redis,
// and of the hooks in BackplaneOptions.Redis. A read can do without Redis, so a fault there
// must not end the process. Panics counts them, and logs the first in each loglimit.Interval with
// its stack.
type Panics struct {
	Logger *slog.Logger        // nil: slog.Default()
	Scrub  func(string) string // removes secrets from a text; nil: there are none

	count atomic.Uint64
	lines loglimit.Limit
}

// ErrPanic is wrapped by the errors that panics become.
var ErrPanic = errors.New("panic on the way to Redis")

// Caught is deferred by functions that must not panic. It sets err if there was a panic.
func (p *Panics) Caught(where string, err *error) {
	r := recover()
	if r == nil {
		return
	}
	text := fmt.Sprint(r)
	if p.Scrub != nil {
		text = p.Scrub(text)
	}
	*err = fmt.Errorf("%w: %s: %s", ErrPanic, where, text)
	p.count.Add(1)
	if !p.lines.Allow() {
		return
	}
	logger := p.Logger
	if logger == nil {
		logger = slog.Default()
	}
	// The stack holds no values but addresses and numbers.
	logger.Error("nearcache: a panic on the way to Redis became an error",
		"in", where, "panic", text, "stack", string(debug.Stack()))
}

// Apart calls f, which calls the user's functions, in a goroutine of its own, and waits for
// it. If a dialler panics or ends its goroutine, f has failed, and the backplane's own
// goroutines are unharmed.
func (p *Panics) Apart(where string, f func() error) (err error) {
	err = fmt.Errorf("%s: a function in BackplaneOptions.Redis called runtime.Goexit", where)
	Apart(func() {
		defer p.Caught(where, &err)
		err = f()
	})
	return err
}

// Count returns how many panics there were.
func (p *Panics) Count() uint64 { return p.count.Load() }

// Apart calls f in a goroutine of its own, and waits until that has ended: f may end it
// by runtime.Goexit.
func Apart(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	<-done
}

// Discard recovers from a panic. It has to be deferred.
func Discard() { _ = recover() }

// ForEach calls f with each item. If a call ends its goroutine, the remaining calls are
// made in another goroutine, and ForEach waits for that one.
func ForEach[T any](items []T, f func(T)) {
	next := 0
	rest := func() {
		for next < len(items) {
			next++
			f(items[next-1])
		}
	}
	defer func() {
		for next < len(items) {
			Apart(rest)
		}
	}()
	rest()
}
