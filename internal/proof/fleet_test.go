package proof

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nearcache/nearcache"
	"github.com/nearcache/nearcache/internal/fakebus"
	"github.com/nearcache/nearcache/internal/transport"
)

// schedule is one schedule: a fleet on a fake bus, a source, those who read and
// write, and what goes wrong. All of it follows from the seed.
type schedule struct {
	seed    uint64
	plan    plan
	journal *journal
	history *history
	bus     *fakebus.Bus
	fleet   []*instance
	end     time.Duration // when readers, writers and faults end
	totals  totals
}

// instance is one instance of the fleet.
type instance struct {
	number int
	name   string
	bus    *bus
	bp     *nearcache.Backplane
	caches [2]*nearcache.Cache[int, *item]
	tells  [2]*nearcache.Invalidator[int] // for the same caches

	mu      sync.Mutex    // guards everything below
	resumed chan struct{} // closed when a pause ends; nil: there is none
}

// totals is what happened, added up over all schedules.
type totals struct {
	schedules, reads, accepted                                uint64
	hits, joins, warm, notFounds, updates, gaps, lost, paused uint64
	stale, refreshes, together, events                        uint64
	sharedHits, sharedWaits, sharedStores, sharedOvertaken    uint64
	listed, several, large, forged, astray, clones            uint64
}

func (t *totals) add(o totals) {
	t.schedules += o.schedules
	t.reads += o.reads
	t.accepted += o.accepted
	t.hits += o.hits
	t.joins += o.joins
	t.warm += o.warm
	t.notFounds += o.notFounds
	t.updates += o.updates
	t.gaps += o.gaps
	t.lost += o.lost
	t.paused += o.paused
	t.stale += o.stale
	t.refreshes += o.refreshes
	t.together += o.together
	t.events += o.events
	t.sharedHits += o.sharedHits
	t.sharedWaits += o.sharedWaits
	t.sharedStores += o.sharedStores
	t.sharedOvertaken += o.sharedOvertaken
	t.listed += o.listed
	t.several += o.several
	t.large += o.large
	t.forged += o.forged
	t.astray += o.astray
	t.clones += o.clones
}

// runSchedule runs one schedule inside a bubble.
func runSchedule(seed uint64, journal *journal) *schedule {
	r := rand.New(rand.NewPCG(seed, 0))
	run := &schedule{seed: seed, plan: newPlan(r), journal: journal}
	journal.start = time.Now()
	p := &run.plan
	if journal.hashed { // loads that ask for a slot at one instant get it in any order; see NoBreaker in join, too
		for c := range p.features {
			p.features[c].concurrentLoads = 0
		}
	}
	tolerated := p.maxStaleness
	if p.calm {
		tolerated = [2]time.Duration{roundTrip, roundTrip}
	}
	journal.log("plan", "%+v", *p)
	run.history = newHistory(journal, p.instances, p.keys, tolerated[:]...)
	run.bus = fakebus.New(fakebus.Options{
		Seed: seed, Instances: p.instances,
		ConnectTimeout: p.commandTimeout, CommandTimeout: p.commandTimeout, OutputLimit: p.outputLimit,
		ClearsLimit: p.clearsLimit,
		OnAccept: func(i int, body string, sent, accepted time.Time) {
			run.history.accept(i, body, sent.Sub(journal.start))
		},
	})
	defer run.bus.Close()
	run.bus.RefuseInfo(!p.info)
	for i := range p.instances {
		if err := run.join(i); err != nil {
			journal.fail("instance %d does not join: %v", i, err)
		}
	}
	if journal.failed() == "" {
		run.storm(r)
		run.rest()
	}
	run.leave(r)
	return run
}

// join starts instance i.
func (run *schedule) join(i int) error {
	in := &instance{number: i, name: fmt.Sprintf("i%d", i)}
	in.bus = newBus(run.bus.Instance(i), in.name+"/bus", run.journal)
	standIn := transport.StandIn{
		Bus: in.bus, Random: in.bus.in.Jitter,
		FullStaleness: true,
		NoBreaker:     run.journal.hashed,
	}
	if !run.plan.clones { // clones are resumed from one snapshot, with all their ids to come
		standIn.Instance[0] = byte(i + 1)
	}
	var err error
	in.bp, err = nearcache.Connect(transport.WithStandIn(context.Background(), standIn), nearcache.BackplaneOptions{
		MaxStaleness:           run.plan.maxStaleness[0],
		CloseTimeout:           closeTimeout,
		Logger:                 slog.New(slog.DiscardHandler),
		AllowDisconnectedStart: !run.plan.connectedStart,
		OnEvent:                func(nearcache.Event) { atomic.AddUint64(&run.totals.events, 1) },
	})
	if err != nil {
		return err
	}
	run.fleet = append(run.fleet, in)
	for c := range in.caches {
		if in.caches[c], err = nearcache.New(in.bp, run.cacheOptions(in, c)); err != nil {
			return err
		}
		if in.tells[c], err = nearcache.NewInvalidator[int](in.bp, run.history.caches[c].name); err != nil {
			return err
		}
	}
	return nil
}

func (run *schedule) cacheOptions(in *instance, c int) nearcache.Options[int, *item] {
	f := run.plan.features[c]
	o := nearcache.Options[int, *item]{
		Name: run.history.caches[c].name, Capacity: 100, TTL: run.plan.ttl[c], Load: run.loader(in, c),
		RefreshAfter: f.refreshAfter, StaleIfError: f.staleIfError, SoftTimeout: f.softTimeout,
		ErrorTTL: f.errorTTL, IdleTTL: f.idleTTL, LoadTimeout: f.loadTimeout, MaxConcurrentLoads: f.concurrentLoads,
	}
	if f.batch {
		o.LoadMany = run.loadMany(o.Load)
		if f.only {
			o.Load = nil
		}
	}
	if f.shared {
		o.Shared = &nearcache.SharedOptions[*item]{
			Codec: codec{}, TTL: f.sharedTTL, Timeout: f.sharedTimeout, LoadWait: f.sharedWait,
		}
	}
	if c == 0 {
		o.NotFoundTTL = run.plan.notFoundTTL
		o.Regions = func(key int, v *item) []string { return regionsOf(key, v.version) }
	} else {
		o.MaxStaleness = run.plan.maxStaleness[1]
	}
	return o
}

// codec has values in Redis say when they were loaded, too.
type codec struct{}

func (codec) Marshal(v *item) ([]byte, error) {
	return fmt.Appendf(nil, "%d %s %d", v.version, v.by, v.began), nil
}

func (codec) Unmarshal(data []byte) (*item, error) {
	v := &item{}
	_, err := fmt.Sscanf(string(data), "%d %s %d", &v.version, &v.by, &v.began)
	return v, err
}

var errLoad = errors.New("the source is not well")

// loadMany is a LoadMany that reads the source for one key after another.
func (run *schedule) loadMany(
	load func(context.Context, int) (*item, error),
) func(context.Context, []int) (map[int]*item, error) {
	return func(ctx context.Context, keys []int) (map[int]*item, error) {
		slices.Sort(keys) // refreshes are gathered in any order, within one instant
		got := map[int]*item{}
		var failed error
		for _, key := range keys {
			value, err := load(ctx, key)
			switch {
			case err == nil:
				got[key] = value
			case !errors.Is(err, nearcache.ErrNotFound):
				failed = err
			}
		}
		if ctx.Err() != nil { // at the moment of LoadTimeout, whether some are in time is a matter of chance
			return nil, ctx.Err()
		}
		return got, failed
	}
}

// loader reads the source at some moment between its beginning and its end.
func (run *schedule) loader(in *instance, c int) func(context.Context, int) (*item, error) {
	return func(ctx context.Context, key int) (*item, error) {
		began := run.journal.now()
		r := rand.New(rand.NewPCG(run.seed, mix(uint64(began)<<16+uint64(in.number)<<12+uint64(c)<<8+uint64(key))))
		took := between(r, 0, 5*time.Millisecond)
		switch n := r.IntN(1000); {
		case n < run.plan.slowLoads:
			took = between(r, run.plan.maxStaleness[c], 3*run.plan.maxStaleness[c])
		case n < 100:
			took = between(r, 0, 200*time.Millisecond)
		}
		before := time.Duration(r.Int64N(int64(took) + 1))
		if r.IntN(2) == 0 {
			before = min(before, 2*time.Millisecond) // the longer what it read grows old
		}
		fails := r.IntN(50) == 0
		pause(ctx, before)
		version, deleted := run.history.source(c, key)
		pause(ctx, took-before)
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case fails:
			return nil, errLoad
		case deleted:
			return nil, fmt.Errorf("%w: version %d", nearcache.ErrNotFound, version)
		}
		return &item{version: version, by: "load", began: began}, nil
	}
}

// pause waits for d or the end of ctx.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// storm lets readers, writers and faults loose on the fleet, until the end.
func (run *schedule) storm(r *rand.Rand) {
	run.end = run.journal.now() + stormLength
	var actors sync.WaitGroup
	start := func(in *instance, name string, stream int, mean time.Duration, step func(*rand.Rand)) {
		mine := rand.New(rand.NewPCG(run.seed, uint64(stream)))
		actors.Go(func() {
			for {
				time.Sleep(between(mine, 1, 2*mean))
				if in != nil {
					in.awaitResume(mine)
				}
				if run.journal.now() >= run.end || run.journal.failed() != "" {
					return
				}
				step(mine)
			}
		})
	}
	for i, in := range run.fleet {
		for n := range 2 {
			a := &actor{run: run, in: in, name: fmt.Sprintf("%s/r%d", in.name, n)}
			start(in, a.name, 100*i+n+10, run.plan.readPause, a.read)
		}
		for n := range 2 {
			a := &actor{run: run, in: in, name: fmt.Sprintf("%s/w%d", in.name, n)}
			start(in, a.name, 100*i+n+20, run.plan.writePause, a.write)
		}
	}
	if len(run.plan.faults) > 0 {
		start(nil, "faults", 1, run.plan.faultPause, func(r *rand.Rand) { run.fault(r, &actors) })
	}
	time.Sleep(run.end - run.journal.now())
	run.journal.log("faults", "all is healed")
	run.bus.Heal()
	run.bus.RefuseInfo(!run.plan.info)
	for _, in := range run.fleet {
		in.resume()
	}
	actors.Wait()
}

// rest waits until the fleet is as it should be without faults, and checks it.
func (run *schedule) rest() {
	if run.journal.failed() != "" {
		return
	}
	time.Sleep(roundTrip) // what was cut has been noticed by then
	limit := run.journal.now() + settleTime
	for i := 0; i < len(run.fleet); i++ {
		in := run.fleet[i]
		if s := in.bp.Stats(); s.State == nearcache.StateLive && s.Queued == 0 {
			continue
		} else if run.journal.now() > limit {
			run.journal.fail("%s is %v with %d queued, long after all was healed", in.name, s.State, s.Queued)
			return
		}
		time.Sleep(100 * time.Millisecond)
		i = -1 // all at one moment
	}
	// Whatever was accepted has arrived by now, or it is known that it has not.
	time.Sleep(run.plan.maxStaleness[0] + roundTrip)
	run.readAll()
	for _, in := range run.fleet {
		if state := in.bp.State(); state != nearcache.StateLive {
			run.journal.fail("%s is %v at rest", in.name, state)
		}
	}
	// From here on everybody says what the source says.
	run.history.queue(0, invalidation{all: true})
	bp := run.fleet[0].bp
	if err := bp.ClearAll(context.Background()); err != nil { // the connection was dead
		if err = bp.Flush(context.Background()); err != nil {
			run.journal.fail("Flush at rest returns %v", err)
		}
	}
	time.Sleep(roundTrip)
	run.readAll()
}

// readAll reads every item on every instance, in a fleet at rest.
func (run *schedule) readAll() {
	for _, in := range run.fleet {
		for c, cache := range in.caches {
			for key := range run.plan.keys {
				began := run.journal.now()
				value, err := cache.Get(context.Background(), key)
				for run.tolerates(c, err) {
					time.Sleep(time.Millisecond) // it may be kept
					began = run.journal.now()
					value, err = cache.Get(context.Background(), key)
				}
				if err != nil && !errors.Is(err, nearcache.ErrNotFound) {
					run.journal.fail("Get at rest returns %v", err)
				}
				run.history.readWithin(roundTrip, in.number, c, key, began, value, err == nil)
			}
		}
	}
}

// tolerates reports whether err is one that loads of cache c may end with.
func (run *schedule) tolerates(c int, err error) bool {
	return errors.Is(err, errLoad) ||
		run.plan.features[c].loadTimeout > 0 && errors.Is(err, context.DeadlineExceeded)
}

// leave closes the fleet, sometimes while something is wrong again.
func (run *schedule) leave(r *rand.Rand) {
	for _, in := range run.fleet {
		run.count(in)
	}
	run.totals.schedules, run.totals.reads = 1, uint64(run.history.reads)
	run.totals.accepted = uint64(run.history.accepted)
	run.totals.several, run.totals.large = uint64(run.history.several), uint64(run.history.large)
	if run.plan.clones {
		run.totals.clones = 1
	}
	wrong := r.IntN(3) == 0 && !run.plan.calm
	for _, in := range run.fleet {
		if wrong {
			in.bus.in.Partition()
			run.history.write(1, 0, false)
			run.history.queue(in.number, invalidation{cache: "b", keys: []string{"0"}})
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
			_ = in.caches[1].Remove(ctx, 0)
			cancel()
		}
		began := run.journal.now()
		err := in.bp.Close()
		took := run.journal.now() - began
		if took > closeTimeout+time.Second {
			run.journal.fail("%s took %v to close", in.name, took)
		}
		if wrong != (err != nil) || err != nil && !errors.Is(err, nearcache.ErrUnconfirmed) {
			run.journal.fail("%s closes with: %v", in.name, err)
		}
	}
}

// count adds up what an instance has seen.
func (run *schedule) count(in *instance) {
	t := &run.totals
	s := in.bp.Stats()
	t.gaps += s.Clears.Gaps()
	t.lost += s.Lease.Lost
	if uint64(in.bus.redials) < s.Lease.Lost {
		run.journal.fail("%s lost its lease %d times and redialled %d times", in.name, s.Lease.Lost, in.bus.redials)
	}
	if run.plan.calm && (s.Clears.Gaps() > 0 || s.Lease.Lost > 0 || s.Subscribed != 1) {
		run.journal.fail("%s met a fault in a calm schedule: %+v", in.name, s)
	}
	for _, c := range s.Caches {
		t.hits += c.Hits
		t.stale += c.Stale
		t.refreshes += c.Refreshes
		t.sharedHits += c.Shared.Hits
		t.sharedWaits += c.Shared.Waited
		t.sharedStores += c.Shared.Stored
		t.sharedOvertaken += c.Shared.Overtaken
		t.joins += c.Misses.Total() - min(c.Loads, c.Misses.Total())
	}
}

// halt pauses the instance's actors; resume lets them go on.
func (in *instance) halt() {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.resumed == nil {
		in.resumed = make(chan struct{})
	}
}

func (in *instance) resume() {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.resumed != nil {
		close(in.resumed)
		in.resumed = nil
	}
}

// awaitResume waits while the instance is paused, and then a little.
func (in *instance) awaitResume(r *rand.Rand) {
	in.mu.Lock()
	resumed := in.resumed
	in.mu.Unlock()
	if resumed != nil {
		<-resumed
		time.Sleep(between(r, 1, time.Millisecond))
	}
}
