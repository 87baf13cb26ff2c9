package nearcache

// fate is what has become of an entry.
type fate int

const (
	absent fate = iota // there is no entry
	alive
	stale // expired, and may be served while its load fails
	expired
	cleared
	unleased // nothing is known against it, but neither does the lease vouch for it
	fates    // how many there are
)

// dead reports whether an entry of that fate will never be served again.
func (f fate) dead() bool { return f == expired || f == cleared }

// fate reports whether e may be served by a read that began at m.
func (l *local[K, V]) fate(e *entry[K, V], m moment) fate {
	it := &e.Item
	switch {
	case it.scope != &l.current.Load().plain && l.isCleared(it.scope):
		return cleared
	case l.idle > 0 && l.isIdle(e.Note(), m.at):
		return expired
	case m.at >= it.expires.Load():
		if l.staleIfError > 0 && m.at < deadline(it.expires.Load(), l.staleIfError) && it.scope.err == nil {
			return stale
		}
		return expired
	case m.leaseAge >= l.freshLeaseAge && !l.covered(e, m):
		return unleased
	}
	return alive
}

// lapseSpread is the part of MaxStaleness over which entries lapse one by one.
const lapseSpread = 5

// covered reports whether the serving rule lets e be served by a read that began
// at m.
func (l *local[K, V]) covered(e *entry[K, V], m moment) bool {
	return l.lease.covers(m, e.Item.started.Load(), l.stalenessOf(l.hash(e.Item.key)))
}

// stalenessOf takes up to a fifth off MaxStaleness, as the key's hash has it: when
// Redis is lost the source is not asked for everything in one moment, nor for
// everything at once again. A lease is renewed long before that matters.
func (l *local[K, V]) stalenessOf(hash uint64) int64 {
	return l.staleness - int64(float64(l.staleness-l.freshLeaseAge)*float64(hash>>32)/(1<<32))
}

// servesOnError reports whether a read that began at m may have e, which is stale or
// unleased, in place of an error. What was invalidated is neither.
func (l *local[K, V]) servesOnError(e *entry[K, V], m moment) bool {
	return l.servesStale && e.Item.scope.err == nil && (l.staleWithoutLease || m.leaseAge < l.freshLeaseAge || l.covered(e, m))
}

// lastResort returns the entry of key if it may be served in place of an error, or
// nil.
//
//  1. an item has expired, and a Get waits for its load   2. the item is invalidated
//  3. the load fails. It is asked for again here, and has gone.
func (l *local[K, V]) lastResort(key K) *entry[K, V] {
	m := l.lease.read() // first
	e := l.find(key)
	if e == nil || l.fate(e, m).dead() || !l.servesOnError(e, m) {
		return nil
	}
	return e
}
