package nearcachetest

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nearcache/nearcache"
	"github.com/nearcache/nearcache/internal/fakebus"
	"github.com/nearcache/nearcache/internal/transport"
)

// Config says how a fleet is to be. The zero value is what [Fleet] uses.
type Config struct {
	// Backplane holds the options of every instance's backplane: give it those that
	// the service uses. RedisConnectionString and Redis are not used. Its Logger
	// defaults to the test's log, with the instance's number in each line; its other
	// fields have the defaults that they have for nearcache.Connect.
	Backplane nearcache.BackplaneOptions

	// Latency bounds the time that most packets take between an instance and Redis,
	// one way; each takes another, the shortest a fortieth of it, and one in a
	// hundred up to ten times as long. Commands are given up after 5 seconds, so more
	// than 250 ms makes some fail. Negative is an error. Defaults to 2 ms.
	Latency time.Duration

	// Seed is where the latencies and all other chance come from: a test that is run
	// again sees the same again. Two seeds are two orders in which things may happen.
	// Defaults to 0, which is a seed as any other.
	Seed uint64
}

// Simulation is a fleet of instances and the simulated Redis that joins them,
// inside a bubble of testing/synctest. Instances are numbered from 0; a number
// that no instance has fails the test. Its methods are for the test's own
// goroutine, and those that bring a fault about or end one return at once.
type Simulation struct {
	t         testing.TB
	bus       *fakebus.Bus
	instances []*nearcache.Backplane
}

// Fleet starts a fleet of n instances, all live, with default options. It fails
// the test if it is not called inside a bubble of testing/synctest. The fleet is
// closed when the test ends.
func Fleet(t testing.TB, n int) *Simulation {
	t.Helper()
	return Config{}.Fleet(t, n)
}

// Fleet starts a fleet as the function Fleet does, with c's options. With
// AllowDisconnectedStart the instances are still connecting when it returns.
func (c Config) Fleet(t testing.TB, n int) *Simulation {
	t.Helper()
	if !bubbled() {
		t.Fatalf("nearcachetest: a fleet lives in simulated time; start it inside synctest.Test (package testing/synctest)")
	}
	if n < 1 {
		t.Fatalf("nearcachetest: a fleet of %d instances; it takes one at least", n)
	}
	if c.Latency < 0 {
		t.Fatalf("nearcachetest: Latency %v is negative", c.Latency)
	}
	network := fakebus.Options{Seed: c.Seed, Instances: n}
	if c.Latency > 0 {
		network.MinLatency, network.MaxLatency = max(c.Latency/40, 1), c.Latency
	}
	s := &Simulation{t: t, bus: fakebus.New(network)}
	t.Cleanup(s.close)
	logger := c.Backplane.Logger
	if logger == nil {
		logger = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	for i := range n {
		in := s.bus.Instance(i)
		standIn := transport.StandIn{Bus: in.Bus(), Random: in.Jitter}
		binary.BigEndian.PutUint64(standIn.Instance[:], uint64(i+1))
		o := c.Backplane
		o.Logger = logger.With("instance", i)
		// Not t's context: that of a test ends before the fleet is closed.
		bp, err := nearcache.Connect(transport.WithStandIn(context.Background(), standIn), o)
		if err != nil {
			t.Fatalf("nearcachetest: instance %d cannot start: %v", i, err)
		}
		s.instances = append(s.instances, bp)
	}
	return s
}

// bubbled reports whether the goroutine is in a bubble.
func bubbled() (bubbled bool) {
	defer func() { bubbled = recover() == nil }()
	synctest.Wait() // panics outside
	return
}

// close ends the instances, with whatever is wrong at that moment.
func (s *Simulation) close() {
	for i, bp := range s.instances {
		// What could not be delivered is what the test left undelivered.
		if err := bp.Close(); err != nil && !errors.Is(err, nearcache.ErrUnconfirmed) {
			s.t.Errorf("nearcachetest: instance %d cannot be closed: %v", i, err)
		}
	}
	s.bus.Close()
}

// Backplane returns the backplane of instance i: what the service has from
// nearcache.Connect otherwise. It may be closed by the service; the fleet closes
// it otherwise.
func (s *Simulation) Backplane(i int) *nearcache.Backplane {
	s.t.Helper()
	s.check(i)
	return s.instances[i]
}

// patience is how long Settle waits, in simulated time.
const patience = time.Minute

// Settle waits until the fleet is at rest, as far as its faults let it be. Every
// instance that can reach Redis is then connected and has nothing queued, and what
// Redis has accepted has arrived wherever it can. That takes about 40 ms of the
// bubble's time, or twenty times Config.Latency, and more if instances have to
// connect. It fails the test if it takes a minute.
//
// Settle does not wait for what only MaxStaleness bounds. What an instance may
// still serve under a fault, or after a message was lost, is known when that has
// passed: use time.Sleep.
func (s *Simulation) Settle() {
	s.t.Helper()
	synctest.Wait() // the goroutines of the test have done what they can
	why := s.restless()
	for limit := time.Now().Add(patience); ; {
		before := why
		time.Sleep(s.bus.RoundTrip())
		synctest.Wait()
		// Twice: an instance may not have known yet that its connection had broken, or
		// may have published at the last moment.
		if why = s.restless(); before == "" && why == "" {
			return
		}
		if time.Now().After(limit) {
			s.t.Fatalf("nearcachetest: %s after %v without a fault", cmp.Or(why, before), patience)
		}
	}
}

// restless says which instance is not at rest though nothing keeps it from it, and
// in what way.
func (s *Simulation) restless() string {
	for i, bp := range s.instances {
		if !s.bus.Instance(i).Reaches() {
			continue
		}
		stats := bp.Stats()
		switch {
		case stats.State == nearcache.StateConnecting, stats.State == nearcache.StateNoLease:
			return fmt.Sprintf("instance %d is in state %q", i, stats.State)
		case stats.Queued > 0 && stats.State != nearcache.StateClosed:
			return fmt.Sprintf("instance %d has %d invalidations queued", i, stats.Queued)
		}
	}
	return ""
}

func (s *Simulation) check(numbers ...int) {
	s.t.Helper()
	for _, i := range numbers {
		if i < 0 || i >= len(s.instances) {
			s.t.Fatalf("nearcachetest: there is no instance %d in a fleet of %d", i, len(s.instances))
		}
	}
}
