package nearcache

import "time"

// hints are the lines that a cache logs about itself, once each, or once in logInterval.
type hints struct {
	unheard  logLimit
	slow     [3]logOnce // of items, not-founds, errors
	notFound logOnce
}

// warn logs what is surely a mistake in the options: each of them is legal, and has no
// effect beside another.
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
	if o.StaleIfError > 0 && o.TTL == NoExpiry && o.Expiry == nil && o.Shared == nil { // what is read there does expire
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

// hint logs a line about the cache.
func (c *Cache[K, V]) hint(text string, details ...any) {
	c.backplane.logger.Warn("nearcache: "+text, append([]any{"cache", c.options.Name}, details...)...)
}

// hintNotFound says that a loader has wrapped a not-found of that cache, and what follows.
func (c *Cache[K, V]) hintNotFound(other string) {
	if c.hints.notFound.allow() {
		c.hint("a loader's error wraps the not-found of another item, and counts as a failure; "+
			"return ErrNotFound if the loaded item does not exist either", "of", other)
	}
}

// hintSlow says that loads take too long for their results to be kept. What ended in o
// took that long.
func (c *Cache[K, V]) hintSlow(o *outcome[V], took time.Duration) {
	kind, option := 0, "TTL"
	switch {
	case o.err == nil && c.options.Expiry != nil:
		option = "Expiry"
	case o.err != nil && o.known:
		kind, option = 1, "NotFoundTTL"
	case o.err != nil:
		kind, option = 2, "ErrorTTL"
	}
	if c.hints.slow[kind].allow() {
		c.hint("a load took longer than its result may be kept, which counts from the load's start",
			"took", took, "option", option, "time to live", o.ttl)
	}
}

// hintUnheard logs how a load ended that panicked, or ended its goroutine, and that no
// caller waits for: a refresh ahead, or one that all have left.
func (c *Cache[K, V]) hintUnheard(err error) {
	if c.hints.unheard.allow() {
		c.backplane.logger.Error("nearcache: a load that no caller waits for has panicked, or ended its goroutine",
			"cache", c.options.Name, "err", err)
	}
}
