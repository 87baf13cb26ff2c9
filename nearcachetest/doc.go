// Package nearcachetest lets a service test that its instances keep each other's
// caches in step, and what they do when that fails: without Redis, in simulated
// time, and with the same outcome each time.
//
// # Use
//
// A test starts a fleet inside a bubble of testing/synctest, makes an instance of
// the service on each backplane, changes something on one, and looks at another:
//
//	synctest.Test(t, func(t *testing.T) {
//		fleet := nearcachetest.Fleet(t, 2)
//		a, b := newShop(t, fleet.Backplane(0), db), newShop(t, fleet.Backplane(1), db)
//		a.Rename(ctx, 42, "Moby Dick")
//		fleet.Settle() // what was published has arrived
//		require.Equal(t, "Moby Dick", b.Name(ctx, 42))
//	})
//
// The service takes a *nearcache.Backplane rather than calling nearcache.Connect
// where it is to be tested, and each instance has its own; the source behind their
// caches is shared, as a database is.
//
// [Simulation.Partition], [Simulation.Drop], [Simulation.StopRedis] and
// [Simulation.RefuseWrites] bring faults about and [Simulation.Heal] ends them.
// Time is that of the bubble: time.Sleep(5*time.Second) takes none, and MaxStaleness
// can be waited for. [Config] sets the backplanes' options, latencies, and a seed.
//
// A service that forgets an invalidation passes every test on one instance, since
// there is no other that could be wrong. To find such a bug have the item read on
// the instance that is looked at before it is changed on another, so that there is
// an old copy to be served. docs/testing.md has more of this.
//
// # What is guaranteed
//
//   - The library is the real one, from the caches to the bytes of its messages,
//     with its lease, its queue and its clears. Only what knows Redis is replaced.
//   - The simulated Redis and its network are those on which nearcache's own bound on
//     staleness is proved (docs/proof.md), with the same latencies.
//   - After [Simulation.Settle], without a fault, everything that was published is
//     effective on every instance.
//   - A seed gives the same latencies, pauses between attempts, and times of messages
//     in every run.
//   - When the test has ended the backplanes are closed and no goroutine is left.
//
// # What is not simulated
//
//   - Redis: connection strings, passwords, TLS, rights, and what go-redis does. To
//     test those, run against a real one.
//   - The rest of the service: in a bubble, connections to a real network or database
//     keep time from passing (see the documentation of testing/synctest), so the
//     source has to be in memory.
//   - Time that code takes: in the bubble only waiting takes time, so nothing can be
//     measured.
//   - What is random on purpose in memory: which items of a full cache share a shard,
//     and which lapse first in the last fifth of MaxStaleness while there is no lease.
//     A test that waits for all of MaxStaleness does not depend on it.
//   - Connections that break for one instance, delays, failovers, and messages that
//     come twice or in another order. All of these end as what is here does, in a
//     reconnect or in a clear.
//   - Processes: all instances share one memory, so a value that one of them changes
//     in place is changed in all. Values of a cache must not be changed.
package nearcachetest
