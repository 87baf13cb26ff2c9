package nearcachetest

import "github.com/nearcache/nearcache/internal/fakebus"

// Partition cuts the network between Redis and the given instances until Heal. Without
// arguments it concerns all instances. Packets get stuck in both directions, and
// connections look alive.
//
// Writes on such an instance return ErrUnconfirmed. The first one does so when its context
// ends, or when the attempt to reach Redis times out after 5 to 10 seconds. Later ones
// return at once. The instance serves what it has in memory for MaxStaleness at most. That
// counts from the last probe that was answered, or from the item's load.
func (s *Simulation) Partition(instances ...int) {
	s.t.Helper()
	s.each(instances, (*fakebus.Instance).Partition)
}

// Drop loses the next n messages of other instances' invalidations on their way to
// instance i. There is one message for each write, or one for several writes at the same
// time. The number replaces what is left of an earlier Drop.
//
// The instance does not notice the loss at once. But each message says which one came
// before it, so the next message, or the next answer to a probe, shows the gap. Then the
// instance clears all its caches. Probes are sent five times in MaxStaleness.
func (s *Simulation) Drop(i, n int) {
	s.t.Helper()
	s.check(i)
	s.bus.Instance(i).DropInvalidations(n)
}

// Heal ends Partition and Drop for the given instances. Without arguments it does so for
// all instances, and also ends the faults of Redis, as StartRedis and RefuseWrites(false)
// do. Packets that a partition has held up arrive now. Settle waits until the instances
// have caught up.
func (s *Simulation) Heal(instances ...int) {
	s.t.Helper()
	if len(instances) == 0 {
		s.bus.Heal()
		return
	}
	s.each(instances, func(in *fakebus.Instance) {
		in.Heal(false)
		in.DropInvalidations(0)
	})
}

// StopRedis stops the Redis server until StartRedis or Heal: connections break, and new
// ones are refused.
func (s *Simulation) StopRedis() { s.bus.Stop() }

// StartRedis starts the Redis server after StopRedis, without any of its data. Since
// invalidations may have been lost with the data, every instance clears its caches when it
// has connected again. To restart Redis, call StopRedis and StartRedis.
func (s *Simulation) StartRedis() { s.bus.Start() }

// RefuseWrites makes Redis refuse all scripts, as it does when it is out of memory. Heal
// ends that, as does RefuseWrites(false). Invalidations are refused, so writes are queued
// and return ErrUnconfirmed. Probes are refused too, so instances serve items for
// MaxStaleness only.
func (s *Simulation) RefuseWrites(refuse bool) { s.bus.RefuseWrites(refuse) }

// each applies a fault to the given instances, or to all if none is given.
func (s *Simulation) each(instances []int, fault func(*fakebus.Instance)) {
	s.t.Helper()
	s.check(instances...)
	if len(instances) == 0 {
		for i := range s.instances {
			fault(s.bus.Instance(i))
		}
	}
	for _, i := range instances {
		fault(s.bus.Instance(i))
	}
}
