package nearcachetest_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache"
	"github.com/nearcache/nearcache/nearcachetest"
)

// maxStaleness is the default.
const maxStaleness = 5 * time.Second

// fleet is a fleet with a cache on each instance, and a source of versions, 0 at
// first, behind them all.
type fleet struct {
	*nearcachetest.Simulation
	t      *testing.T
	caches []*nearcache.Cache[string, int]

	mu       sync.Mutex // guards versions
	versions map[string]int
}

// onFleet runs a test on a fleet of n instances.
func onFleet(t *testing.T, c nearcachetest.Config, n int, test func(*testing.T, *fleet)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		f := &fleet{Simulation: c.Fleet(t, n), t: t, versions: map[string]int{}}
		for i := range n {
			cache, err := nearcache.New(f.Backplane(i), nearcache.Options[string, int]{
				Name: "versions", Load: f.load, TTL: nearcache.NoExpiry,
			})
			require.NoError(t, err)
			f.caches = append(f.caches, cache)
		}
		test(t, f)
	})
}

func (f *fleet) load(_ context.Context, key string) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.versions[key], nil
}

// change makes a new version, on instance i.
func (f *fleet) change(i int, key string) error {
	f.mu.Lock()
	f.versions[key]++
	f.mu.Unlock()
	return f.caches[i].Remove(f.t.Context(), key)
}

// serves checks which version instance i serves.
func (f *fleet) serves(i int, key string, version int) {
	f.t.Helper()
	got, err := f.caches[i].Get(f.t.Context(), key)
	require.NoError(f.t, err)
	require.Equal(f.t, version, got, "of %s, on instance %d", key, i)
}

func (f *fleet) stateOf(i int) nearcache.State { return f.Backplane(i).State() }
func (f *fleet) gapsOf(i int) uint64           { return f.Backplane(i).Stats().Clears.Gaps() }

func TestFleet(t *testing.T) {
	for _, n := range []int{1, 2, 20} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			onFleet(t, nearcachetest.Config{}, n, func(t *testing.T, f *fleet) {
				for i := range n {
					require.Equal(t, nearcache.StateLive, f.stateOf(i))
					f.serves(i, "a", 0)
				}
				require.NoError(t, f.change(n-1, "a"))
				f.Settle()
				for i := range n {
					f.serves(i, "a", 1)
					s := f.Backplane(i).Stats()
					require.Zero(t, s.Clears.Gaps())
					require.EqualValues(t, 1, s.Received)
				}
				time.Sleep(time.Minute)
				for i := range n {
					s := f.Backplane(i).Stats()
					require.Zero(t, s.Lease.Lost)
					require.Zero(t, s.Reconnects)
				}
			})
		})
	}
}

// What was published has arrived when Settle returns: however long packets take,
// and whether the writer has waited or not.
func TestSettle(t *testing.T) {
	for _, latency := range []time.Duration{0, 1, time.Microsecond, 200 * time.Millisecond} {
		t.Run(latency.String(), func(t *testing.T) {
			c := nearcachetest.Config{Latency: latency}
			c.Backplane.MaxStaleness = time.Minute
			onFleet(t, c, 2, func(t *testing.T, f *fleet) {
				for version := range 20 {
					f.serves(1, "a", version)
					if version%2 == 0 {
						require.NoError(t, f.change(0, "a"))
					} else {
						go func() { _ = f.change(0, "a") }()
						synctest.Wait()
						f.serves(1, "a", version) // it is on its way
					}
					f.Settle()
					f.serves(1, "a", version+1)
				}
			})
		})
	}
}

// The service's options are the backplane's; where Redis is does not matter.
func TestConfig(t *testing.T) {
	var log bytes.Buffer
	c := nearcachetest.Config{Backplane: nearcache.BackplaneOptions{
		RedisConnectionString: "localhost:1", Channel: "shop", MaxStaleness: time.Second, CloseTimeout: time.Millisecond,
		Logger: slog.New(slog.NewTextHandler(&log, nil)),
	}}
	onFleet(t, c, 1, func(t *testing.T, f *fleet) {
		require.Equal(t, "shop", f.Backplane(0).Stats().Channel)
		require.Contains(t, log.String(), "instance=0")
		f.Partition(0)
		time.Sleep(time.Second)
		require.Equal(t, nearcache.StateNoLease, f.stateOf(0))
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		require.ErrorIs(t, f.caches[0].Remove(ctx, "a"), nearcache.ErrUnconfirmed)
		began := time.Now()
		require.ErrorIs(t, f.Backplane(0).Close(), nearcache.ErrUnconfirmed)
		require.Equal(t, time.Millisecond, time.Since(began))
	})
}

func TestDisconnectedStart(t *testing.T) {
	c := nearcachetest.Config{Backplane: nearcache.BackplaneOptions{AllowDisconnectedStart: true}}
	onFleet(t, c, 2, func(t *testing.T, f *fleet) {
		require.Equal(t, nearcache.StateConnecting, f.stateOf(1))
		f.Settle()
		require.Equal(t, nearcache.StateLive, f.stateOf(1))
	})
}

// However a test leaves its fleet, nothing is left of it.
func TestClose(t *testing.T) {
	tests := []struct {
		name    string
		leave   func(*fleet)
		closing error
	}{
		{"at rest", func(*fleet) {}, nil},
		{"closed by the service", func(f *fleet) { _ = f.Backplane(0).Close() }, nil},
		{"cut off", func(f *fleet) { f.Partition(); _ = f.change(0, "a") }, nearcache.ErrUnconfirmed},
		{"without Redis", func(f *fleet) { f.StopRedis(); _ = f.change(0, "a") }, nearcache.ErrUnconfirmed},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fleet{t: t, versions: map[string]int{}}
				t.Cleanup(func() { // after that of the fleet
					require.Equal(t, nearcache.StateClosed, f.stateOf(0))
					require.ErrorIs(t, f.Backplane(0).Close(), test.closing)
				})
				f.Simulation = nearcachetest.Fleet(t, 2)
				cache, err := nearcache.New(f.Backplane(0), nearcache.Options[string, int]{Name: "versions", Load: f.load})
				require.NoError(t, err)
				f.caches = append(f.caches, cache)
				test.leave(f)
			})
		})
	}
}

// failing is a test whose failure is what a test is after.
type failing struct {
	testing.TB
	output io.Writer
	why    string
}

func (f *failing) Output() io.Writer { return f.output }

func (f *failing) Fatalf(format string, args ...any) {
	f.why = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

// failure returns why f fails the test.
func failure(t *testing.T, f func(testing.TB)) string {
	t.Helper()
	failing := &failing{TB: t, output: t.Output()}
	done := make(chan struct{})
	go func() {
		defer close(done)
		f(failing)
	}()
	<-done
	return failing.why
}

func TestMisuse(t *testing.T) {
	require.Contains(t, failure(t, func(t testing.TB) { nearcachetest.Fleet(t, 1) }), "inside synctest.Test")

	tests := []struct {
		name, why string
		misuse    func(testing.TB)
	}{
		{"no instances", "a fleet of 0 instances", func(t testing.TB) { nearcachetest.Fleet(t, 0) }},
		{"negative latency", "Latency -1ns is negative", func(t testing.TB) { nearcachetest.Config{Latency: -1}.Fleet(t, 1) }},
		{"options that are wrong", "instance 0 cannot start: nearcache: invalid options: MaxStaleness 1ns is less than 100ms", func(t testing.TB) {
			nearcachetest.Config{Backplane: nearcache.BackplaneOptions{MaxStaleness: 1}}.Fleet(t, 1)
		}},
		{"latency above MaxStaleness", "instance 0 cannot start", func(t testing.TB) {
			c := nearcachetest.Config{Latency: 4 * time.Second}
			c.Backplane.MaxStaleness = 100 * time.Millisecond
			c.Fleet(t, 1)
		}},
		{"Backplane", "no instance 2 in a fleet of 2", func(t testing.TB) { nearcachetest.Fleet(t, 2).Backplane(2) }},
		{"Partition", "no instance -1 in a fleet of 2", func(t testing.TB) { nearcachetest.Fleet(t, 2).Partition(0, -1) }},
		{"Drop", "no instance 2", func(t testing.TB) { nearcachetest.Fleet(t, 2).Drop(2, 1) }},
		{"Heal", "no instance 2", func(t testing.TB) { nearcachetest.Fleet(t, 2).Heal(2) }},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				require.Contains(t, failure(t, test.misuse), test.why)
			})
		})
	}
}

// A fleet that cannot come to rest is a failure, and not a test that hangs.
func TestSettleGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := nearcachetest.Config{Latency: 20 * time.Second} // longer than any echo is waited for
		c.Backplane.AllowDisconnectedStart = true
		why := failure(t, func(t testing.TB) { c.Fleet(t, 1).Settle() })
		require.Regexp(t, `instance 0 is in state .* after 1m0s without a fault`, why)
	})
}

// What happens on the instances is told in the test's own log.
func TestLog(t *testing.T) {
	var log bytes.Buffer
	synctest.Test(t, func(t *testing.T) {
		f := nearcachetest.Fleet(&failing{TB: t, output: &log}, 2)
		f.StopRedis()
		f.Settle()
	})
	assert.Regexp(t, `level=INFO msg="nearcache: live" instance=1 `, log.String())
	assert.Regexp(t, `level=WARN msg="nearcache: subscription lost; connecting again" instance=0 `, log.String())
}

// The same test sees the same again, and with another seed something else.
func TestDeterminism(t *testing.T) {
	run := func(t *testing.T, seed uint64) string {
		var log bytes.Buffer
		logger := slog.New(slog.NewTextHandler(&log, nil))
		c := nearcachetest.Config{Seed: seed, Backplane: nearcache.BackplaneOptions{Logger: logger}}
		onFleet(t, c, 3, func(t *testing.T, f *fleet) {
			for range 3 {
				for i, fault := range []func(){
					func() { f.Partition(1) },
					func() { f.Drop(2, 1) },
					f.StopRedis,
					func() { f.RefuseWrites(true) },
				} {
					fault()
					for from := range 3 {
						logger.Info("changed", "instance", from, "error", f.change(from, fmt.Sprint(i)))
					}
					time.Sleep(2 * maxStaleness)
					f.Heal()
					f.Settle()
					for i := range 3 {
						logger.Info("settled", "instance", i, "stats", fmt.Sprintf("%+v", f.Backplane(i).Stats()))
					}
				}
			}
		})
		lines := strings.SplitAfter(log.String(), "\n")
		slices.Sort(lines) // those of one instant come in any order
		return strings.Join(lines, "")
	}
	first := run(t, 1)
	for range 3 {
		require.Equal(t, first, run(t, 1))
	}
	require.NotEqual(t, first, run(t, 2))
}
