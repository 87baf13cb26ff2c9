package nearcache

import (
	"errors"
	"math"
	"runtime/debug"
	"time"
	"unsafe"
)

// outcome is what to keep of the result of a load or a write.
type outcome[V any] struct {
	known        bool // the item exists, or does not: the load has not failed
	value        V
	err          error         // kept instead of a value
	ttl          time.Duration // zero or less: not kept
	life         time.Duration // ttl, as if the item were not too heavy for memory; for the shared level
	weight       uint32
	hasRegions   bool // regions are known; if not, it may belong to any
	needsRegions bool // the regions have to be known even if it is not kept, see askForRegions
	regions      regionNames
}

// keeper decides what is kept of the result of a load or a write, and for how long.
type keeper[K comparable, V any] struct {
	options  *Options[K, V]
	keys     keyCodec[K]
	jittered func(time.Duration) time.Duration
	stats    *cacheCounters
	hints    *hints
}

func newKeeper[K comparable, V any](c *Cache[K, V]) *keeper[K, V] {
	return &keeper[K, V]{
		options: &c.options, keys: c.keys, jittered: c.backplane.jittered, stats: c.stats, hints: &c.hints,
	}
}

// of decides what to keep of a load, or of a write that succeeded. It fills in o, which is
// zero. If one of the cache's functions panics, o must not be used.
//
// Apart from the loader's own calls, the stack of a load's goroutine is deepest here and in
// addLocked. It stays within the stack that goroutines begin with, of which a good
// thousand bytes are usable. To grow a stack takes longer than the rest of a miss.
func (k *keeper[K, V]) of(key K, value V, err error, o *outcome[V]) {
	o.weight = 1
	if err != nil {
		k.ofError(key, err, o)
		return
	}
	o.known, o.value = true, value
	if k.options.Expiry != nil {
		o.ttl = k.options.Expiry(key, value)
	} else {
		o.ttl = k.jittered(k.options.TTL)
	}
	o.life = o.ttl
	if o.ttl > 0 && k.options.Weigh != nil {
		k.weighed(o, k.options.Weigh(key, value))
	}
	if o.ttl <= 0 && !o.needsRegions {
		return
	}
	o.hasRegions = true
	if k.options.Regions != nil {
		o.regions = namesOf(k.options.Regions(key, value))
	}
}

func (k *keeper[K, V]) ofError(key K, err error, o *outcome[V]) {
	switch {
	case k.isNotFound(err):
		o.known, o.err, o.ttl, o.life = true, ErrNotFound, k.options.NotFoundTTL, k.options.NotFoundTTL
		if k.options.NotFoundRegions != nil && (o.ttl > 0 || o.needsRegions) {
			o.hasRegions, o.regions = true, namesOf(k.options.NotFoundRegions(key))
		}
	default:
		// This includes context.DeadlineExceeded and context.Canceled. A load's context has
		// no caller's deadline, so they are the source's own. It is also cancelled when all
		// callers have left. But then the load is no longer registered, and its result is
		// not kept.
		o.err, o.ttl = err, k.options.ErrorTTL
	}
	if o.ttl > 0 && k.options.MaxWeight > 0 {
		k.weighed(o, k.weighError(key, o.err))
	}
}

// ofTimeout decides what to keep of a load that LoadTimeout has ended. It runs in a goroutine
// in which a panic of WeighNotFound would reach no caller. After such a panic, nothing is
// kept.
func (k *keeper[K, V]) ofTimeout(key K, err error) (o outcome[V]) {
	defer func() {
		if r := recover(); r != nil {
			o = outcome[V]{}
			k.hints.unheard(&loaderPanic{value: r, stack: debug.Stack()})
		}
	}()
	o.weight, o.err, o.ttl = 1, err, k.options.ErrorTTL
	if o.ttl > 0 && k.options.MaxWeight > 0 {
		k.weighed(&o, k.weighError(key, err))
	}
	return o
}

// isNotFound reports whether a loader's error says that the item that it was to load does
// not exist.
func (k *keeper[K, V]) isNotFound(err error) bool {
	if !k.options.IsNotFound(err) {
		return false
	}
	var other *markedNotFound
	if errors.As(err, &other) {
		k.hints.foreignNotFound(other.cache)
		return false
	}
	return true
}

// weighError returns the weight of a not-found, or of another error, that is to be kept
// under key. Without WeighNotFound the weight is in bytes: those of an entry and its scope,
// of the key, and of the error's text.
//
// Weigh is not asked, since it is for values. A Weigh that returns a constant, or counts
// rows, does not take the key's length into account. Keys of missing items may be chosen by
// an attacker, and there may be any number of them.
func (k *keeper[K, V]) weighError(key K, err error) uint32 {
	if k.options.WeighNotFound != nil {
		return k.options.WeighNotFound(key, err)
	}
	n := errorBytes[K, V]() + k.keys.bytesOf(key)
	if err != ErrNotFound { // its text exists only once
		n += len(err.Error())
	}
	return uint32(min(uint64(n), math.MaxUint32))
}

// slotBytes is what an entry takes in two more places: in its shard's table, which is
// between half full and full, and in the policy's memory of evicted items.
const slotBytes = 32

// errorBytes is what a kept error takes, apart from its key's bytes and its text.
func errorBytes[K comparable, V any]() int {
	return int(unsafe.Sizeof(entry[K, V]{})+unsafe.Sizeof(scope{})) + slotBytes
}

// weighed sets the weight of an outcome, and decides by it whether the outcome is kept in
// memory.
func (k *keeper[K, V]) weighed(o *outcome[V], weight uint32) {
	o.weight = weight
	if int64(weight) > k.options.MaxWeight {
		k.stats.tooHeavy.Add(1)
		o.ttl = 0
	}
}

// slow logs that a result came too late to be kept: its time to live counts from the start
// of its load, which took that long.
func (k *keeper[K, V]) slow(o *outcome[V], took time.Duration) {
	kind, option := 0, "TTL"
	switch {
	case o.err == nil && k.options.Expiry != nil:
		option = "Expiry"
	case o.err != nil && o.known:
		kind, option = 1, "NotFoundTTL"
	case o.err != nil:
		kind, option = 2, "ErrorTTL"
	}
	k.hints.slow(kind, option, took, o.ttl)
}
