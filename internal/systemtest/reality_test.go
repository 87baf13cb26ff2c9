//go:build unix

package systemtest

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"net"
	"net/rpc"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache"
)

// TestReality lets everything go wrong with real processes: several instances
// read and write all they can, each over a path of its own to a real Redis, while
// Redis, the paths and the instances fail in every way that is known here, one
// fault of each of these three at a time. Every read is judged: one that begins
// at t may not be older than any invalidation that Redis had accepted before
// t - MaxStaleness. In the end all faults are mended, and every instance has to
// be live and to serve what the source says.
//
// It takes about half a minute: until every kind of fault has come, and their
// effects were seen. NEARCACHE_SOAK=10m makes it take that long (go test's own
// -timeout has to be longer, so give it -timeout 15m), and NEARCACHE_TEST_SEED
// repeats the faults of a run, as far as the scheduler lets it.
func TestReality(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	t.Parallel()
	length := 20 * time.Second
	if text, set := os.LookupEnv("NEARCACHE_SOAK"); set {
		var err error
		length, err = time.ParseDuration(text)
		require.NoError(t, err, "NEARCACHE_SOAK")
	}
	run := startReality(t, testSeed(t))
	defer run.verdict() // even if what follows does not come to its end
	began := time.Now()
	run.goWrong(length)
	run.settle()
	run.end(time.Since(began))
}

// realityRun is the source of the instances, their judge, and what goes wrong.
type realityRun struct {
	t         *testing.T
	seed      uint64
	audit     *audit
	redis     *redisPair
	paths     []*proxy
	instances []*child

	mu    sync.Mutex // guards everything below
	live  []bool     // by instance: it was so when it reported last
	stats []nearcache.BackplaneStats
	count map[string]int // of faults, by kind
	steps []string       // of the wall clock
}

// realitySource is what instances call.
type realitySource struct{ run *realityRun }

func (s *realitySource) Load(r LoadRequest, version *int64) error {
	*version = s.run.audit.version(r.Item)
	return nil
}

func (s *realitySource) Change(c ChangeRequest, done *Changed) error {
	done.Write, done.Versions = s.run.audit.change(c.By, c.Kind, c.Items...)
	return nil
}

func (s *realitySource) Report(r Report, _ *bool) error {
	for _, accepted := range r.Accepted {
		s.run.audit.accept(accepted)
	}
	s.run.audit.read(r.By, r.Readings...)
	s.run.mu.Lock()
	defer s.run.mu.Unlock()
	s.run.live[r.By], s.run.stats[r.By] = r.Stats.State == nearcache.StateLive, r.Stats
	return nil
}

func startReality(t *testing.T, seed uint64) *realityRun {
	t.Helper()
	run := &realityRun{
		t: t, seed: seed, audit: newAudit(realityBounds()), redis: startRedisPair(t),
		live: make([]bool, realityInstances), stats: make([]nearcache.BackplaneStats, realityInstances),
		count: map[string]int{},
	}
	address := run.serve()
	for number := range realityInstances {
		path := startProxy(t, run.redis.master.addr)
		in, connected := startChild(t, address, path.addr+asRealityUser+impatient,
			fmt.Sprintf("%s=%d %d", realityVariable, number, seed))
		require.Empty(t, connected.Error)
		run.paths, run.instances = append(run.paths, path), append(run.instances, in)
	}
	return run
}

// serve makes the source reachable for instances and returns its address.
func (run *realityRun) serve() string {
	server := rpc.NewServer()
	require.NoError(run.t, server.RegisterName("Run", &realitySource{run}))
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(run.t, err)
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { server.ServeConn(c) })
		}
	})
	run.t.Cleanup(func() {
		_ = listener.Close()
		for _, in := range run.instances {
			in.kill() // ends its connection
		}
		serving.Wait()
	})
	return listener.Addr().String()
}

// goWrong has faults happen for a time, and until each kind has happened and each
// effect was seen.
func (run *realityRun) goWrong(length time.Duration) {
	end := time.Now().Add(length)
	tooLong := end.Add(2 * time.Minute)
	stop := make(chan struct{})
	var lanes sync.WaitGroup
	lanes.Go(func() { run.watchClocks(stop) })
	lanes.Go(func() { run.publishHostilely(stop) })
	lane := func(number uint64, d *deck, pause func(*rand.Rand)) {
		r := rand.New(rand.NewPCG(run.seed, number))
		for time.Now().Before(end) || time.Now().Before(tooLong) && !(d.dealtAll() && run.seenAll()) {
			pause(r)
			kind := d.next(r)
			run.mu.Lock()
			run.count[kind.name]++
			run.mu.Unlock()
			run.audit.during(kind.name, func() { kind.happen(r) })
		}
	}
	lanes.Go(func() {
		lane(1, run.pathFaults(), func(r *rand.Rand) { time.Sleep(between(r, 0, 2*realityBound)) })
	})
	lanes.Go(func() {
		lane(2, run.processFaults(), func(r *rand.Rand) { time.Sleep(between(r, realityBound, 3*realityBound)) })
	})
	lane(0, run.redisFaults(), func(r *rand.Rand) {
		run.awaitLive(2 * time.Second) // no longer: another fault may keep an instance away
		time.Sleep(between(r, 0, shortBound/2))
	})
	close(stop)
	lanes.Wait()
}

// publishHostilely sends instances, all the time, what somebody with their rights can,
// to have a lease renewed or dropped: echoes of probes that nobody sent, dated by the
// clocks, and messages where none belong; and now and then what has everything cleared.
// (What is forged in place of a message that was missed, and leads to the position that
// Redis has, can hide that, see docs/guarantees.md.)
func (run *realityRun) publishHostilely(stop <-chan struct{}) {
	ctx := context.Background()
	r := rand.New(rand.NewPCG(run.seed, 3))
	strangely := time.Now()
	var clients []*redis.Client
	for _, path := range run.paths {
		clients = append(clients, rawClientWith(run.t, &redis.Options{
			Addr: path.addr, Username: realityUser, Password: realityPassword, MaxRetries: -1,
			DialTimeout: shortBound, ReadTimeout: shortBound, WriteTimeout: shortBound,
		}))
	}
	for {
		select {
		case <-stop:
			return
		case <-time.After(5 * time.Millisecond):
		}
		c := clients[r.IntN(len(clients))] // whatever is wrong with its path, another comes soon
		position, err := c.Get(ctx, defaultPosition).Result()
		if err != nil {
			continue
		}
		if time.Since(strangely) > 250*time.Millisecond {
			strangely = time.Now()
			_ = c.Publish(ctx, defaultChannel, strangeMessage(r, position)).Err()
		}
		history, _ := strings.CutPrefix(regexp.MustCompile("master_replid:[0-9a-f]+").
			FindString(c.Info(ctx, "replication").Val()), "master_replid:")
		for _, own := range c.PubSubChannels(ctx, "{nearcache}:*").Val() {
			id, err := hex.DecodeString(strings.TrimPrefix(own, "{nearcache}:"))
			if err != nil {
				continue
			}
			now := uint64(time.Now().UnixNano())
			nonce := string(binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, now), now))
			echo := "NRC\x01E" + string(id) + counted("") + counted(position) + "\x01" + counted(history) + counted(nonce)
			_ = c.Publish(ctx, own, echo).Err()
			_ = c.Publish(ctx, defaultChannel, echo).Err()
			_ = c.Publish(ctx, own, message(position, strings.Repeat("b", 40), "\x01\x04")).Err()
		}
	}
}

// strangeMessage returns what no publisher of the library sends: bytes, a forged envelope
// that fits the chain or does not, with a body that means something or does not, and
// sometimes a huge one. It leads to a position that Redis never has.
func strangeMessage(r *rand.Rand, position string) string {
	random := func(n int) string {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		return string(b)
	}
	if r.IntN(4) == 0 {
		position = strings.Repeat("c", 40)
	}
	forged := hex.EncodeToString([]byte(random(20)))
	switch r.IntN(20) {
	case 0: // to be applied up to what clears everything
		return message(position, forged, "\x01"+strings.Repeat("\x03\x01a", 200_000)+strings.Repeat("\x04", 1<<20))
	case 1:
		return message(position, forged, random(4<<20))
	case 2:
		if r.IntN(4) == 0 { // more than is read of a message
			return message(position, forged, strings.Repeat("\x01", 36<<20))
		}
		return random(4 << 20)
	case 3, 4, 5:
		return random(r.IntN(100))
	case 6, 7, 8:
		return "NRC\x01" + random(r.IntN(100))
	case 9, 10, 11:
		return message(position, forged, "\x01\x04")
	case 12, 13, 14:
		return message(position, forged, "\x02whatever")
	}
	return message(position, forged, "\x01"+random(r.IntN(100)))
}

// awaitLive waits until all instances have said since that they are live.
func (run *realityRun) awaitLive(atMost time.Duration) {
	run.mu.Lock()
	clear(run.live)
	run.mu.Unlock()
	for end := time.Now().Add(atMost); time.Now().Before(end); time.Sleep(reportInterval / 4) {
		run.mu.Lock()
		all := !slices.Contains(run.live, false)
		run.mu.Unlock()
		if all {
			return
		}
	}
}

// watchClocks looks for steps of the wall clock, by which reads are timed.
func (run *realityRun) watchClocks(stop <-chan struct{}) {
	const step = 5 * time.Millisecond
	for last := time.Now(); ; {
		select {
		case <-stop:
			return
		case <-time.After(50 * time.Millisecond):
		}
		now := time.Now()
		if moved := now.Round(0).Sub(last.Round(0)) - now.Sub(last); moved.Abs() > step {
			run.mu.Lock()
			run.steps = append(run.steps, fmt.Sprintf("by %v at %s", moved, stamp(clock())))
			run.mu.Unlock()
		}
		last = now
	}
}

// settle ends the writes and checks that, all faults being mended, everything
// gets right.
func (run *realityRun) settle() {
	for i, in := range run.instances {
		require.Empty(run.t, in.do("settle").Error, "instance %d", i)
	}
	for i, in := range run.instances {
		eventually(run.t, fmt.Sprintf("instance %d is live", i), func() bool {
			s := in.do("stats").Stats
			return s.State == nearcache.StateLive && s.Queued == 0
		})
		eventually(run.t, fmt.Sprintf("instance %d serves what the source says", i), func() bool {
			return in.do("check").Version == 0
		})
	}
	time.Sleep(realityBound) // from here on every read of anything old is a violation
}

// verdict says which reads were illegal.
func (run *realityRun) verdict() {
	run.audit.mu.Lock()
	defer run.audit.mu.Unlock()
	run.mu.Lock()
	defer run.mu.Unlock()
	if len(run.steps) > 0 {
		run.t.Logf("the wall clock was stepped, so times say nothing: %v", run.steps)
		return
	}
	for _, report := range run.audit.reports {
		run.t.Error(report)
	}
	assert.Zero(run.t, run.audit.found, "violations")
}

// effects are what a run has to have seen: one in which nothing happened would
// find no violation either.
func (run *realityRun) effects() map[string]uint64 {
	total, hits, _, _, _ := run.total()
	a := run.audit
	a.mu.Lock()
	defer a.mu.Unlock()
	seen := map[string]uint64{
		"hits":                     hits,
		"thousands of reads":       uint64(a.reads / 1000),
		"hundreds of acceptances":  uint64(a.accepted / 100),
		"stale but legal reads":    uint64(a.stale),
		"warm reconnects":          total.SubscribedWarm,
		"failures to publish":      total.PublishFailures,
		"leases lost":              total.Lease.Lost,
		"forged messages":          total.Foreign,
		"undecodable messages":     total.Clears.Undecodable,
		"leases regained":          total.Lease.Regained,
		"clears for the position":  total.Clears.Position,
		"clears for the history":   total.Clears.History,
		"clears without a history": total.Clears.NoHistory,
	}
	for cache, worst := range a.worst {
		seen["time to effect in cache "+cache] = uint64(worst)
	}
	return seen
}

func (run *realityRun) seenAll() bool {
	for _, n := range run.effects() {
		if n == 0 {
			return false
		}
	}
	return true
}

// total adds up what the instances have reported last.
func (run *realityRun) total() (total nearcache.BackplaneStats, hits, misses, loads uint64, shared nearcache.SharedStats) {
	run.mu.Lock()
	defer run.mu.Unlock()
	for _, s := range run.stats {
		c := s.Clears
		total.Subscribed += s.Subscribed
		total.SubscribedWarm += s.SubscribedWarm
		total.PublishFailures += s.PublishFailures
		total.ProbeFailures += s.ProbeFailures
		total.Echoes += s.Echoes
		total.Foreign += s.Foreign
		total.Lease.Lost += s.Lease.Lost
		total.Lease.Regained += s.Lease.Regained
		total.Clears.Start += c.Start
		total.Clears.Message += c.Message
		total.Clears.Position += c.Position
		total.Clears.History += c.History
		total.Clears.NoHistory += c.NoHistory
		total.Clears.Undecodable += c.Undecodable
		for _, cache := range s.Caches {
			hits, misses, loads = hits+cache.Hits, misses+cache.Misses.Total(), loads+cache.Loads
			shared.Hits += cache.Shared.Hits
			shared.Stored += cache.Shared.Stored
			shared.Errors += cache.Shared.Errors
		}
	}
	return total, hits, misses, loads, shared
}

// end ends the instances and reports.
func (run *realityRun) end(took time.Duration) {
	t := run.t
	for i, in := range run.instances {
		assert.Empty(t, in.do("stop").Error, "instance %d", i)
		assert.Zero(t, in.exit(), "instance %d", i)
		assert.NotContains(t, in.log.String(), realityPassword)
	}
	for effect, n := range run.effects() {
		assert.Positive(t, n, effect)
	}
	total, hits, misses, loads, shared := run.total()
	assert.Positive(t, shared.Hits, "values found in Redis")

	a := run.audit
	a.mu.Lock()
	defer a.mu.Unlock()
	run.mu.Lock()
	defer run.mu.Unlock()
	assert.Empty(t, a.writes, "writes whose invalidation was never confirmed")
	var b strings.Builder
	line := func(format string, args ...any) { _, _ = fmt.Fprintf(&b, "\n  "+format, args...) }
	line("%d instances for %v, MaxStaleness %v and %v, seed %d",
		len(run.instances), took.Round(100*time.Millisecond), realityBound, shortBound, run.seed)
	line("reads          %d, %.1f %% from memory", a.reads, 100*float64(hits)/float64(max(1, hits+misses)))
	line("loads          %d from the source, %d from Redis, where %d were stored; %d requests failed",
		loads, shared.Hits, shared.Stored, shared.Errors)
	line("invalidations  %d accepted, %d attempts failed", a.accepted, total.PublishFailures)
	line("leases         %d lost, %d regained; %d probes answered, %d refused",
		total.Lease.Lost, total.Lease.Regained, total.Echoes, total.ProbeFailures)
	line("reconnects     %d, %d of them warm", total.Subscribed-uint64(len(run.instances)), total.SubscribedWarm)
	line("clears         %+v", total.Clears)
	line("stale, legal   at least %d reads of what had been invalidated", a.stale)
	for cache, bound := range a.bounds {
		line("worst time     %v from acceptance to the last read of what it invalidated, of %v allowed",
			a.worst[cache].Round(time.Millisecond), bound)
	}
	line("forged         %d echoes and messages, ignored; %d that were undecodable, and cleared everything",
		total.Foreign, total.Clears.Undecodable)
	line("violations     %d", a.found)
	line("faults")
	for _, d := range []*deck{run.redisFaults(), run.pathFaults(), run.processFaults()} {
		for _, kind := range d.kinds {
			line("  %4d  %s", run.count[kind.name], kind.name)
			assert.Positive(t, run.count[kind.name], kind.name)
		}
	}
	t.Log(b.String())
}
