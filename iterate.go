package nearcache

import "iter"

// All yields the items in memory that a Get would return, in no order. It loads
// nothing and counts as no hit. Items that come and go meanwhile may be yielded or
// not. It is for debugging and for tools: it looks at every item there is.
func (c *Cache[K, V]) All() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		l := c.local
		for i := range l.tables {
			for e := range l.tables[i].Load().all() {
				// Not a later look than the read's beginning: see lease.read.
				m := l.lease.read()
				if l.fate(e, m) != alive {
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
