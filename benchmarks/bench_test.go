package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nearcache/nearcache"
	"github.com/nearcache/nearcache/benchmarks/internal/drive"
	"github.com/nearcache/nearcache/benchmarks/internal/measure"
	"github.com/nearcache/nearcache/benchmarks/internal/subject"
	"github.com/nearcache/nearcache/internal/redistest"
)

// The benchmarks here are for a profile, and for a look at one change: nearcache
// beside the reference, without Redis but for its shared level.

// BenchmarkHit is Get of what is in memory.
func BenchmarkHit(b *testing.B) {
	b.Run("int64", benchmarkHits[int64])
	b.Run("string", benchmarkHits[string])
}

func benchmarkHits[K subject.Key](b *testing.B) {
	for _, w := range workloads[K]() {
		for _, name := range []string{subject.Nearcache, subject.Timed} {
			b.Run(fmt.Sprintf("%s/%s", w.name, name), func(b *testing.B) {
				cache, err := filled[K](name, "", w.keys)
				if err != nil {
					b.Fatal(err)
				}
				defer cache.Close()
				b.Run("serial", func(b *testing.B) {
					b.ReportAllocs()
					for i := 0; b.Loop(); i++ {
						cache.Get(w.ring[i&(len(w.ring)-1)])
					}
				})
				b.Run("parallel", func(b *testing.B) {
					b.ReportAllocs()
					var next atomic.Int64
					b.RunParallel(func(p *testing.PB) {
						for i := int(next.Add(1)) * 1000; p.Next(); i++ {
							cache.Get(w.ring[i&(len(w.ring)-1)])
						}
					})
				})
			})
		}
	}
}

// BenchmarkMiss is what a Get costs beside the load: the loader does nothing.
func BenchmarkMiss(b *testing.B) {
	s, _ := subject.Named[int64](subject.Nearcache)
	value := item(int64(0))
	cache, err := s.Open(subject.Config[int64]{
		Capacity: roomForFew, TTL: ttl, Load: func(int64) *subject.Value { return value },
	})
	if err != nil {
		b.Fatal(err)
	}
	defer cache.Close()
	b.ReportAllocs()
	for key := int64(0); b.Loop(); key++ {
		cache.Load(key)
	}
}

// BenchmarkStampede is 10 000 goroutines that ask for one cold key.
func BenchmarkStampede(b *testing.B) {
	const callers = 10_000
	bp := nearcache.Local()
	defer bp.Close()
	var loads atomic.Int64
	cache, err := nearcache.New(bp, nearcache.Options[int64, *subject.Value]{
		Name: "stampede",
		Load: func(context.Context, int64) (*subject.Value, error) {
			loads.Add(1)
			time.Sleep(10 * time.Millisecond)
			return &subject.Value{}, nil
		},
	})
	if err != nil {
		b.Fatal(err)
	}
	ctx := context.Background()
	for key := int64(0); b.Loop(); key++ {
		var all sync.WaitGroup
		begin := make(chan struct{})
		for range callers {
			all.Go(func() {
				<-begin
				_, _ = cache.Get(ctx, key)
			})
		}
		close(begin)
		all.Wait()
	}
	b.ReportMetric(float64(loads.Load())/float64(b.N), "loads/op")
	b.ReportMetric(callers, "callers/op")
}

// BenchmarkSharedHit is a read of what is in Redis and not in memory, beside go-redis
// alone.
func BenchmarkSharedHit(b *testing.B) {
	benchmarkShared(b, func(s *sharedReads) ([]*sharedReader, drive.Ring[int64]) { return s.hits, s.keys })
}

// BenchmarkSharedMany is the same of a hundred items.
func BenchmarkSharedMany(b *testing.B) {
	benchmarkShared(b, func(s *sharedReads) ([]*sharedReader, drive.Ring[int64]) { return s.many, firsts() })
}

func benchmarkShared(b *testing.B, choose func(*sharedReads) ([]*sharedReader, drive.Ring[int64])) {
	s, err := openSharedReads(b.Context(), startRedis(b).Addr)
	if err != nil {
		b.Fatal(err)
	}
	defer s.close()
	readers, ring := choose(s)
	for _, r := range readers {
		b.Run(r.name, func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if !r.read(ring[i&(len(ring)-1)]) {
					b.Fatal("not read")
				}
			}
		})
	}
}

// startRedis starts a server for a test, or skips it where none is installed.
func startRedis(tb testing.TB) *redistest.Server {
	server, err := measure.StartServer()
	if errors.Is(err, exec.ErrNotFound) {
		tb.Skip("redis-server is not installed")
	} else if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(server.Kill)
	return server
}
