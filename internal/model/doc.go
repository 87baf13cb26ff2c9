// Package model checks the coherence protocol. It explores every interleaving of small
// worlds, exhaustively and breadth first, and looks in each state for a Get that would
// return something too old.
//
// # The property
//
// An invalidation counts from when Redis accepts it, not from the write at the source. If
// a Get starts at t, and an invalidation was accepted at or before t − Bound, the Get must
// not return a version that the invalidation was to evict. That holds for hits, and for
// the callers of a load, each from when it joined. (The library promises a little less: it
// excludes what was accepted at exactly t − Bound.)
//
// # What is modelled
//
// There is one item at the source, which has one version after another, and one or two
// instances with a copy of it. There are up to two writers, on an instance or elsewhere, a
// Redis server, other servers that may become the master, and a clock that ticks. Whatever
// can happen may happen at any moment, and take any time:
//
//   - Publishing: the script that reads the position, computes the next one, writes it
//     and sends the message; a lost reply, after which the script runs again; a script
//     that runs long after its publisher has given it up.
//   - Receiving: the chain of positions, and the clear where it is broken.
//   - Probes, several at a time, and their echoes: on the subscription that is
//     there when Redis runs the probe, even if it is newer than the probe.
//   - Faults: broken connections, with all that was under way on them; failover to a
//     replica that lags, with connections that break or stay; an old master that no
//     longer takes writes; an empty restart; a lost position; messages that are lost,
//     overtaken or undecodable; an instance that is too slow for Redis.
//   - Users of Redis that forge messages and echoes, and instances that were resumed
//     from one snapshot, with one identity.
//   - Gets: hits at every moment; slow ones that pause between reading the lease and
//     looking up the entry; loads that take long; Gets that join them; loads that an
//     invalidation has overtaken.
//   - Writes: Remove, Set, Update, ClearRegion, Clear, and changes of other items,
//     which matter for their place in the chain.
//   - Items whose regions depend on the version, and kept not-founds.
//   - The shared level: a load reads the value and the clears, takes the token, loads,
//     and stores. Each is a step of its own, on the master or on an old one that still
//     answers. Extensions of a claim come late, and loads of one instance may share a
//     claim. Invalidations delete, and probes end the epoch of a former history. Values,
//     tokens and clears may be lost, and a replica that lags may bring old ones back.
//     There are own writes, and loads that bypass the shared level after an error.
//
// A connection that looks alive and carries nothing needs no step of its own: a message
// may wait in it for any time, and is lost when it breaks. Batches of messages need none
// either: a batch is a series of messages with nothing in between.
//
// # What is not
//
//   - Times to live, capacity, eviction: they can only remove an entry earlier. (With a
//     shared level, the old version may then be found there. So scenarios with one do
//     remove entries and keys.)
//   - Of the shared level: the number of regions, whose clears are forgotten when no
//     value can be older; loads that fail, and release their token; the check of the
//     value when a load takes the token, which saves loads.
//   - A master that is cut off and still accepts messages, and the ClearAll by which an
//     instance cleans up after that. See [NotCovered].
//   - What a lock makes atomic in a process: look-up, registration and commit of a load.
//     Clocks that jump.
//   - Progress: that an instance subscribes again, or sends a probe. Instead, every state
//     in which an instance is slow or gives up is explored.
//
// # Rules
//
// Each [Rule] can be switched off, see [Scenario.Without]. Every rule except
// [MintIfAbsent] has a scenario in which the bound breaks without it, and
// [Result.Violation] is the shortest interleaving that shows how. Each line is a step, with
// the time of the clock. Positions are p1, p2, … in the order of their creation, histories
// h1, h2, …, versions of the item v0, v1, …, and epochs of the shared level e1, e2, ….
// Instances are called A and B. The last line says which Get returned what. The examples
// of [Check] show two.
//
// # Reading order
//
// scenario.go, scenarios.go and scenarios_shared.go have the worlds, rules.go the rules,
// state.go the state of a world, and property.go the bound. The steps are in steps.go
// (time), writes.go, publish.go, subscribe.go (messages, echoes, probes), loads.go (Gets),
// shared.go (the shared level) and faults.go. explore.go explores them all.
//
// With NEARCACHE_MODEL=large in the environment, the tests give each scenario one more
// tick, and one more probe if it has no shared level. That takes some minutes and about
// 7 GB.
package model
