package nearcache

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/nearcache/nearcache/internal/striped"
)

// State says how a backplane stands with Redis.
type State int

const (
	// StateLocal: process-local on purpose, there is no Redis.
	StateLocal State = iota

	// StateConnecting: there is no subscription, and one is being tried for.
	// Memory is served as far as the lease allows that was held last; if there was
	// none yet, each item for MaxStaleness after its load began. With PublishOnly:
	// Redis has accepted nothing yet, or not the last message, and is tried again.
	StateConnecting

	// StateLive: subscribed, with a lease. Invalidations arrive as they are
	// published, and all of memory is served, but for a cache whose MaxStaleness is
	// too short for the way to Redis, see Options.MaxStaleness. With PublishOnly:
	// Redis has accepted the last message; whether it would accept another shows when
	// one is sent.
	StateLive

	// StateNoLease: there was a lease and it was lost, since no probe was answered
	// for the smallest MaxStaleness (or for eight round trips, at most 30 seconds, if
	// that is longer), or the clocks were found to disagree; whether there is a
	// subscription or not. Each item is served for MaxStaleness after its load began,
	// until a probe is answered again.
	StateNoLease

	// StateClosed: Close was called.
	StateClosed
)

// String returns the state's name in lower case.
func (s State) String() string {
	switch s {
	case StateLocal:
		return "local"
	case StateConnecting:
		return "connecting"
	case StateLive:
		return "live"
	case StateNoLease:
		return "no lease"
	case StateClosed:
		return "closed"
	}
	return "unknown"
}

// MarshalText returns what String returns, for encoders such as encoding/json.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (s *State) UnmarshalText(text []byte) error {
	for state := StateLocal; state <= StateClosed; state++ {
		if state.String() == string(text) {
			*s = state
			return nil
		}
	}
	return fmt.Errorf("nearcache: unknown state %q", text)
}

// BackplaneStats is a snapshot of a backplane and its caches. Counters are
// cumulative and never reset.
type BackplaneStats struct {
	State   State
	Channel string // as it is named in Redis; empty when process-local

	Published       uint64        // messages that Redis accepted; the empty one of PublishOnly does not count
	PublishFailures uint64        // attempts that failed; each is retried
	Collapsed       uint64        // caches whose queued entries became one clear
	Queued          int           // keys, regions and clears not accepted yet
	QueueAge        time.Duration // since the oldest of them was queued, or 0

	Received uint64 // messages on the channel, of any kind
	Applied  uint64 // messages of other instances whose invalidations were applied, one or many each
	Own      uint64 // messages of this instance, come back
	Foreign  uint64 // messages that are not nearcache's, or not where they belong, and echoes of no probe: ignored

	Subscribed     uint64 // subscriptions with a lease: the first, and one for each reconnect
	SubscribedWarm uint64 // of these, those before which nothing was missed: memory stayed as it was
	Reconnects     uint64 // subscriptions after the first

	ConnectFailures uint64 // attempts at a subscription that failed, those of Connect left out
	Clears          ClearStats

	Echoes        uint64 // probes answered
	ProbeFailures uint64 // probes that Redis did not take; silence is not counted here
	Lease         LeaseStats

	Panics uint64 // on the way to Redis, of the library or go-redis or hooks of BackplaneOptions.Redis; each became an error

	Caches []CacheStats // one for each open cache, ordered by name
}

// ClearStats counts by cause how often an instance cleared all its caches because
// it had missed messages, or may have.
type ClearStats struct {
	Start       uint64 // the first echo: what was loaded before is not vouched for
	Message     uint64 // a message did not follow the last one
	Position    uint64 // an echo showed that messages were missed, or that the position was lost
	History     uint64 // an echo showed another server history: a failover, or a restart
	NoHistory   uint64 // a reconnect to a Redis that does not tell its history (no right to INFO)
	Undecodable uint64 // a message could not be understood
}

// Total returns the number of clears of all causes.
func (c ClearStats) Total() uint64 {
	return c.Start + c.Gaps() + c.NoHistory + c.Undecodable
}

// Gaps returns how often something was found to be missing.
func (c ClearStats) Gaps() uint64 { return c.Message + c.Position + c.History }

// LeaseStats says how the lease stands, by which memory is served.
type LeaseStats struct {
	Held      bool
	Age       time.Duration // since the probe was sent that it rests on; 0 if there is none
	RoundTrip time.Duration // of the probe that was answered last, until its echo was applied

	Lost       uint64 // for want of an echo, or by a step of the clocks
	Regained   uint64
	ClockSteps uint64 // moves of the wall clock against the monotonic one; each drops the lease
}

// CacheStats is a snapshot of one cache. Counters are cumulative and never reset.
type CacheStats struct {
	Name     string
	Entries  int // held now, see Cache.Len
	Capacity int
	Regions  int // known now: those of entries, in each shard anew, and those cleared during a load under way

	Weight    int64  // of what is held now, that of cleared regions included until it is swept
	MaxWeight int64  // 0: weights do not count, and each item weighs 1
	TooHeavy  uint64 // items, not-founds and errors that weighed more than MaxWeight, and were served and not kept

	Hits   uint64 // Gets answered from memory, kept not-founds and errors included
	Misses MissStats
	Stale  uint64 // Gets answered by an item that had expired, or without a lease, as its load failed or was slow

	Loads         uint64        // loads that ended, whatever their outcome
	LoadErrors    uint64        // of these, errors and panics, not-founds left out
	LoadTime      time.Duration // the time all loads took, added up; the keys of a LoadMany share its time
	Refreshes     uint64        // loads that hits began ahead of the items' expiry
	LoadDiscarded uint64        // results that came too late to be kept: invalidated, expired, or loaded anew meanwhile

	Evictions     EvictionStats
	Invalidations InvalidationStats

	Shared SharedStats // all zero without Options.Shared
}

// SharedStats counts what became of loads at the shared level, see
// [SharedOptions]. A load may count more than once: one that waits for another
// instance's looks several times.
type SharedStats struct {
	Hits    uint64    // looks that found a value, which then was not loaded from the source
	Misses  uint64    // looks that found none, or none that is valid
	Waited  uint64    // of Hits, those that waited for another instance's load
	Skipped SkipStats // looks and loads that did without

	Stored      uint64 // values put into Redis
	Overtaken   uint64 // values that were not: invalidated during their load, or its claim had ended, see SharedOptions.LoadWait
	TooLarge    uint64 // values that were not: larger than MaxValueBytes
	Unencodable uint64 // values that were not: the codec refused them
	Undecodable uint64 // values found that are of another Version, type or format, or that the codec refused
	Oversized   uint64 // values found that are larger than MaxValueBytes, or unpack to more
	NoRoom      uint64 // values found that were not unpacked, since too many large ones were being unpacked
	Errors      uint64 // requests that Redis refused, or did not answer within Timeout
}

// MissStats counts Gets that were not answered from memory, by cause. A Get that
// joins another's load counts too, so there are more misses than loads.
type MissStats struct {
	Absent  uint64 // not held: never loaded, evicted, removed, or not kept
	Expired uint64 // held, past its time to live
	Cleared uint64 // held, of a cleared region or cache
	NoLease uint64 // held, but without a lease, and its load began MaxStaleness ago or more
}

// Total returns the number of misses of all causes.
func (m MissStats) Total() uint64 { return m.Absent + m.Expired + m.Cleared + m.NoLease }

// EvictionStats counts items that left memory other than by Remove, by cause.
type EvictionStats struct {
	Capacity uint64 // to make room
	Expired  uint64 // past their time to live
	Cleared  uint64 // of a cleared region or cache
}

// InvalidationStats counts what was invalidated, by kind: by this instance's own
// calls and by messages of others.
type InvalidationStats struct {
	Keys    uint64 // keys removed, set or updated, held or not
	Regions uint64 // regions cleared
	Clears  uint64 // clears of the cache, or of all caches
	Missed  uint64 // clears because messages were, or may have been, missed, see ClearStats

	Undecodable uint64 // keys in others' messages that this cache's key type cannot read: each cleared it
}

// SkipStats counts by cause how often Redis was not asked.
type SkipStats struct {
	NoLease   uint64 // there was no lease, or the cache was closed, or the key can have no value there
	NoHistory uint64 // Redis does not tell its history: grant the user +info
	OwnWrite  uint64 // an invalidation of this instance was not accepted yet
	Failing   uint64 // it was left alone after failures
}

// Total returns the number of all causes.
func (s SkipStats) Total() uint64 { return s.NoLease + s.NoHistory + s.OwnWrite + s.Failing }

// cacheCounters are a cache's counters. Hits are counted on the fastest path
// there is, by all processors at once, so they are striped; what happens under
// the lock of a shard is counted there, see shardCounters; and the others are
// seldom.
type cacheCounters struct {
	hits *striped.Counter

	stale, refreshes, tooHeavy, regionsCleared, clears, missedMessages, undecodable atomic.Uint64

	shared sharedCounters
}

type sharedCounters struct {
	hits, misses, waited                                          atomic.Uint64
	noLease, noHistory, ownWrite, failing                         atomic.Uint64
	stored, overtaken, tooLarge, unencodable, undecodable, errors atomic.Uint64
	oversized, noRoom                                             atomic.Uint64
}

func (c *sharedCounters) snapshot() SharedStats {
	return SharedStats{
		Hits: c.hits.Load(), Misses: c.misses.Load(), Waited: c.waited.Load(),
		Skipped: SkipStats{
			NoLease: c.noLease.Load(), NoHistory: c.noHistory.Load(), OwnWrite: c.ownWrite.Load(), Failing: c.failing.Load(),
		},
		Stored: c.stored.Load(), Overtaken: c.overtaken.Load(), TooLarge: c.tooLarge.Load(),
		Unencodable: c.unencodable.Load(), Undecodable: c.undecodable.Load(), Errors: c.errors.Load(),
		Oversized: c.oversized.Load(), NoRoom: c.noRoom.Load(),
	}
}

// shardCounters are one shard's part of a cache's counters, under its lock.
type shardCounters struct {
	keysInvalidated uint64

	evictions [fates]uint64 // by the fate of the entry that left: an alive one made room
	misses    [fates]uint64 // by the fate of the entry that was held, if any

	loads, loadErrors, discarded uint64
	loadTime                     time.Duration
}

func newCacheCounters() *cacheCounters { return &cacheCounters{hits: striped.NewCounter()} }

// loaded counts a load that has ended.
func (c *shardCounters) loaded(took time.Duration, failed, discarded bool) {
	c.loads++
	c.loadTime += took
	if failed {
		c.loadErrors++
	}
	if discarded {
		c.discarded++
	}
}

func (c *shardCounters) add(other *shardCounters) {
	for f := range fates {
		c.misses[f] += other.misses[f]
		c.evictions[f] += other.evictions[f]
	}
	c.loads += other.loads
	c.loadErrors += other.loadErrors
	c.discarded += other.discarded
	c.loadTime += other.loadTime
	c.keysInvalidated += other.keysInvalidated
}

// snapshot fills in what the counters know, with those of all shards added up.
func (c *cacheCounters) snapshot(shards *shardCounters) CacheStats {
	return CacheStats{
		Hits: c.hits.Value(),
		Misses: MissStats{
			Absent:  shards.misses[absent],
			Expired: shards.misses[stale] + shards.misses[expired],
			Cleared: shards.misses[cleared],
			NoLease: shards.misses[unleased],
		},
		Loads:         shards.loads,
		LoadErrors:    shards.loadErrors,
		LoadTime:      shards.loadTime,
		LoadDiscarded: shards.discarded,
		Stale:         c.stale.Load(),
		Refreshes:     c.refreshes.Load(),
		TooHeavy:      c.tooHeavy.Load(),
		Evictions: EvictionStats{
			Capacity: shards.evictions[alive],
			Expired:  shards.evictions[stale] + shards.evictions[expired],
			Cleared:  shards.evictions[cleared],
		},
		Invalidations: InvalidationStats{
			Keys:    shards.keysInvalidated,
			Regions: c.regionsCleared.Load(),
			Clears:  c.clears.Load(),
			Missed:  c.missedMessages.Load(),

			Undecodable: c.undecodable.Load(),
		},
		Shared: c.shared.snapshot(),
	}
}
