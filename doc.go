// Package nearcache keeps hot data in a service's own memory, and keeps that memory
// coherent across all instances of the service through Redis.
//
// A near cache is a cache in the process, near the code that reads it. A hit takes
// tens of nanoseconds, while a network round trip takes tens of microseconds. An
// instance that changes an item publishes a small message on a Redis Pub/Sub channel,
// the backplane. Every other instance then evicts its copy, and its next Get loads the
// new version from the source.
//
// # Use
//
// A process has one [Backplane], made by [Connect], or by [Local] if there is no Redis.
// Any number of typed caches share it, each made by [New].
//
//   - [Cache.Get] reads an item. A miss calls Options.Load, once for all callers that
//     wait for it. [Cache.GetMany] reads several items at once.
//   - To change an item, write the source, then call [Cache.Remove]. [Cache.Update]
//     does both, and keeps the new value.
//   - [Cache.ClearRegion] evicts all items of a region. [Cache.Clear] and
//     [Backplane.ClearAll] evict everything.
//   - [NewInvalidator] invalidates from a process that does not hold the cache itself.
//   - [Backplane.Stats] and BackplaneOptions.OnEvent show the state and what happened.
//   - Options.Shared keeps values in Redis too: the other instances read there what one
//     instance has loaded.
//
// Callers share values, and must not change them.
//
// # What is guaranteed
//
//   - An invalidation that Redis has accepted takes effect on every instance within
//     MaxStaleness (5 seconds unless set), whatever fails. Normally that takes a
//     network round trip. Redis has accepted an invalidation if the write, or a later
//     Flush, returned nil. A Get that begins after the invalidation has taken effect
//     never returns what was invalidated. This holds for loaded items and for the
//     results of [Cache.Update]. It holds for those of [Cache.Set] too, unless a second
//     writer races with it.
//   - When a write returns, it has taken effect on its own instance, whatever it returns.
//     The one exception is [ErrClosed]: then nothing was done.
//   - An invalidation is sent until Redis accepts it or the backplane is closed. It is
//     never dropped. A call that returns before Redis has accepted it returns
//     [ErrUnconfirmed].
//   - The result of a load is never kept if an invalidation overtook the load. That may
//     be an invalidation of the key, of one of its regions, of the cache or of
//     everything. Callers that already wait get the result. A Get that begins after the
//     invalidation does not.
//   - Callers of one load are independent. Each can leave when its own context ends. The
//     load is cancelled only when all have left.
//   - Memory is bounded by Options.Capacity, and by Options.MaxWeight if that is set.
//     Kept not-founds and errors count too. While Redis is away, the queue of
//     invalidations is bounded as well.
//   - A Get never fails because of Redis. While Redis is away, an item is served for
//     MaxStaleness after its load began, less up to a fifth. The next Get after that
//     loads it again. So an instance loads an item once in each such period.
//   - If a load fails or is slow, an expired item may be returned instead, provided that
//     Options.StaleIfError allows it. An item that was invalidated is never returned.
//
// The bound rests on a lease. Each instance probes Redis several times in MaxStaleness.
// The answer arrives over the same connection as the invalidations. An instance serves
// all of its memory while the last probe that was answered was sent less than four fifths
// of MaxStaleness ago. From then on until MaxStaleness, items lapse one by one. An instance that finds that it has missed messages clears all its
// caches. If it reconnects and has missed none, it keeps its memory. docs/protocol.md
// explains this in full. docs/guarantees.md lists each failure and the test that covers
// it.
//
// # What is not guaranteed
//
//   - A process may die between its write to the source and its call to Remove. Then
//     the other instances serve the old version until its time to live ends
//     (Options.TTL, 5 minutes unless set).
//   - With Options.Shared, values outlive the processes. If the source is reset or
//     restored without the service's knowledge, they remain in Redis until they expire.
//     Call [Backplane.ClearAll] after that.
//   - If the source answers with an old version, as a lagging replica may, that version
//     is kept.
//   - Until Redis has accepted an invalidation, the other instances serve what they
//     have in memory.
//   - A Redis master that is cut off may still accept writes (split brain). They reach
//     only the instances that are cut off with it. min-replicas-to-write bounds how long
//     that lasts. An instance may find that its master is not the one that it published
//     to. It then clears everything, on all instances.
//   - Some hypervisors suspend a machine together with its monotonic clock. After the
//     machine wakes, an instance may serve its old memory for up to a fifth of
//     MaxStaleness. Then it notices the gap by the wall clock. If only the processor's
//     time stamp counter was suspended, it takes a millisecond. A process that is merely
//     stopped or starved keeps the bound.
//   - Redis must behave as one serial server. Active-active and multi-threaded clones
//     are not supported, nor are proxies that spread commands over several servers.
//   - A cache whose MaxStaleness is [Unbounded] has no bound. A cache with
//     StaleWithoutLease has none while its source fails.
//
// # Shutdown
//
// [Backplane.Close] closes the caches, waits for writes under way, delivers what is
// queued, and leaves the channel, all within CloseTimeout. When it returns, every
// goroutine of the package has ended, except loads that callers still wait for.
package nearcache
