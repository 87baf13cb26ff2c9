package barrier

import (
	"context"
	"log/slog"
)

// guardedHandler calls a user's slog.Handler in a goroutine of its own, and waits for it.
// If the handler panics, or ends its goroutine (as FailNow of a test does), only the line
// is lost. The process and the backplane's goroutines continue.
type guardedHandler struct{ handler slog.Handler }

// Logger returns l with its handler guarded: if that panics, or ends its goroutine, only
// the line is lost.
func Logger(l *slog.Logger) *slog.Logger { return slog.New(guardedHandler{l.Handler()}) }

func (h guardedHandler) Enabled(ctx context.Context, level slog.Level) (enabled bool) {
	Apart(func() {
		defer Discard()
		enabled = h.handler.Enabled(ctx, level)
	})
	return enabled
}

func (h guardedHandler) Handle(ctx context.Context, r slog.Record) (err error) {
	Apart(func() {
		defer Discard()
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
