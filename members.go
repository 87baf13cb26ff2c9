package nearcache

import (
	"fmt"
	"time"
)

// member is a cache as its backplane sees it.
type member interface {
	removeWire(keys []string)
	clearRegionsLocal(regions []string)
	clearLocal()
	missedMessages()
	staleness() time.Duration
	Stats() CacheStats

	// stopServing has the cache serve and keep nothing from here on. closeLocal empties it
	// too, and gives its name back. Neither waits for Redis, or for its claims there.
	stopServing()
	closeLocal()
}

// register takes a cache in under its name.
func (bp *Backplane) register(name string, m member) error {
	bp.mu.Lock()
	defer bp.mu.Unlock()
	if bp.closing.Load() { // looked at under mu: a cache is refused here, or listed by close
		return fmt.Errorf("%w: cache %q was not made, its backplane is closed", ErrClosed, name)
	}
	if bp.publishOnly {
		return fmt.Errorf("%w: cache %q would hear of no changes, since its backplane is for publishing only; "+
			"use NewInvalidator, or Connect without PublishOnly", ErrOptions, name)
	}
	if bp.members[name] != nil {
		return fmt.Errorf("%w: the backplane has a cache named %q already; close that first, or name this one otherwise",
			ErrOptions, name)
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

// maxLeaseLife bounds for how long a dead connection goes unnoticed.
const maxLeaseLife = 30 * time.Second

// adjustLifeLocked makes leases last as long as the smallest MaxStaleness. If all
// are Unbounded they last for the default.
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

func (bp *Backplane) snapshotMembers() []member {
	bp.mu.RLock()
	defer bp.mu.RUnlock()
	members := make([]member, 0, len(bp.members))
	for _, m := range bp.members {
		members = append(members, m)
	}
	return members
}

// applyHere does the local part of inv on the cache that it names.
func (bp *Backplane) applyHere(inv invalidation) {
	bp.mu.RLock()
	m := bp.members[inv.cache]
	bp.mu.RUnlock()
	switch {
	case m == nil:
	case inv.clear:
		m.clearLocal()
	default:
		m.removeWire(inv.keys)
		if len(inv.regions) > 0 {
			m.clearRegionsLocal(inv.regions)
		}
	}
}

// apply applies an operation of another instance.
func (bp *Backplane) apply(o operation) {
	if o.op == opClearAll {
		for _, m := range bp.snapshotMembers() {
			m.clearLocal()
		}
		return
	}
	inv := invalidation{cache: o.cache, clear: o.op == opClearCache}
	switch o.op {
	case opRemoveKeys:
		inv.keys = o.values
	case opClearRegions:
		inv.regions = o.values
	}
	bp.applyHere(inv) // a cache that this instance does not hold is none of its business
}

// missedMessages clears every cache, because anything may have been missed.
func (bp *Backplane) missedMessages() {
	for _, m := range bp.snapshotMembers() {
		m.missedMessages()
	}
}
