package nearcache

import (
	"context"
	"log/slog"

	"github.com/nearcache/nearcache/internal/barrier"
)

// guardedHandler is a user's slog.Handler, called in a goroutine of its own, which is
// waited for. So one that panics or ends its goroutine (by a test's FailNow, for
// instance) costs a line, and not the process, nor a goroutine of the backplane's.
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

// discardPanic is deferred.
func discardPanic() { _ = recover() }

// forEach calls f with each item, also if a call ends its goroutine: the others are then
// made in another one, which is waited for.
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
