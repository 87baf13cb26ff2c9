package systemtest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache"
)

// root is the module's root, as seen from here.
const root = "../.."

// patience is how long a test waits for what must happen. It bounds a failure,
// and says nothing about how fast anything is.
const patience = 20 * time.Second

// brief is a MaxStaleness that a test can wait for. On a machine that is busy a
// lease of that length may be lost for no other reason, so a test that uses it
// waits for what must come, and is content if it comes twice.
const brief = 300 * time.Millisecond

// leastBrief is for how long an item is served without a lease at least: up to a
// fifth of MaxStaleness is taken off.
const leastBrief = brief - brief/5

// impatient makes attempts at a dead connection end soon.
const impatient = ",connectTimeout=1000,asyncTimeout=1000"

var discard = slog.New(slog.DiscardHandler)

// eventually waits until condition holds.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !condition(); {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", patience, what)
		}
		time.Sleep(time.Millisecond)
	}
}

// within returns what call returns, or fails the test if it does not return.
func within[T any](t *testing.T, what string, call func() T) T {
	t.Helper()
	result := make(chan T, 1)
	go func() { result <- call() }()
	return receive(t, what, result)
}

// receive returns the next value from c, or fails the test if none comes.
func receive[T any](t *testing.T, what string, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatalf("not within %v: %s", patience, what)
		panic("unreachable")
	}
}

// testSeed returns the seed of a random test: NEARCACHE_TEST_SEED repeats a run,
// as far as the scheduler lets it.
func testSeed(t *testing.T) uint64 {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if text, set := os.LookupEnv("NEARCACHE_TEST_SEED"); set {
		n, err := strconv.ParseUint(text, 10, 64)
		require.NoError(t, err)
		seed = n
	}
	t.Logf("NEARCACHE_TEST_SEED=%d", seed)
	return seed
}

// source is what the caches load from: the version of each item. Every key has
// version 1 until it is written.
type source struct {
	mu       sync.Mutex // guards versions
	versions map[string]int
}

func newSource() *source { return &source{versions: map[string]int{}} }

func (s *source) load(_ context.Context, key string) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.versions[key] + 1, nil
}

// write changes items.
func (s *source) write(keys ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, key := range keys {
		s.versions[key]++
	}
}

func (s *source) version(key string) int {
	v, _ := s.load(context.Background(), key)
	return v
}

// regionsOf returns the regions in a key: "red,blue/1" is in red and in blue.
func regionsOf(key string, _ int) []string {
	regions, _, _ := strings.Cut(key, "/")
	if regions == "" {
		return nil
	}
	return strings.Split(regions, ",")
}

// loadFunc loads the version of an item.
type loadFunc func(ctx context.Context, key string) (int, error)

// countedLoads counts the loads of each key.
type countedLoads struct {
	*source
	mu     sync.Mutex // guards counts
	counts map[string]int
}

func newCountedLoads() *countedLoads {
	return &countedLoads{source: newSource(), counts: map[string]int{}}
}

func (l *countedLoads) load(ctx context.Context, key string) (int, error) {
	l.mu.Lock()
	l.counts[key]++
	l.mu.Unlock()
	return l.source.load(ctx, key)
}

func (l *countedLoads) count(key string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.counts[key]
}

// heldLoads is a source that answers when the test says so.
type heldLoads struct {
	asked chan chan int // each load sends where it waits for its version
}

func newHeldLoads() *heldLoads { return &heldLoads{asked: make(chan chan int)} }

func (l *heldLoads) load(context.Context, string) (int, error) {
	version := make(chan int)
	l.asked <- version
	return <-version, nil
}

// heldGet is a Get whose load has begun.
type heldGet struct {
	version chan<- int
	got     <-chan int
}

// startGet starts a Get and waits until it loads.
func (l *heldLoads) startGet(t *testing.T, in *instance, key string) heldGet {
	t.Helper()
	got := make(chan int, 1)
	go func() {
		v, _ := in.items.Get(context.Background(), key)
		got <- v
	}()
	return heldGet{receive(t, "the Get loads", l.asked), got}
}

// end lets the load end and checks that its Get returns what it loaded.
func (g heldGet) end(t *testing.T, version int) {
	t.Helper()
	g.version <- version
	require.Equal(t, version, receive(t, "the Get returns", g.got))
}

// instance is an instance of a service, as far as its caches go.
type instance struct {
	bp      *nearcache.Backplane
	items   *nearcache.Cache[string, int]
	numbers *nearcache.Cache[int64, int64] // of another key type; each is its own value

	pauses, servedOld atomic.Int64 // see watch
}

// watch reads a key all the time for as long as the process lives. It counts the
// pauses of more than brief between two reads, and how many of them ended with a
// read of the version from before.
func (in *instance) watch(key string) {
	version, ended := 0, time.Now()
	for {
		began := time.Now()
		v, held := in.items.Peek(key)
		if began.Sub(ended) > brief {
			in.pauses.Add(1)
			if held && v == version {
				in.servedOld.Add(1)
			}
		}
		version, ended = v, time.Now()
	}
}

// join starts an instance that ends with the test.
func join(t *testing.T, load loadFunc, connection string) *instance {
	t.Helper()
	return joinWith(t, load, nearcache.BackplaneOptions{RedisConnectionString: connection})
}

func joinWith(t *testing.T, load loadFunc, options nearcache.BackplaneOptions) *instance {
	t.Helper()
	if options.Logger == nil {
		options.Logger = discard
	}
	if options.CloseTimeout == 0 {
		options.CloseTimeout = 100 * time.Millisecond // in many tests Redis is gone by then
	}
	in, err := newInstance(context.Background(), load, options)
	require.NoError(t, err)
	t.Cleanup(func() { _ = within(t, "Close returns", in.bp.Close) })
	return in
}

func newInstance(ctx context.Context, load loadFunc, options nearcache.BackplaneOptions) (*instance, error) {
	bp, err := nearcache.Connect(ctx, options)
	if err != nil {
		return nil, err
	}
	items, err1 := nearcache.New(bp, nearcache.Options[string, int]{Name: "items", Load: load, Regions: regionsOf})
	numbers, err2 := nearcache.New(bp, nearcache.Options[int64, int64]{
		Name: "numbers",
		Load: func(_ context.Context, n int64) (int64, error) { return n, nil },
	})
	if err := errors.Join(err1, err2); err != nil {
		return nil, errors.Join(err, bp.Close())
	}
	return &instance{bp: bp, items: items, numbers: numbers}, nil
}

// member is an instance in this process or in another.
type member interface {
	// do runs an operation on the items, or on all caches.
	do(op string, args ...string) answer
}

// answer is what an operation returned.
type answer struct {
	Version int
	Held    bool
	Error   string
	Stats   nearcache.BackplaneStats

	Pauses, ServedOld int64
}

func (in *instance) do(op string, args ...string) (a answer) {
	ctx := context.Background()
	number := func(i int) int {
		n, err := strconv.Atoi(args[i])
		if err != nil {
			panic(err)
		}
		return n
	}
	var err error
	switch op {
	case "get":
		a.Version, err = in.items.Get(ctx, args[0])
	case "peek":
		a.Version, a.Held = in.items.Peek(args[0])
	case "watch":
		go in.watch(args[0])
	case "watched":
		a.Pauses, a.ServedOld = in.pauses.Load(), in.servedOld.Load()
	case "remove":
		err = in.items.Remove(ctx, args...)
	case "set":
		err = in.items.Set(ctx, args[0], number(1))
	case "update":
		a.Version, err = in.items.Update(ctx, args[0], func(context.Context) (int, error) { return number(1), nil })
	case "clear-region":
		err = in.items.ClearRegion(ctx, args...)
	case "clear":
		err = in.items.Clear(ctx)
	case "get-number":
		_, err = in.numbers.Get(ctx, int64(number(0)))
	case "peek-number":
		_, a.Held = in.numbers.Peek(int64(number(0)))
	case "remove-number":
		err = in.numbers.Remove(ctx, int64(number(0)))
	case "clear-all":
		err = in.bp.ClearAll(ctx)
	case "stats":
		a.Stats = in.bp.Stats()
	case "close":
		err = in.bp.Close()
	default:
		err = fmt.Errorf("unknown operation %q", op)
	}
	if err != nil {
		a.Error = err.Error()
	}
	return a
}

// held reports whether the instance has the item in memory.
func (in *instance) held(key string) bool {
	_, held := in.items.Peek(key)
	return held
}

// get gets items and checks that none of it fails.
func (in *instance) get(t *testing.T, keys ...string) {
	t.Helper()
	for _, key := range keys {
		_, err := in.items.Get(context.Background(), key)
		require.NoError(t, err)
	}
}

// live waits until the instances are subscribed.
func live(t *testing.T, instances ...*instance) {
	t.Helper()
	for _, in := range instances {
		eventually(t, "the instance is live", func() bool { return in.bp.State() == nearcache.StateLive })
	}
}

// inState waits until the instance is in a state.
func inState(t *testing.T, in *instance, state nearcache.State) {
	t.Helper()
	eventually(t, "the instance's state is "+state.String(), func() bool { return in.bp.State() == state })
}

// barrier waits until the members, which are all there are on their channel, have
// handled every message that Redis has accepted so far. It sends one more, which
// is nobody's and so changes nothing, and waits until it was counted: Redis keeps
// the order, and so does each subscriber.
func barrier[M member](t *testing.T, raw *redis.Client, members ...M) {
	t.Helper()
	ctx := context.Background()
	channel := members[0].do("stats").Stats.Channel
	eventually(t, "all members are subscribed", func() bool {
		return raw.PubSubNumSub(ctx, channel).Val()[channel] == int64(len(members))
	})
	before := make([]uint64, len(members))
	for i, m := range members {
		before[i] = m.do("stats").Stats.Foreign
	}
	require.NoError(t, raw.Publish(ctx, channel, "barrier").Err())
	for i, m := range members {
		eventually(t, "the barrier has arrived", func() bool { return m.do("stats").Stats.Foreign > before[i] })
	}
}
