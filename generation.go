package nearcache

import "sync/atomic"

// generation is a cache's life from one clear of the whole cache to the next. Each
// entry belongs to one, and is dead as soon as that is not the current one.
type generation struct {
	plain scope // of the items that belong to no region

	errors atomic.Int64 // the kept ones that are members of every region, not-founds among them
}

func newGeneration() *generation {
	g := &generation{}
	g.plain.generation = g
	return g
}

// scope is what can make an entry dead from afar: its generation, and its regions.
// The entries of a generation that have none share one scope, those of one region
// that of the region.
type scope struct {
	generation *generation
	cleared    atomic.Bool // the region was, if this is a region's
	err        error       // what is kept in place of a value: ErrNotFound, or a loader's
	every      bool        // of a kept error: it is a member of every region
	clears     uint64      // then: clearLog.count when its load began
	regions    []*region   // each once; of a region's own scope: itself
}

// isCleared reports whether a clear has made an entry of scope s dead, of the
// whole cache or of one of its regions.
func (l *local[K, V]) isCleared(s *scope) bool {
	if s.generation != l.current.Load() || s.cleared.Load() {
		return true
	}
	if s.every && s.clears != l.clears.count.Load() {
		return true
	}
	if len(s.regions) > 1 || s.err != nil {
		for _, r := range s.regions {
			if r.scope.cleared.Load() {
				return true
			}
		}
	}
	return false
}
