// Package model checks the coherence protocol: it explores, exhaustively and
// breadth first, every interleaving of small worlds, and looks in each state for
// a Get that is served something too old.
//
// # The property
//
// An invalidation counts from the moment at which Redis accepts it, not from the
// write at the source. A Get that starts at t must not be served a version that
// an invalidation accepted at or before t − Bound was to evict. That holds for
// hits, and for the callers of a load, each from the moment at which it joined.
// (The library promises a little less, since it leaves out what was accepted at
// exactly t − Bound.)
//
// # What is modelled
//
// One item at the source, which goes through versions; one or two instances that
// hold a copy of it; up to two writers, on an instance or elsewhere; a Redis
// server and what else may become the master; and a clock that ticks. Anything
// that can happen may happen at any moment, or take any time:
//
//   - Publishing: the script that reads the position, makes the next one, writes
//     it and sends the message; a lost reply, after which the script runs twice; a
//     script that runs long after its publisher gave it up.
//   - Receiving: the chain of positions, and the clear where it is broken.
//   - Probes, several at a time, and their echoes: on the subscription that is
//     there when Redis runs the probe, even if it is newer than the probe.
//   - Faults: broken connections, and all that was under way on them; failover to
//     a replica that lags, with connections that break or stay; an old master that
//     takes no writes any more; an empty restart; a lost position; messages that
//     are lost, overtaken or undecodable; an instance too slow for Redis.
//   - Users of Redis that forge messages and echoes, and instances that were resumed
//     from one snapshot, with one identity.
//   - Gets: hits at every moment, slow ones that stop between their two looks,
//     loads that take long, Gets that join them, loads that an invalidation has
//     overtaken.
//   - Writes: Remove, Set, Update, ClearRegion, Clear, and changes of other items,
//     which matter for their place in the chain.
//   - Items whose regions depend on the version, and kept not-founds.
//   - The shared level: a load asks for the value and the clears, takes the token,
//     loads, and puts, each in a step of its own; on the master, or on an old one
//     that still answers. Extensions of its claim, which come late, and loads of one
//     instance that share a claim. Invalidations, which delete; own writes; probes, which
//     end the epoch of a former history. Lost values, tokens and clears, those that
//     a replica that lags brings back, and loads that do without, after an error.
//
// Connections that look alive and carry nothing need no step of their own: a
// message may wait in them for any time, and is lost when they break. Nor does
// the batching of messages: a batch is a series that nothing comes between.
//
// # What is not
//
//   - Times to live, capacity, eviction: they can only make an entry go earlier.
//     (Where there is a shared level the old version may be found there then, so
//     that scenarios with one let entries and keys go.)
//   - Of the shared level: the number of regions, whose clears are forgotten when no
//     value can be older; loads that fail, and give their token back; the look that
//     a load has at the value when it takes the token, which saves loads.
//   - A master that is cut off and goes on accepting, and with it the ClearAll by
//     which an instance cleans up after one. See [NotCovered].
//   - Whatever is atomic in this process under a lock: look-up, registration and
//     commit of a load. Clocks that jump.
//   - Progress: that a subscription is made again, that a probe is sent. Every
//     state in which an instance is slow or gives up is explored instead.
//
// # Rules
//
// Each [Rule] can be switched off, see [Scenario.Without]. Every rule but
// [MintIfAbsent] has a scenario in which the bound breaks without it, and
// [Result.Violation] is the shortest interleaving that shows how. A line is a
// step, with the time of the clock; a position is p1, p2, … in the order in
// which they were made, a history h1, h2, …, a version of the item v0, v1, …;
// instances are called A and B; at the shared level, an epoch is e1, e2, …. The last
// line says who was served what. The examples of [Check] show two.
//
// # Reading order
//
// scenario.go, scenarios.go and scenarios_shared.go have the worlds, rules.go the
// rules, state.go what there is in a world; property.go has the bound. The steps are
// in steps.go (time), writes.go, publish.go, subscribe.go (messages, echoes, probes),
// loads.go (Gets), shared.go (the shared level) and faults.go. explore.go goes
// through them all.
//
// With NEARCACHE_MODEL=large in the environment the tests give each scenario one
// more tick, and one more probe if it has no shared level, which takes some minutes
// and about 7 GB.
package model
