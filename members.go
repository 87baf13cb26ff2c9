package nearcache

import (
	"fmt"
	"slices"
	"time"
)

// member is a cache as its backplane sees it.
type member interface {
	// removeWire evicts the item of an encoded key. If the key cannot be decoded, it
	// clears the cache and returns false.
	removeWire(key string) bool

	clearRegionsLocal(regions []string)
	clearLocal()
	missedMessages()
	staleness() time.Duration
	Stats() CacheStats

	// After stopServing the cache serves and keeps nothing. closeLocal also empties it and
	// frees its name. Neither waits for Redis or for claims there.
	stopServing()
	closeLocal()
}

// register adds a cache under its name.
func (bp *Backplane) register(name string, m member) error {
	bp.mu.Lock()
	defer bp.mu.Unlock()
	if bp.closing.Load() { // read under mu: a cache is either refused here or listed by close
		return fmt.Errorf("%w: cache %q was not made, its backplane is closed", ErrClosed, name)
	}
	if bp.publishOnly {
		return fmt.Errorf("%w: cache %q would hear of no changes, since its backplane is for publishing only; "+
			"use NewInvalidator, or Connect without PublishOnly", ErrInvalidOptions, name)
	}
	if bp.members[name] != nil {
		return fmt.Errorf("%w: the backplane has a cache named %q already; close that first, or name this one otherwise",
			ErrInvalidOptions, name)
	}
	bp.members[name] = m
	bp.adjustLifeLocked()
	return nil
}

func (bp *Backplane) unregister(name string, m member) {
	bp.mu.Lock()
	defer bp.mu.Unlock()
	if bp.members[name] == m {
		delete(bp.members, name)
		bp.adjustLifeLocked()
	}
}

// maxLeaseLife bounds how long a dead connection goes unnoticed.
const maxLeaseLife = 30 * time.Second

// adjustLifeLocked sets the life of leases to the smallest MaxStaleness (or to several
// round trips, see lease.patienceLocked). If all are Unbounded, it is the default.
func (bp *Backplane) adjustLifeLocked() {
	life := bp.staleness
	for _, m := range bp.members {
		life = min(life, m.staleness())
	}
	if life == Unbounded {
		life = defaultMaxStaleness
	}
	bp.lease.setLife(min(life, maxLeaseLife))
}

// leastRoundTrips is how many round trips a MaxStaleness should be at least. A lease can
// be two round trips and a fifth of MaxStaleness old before the next echo comes. Up to
// another fifth is taken off MaxStaleness, see lapseSpread.
const leastRoundTrips = 4

// warnOfShortBound logs a warning if a new cache will often be without a lease even while
// Redis works, because its MaxStaleness is short compared with the round trip.
func (bp *Backplane) warnOfShortBound(cache string, staleness time.Duration) {
	roundTrip := bp.lease.roundTrip()
	if staleness >= leastRoundTrips*roundTrip {
		return
	}
	bp.logger.Warn("nearcache: the MaxStaleness of a cache is too short for the way to Redis; its items are served for MaxStaleness "+
		"after their load began, and mostly not for longer (other caches are not concerned)",
		"cache", cache, "maxStaleness", staleness, "roundTrip", roundTrip, "atLeast", leastRoundTrips*roundTrip)
}

func (bp *Backplane) snapshotMembers() []member {
	bp.mu.RLock()
	defer bp.mu.RUnlock()
	members := make([]member, 0, len(bp.members))
	for _, m := range bp.members {
		members = append(members, m)
	}
	return members
}

// applyHere does the local part of inv on the cache that inv names.
func (bp *Backplane) applyHere(inv invalidation) {
	bp.mu.RLock()
	m := bp.members[inv.cache]
	bp.mu.RUnlock()
	switch {
	case m == nil:
	case inv.clear:
		m.clearLocal()
	default:
		for _, key := range inv.keys {
			if !m.removeWire(key) {
				return
			}
		}
		if len(inv.regions) > 0 {
			m.clearRegionsLocal(inv.regions)
		}
	}
}

// apply applies the body of another instance's invalidation. Its error wraps
// errUndecodable. A part of the body may then have been applied, and the caller has to
// clear everything.
//
// The cost of a body is bounded (see maxBodyBytes), since any Redis user with the right to
// publish on the channel may have written it. No part of it is kept, and nothing is
// allocated for each operation or key. Each key is looked up once, and each cache is
// cleared once. The regions of a cache are gathered, without duplicates, and cleared in
// one step.
func (bp *Backplane) apply(body string) error {
	b, parts := readBody(body), bodyParts{backplane: bp}
	for b.next() {
		if b.op == opClearAll {
			for _, m := range bp.snapshotMembers() {
				m.clearLocal()
			}
			return nil // whatever follows, even if it cannot be decoded
		}
		p := parts.of(b.cache)
		if p == nil || p.cleared {
			continue // this instance does not have the cache, or has cleared it already
		}
		switch b.op {
		case opClearCache:
			p.member.clearLocal()
			p.cleared = true
		case opRemoveKeys:
			for key, ok := b.value(); ok && !p.cleared; key, ok = b.value() {
				p.cleared = !p.member.removeWire(key)
			}
		case opClearRegions:
			for name, ok := b.value(); ok; name, ok = b.value() {
				p.addRegion(name)
			}
		}
	}
	if b.err() == nil {
		parts.clearRegions()
	}
	return b.err()
}

// bodyParts are the parts of a body, by cache.
type bodyParts struct {
	backplane *Backplane
	first     bodyPart // not in the map, since most messages concern one cache
	name      string   // the cache of first
	others    map[string]*bodyPart
}

// bodyPart is the part of a body that concerns one cache.
type bodyPart struct {
	member  member   // nil: not used yet
	cleared bool     // the cache was cleared, so the rest does not matter
	regions []string // to be cleared
}

// of returns the part of a cache, or nil if this instance does not have that cache.
func (s *bodyParts) of(name string) *bodyPart {
	if s.first.member != nil && s.name == name {
		return &s.first
	}
	if p := s.others[name]; p != nil {
		return p
	}
	s.backplane.mu.RLock()
	m := s.backplane.members[name]
	s.backplane.mu.RUnlock()
	switch {
	case m == nil:
		return nil
	case s.first.member == nil:
		s.first.member, s.name = m, name
		return &s.first
	case s.others == nil:
		s.others = map[string]*bodyPart{}
	}
	p := &bodyPart{member: m}
	s.others[name] = p
	return p
}

// clearRegions clears the regions that were gathered.
func (s *bodyParts) clearRegions() {
	if s.first.member != nil {
		s.first.clearRegions()
	}
	for _, p := range s.others {
		p.clearRegions()
	}
}

func (p *bodyPart) clearRegions() {
	if !p.cleared && len(p.regions) > 0 {
		slices.Sort(p.regions) // in place, without an allocation
		p.regions = slices.Compact(p.regions)
		p.member.clearRegionsLocal(p.regions)
	}
}

// leastCompacted is how many regions are gathered before duplicates are removed.
const leastCompacted = 1024

// addRegion adds a region. A name that comes again and again does not take more memory.
func (p *bodyPart) addRegion(name string) {
	if n := len(p.regions); n >= leastCompacted && n == cap(p.regions) {
		slices.Sort(p.regions)
		p.regions = slices.Compact(p.regions)
		if len(p.regions) > n/2 {
			p.regions = slices.Grow(p.regions, n)
		}
	}
	p.regions = append(p.regions, name)
}

// missedMessages clears every cache, because anything may have been missed.
func (bp *Backplane) missedMessages() {
	for _, m := range bp.snapshotMembers() {
		m.missedMessages()
	}
}
