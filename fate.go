package nearcache

// fate is what a read finds an entry to be.
type fate int

const (
	absent fate = iota // there is no entry
	alive
	stale // expired, but may be served while its load fails
	expired
	cleared
	unleased // neither dead nor expired, but no lease vouches for it
	fates    // how many fates there are
)

// dead reports whether an entry of that fate can never be served again.
func (f fate) dead() bool { return f == expired || f == cleared }

// fate returns the fate of e for a read that began at m.
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

// lapseSpread is the part of MaxStaleness over which entries lapse one after the other.
const lapseSpread = 5

// covered reports whether the serving rule lets a read that began at m serve e.
func (l *local[K, V]) covered(e *entry[K, V], m moment) bool {
	return l.lease.covers(m, e.Item.started.Load(), l.stalenessOf(l.hash(e.Item.key)))
}

// stalenessOf takes up to a fifth off MaxStaleness, depending on the key's hash. So when
// Redis is lost, entries lapse one after the other, and the source is not asked for all of
// them at once, nor each time that they lapse again. A lease is renewed long before this
// matters.
func (l *local[K, V]) stalenessOf(hash uint64) int64 {
	return l.staleness - int64(float64(l.staleness-l.freshLeaseAge)*float64(hash>>32)/(1<<32))
}

// servesOnError reports whether a read that began at m may return e instead of an error. e
// is stale or unleased, and so has not been invalidated.
func (l *local[K, V]) servesOnError(e *entry[K, V], m moment) bool {
	return l.servesStale && e.Item.scope.err == nil && (l.staleWithoutLease || m.leaseAge < l.freshLeaseAge || l.covered(e, m))
}

// lastResort returns the entry of key if it may be served instead of an error, or else nil.
//
//  1. an item has expired, and a Get waits for its load   2. the item is invalidated   3. the
//     load fails. The entry is looked up again here, and is gone.
func (l *local[K, V]) lastResort(key K) *entry[K, V] {
	m := l.lease.read() // first
	e := l.find(key)
	if e == nil || l.fate(e, m).dead() || !l.servesOnError(e, m) {
		return nil
	}
	return e
}
