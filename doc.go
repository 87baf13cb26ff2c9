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
// a miss calls Options.Load, once for however many callers ask; [Cache.GetMany]
// reads several items at once. The recipe for a
// change is: write the source, then call [Cache.Remove]. [Cache.Update] does both
// and keeps the new value; [Cache.ClearRegion] evicts all items of a kind;
// [Cache.Clear] and [Backplane.ClearAll] evict everything. [NewInvalidator] does
// the same for a cache that lives in other processes. [Backplane.Stats] and
// BackplaneOptions.OnEvent tell how it goes. With Options.Shared, values are kept in
// Redis too: what one instance has loaded the others read there.
//
// Values are shared between callers and must not be changed.
//
// # What is guaranteed
//
//   - An invalidation that Redis has accepted is effective on every instance within
//     MaxStaleness (5 seconds unless set), whatever fails; normally within a network
//     round trip. Accepted means that the write, or a later Flush, returned nil;
//     effective, that a Get which begins from then on does not return what was
//     invalidated. It holds for what was loaded, for the results of [Cache.Update],
//     and for those of [Cache.Set] without a second writer that races.
//   - A write's local part is done when the call returns, whatever it returns.
//   - An invalidation is sent until Redis accepts it or the backplane is closed; it
//     is never dropped. Until then the call returns [ErrUnconfirmed].
//   - A load that an invalidation overtakes is never kept, whatever was
//     invalidated: its key, one of its regions, the cache, everything. Its callers
//     get its result; a Get that begins after the invalidation does not.
//   - Callers of one load are independent: each leaves by its own context, and the
//     load is cancelled only when all have gone.
//   - Memory is bounded by Options.Capacity, and by Options.MaxWeight if that is set,
//     kept not-founds and errors included. So is the queue of invalidations while Redis
//     is away.
//   - A Get never fails because of Redis. While Redis is away, an item is served for
//     MaxStaleness after its load began, or up to a fifth less, and then loaded anew,
//     once in that time.
//   - Nothing that was invalidated stands in for a load that fails or is slow; only
//     what has expired does, if Options.StaleIfError says so.
//
// The bound rests on a lease: each instance probes Redis several times in
// MaxStaleness, over the connection on which invalidations come, and serves all of
// its memory only while the last answer is younger than that. An instance that
// finds that it has missed messages clears everything it holds; a reconnect that
// missed none keeps it. docs/protocol.md has the whole of it, docs/guarantees.md
// each failure and the test that shows it.
//
// # What is not
//
//   - A process that dies between its write to the source and its call to Remove
//     leaves the other instances with the old version until its time to live ends
//     (Options.TTL, 5 minutes unless set).
//   - With Options.Shared, values outlive the processes: if the source is reset or
//     restored behind the service's back, they stand in Redis until they expire. Call
//     [Backplane.ClearAll].
//   - A source that answers with an old version, a lagging replica for instance,
//     makes that old version be kept.
//   - Until Redis has accepted an invalidation, the other instances serve what they
//     hold. A Redis master that is cut off and goes on accepting writes (split
//     brain) accepts for those who are cut off with it; min-replicas-to-write
//     bounds that. An instance that finds itself on another master than the one
//     that it wrote to clears everything, everywhere.
//   - A machine that is suspended with its monotonic clock, as some hypervisors do,
//     may serve what it held for a fifth of MaxStaleness after it wakes; then the
//     wall clock tells. If it is suspended with its processor's counter of time alone,
//     that is a millisecond. A process that is stopped, or starved, keeps the bound.
//   - Redis servers that are not one serial server to their clients: active-active
//     and multi-threaded clones, and proxies that spread commands over several.
//   - MaxStaleness: Unbounded gives the bound up for that cache, and StaleWithoutLease
//     does while its source fails.
//
// # Shutdown
//
// [Backplane.Close] closes the caches, delivers what is queued within
// CloseTimeout, leaves the channel, and returns when every goroutine of the
// package has ended, except loads that still run for their callers. Writes that
// are under way are waited for, within the same time.
package nearcache
