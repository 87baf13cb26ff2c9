package nearcache

import (
	"context"
	"log/slog"

	"github.com/nearcache/nearcache/internal/barrier"
)

// guardedHandler calls a user's slog.Handler in a goroutine of its own, and waits for it.
// If the handler panics, or ends its goroutine (as FailNow of a test does), only the line
// is lost. The process and the backplane's goroutines continue.
type guardedHandler struct{ handler slog.Handler }

func guardedLogger(l *slog.Logger) *slog.Logger { return slog.New(guardedHandler{l.Handler()}) }

func (h guardedHandler) Enabled(ctx context.Context, level slog.Level) (enabled bool) {
	barrier.Apart(func() {
		defer discardPanic()
		enabled = h.handler.Enabled(ctx, level)
	})
	return enabled
}

func (h guardedHandler) Handle(ctx context.Context, r slog.Record) (err error) {
	barrier.Apart(func() {
		defer discardPanic()
		err = h.handler.Handle(ctx, r)
	})
	return err
}

func (h guardedHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return guardedHandler{h.handler.WithAttrs(attrs)}
}

func (h guardedHandler) WithGroup(name string) slog.Handler {
	return guardedHandler{h.handler.WithGroup(name)}
}

// discardPanic recovers from a panic. It has to be deferred.
func discardPanic() { _ = recover() }

// forEach calls f with each item. If a call ends its goroutine, the remaining calls are
// made in another goroutine, and forEach waits for that one.
func forEach[T any](items []T, f func(T)) {
	next := 0
	rest := func() {
		for next < len(items) {
			next++
			f(items[next-1])
		}
	}
	defer func() {
		for next < len(items) {
			barrier.Apart(rest)
		}
	}()
	rest()
}
