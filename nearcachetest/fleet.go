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

// Config configures a fleet. [Fleet] uses the zero value.
type Config struct {
	// Backplane has the options of every instance's backplane: set those that the service
	// uses. RedisConnectionString and Redis are ignored. Logger defaults to the test's log,
	// with the instance's number in each line. The other fields have the defaults of
	// nearcache.Connect.
	Backplane nearcache.BackplaneOptions

	// Latency bounds the time that a packet takes between an instance and Redis, one way.
	// The time is random. It is at least a fortieth of Latency, and one packet in a hundred
	// takes up to ten times Latency. Commands time out after 5 seconds, so with more than
	// 250 ms some fail. Negative is an error. Defaults to 2 ms.
	Latency time.Duration

	// Seed is the seed of the latencies and of all other random numbers. With the same
	// seed, a test that runs again sees the same again. With another seed, things happen in
	// another order. Defaults to 0, which is a seed like any other.
	Seed uint64
}

// Simulation is a fleet of instances and the simulated Redis that joins them, inside a
// bubble of testing/synctest. Instances are numbered from 0, and any other number fails
// the test. Its methods may be called only from the test's own goroutine. Those that
// cause or end a fault return at once.
type Simulation struct {
	t         testing.TB
	bus       *fakebus.Bus
	instances []*nearcache.Backplane
}

// Fleet starts a fleet of n instances with default options, and returns when all are
// live. It fails the test if it is not called inside a bubble of testing/synctest. The
// fleet is closed when the test ends.
func Fleet(t testing.TB, n int) *Simulation {
	t.Helper()
	return Config{}.Fleet(t, n)
}

// Fleet starts a fleet as the function Fleet does, with the options of c. With
// AllowDisconnectedStart the instances may still be connecting when it returns.
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

// bubbled reports whether this goroutine is in a bubble.
func bubbled() (bubbled bool) {
	defer func() { bubbled = recover() == nil }()
	synctest.Wait() // panics outside
	return
}

// close closes the instances, even if a fault is under way.
func (s *Simulation) close() {
	for i, bp := range s.instances {
		// ErrUnconfirmed is fine: the test itself has left invalidations undelivered.
		if err := bp.Close(); err != nil && !errors.Is(err, nearcache.ErrUnconfirmed) {
			s.t.Errorf("nearcachetest: instance %d cannot be closed: %v", i, err)
		}
	}
	s.bus.Close()
}

// Backplane returns the backplane of instance i, which the service uses instead of one
// from nearcache.Connect. The service may close it. If not, the fleet does.
func (s *Simulation) Backplane(i int) *nearcache.Backplane {
	s.t.Helper()
	s.check(i)
	return s.instances[i]
}

// patience is how long Settle waits at most, in simulated time.
const patience = time.Minute

// Settle waits until the fleet is at rest, as far as faults allow. Then every instance
// that can reach Redis is connected and has nothing queued, and every message that Redis
// has accepted has arrived at every instance that Redis can reach. That takes about 40 ms
// of the bubble's time, or twenty times Config.Latency, and more if instances have to
// connect. If it takes a minute, the test fails.
//
// Under a fault, or after a message was lost, an instance may serve old items until
// MaxStaleness has passed. Settle does not wait for that: use time.Sleep.
func (s *Simulation) Settle() {
	s.t.Helper()
	synctest.Wait() // until all goroutines of the test wait for time or for each other
	why := s.restless()
	for limit := time.Now().Add(patience); ; {
		before := why
		time.Sleep(s.bus.RoundTrip())
		synctest.Wait()
		// Two checks: at the first, an instance may not know yet that its connection has
		// broken, or a message may be under way.
		if why = s.restless(); before == "" && why == "" {
			return
		}
		if time.Now().After(limit) {
			s.t.Fatalf("nearcachetest: %s after %v without a fault", cmp.Or(why, before), patience)
		}
	}
}

// restless names an instance that can reach Redis and is not at rest, and says why. It
// returns an empty string if there is none.
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
