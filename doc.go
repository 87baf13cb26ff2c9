// Package nearcache keeps hot data in a service's own memory, and keeps that memory
// coherent across all instances of the service through Redis.
//
// A near cache is a cache in the process, near the code that reads it. A hit costs
// tens of nanoseconds, where a network round trip costs tens of microseconds. An
// instance that changes an item publishes a small message on one Redis Pub/Sub
// channel, the backplane. Every other instance evicts its copy, and its next Get loads
// the new version from the source.
//
// # Use
//
// One process has one [Backplane], made by [Connect], or by [Local] without Redis. It
// has any number of typed caches on it, made by [New].
//
//   - [Cache.Get] reads an item. A miss calls Options.Load, once for all callers that
//     wait. [Cache.GetMany] reads several items at once.
//   - To change an item, write the source, then call [Cache.Remove]. [Cache.Update]
//     does both, and keeps the new value.
//   - [Cache.ClearRegion] evicts all items of a region. [Cache.Clear] and
//     [Backplane.ClearAll] evict everything.
//   - [NewInvalidator] does the same for a cache that lives in other processes.
//   - [Backplane.Stats] and BackplaneOptions.OnEvent tell how it goes.
//   - Options.Shared keeps values in Redis too: what one instance has loaded, the
//     others read there.
//
// Values are shared between callers and must not be changed.
//
// # What is guaranteed
//
//   - An invalidation that Redis has accepted is effective on every instance within
//     MaxStaleness (5 seconds unless set), whatever fails. Normally that takes a
//     network round trip. Accepted means that the write, or a later Flush, returned
//     nil. Effective means that a Get which begins from then on does not return what
//     was invalidated. It holds for loaded items, for the results of [Cache.Update],
//     and for those of [Cache.Set] without a second writer that races.
//   - A write's local part is done when the call returns, whatever it returns.
//   - An invalidation is sent until Redis accepts it or the backplane is closed. It is
//     never dropped. Until it is accepted, the call returns [ErrUnconfirmed].
//   - A load that an invalidation overtakes is never kept, whatever was invalidated:
//     its key, one of its regions, the cache, everything. Its callers get its result.
//     A Get that begins after the invalidation does not.
//   - Callers of one load are independent. Each leaves by its own context, and the
//     load is cancelled only when all have left.
//   - Memory is bounded by Options.Capacity, and by Options.MaxWeight if that is set,
//     kept not-founds and errors included. The queue of invalidations is bounded too
//     while Redis is away.
//   - A Get never fails because of Redis. While Redis is away, an item is served for
//     MaxStaleness after its load began, or up to a fifth less. It is then loaded
//     again, once in that time.
//   - Nothing that was invalidated is served in place of a load that fails or is slow.
//     Only an expired item is, if Options.StaleIfError allows it.
//
// The bound rests on a lease. Each instance probes Redis several times in
// MaxStaleness, and the answer comes over the connection on which invalidations come.
// All of memory is served only while the last answered probe is younger than
// MaxStaleness. An instance that finds that it has missed messages clears everything
// it holds. A reconnect that missed none keeps memory as it is. docs/protocol.md
// explains this in full, and docs/guarantees.md lists each failure and the test that
// shows it.
//
// # What is not guaranteed
//
//   - A process may die between its write to the source and its call to Remove. The
//     other instances then have the old version until its time to live ends
//     (Options.TTL, 5 minutes unless set).
//   - With Options.Shared, values outlive the processes. If the source is reset or
//     restored behind the service's back, they remain in Redis until they expire. Call
//     [Backplane.ClearAll].
//   - A source that answers with an old version, such as a lagging replica, has that
//     version kept.
//   - Until Redis has accepted an invalidation, the other instances serve what they
//     hold. A Redis master that is cut off may go on accepting writes (split brain). It
//     accepts for the instances that are cut off with it. min-replicas-to-write bounds
//     that. An instance that finds itself on another master than the one that it wrote
//     to clears everything, everywhere.
//   - A machine may be suspended together with its monotonic clock, as some hypervisors
//     do. It may then serve what it held for a fifth of MaxStaleness after it wakes,
//     until the wall clock shows the gap. If its processor's counter of time alone was
//     suspended, that is a millisecond. A process that is stopped, or starved, keeps
//     the bound.
//   - Redis servers that are not one serial server to their clients are not supported:
//     active-active and multi-threaded clones, and proxies that spread commands over
//     several servers.
//   - MaxStaleness: Unbounded gives up the bound for that cache. StaleWithoutLease does
//     so while the cache's source fails.
//
// # Shutdown
//
// [Backplane.Close] closes the caches, delivers what is queued within CloseTimeout, and
// leaves the channel. It waits, within the same time, for writes that are under way. It
// returns when every goroutine of the package has ended, except loads that still run
// for their callers.
package nearcache
