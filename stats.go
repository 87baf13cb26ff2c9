package nearcache

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/nearcache/nearcache/internal/striped"
)

// State is the state of a backplane's connection to Redis.
type State int

const (
	// StateLocal: the backplane is process-local, without Redis.
	StateLocal State = iota

	// StateConnecting: there is no subscription, and the backplane tries to get one. As
	// long as the last lease lasts, all of memory is served. If there was no lease yet,
	// each item is served for MaxStaleness after its load began. With PublishOnly: Redis
	// has accepted no message yet, or not the last one, which is sent again.
	StateConnecting

	// StateLive: there is a subscription and a lease. Invalidations arrive as they are
	// published, and all of memory is served. The exception is a cache whose MaxStaleness
	// is too short for the round trip to Redis, see Options.MaxStaleness. With
	// PublishOnly: Redis has accepted the last message. Whether it would accept another
	// one shows only when one is sent.
	StateLive

	// StateNoLease: the lease was lost, whether there is a subscription or not. Each item
	// is served for MaxStaleness after its load began, until a probe is answered again.
	//
	// A lease is lost when no probe was answered for the smallest MaxStaleness. If eight
	// round trips are longer than that, they count instead, up to 30 seconds. It is also
	// lost when the wall clock moves against the monotonic clock.
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

// MarshalText returns what String returns, for encoders such as encoding/json. Its error
// is nil.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads what MarshalText wrote. Any other text is an error.
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
	Channel string // its name in Redis; empty if process-local

	Published       uint64        // messages that Redis accepted, without the empty one of PublishOnly
	PublishFailures uint64        // attempts that failed; each is repeated
	Collapsed       uint64        // caches whose queued keys and regions were replaced by one clear
	Queued          int           // keys, regions and clears that Redis has not accepted yet
	QueueAge        time.Duration // how long ago the oldest of them was queued; 0 if there is none

	Received uint64 // messages on the channel, of any kind
	Applied  uint64 // messages of other instances that were applied, with one or more invalidations each
	Own      uint64 // messages of this instance that came back
	Foreign  uint64 // ignored: not from nearcache, or on the wrong channel, or an echo without a probe

	Subscribed     uint64 // subscriptions with a lease: the first, and one for each reconnect
	SubscribedWarm uint64 // of Subscribed, those that kept memory, since no message had been missed
	Reconnects     uint64 // subscriptions after the first

	ConnectFailures uint64 // attempts to subscribe that failed, without those of Connect
	Clears          ClearStats

	Echoes        uint64 // probes answered
	ProbeFailures uint64 // probes that Redis did not accept; those without an answer do not count
	Lease         LeaseStats

	// Panics counts panics in requests to Redis: of this package, of go-redis, and of hooks
	// in BackplaneOptions.Redis. Each became an error.
	Panics uint64

	Caches []CacheStats // one for each open cache, ordered by name
}

// ClearStats counts by cause how often an instance cleared all its caches because it
// had missed messages, or may have. See [ClearCause].
type ClearStats struct {
	Start       uint64 // the first echo: what was loaded before it may be stale
	Message     uint64 // a message did not follow the last one
	Position    uint64 // an echo showed that messages were missed, or that the position was lost
	History     uint64 // an echo showed another server history: a failover, or a restart
	NoHistory   uint64 // a reconnect to a Redis that does not show its history (no right to INFO)
	Undecodable uint64 // a message could not be decoded
}

// Total returns the number of clears of all causes.
func (c ClearStats) Total() uint64 {
	return c.Start + c.Gaps() + c.NoHistory + c.Undecodable
}

// Gaps returns the number of clears because messages were found to be missing.
func (c ClearStats) Gaps() uint64 { return c.Message + c.Position + c.History }

// LeaseStats describes the lease, which decides whether all of memory is served.
type LeaseStats struct {
	Held      bool
	Age       time.Duration // how long ago the probe that it rests on was sent; 0 if there is none
	RoundTrip time.Duration // of the probe that was answered last, until its echo was applied

	Lost       uint64 // leases that were lost, because no echo came or by a step of the clocks
	Regained   uint64 // leases that followed a lost one
	ClockSteps uint64 // steps of the wall clock against the monotonic one; each ends the lease
}

// CacheStats is a snapshot of one cache. Counters are cumulative and never reset.
type CacheStats struct {
	Name     string
	Entries  int // in memory now, see Cache.Len
	Capacity int // Options.Capacity, or its default

	// Regions is how many regions are known now: those of the entries, counted once in
	// each shard, and those that were cleared during a load under way.
	Regions int

	Weight    int64  // of all entries now; those of cleared regions count until they are swept
	MaxWeight int64  // Options.MaxWeight; if it is 0, each item weighs 1
	TooHeavy  uint64 // items, not-founds and errors that were not kept, since each weighed more than MaxWeight

	Hits   uint64 // Gets answered from memory, kept not-founds and errors included
	Misses MissStats
	Stale  uint64 // Gets that returned an old item because its load failed or was slow, see Options.StaleIfError

	Loads         uint64        // loads that ended, whatever their outcome
	LoadErrors    uint64        // of Loads, errors and panics, without not-founds
	LoadTime      time.Duration // the sum of all loads' times; the keys of a LoadMany share its time
	Refreshes     uint64        // loads that hits began before the items expired
	LoadDiscarded uint64        // results that were not kept: meanwhile invalidated, expired or loaded again

	Evictions     EvictionStats
	Invalidations InvalidationStats

	Shared SharedStats // all zero without Options.Shared
}

// SharedStats counts shared lookups, and what was stored in Redis, see [SharedOptions].
// A load may look up more than once, while it waits for another instance's load.
type SharedStats struct {
	Hits    uint64    // lookups that found a value, which then was not loaded from the source
	Misses  uint64    // lookups that found no value, or no valid one
	Waited  uint64    // of Hits, those that waited for another instance's load
	Skipped SkipStats // lookups and loads that bypassed Redis

	Stored      uint64 // values stored in Redis
	Overtaken   uint64 // not stored: invalidated during the load, or its claim had ended, see SharedOptions.LoadWait
	TooLarge    uint64 // not stored: larger than MaxValueBytes
	Unencodable uint64 // not stored: the codec returned an error
	Undecodable uint64 // found and not used: another Version, type or format, or the codec returned an error
	Oversized   uint64 // found and not used: larger than MaxValueBytes, packed or unpacked
	NoRoom      uint64 // found and not used: too many large values were being unpacked
	Errors      uint64 // requests that failed, or that Redis did not answer within Timeout
}

// MissStats counts Gets that were not answered from memory, by cause. A Get that joins
// a load under way counts too, so there may be more misses than loads.
type MissStats struct {
	Absent  uint64 // not in memory: never loaded, not kept, evicted or removed
	Expired uint64 // in memory, and past its time to live
	Cleared uint64 // in memory, and of a cleared region or cache
	NoLease uint64 // in memory, and its load began MaxStaleness ago or more, without a lease
}

// Total returns the number of misses of all causes.
func (m MissStats) Total() uint64 { return m.Absent + m.Expired + m.Cleared + m.NoLease }

// EvictionStats counts items that left memory other than by Remove, by cause.
type EvictionStats struct {
	Capacity uint64 // evicted to make room
	Expired  uint64 // past their time to live
	Cleared  uint64 // of a cleared region or cache
}

// InvalidationStats counts invalidations by kind, those of this instance's own calls and
// those of other instances' messages.
type InvalidationStats struct {
	Keys    uint64 // keys removed, set or updated, in memory or not
	Regions uint64 // regions cleared
	Clears  uint64 // clears of the cache, or of all caches
	Missed  uint64 // clears because messages were missed, or may have been, see ClearStats

	// Undecodable counts keys in other instances' messages that this cache's key type
	// cannot read. Each cleared the cache.
	Undecodable uint64
}

// SkipStats counts by cause how often a load bypassed Redis.
type SkipStats struct {
	NoLease   uint64 // there was no lease, or the cache was closed, or the key cannot be stored in Redis
	NoHistory uint64 // Redis does not show its history: grant the user +info
	OwnWrite  uint64 // Redis had not accepted an invalidation of this instance yet
	Failing   uint64 // Redis had failed several times in a row, see EventSharedFailed
}

// Total returns the number of all causes.
func (s SkipStats) Total() uint64 { return s.NoLease + s.NoHistory + s.OwnWrite + s.Failing }

// cacheCounters are a cache's counters. Hits are the most frequent, and all processors
// count them at once, so their counter is striped. What happens under the lock of a
// shard is counted in shardCounters. The rest is rare.
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

// shardCounters are one shard's part of a cache's counters. The shard's lock guards them.
type shardCounters struct {
	keysInvalidated uint64

	evictions [fates]uint64 // by the fate of the entry that left; one that was alive made room
	misses    [fates]uint64 // by the fate of the entry that was found, if any

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

// snapshot returns the counts; shards is the sum of all shards' counters.
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
