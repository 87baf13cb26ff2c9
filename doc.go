// Package nearcache keeps hot data in a service's own memory, and keeps that
// memory in step across all instances of the service through Redis.
//
// A near cache is a cache in the process, near the code that reads it: a hit costs
// tens of nanoseconds, where a network round trip costs tens of microseconds.
// When an instance changes an item, it publishes a small message on one Redis
// Pub/Sub channel, the backplane. Every other instance evicts its copy, and its
// next Get loads the new version from the source.
//
// # Use
//
// One process has one [Backplane], made by [Connect] (or by [Local], without
// Redis), and any number of typed caches on it, made by [New]. [Cache.Get] reads;
// a miss calls Options.Load, once for however many callers ask. The recipe for a
// change is: write the source, then call [Cache.Remove]. [Cache.Update] does both
// and keeps the new value; [Cache.ClearRegion] evicts all items of a kind;
// [Cache.Clear] and [Backplane.ClearAll] evict everything.
//
// Values are shared between callers and must not be changed.
//
// # What is guaranteed
//
//   - A write's local part is done when the call returns, whatever it returns.
//   - An invalidation is sent until Redis accepts it or the backplane is closed; it
//     is never dropped. Until then the call returns [ErrUnconfirmed].
//   - An instance that is subscribed applies invalidations in the order in which
//     Redis accepted them, normally within a network round trip. If it can tell
//     that it missed one (every message names the one before it), or that it may
//     have (it had to subscribe again), it clears everything it holds.
//   - A load that an invalidation overtakes is never kept, whatever was
//     invalidated: its key, one of its regions, the cache, everything. Its callers
//     get its result; a Get that begins after the invalidation does not.
//   - Callers of one load are independent: each leaves by its own context, and the
//     load is cancelled only when all have gone.
//   - Memory is bounded by Options.Capacity, and so is the queue of invalidations
//     while Redis is away.
//   - A Get never fails because of Redis.
//
// # What is not
//
//   - While an instance is cut off from Redis it hears of no changes and serves
//     what it holds, each item until its time to live ends (Options.TTL, 5 minutes
//     unless set). [Backplane.State] tells. A connection that is dead but looks
//     alive counts as one that is cut off until TCP keep-alive finds out.
//   - A nil error means that Redis has accepted the invalidation. Instances that
//     are subscribed hear of it then; one that is connecting again clears all it
//     holds when it succeeds, normally within two seconds after Redis is back.
//   - A process that dies between its write to the source and its call to Remove
//     leaves the other instances with the old version until its time to live ends.
//   - A source that answers with an old version, a lagging replica for instance,
//     makes that old version be kept.
//   - Changes are ordered by Redis alone. After the failover of a replicated Redis
//     that loses writes, messages can be missed without notice.
//
// # Shutdown
//
// [Backplane.Close] closes the caches, delivers what is queued within
// CloseTimeout, leaves the channel, and returns when every goroutine of the
// package has ended, except loads that still run for their callers. Writes that
// are under way are waited for, within the same time.
package nearcache
