package benchmarks

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os/exec"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/nearcache/nearcache"
	"github.com/nearcache/nearcache/benchmarks/internal/measure"
)

// startRedis returns the address of a Redis for one benchmark.
func startRedis(b *testing.B) string {
	b.Helper()
	server, err := measure.StartServer()
	if errors.Is(err, exec.ErrNotFound) {
		b.Log("redis-server is not installed: measuring with miniredis, which is slower")
		return miniredis.RunT(b).Addr()
	}
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(server.Kill)
	return server.Address
}

func join(b *testing.B, address string) *nearcache.Cache[int64, *value] {
	b.Helper()
	bp, err := nearcache.Connect(context.Background(), nearcache.BackplaneOptions{
		RedisConnectionString: address,
		Logger:                slog.New(slog.DiscardHandler),
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = bp.Close() })
	cache, err := nearcache.New(bp, nearcache.Options[int64, *value]{
		Name: "bench",
		Load: func(_ context.Context, key int64) (*value, error) { return &value{int(key)}, nil },
	})
	if err != nil {
		b.Fatal(err)
	}
	return cache
}

// BenchmarkEffect is the time from a call to Remove until the item is gone from
// another instance, against the time from a call to PUBLISH until a subscriber
// has the message. The two take turns, on one Redis.
func BenchmarkEffect(b *testing.B) {
	ctx := context.Background()
	address := startRedis(b)
	writer, reader := join(b, address), join(b, address)

	client := redis.NewClient(&redis.Options{Addr: address})
	defer client.Close()
	subscription := client.Subscribe(ctx, "raw")
	defer subscription.Close()
	if _, err := subscription.Receive(ctx); err != nil {
		b.Fatal(err)
	}
	var received atomic.Int64
	go func() {
		for {
			if _, err := subscription.Receive(ctx); err != nil {
				return
			}
			received.Add(1)
		}
	}()

	var remove, publish []time.Duration
	sent := int64(0)
	for b.Loop() {
		if _, err := reader.Get(ctx, 1); err != nil {
			b.Fatal(err)
		}
		start := time.Now()
		if err := writer.Remove(ctx, 1); err != nil {
			b.Fatal(err)
		}
		for held := true; held; _, held = reader.Peek(1) {
			runtime.Gosched()
		}
		remove = append(remove, time.Since(start))

		start = time.Now()
		if err := client.Publish(ctx, "raw", "a message of some forty bytes, as ours is").Err(); err != nil {
			b.Fatal(err)
		}
		for sent++; received.Load() < sent; {
			runtime.Gosched()
		}
		publish = append(publish, time.Since(start))
	}
	for _, m := range []struct {
		name  string
		times []time.Duration
	}{{"remove", remove}, {"publish", publish}} {
		slices.Sort(m.times)
		b.ReportMetric(float64(m.times[len(m.times)/2].Nanoseconds()), m.name+"-p50-ns")
		b.ReportMetric(float64(m.times[len(m.times)*99/100].Nanoseconds()), m.name+"-p99-ns")
	}
	b.ReportMetric(float64(remove[len(remove)/2])/float64(publish[len(publish)/2]), "p50-ratio")
}

// BenchmarkThroughput is 64 goroutines that each Remove a key and wait, against
// 64 that each PUBLISH a message and wait. Another instance, or a subscriber,
// receives them all.
func BenchmarkThroughput(b *testing.B) {
	const writers = 64
	ctx := context.Background()
	run := func(b *testing.B, write func(i int64) error) {
		var next atomic.Int64
		var all sync.WaitGroup
		b.ResetTimer()
		for range writers {
			all.Go(func() {
				for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
					if err := write(i); err != nil {
						b.Error(err)
						return
					}
				}
			})
		}
		all.Wait()
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "writes/s")
	}
	b.Run("Remove", func(b *testing.B) {
		address := startRedis(b)
		writer := join(b, address)
		join(b, address)
		run(b, func(i int64) error { return writer.Remove(ctx, i) })
	})
	b.Run("PUBLISH", func(b *testing.B) {
		address := startRedis(b)
		client := redis.NewClient(&redis.Options{Addr: address, PoolSize: writers})
		defer client.Close()
		subscription := client.Subscribe(ctx, "raw")
		defer subscription.Close()
		if _, err := subscription.Receive(ctx); err != nil {
			b.Fatal(err)
		}
		go func() {
			for {
				if _, err := subscription.Receive(ctx); err != nil {
					return
				}
			}
		}()
		run(b, func(i int64) error {
			return client.Publish(ctx, "raw", fmt.Sprintf("a message of some forty bytes, %d", i)).Err()
		})
	})
}
