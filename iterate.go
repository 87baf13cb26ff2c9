package nearcache

import "iter"

// All yields the items in memory that a Get would return, in no order, each with the
// value that is held when it is yielded: not what was removed, cleared or replaced
// before the loop came to it, by the loop's body for instance. It loads nothing and
// counts as no hit. Items that are added meanwhile may be yielded or not; one that is
// evicted and added again may be yielded twice. It is for debugging and for tools: it
// looks at every item there is.
func (c *Cache[K, V]) All() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		l := c.local
		for i := range l.tables {
			for passed := range l.tables[i].Load().all() {
				// The table may have been replaced since the loop began, and what it has is
				// changed no more: only its keys are of use.
				//
				//  1. the loop takes an entry from the table   2. the entry is removed, or its
				//  value replaced   3. the loop judges it. Nothing about the entry says so.
				//
				// A read that begins with 3 finds what is held then. It reads the lease before it
				// looks for the key, and the value last, as a Get does.
				e, _ := l.peek(passed.Item.key)
				if e == nil {
					continue
				}
				if value, err := l.result(e); err == nil && !yield(e.Item.key, value) {
					return
				}
			}
		}
	}
}

// Keys yields the keys of All.
func (c *Cache[K, V]) Keys() iter.Seq[K] {
	return func(yield func(K) bool) {
		for key := range c.All() {
			if !yield(key) {
				return
			}
		}
	}
}
