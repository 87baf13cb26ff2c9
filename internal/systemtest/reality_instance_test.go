package systemtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/rpc"
	"os"
	"strconv"
	"sync"
	"time"

	"go.uber.org/goleak"

	"github.com/nearcache/nearcache"
)

// realityVariable makes a child an instance of a reality run. It holds the
// instance's number and the run's seed; sourceVariable holds the run's address.
const realityVariable = "NEARCACHE_TEST_REALITY"

const (
	realityInstances = 3

	itemsPerCache   = 150
	regionsPerCache = 10
	realityBound    = 1500 * time.Millisecond // MaxStaleness, but for cache "short"
	shortBound      = 600 * time.Millisecond
	reportInterval  = 200 * time.Millisecond
)

// realityBounds are the caches of each instance, and their MaxStaleness.
func realityBounds() map[string]time.Duration {
	return map[string]time.Duration{"long": realityBound, "short": shortBound}
}

// Some versions of an item say that there is none.
func notFound(version int64) bool { return version%8 == 0 }

// realityInstance is an instance of a service that reads and writes all it can.
type realityInstance struct {
	number int
	run    *rpc.Client
	bp     *nearcache.Backplane
	caches map[string]*nearcache.Cache[int, int64]

	writers, rest sync.WaitGroup // the goroutines that write, and all others
	stopWriting   chan struct{}
	stop          chan struct{}

	mu       sync.Mutex // guards everything below
	notFound map[item]int64
	readings map[item]map[int64]*reading
	pending  []int64 // writes whose invalidation is not confirmed
	accepted []acceptance
	failure  error // of what may not fail
}

// runRealityInstance is the main function of a child in a reality run. It ends
// when its input does.
func runRealityInstance(connection string) (exitCode int) {
	var number int
	var seed uint64
	answers := json.NewEncoder(os.Stdout)
	_, err := fmt.Sscanf(os.Getenv(realityVariable), "%d %d", &number, &seed)
	in := &realityInstance{
		number: number, caches: map[string]*nearcache.Cache[int, int64]{},
		stopWriting: make(chan struct{}), stop: make(chan struct{}),
		notFound: map[item]int64{}, readings: map[item]map[int64]*reading{},
	}
	if err == nil {
		err = in.start(connection, seed)
	}
	if err != nil {
		_ = answers.Encode(answer{Error: err.Error()})
		return 1
	}
	_ = answers.Encode(answer{})
	for commands := json.NewDecoder(os.Stdin); ; {
		var c command
		if err := commands.Decode(&c); err != nil {
			break
		}
		_ = answers.Encode(in.do(c.Op))
	}
	if err := goleak.Find(); err != nil {
		_, _ = fmt.Fprintln(os.Stderr, err)
		return 2
	}
	return 0
}

func (in *realityInstance) start(connection string, seed uint64) (err error) {
	if in.run, err = rpc.Dial("tcp", os.Getenv(sourceVariable)); err != nil {
		return err
	}
	in.bp, err = nearcache.Connect(context.Background(), nearcache.BackplaneOptions{
		RedisConnectionString: connection,
		MaxStaleness:          realityBound,
		Logger:                slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		return err
	}
	for name, bound := range realityBounds() {
		o := nearcache.Options[int, int64]{
			Name: name, MaxStaleness: bound, NotFoundTTL: nearcache.NoExpiry, TTL: nearcache.NoExpiry,
			Regions: func(key int, _ int64) []string { return []string{region(key)} },
			Load: func(ctx context.Context, key int) (int64, error) {
				return in.load(ctx, item{name, key})
			},
		}
		if name == "short" {
			o.Eviction, o.Capacity = nearcache.LRU, itemsPerCache*3/4
			o.TTL, o.IdleTTL, o.RefreshAfter = 2*bound, bound, bound/4
			o.StaleIfError, o.SoftTimeout, o.MaxConcurrentLoads = time.Hour, 5*time.Millisecond, 8
			o.Shared = &nearcache.SharedOptions[int64]{TTL: time.Minute, Timeout: bound / 6, LoadWait: bound / 2}
			o.NotFoundTTL = 0 // a not-found does not say of which version it is
		}
		if in.caches[name], err = nearcache.New(in.bp, o); err != nil {
			return errors.Join(err, in.bp.Close())
		}
	}
	loop := func(group *sync.WaitGroup, stop chan struct{}, i int, step func(*rand.Rand)) {
		r := rand.New(rand.NewPCG(seed, uint64(100*in.number+i)))
		group.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					step(r)
				}
			}
		})
	}
	for i := range 12 {
		loop(&in.rest, in.stop, i, in.readSome)
	}
	for i := range 2 {
		loop(&in.writers, in.stopWriting, 20+i, in.write)
	}
	loop(&in.rest, in.stop, 30, func(*rand.Rand) {
		time.Sleep(20 * time.Millisecond)
		in.flush(time.Second)
	})
	loop(&in.rest, in.stop, 31, func(*rand.Rand) {
		time.Sleep(reportInterval)
		in.report()
	})
	return nil
}

func region(key int) string { return strconv.Itoa(key % regionsPerCache) }

// fail remembers the first failure of what may not fail.
func (in *realityInstance) fail(err error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.failure == nil {
		in.failure = err
	}
}

// load reads the source, now and then for longer than MaxStaleness.
func (in *realityInstance) load(ctx context.Context, i item) (version int64, err error) {
	latency := time.Duration(rand.Int64N(int64(2 * time.Millisecond)))
	switch n := rand.IntN(1000); {
	case n < 3:
		latency = time.Duration(rand.Int64N(int64(2 * realityBound)))
	case n < 30:
		latency = time.Duration(rand.Int64N(int64(200 * time.Millisecond)))
	}
	early := rand.Int64N(int64(latency) + 1)
	select {
	case <-time.After(time.Duration(early)):
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	call := in.run.Go("Run.Load", LoadRequest{i}, new(int64), make(chan *rpc.Call, 1))
	select {
	case <-call.Done:
		version, err = *call.Reply.(*int64), call.Error
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	if err != nil {
		in.fail(fmt.Errorf("load: %w", err))
		return 0, err
	}
	if notFound(version) {
		in.mu.Lock()
		in.notFound[i] = max(in.notFound[i], version)
		in.mu.Unlock()
		err = fmt.Errorf("version %d: %w", version, nearcache.ErrNotFound)
	}
	select {
	case <-time.After(latency - time.Duration(early)):
		return version, err
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// pick chooses a cache and one of its items, some more often than others.
func pick(r *rand.Rand) item {
	return item{[]string{"long", "short"}[r.IntN(2)], min(r.IntN(itemsPerCache), r.IntN(2*itemsPerCache))}
}

// readSome reads some items, and now and then does not wait for them.
func (in *realityInstance) readSome(r *rand.Rand) {
	for range 20 {
		ctx, cancel := context.WithCancel(context.Background())
		if r.IntN(50) == 0 {
			cancel()
			ctx, cancel = context.WithTimeout(context.Background(), time.Millisecond)
		}
		i := pick(r)
		begun := clock() // before the read: it may be judged as older than it is, never as newer
		version, err := in.caches[i.Cache].Get(ctx, i.Key)
		cancel()
		in.note(i, begun, version, err)
	}
	time.Sleep(time.Duration(r.Int64N(int64(2 * time.Millisecond))))
}

func (in *realityInstance) note(i item, begun, version int64, err error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	switch {
	case errors.Is(err, nearcache.ErrNotFound):
		// A kept not-found does not say which version it is: the newest that was
		// loaded, or an older one. It is judged as the newest.
		version = in.notFound[i]
	case errors.Is(err, context.DeadlineExceeded):
		return
	case err != nil:
		if in.failure == nil {
			in.failure = fmt.Errorf("get: %w", err)
		}
		return
	}
	seen := in.readings[i]
	if seen == nil {
		seen = map[int64]*reading{}
		in.readings[i] = seen
	}
	if seen[version] == nil {
		seen[version] = &reading{Item: i, Version: version, First: begun, Last: begun}
	}
	now := seen[version]
	now.Count++
	now.First, now.Last = min(now.First, begun), max(now.Last, begun)
}

// writer returns who may write now: in one second out of three nobody (-1), in one
// a single instance, in one everyone (-2). A message that is missed is not always
// found to be missing by the next one then, and a reconnect can find that nothing is.
func writer() (instance int) {
	second := int(clock() / int64(time.Second))
	switch second % 3 {
	case 0:
		return -1
	case 1:
		return second / 3 % realityInstances
	}
	return -2
}

// write writes the source and then invalidates what it wrote.
func (in *realityInstance) write(r *rand.Rand) {
	time.Sleep(time.Duration(r.Int64N(int64(80 * time.Millisecond))))
	if w := writer(); w != in.number && w != -2 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if r.IntN(10) == 0 {
		cancel() // the caller is gone, and the write is done all the same
	}
	i := pick(r)
	cache := in.caches[i.Cache]
	var done Changed
	change := func(kind string, items ...item) {
		if err := in.run.Call("Run.Change", ChangeRequest{in.number, kind, items}, &done); err != nil {
			in.fail(fmt.Errorf("change: %w", err))
		}
	}
	var err error
	switch n := r.IntN(1000); {
	case n < 600:
		other := item{i.Cache, r.IntN(itemsPerCache)}
		change("Remove", i, other)
		err = cache.Remove(ctx, i.Key, other.Key)
	case n < 950:
		_, err = cache.Update(ctx, i.Key, func(context.Context) (int64, error) {
			change("Update", i)
			if version := done.Versions[0]; !notFound(version) {
				return version, nil
			}
			return 0, errGone
		})
		if errors.Is(err, errGone) {
			err = nearcache.ErrUnconfirmed // it may be, Update does not say
		}
	case n < 990:
		change("ClearRegion", allOf(i.Cache, i.Key%regionsPerCache, regionsPerCache)...)
		err = cache.ClearRegion(ctx, region(i.Key))
	case n < 995:
		change("Clear", allOf(i.Cache, 0, 1)...)
		err = cache.Clear(ctx)
	default:
		change("ClearAll", append(allOf("long", 0, 1), allOf("short", 0, 1)...)...)
		err = in.bp.ClearAll(ctx)
	}
	at := clock() // after the answer: Redis had accepted it by then

	in.mu.Lock()
	defer in.mu.Unlock()
	switch {
	case err == nil:
		in.accepted = append(in.accepted, acceptance{done.Write, at})
	case errors.Is(err, nearcache.ErrUnconfirmed):
		in.pending = append(in.pending, done.Write)
	case in.failure == nil:
		in.failure = fmt.Errorf("write: %w", err)
	}
}

// errGone is the result of a write that removes an item from the source.
var errGone = errors.New("gone")

// allOf returns every so many of a cache's items.
func allOf(cache string, first, step int) (items []item) {
	for key := first; key < itemsPerCache; key += step {
		items = append(items, item{cache, key})
	}
	return items
}

// flush waits for the confirmation of what is unconfirmed.
func (in *realityInstance) flush(limit time.Duration) {
	in.mu.Lock()
	pending := in.pending
	in.pending = nil
	in.mu.Unlock()
	if len(pending) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	err := in.bp.Flush(ctx)
	at := clock()
	in.mu.Lock()
	defer in.mu.Unlock()
	if err != nil {
		in.pending = append(in.pending, pending...)
		return
	}
	for _, id := range pending {
		in.accepted = append(in.accepted, acceptance{id, at})
	}
}

// report tells the run what has happened since the last report.
func (in *realityInstance) report() {
	news := Report{By: in.number, Stats: in.bp.Stats()}
	in.mu.Lock()
	news.Accepted, in.accepted = in.accepted, nil
	for _, seen := range in.readings {
		for _, r := range seen {
			news.Readings = append(news.Readings, *r)
		}
	}
	clear(in.readings)
	in.mu.Unlock()
	if err := in.run.Call("Run.Report", news, new(bool)); err != nil {
		in.fail(fmt.Errorf("report: %w", err))
	}
}

// do obeys the run.
func (in *realityInstance) do(op string) (a answer) {
	switch op {
	case "settle": // write no more, and have everything confirmed
		close(in.stopWriting)
		in.writers.Wait()
		in.flush(patience / 2)
	case "check": // count the items that are not what the source says
		for cache := range in.caches {
			for _, i := range allOf(cache, 0, 1) {
				var want int64
				if err := in.run.Call("Run.Load", LoadRequest{i}, &want); err != nil {
					in.fail(err)
				}
				got, err := in.caches[cache].Get(context.Background(), i.Key)
				if errors.Is(err, nearcache.ErrNotFound) != notFound(want) || err == nil && got != want {
					a.Version++
				}
			}
		}
	case "stop":
		close(in.stop)
		in.rest.Wait()
		in.report()
		in.fail(errors.Join(in.bp.Close(), in.run.Close()))
	}
	a.Stats = in.bp.Stats()
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.failure != nil {
		a.Error = in.failure.Error()
	}
	return a
}
