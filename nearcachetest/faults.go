package nearcachetest

import "github.com/nearcache/nearcache/internal/fakebus"

// Partition cuts the network between Redis and the instances named, or all of them
// if none is, until Heal. Packets get stuck in both directions, and nobody is told:
// connections look alive. Writes on such an instance return ErrUnconfirmed, the
// first when its context ends or the attempt to reach Redis has timed out, after 5
// to 10 seconds, and the others at once. What the instance holds is served for
// MaxStaleness at most, counted from the last probe that was answered or from the
// item's load.
func (s *Simulation) Partition(instances ...int) {
	s.t.Helper()
	s.each(instances, (*fakebus.Instance).Partition)
}

// Drop loses the next n messages on their way to instance i, in place of what an
// earlier Drop would still have lost. Messages are those by which other instances
// invalidate: one for each write, or one for several if they are made at the same
// time. Nobody is told, but each message says which one came before it: the next to
// arrive, or the next answer to a probe, shows the gap, and then the instance clears
// all that it holds. Probes come five times in MaxStaleness.
func (s *Simulation) Drop(i, n int) {
	s.t.Helper()
	s.check(i)
	s.bus.Instance(i).DropInvalidations(n)
}

// Heal ends Partition and Drop for the instances named. If none is, it does so for
// all of them, and also ends what is wrong with Redis, as StartRedis and
// RefuseWrites(false) do. What a partition held up arrives now, and is not lost.
// Settle waits until the instances have caught up.
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

// StopRedis ends the Redis server: connections break, and new ones are refused,
// until StartRedis or Heal.
func (s *Simulation) StopRedis() { s.bus.Stop() }

// StartRedis starts the Redis server after StopRedis, without any of its data. As
// invalidations may have gone with it, every instance clears what it holds when it
// has connected again. To restart Redis, stop it and start it.
func (s *Simulation) StartRedis() { s.bus.Start() }

// RefuseWrites has Redis refuse all scripts, as it does when it is out of memory,
// until it is called with false or Heal is. Invalidations are refused: writes
// return ErrUnconfirmed and are queued. So are probes, so that instances serve what
// they hold for MaxStaleness only.
func (s *Simulation) RefuseWrites(refuse bool) { s.bus.RefuseWrites(refuse) }

// each applies a fault to the instances named, or to all if none is.
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
