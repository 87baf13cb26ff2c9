package nearcache

import (
	"log/slog"
	"time"

	"github.com/nearcache/nearcache/internal/loglimit"
)

// hints are the lines that a cache logs about itself: once each, or once in loglimit.Interval.
type hints struct {
	logger *slog.Logger
	cache  string

	unheardLines loglimit.Limit
	slowSaid     [3]loglimit.Once // of items, not-founds and errors
	notFoundSaid loglimit.Once
}

// warn logs what is surely a mistake in the options: an option that is legal, but has no
// effect beside another one.
func (o *Options[K, V]) warn(warn func(text string, details ...any)) {
	if o.RefreshAfter >= o.TTL && o.Expiry == nil {
		warn("items expire before they are refreshed: RefreshAfter is not less than TTL",
			"RefreshAfter", o.RefreshAfter, "TTL", o.TTL)
	}
	if o.IdleTTL > o.TTL && o.Expiry == nil {
		warn("items expire before they are idle: IdleTTL is more than TTL", "IdleTTL", o.IdleTTL, "TTL", o.TTL)
	}
	if o.SoftTimeout > o.LoadTimeout && o.LoadTimeout > 0 {
		warn("loads end before SoftTimeout: it is more than LoadTimeout",
			"SoftTimeout", o.SoftTimeout, "LoadTimeout", o.LoadTimeout)
	}
	if o.StaleIfError > 0 && o.TTL == NoExpiry && o.Expiry == nil && o.Shared == nil { // items of the shared level do expire
		warn("StaleIfError is for items that have expired, and with TTL NoExpiry none does", "StaleIfError", o.StaleIfError)
	}
	kept := o.NotFoundTTL > 0 || o.ErrorTTL > 0
	if least := int64(errorBytes[K, V]()); kept && o.WeighNotFound == nil && 0 < o.MaxWeight && o.MaxWeight < least {
		warn("no not-found and no error is kept: each weighs more than MaxWeight, since WeighNotFound is not set",
			"weight", least, "MaxWeight", o.MaxWeight)
	}
	if o.WeighNotFound != nil && !kept {
		warn("WeighNotFound is set, and neither NotFoundTTL nor ErrorTTL keeps what it weighs")
	}
}

// warn logs a line about the cache.
func (h *hints) warn(text string, details ...any) {
	h.logger.Warn("nearcache: "+text, append([]any{"cache", h.cache}, details...)...)
}

// foreignNotFound logs that a loader has wrapped a not-found of another item, and what
// follows.
func (h *hints) foreignNotFound(other string) {
	if h.notFoundSaid.Allow() {
		h.warn("a loader's error wraps the not-found of another item, and counts as a failure; "+
			"return ErrNotFound if the loaded item does not exist either", "of", other)
	}
}

// slow logs that loads of a kind take too long for their results to be kept.
func (h *hints) slow(kind int, option string, took, ttl time.Duration) {
	if h.slowSaid[kind].Allow() {
		h.warn("a load took longer than its result may be kept, which counts from the load's start",
			"took", took, "option", option, "time to live", ttl)
	}
}

// unheard logs that a load has panicked or ended its goroutine, and that no caller waits
// for it: a refresh ahead of expiry, or a load that all callers have left.
func (h *hints) unheard(err error) {
	if h.unheardLines.Allow() {
		h.logger.Error("nearcache: a load that no caller waits for has panicked, or ended its goroutine",
			"cache", h.cache, "err", err)
	}
}
