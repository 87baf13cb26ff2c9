// Package nearcachetest is for tests of a service: that its instances keep each other's
// caches coherent, and what they do when that fails. The tests need no Redis, run in
// simulated time, and have the same outcome each time.
//
// # Use
//
// A test starts a fleet inside a bubble of testing/synctest, and creates an instance of
// the service on each backplane. It changes something on one instance, and reads it on
// another:
//
//	synctest.Test(t, func(t *testing.T) {
//		fleet := nearcachetest.Fleet(t, 2)
//		a, b := newShop(t, fleet.Backplane(0), db), newShop(t, fleet.Backplane(1), db)
//		a.Rename(ctx, 42, "Moby Dick")
//		fleet.Settle() // all that was published has arrived
//		require.Equal(t, "Moby Dick", b.Name(ctx, 42))
//	})
//
// So the service has to take a *nearcache.Backplane as a parameter instead of calling
// nearcache.Connect itself. Each instance has its own backplane. The instances share the
// source behind their caches, as they would share a database.
//
// [Simulation.Partition], [Simulation.Drop], [Simulation.StopRedis] and
// [Simulation.RefuseWrites] cause faults, and [Simulation.Heal] ends them. Time is that of
// the bubble: time.Sleep(5*time.Second) takes no real time, so a test can wait for
// MaxStaleness. [Config] sets the backplanes' options, the latencies, and a seed.
//
// A service that forgets an invalidation passes every test with one instance, since no
// other instance has an old copy. To find such a bug, first read the item on one instance,
// then change it on another, and read it again on the first. docs/testing.md says more.
//
// # What is guaranteed
//
//   - The library is the real one, from the caches to the bytes of its messages, with
//     its lease, its queue and its clears. Only the code that talks to Redis is replaced.
//   - The simulated Redis and its network are those with which nearcache's own bound on
//     staleness is tested (docs/proof.md), with the same latencies.
//   - If there is no fault, everything that was published has taken effect on every
//     instance after [Simulation.Settle].
//   - One seed gives the same latencies, pauses between attempts and times of messages
//     in every run.
//   - When the test ends, the backplanes are closed, and no goroutine is left.
//
// # What is not simulated
//
//   - Redis itself: connection strings, passwords, TLS, rights, and the behaviour of
//     go-redis. Test these with a real Redis.
//   - The rest of the service. The source has to be in memory: in a bubble, time does not
//     pass while a goroutine waits for a real network (see testing/synctest).
//   - The time that code takes. In the bubble only waiting takes time, so nothing can be
//     measured.
//   - What is random on purpose in memory: which items of a full cache share a shard,
//     and, without a lease, which items lapse first in the last fifth of MaxStaleness. A
//     test that waits for all of MaxStaleness does not depend on the latter.
//   - Connections that break for one instance, delays, failovers, and messages that come
//     twice or in another order. Their outcome is that of the faults above: a reconnect
//     or a clear.
//   - Processes. All instances share one memory, so if one of them changes a value in
//     place, it changes for all. Values of a cache must not be changed.
package nearcachetest
