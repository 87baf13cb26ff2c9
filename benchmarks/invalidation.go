package main

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/nearcache/nearcache"
	"github.com/nearcache/nearcache/benchmarks/internal/result"
	"github.com/nearcache/nearcache/benchmarks/internal/subject"
)

const (
	invalidationSection = "invalidation"

	latencyCase    = "latency"
	throughputCase = "throughput"
	appliedCase    = "applied"

	p50      = "p50 µs"
	p99      = "p99 µs"
	persec   = "per second"
	publish  = "PUBLISH"
	message  = "a message of some forty bytes, as ours is"
	giveUpIn = 10 * time.Second
)

func measureInvalidation(ctx context.Context, b *bench) error {
	if b.redis == nil {
		return errNoRedis
	}
	if err := measureLatency(ctx, b); err != nil {
		return err
	}
	if err := measureThroughput(ctx, b); err != nil {
		return err
	}
	return measureApplied(ctx, b)
}

// pair is a writer and a reader on one Redis.
type pair struct {
	name string

	// shoot changes an item at one end, and returns how long after that the other
	// end stopped serving the old version.
	shoot func() (time.Duration, error)
	close func()
}

// measureLatency lets the pairs take turns, shot by shot.
func measureLatency(ctx context.Context, b *bench) error {
	b.progress("invalidation: latency")
	shots := 200
	if b.quick {
		shots = 50
	}
	var pairs []*pair
	defer func() {
		for _, p := range pairs {
			p.close()
		}
	}()
	for _, open := range []func(string) (*pair, error){nearcachePair, publishPair, rueidisPair, trackingPair} {
		p, err := open(b.address())
		if err != nil {
			return err
		}
		pairs = append(pairs, p)
	}
	pairs = slices.DeleteFunc(pairs, func(p *pair) bool {
		unwanted := !subject.Matches(p.name, b.subjects) && p.name != publish
		if unwanted {
			p.close()
		}
		return unwanted
	})
	for range b.rounds {
		took := make([][]float64, len(pairs))
		for shot := range shots {
			for _, i := range rotated(len(pairs), shot) {
				if err := ctx.Err(); err != nil {
					return err
				}
				d, err := pairs[i].shoot()
				if err != nil {
					return fmt.Errorf("%s: %w", pairs[i].name, err)
				}
				took[i] = append(took[i], float64(d)/1e3)
			}
		}
		for i, p := range pairs {
			addQuantiles(b.file, result.Key{Section: invalidationSection, Case: latencyCase, Subject: p.name}, took[i])
		}
	}
	return nil
}

// nearcachePair removes an item, and looks for it in another instance's memory.
func nearcachePair(address string) (*pair, error) {
	ctx := context.Background()
	writer, err := instance(address, "latency", 0)
	if err != nil {
		return nil, err
	}
	reader, err := instance(address, "latency", 0)
	if err != nil {
		writer.close()
		return nil, err
	}
	return &pair{
		name:  subject.Nearcache,
		close: func() { writer.close(); reader.close() },
		shoot: func() (time.Duration, error) {
			if _, err := reader.cache.Get(ctx, 1); err != nil {
				return 0, err
			}
			start := time.Now()
			if err := writer.cache.Remove(ctx, 1); err != nil {
				return 0, err
			}
			return until(start, func() bool { _, held := reader.cache.Peek(1); return !held })
		},
	}, nil
}

// publishPair is what Redis itself takes, from the call to another client.
func publishPair(address string) (*pair, error) {
	client := redis.NewClient(&redis.Options{Addr: address})
	received, stop, err := subscribe(client)
	if err != nil {
		return nil, err
	}
	ctx := context.Background()
	return &pair{
		name:  publish,
		close: func() { stop(); _ = client.Close() },
		shoot: func() (time.Duration, error) {
			before := received.Load()
			start := time.Now()
			if err := client.Publish(ctx, channel, message).Err(); err != nil {
				return 0, err
			}
			return until(start, func() bool { return received.Load() > before })
		},
	}, nil
}

const channel = "bench-raw"

// subscribe counts the messages of the channel.
func subscribe(client *redis.Client) (received *atomic.Int64, stop func(), err error) {
	ctx := context.Background()
	subscription := client.Subscribe(ctx, channel)
	if _, err := subscription.Receive(ctx); err != nil {
		_ = subscription.Close()
		return nil, nil, err
	}
	received = &atomic.Int64{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			if _, err := subscription.Receive(ctx); err != nil {
				return
			}
			received.Add(1)
		}
	}()
	return received, func() { _ = subscription.Close(); <-done }, nil
}

// until returns how long after start it was so, to within one question.
func until(start time.Time, so func() bool) (time.Duration, error) {
	for {
		asked := time.Now()
		if so() {
			return asked.Sub(start), nil
		}
		if asked.Sub(start) > giveUpIn {
			return 0, fmt.Errorf("not seen within %v", giveUpIn)
		}
		runtime.Gosched()
	}
}

// node is one instance of nearcache.
type node struct {
	bp    *nearcache.Backplane
	cache *nearcache.Cache[int64, *subject.Value]
}

func (n node) close() { _ = n.bp.Close() }

// instance joins the instances of that cache; capacity 0 is the default.
func instance(address, name string, capacity int) (node, error) {
	bp, err := subject.Join(address)
	if err != nil {
		return node{}, err
	}
	value := item(int64(1))
	cache, err := nearcache.New(bp, nearcache.Options[int64, *subject.Value]{
		Name: name, Capacity: capacity, TTL: ttl,
		Load: func(context.Context, int64) (*subject.Value, error) { return value, nil },
	})
	if err != nil {
		_ = bp.Close()
		return node{}, err
	}
	return node{bp, cache}, nil
}

func addQuantiles(f *result.File, key result.Key, took []float64) {
	slices.Sort(took)
	key.Metric = p50
	f.Add(key, took[len(took)/2])
	key.Metric = p99
	f.Add(key, took[len(took)*99/100])
}

// measureThroughput lets 64 goroutines write, and wait for each write.
func measureThroughput(ctx context.Context, b *bench) error {
	b.progress("invalidation: throughput")
	const writers = 64
	sender, err := instance(b.address(), "throughput", 0)
	if err != nil {
		return err
	}
	defer sender.close()
	receiver, err := instance(b.address(), "throughput", 0)
	if err != nil {
		return err
	}
	defer receiver.close()
	client := redis.NewClient(&redis.Options{Addr: b.address(), PoolSize: writers})
	defer client.Close()
	_, stop, err := subscribe(client)
	if err != nil {
		return err
	}
	defer stop()
	ways := []struct {
		name  string
		write func(i int64) error
	}{
		{subject.Nearcache, func(i int64) error { return sender.cache.Remove(ctx, i) }},
		{publish, func(int64) error { return client.Publish(ctx, channel, message).Err() }},
	}
	for round := range b.fewer() {
		for _, i := range rotated(len(ways), round) {
			rate, err := writesPerSecond(writers, 20*b.turn, ways[i].write)
			if err != nil {
				return fmt.Errorf("%s: %w", ways[i].name, err)
			}
			b.file.Add(result.Key{Section: invalidationSection, Case: throughputCase, Subject: ways[i].name, Metric: persec}, rate)
		}
	}
	return nil
}

func writesPerSecond(writers int, d time.Duration, write func(int64) error) (float64, error) {
	var next, done atomic.Int64
	var failed atomic.Pointer[error]
	var all sync.WaitGroup
	start := time.Now()
	for range writers {
		all.Go(func() {
			for time.Since(start) < d {
				if err := write(next.Add(1)); err != nil {
					failed.Store(&err)
					return
				}
				done.Add(1)
			}
		})
	}
	all.Wait()
	if err := failed.Load(); err != nil {
		return 0, *err
	}
	return float64(done.Load()) / time.Since(start).Seconds(), nil
}

// measureApplied has one instance remove what another holds, a thousand keys a
// call, and takes the time until the other has applied them all.
func measureApplied(ctx context.Context, b *bench) error {
	held, batch := 1_000_000, 1000
	if b.quick {
		held = 100_000
	}
	b.progress("invalidation: %d removals applied", held)
	const name = "applied"
	sender, err := instance(b.address(), name, 0)
	if err != nil {
		return err
	}
	defer sender.close()
	receiver, err := instance(b.address(), name, held+held/2) // so that all are held, whatever shards it has
	if err != nil {
		return err
	}
	defer receiver.close()
	keys := shuffled[int64](held)
	for range b.fewer() {
		for _, key := range keys {
			if _, err := receiver.cache.Get(ctx, key); err != nil {
				return err
			}
		}
		runtime.GC()
		rate, err := removalsPerSecond(ctx, sender, receiver, keys, batch)
		if err != nil {
			return err
		}
		b.file.Add(result.Key{Section: invalidationSection, Case: appliedCase, Subject: subject.Nearcache, Metric: persec}, rate)
	}
	return nil
}

// removalsPerSecond has four goroutines send, so that the receiver need not wait.
func removalsPerSecond(ctx context.Context, sender, receiver node, keys []int64, batch int) (float64, error) {
	if n := receiver.cache.Len(); n != len(keys) {
		return 0, fmt.Errorf("%d of %d keys are held", n, len(keys))
	}
	applied := func() uint64 { return receiver.cache.Stats().Invalidations.Keys }
	before := applied()
	batches := slices.Collect(slices.Chunk(keys, batch))
	var next atomic.Int64
	var failed atomic.Pointer[error]
	start := time.Now()
	for range 4 {
		go func() {
			for i := next.Add(1) - 1; i < int64(len(batches)); i = next.Add(1) - 1 {
				if err := sender.cache.Remove(ctx, batches[i]...); err != nil {
					failed.Store(&err)
					return
				}
			}
		}()
	}
	for applied()-before < uint64(len(keys)) {
		if err := failed.Load(); err != nil {
			return 0, *err
		}
		if time.Since(start) > time.Minute {
			return 0, fmt.Errorf("%d of %d removals were applied in a minute", applied()-before, len(keys))
		}
		time.Sleep(time.Millisecond)
	}
	took := time.Since(start)
	if n := receiver.cache.Len(); n != 0 {
		return 0, fmt.Errorf("%d keys are still held", n)
	}
	return float64(len(keys)) / took.Seconds(), nil
}
