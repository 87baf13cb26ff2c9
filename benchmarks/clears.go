package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nearcache/nearcache"
	"github.com/nearcache/nearcache/benchmarks/internal/result"
	"github.com/nearcache/nearcache/benchmarks/internal/stats"
	"github.com/nearcache/nearcache/benchmarks/internal/subject"
)

const (
	clearSection = "clear"

	callTime    = "call µs"
	reclaimTime = "reclaimed after ms"
)

// window is a time in which readers are watched: before a clear, or while its
// memory is reclaimed.
type window = int32

const (
	warming window = iota
	before
	meanwhile
	windows
)

// readerQuantiles are the percentiles of readers.
var readerQuantiles = []struct {
	name string
	part float64
}{{"p50", 0.50}, {"p99", 0.99}, {"p99.9", 0.999}, {"max", 1}}

// latency names a percentile in a window.
func latency(quantile string, w window) string {
	return quantile + " ns, " + [windows]string{before: "before", meanwhile: "meanwhile"}[w]
}

// clearing is a way to clear: all, or all that is in one region.
type clearing struct {
	name  string
	clear func(context.Context, *nearcache.Cache[int64, *subject.Value]) error
}

func clearings() []clearing {
	return []clearing{
		{"Clear", func(ctx context.Context, c *nearcache.Cache[int64, *subject.Value]) error { return c.Clear(ctx) }},
		{"ClearRegion", func(ctx context.Context, c *nearcache.Cache[int64, *subject.Value]) error {
			return c.ClearRegion(ctx, "cold")
		}},
	}
}

const hotKeys = 64

// measureClears fills a cache, clears it while readers read hot items, and fills
// it again. The hot items are of a region that is not cleared; Clear takes them as
// well, and each is loaded once more.
func measureClears(ctx context.Context, b *bench) error {
	entries := 1_000_000
	if b.quick {
		entries = 200_000
	}
	bp := nearcache.Local()
	defer bp.Close()
	value := item(int64(0))
	cold, hot := []string{"cold"}, []string{"hot"}
	cache, err := nearcache.New(bp, nearcache.Options[int64, *subject.Value]{
		Name: "clears", Capacity: entries + entries/2, TTL: ttl,
		Load: func(context.Context, int64) (*subject.Value, error) { return value, nil },
		Regions: func(key int64, _ *subject.Value) []string {
			if key < 0 {
				return hot
			}
			return cold
		},
	})
	if err != nil {
		return err
	}
	keys := shuffled[int64](entries)
	for _, c := range clearings() {
		b.progress("clear: %s, %d items", c.name, entries)
		reclaim := time.Duration(0)
		for round := range b.fewer() + 1 {
			if err := ctx.Err(); err != nil {
				return err
			}
			for _, key := range keys {
				_ = cache.Set(ctx, key, value)
			}
			runtime.GC()
			if round == 0 { // to find out how long the readers are to be watched
				if reclaim, err = timeReclaim(ctx, cache, c, entries); err != nil {
					return err
				}
				b.file.Add(result.Key{Section: clearSection, Case: c.name, Subject: subject.Nearcache, Metric: reclaimTime}, reclaim.Seconds()*1e3)
				continue
			}
			if err := watchClear(ctx, b.file, cache, c, max(reclaim, 50*time.Millisecond)); err != nil {
				return err
			}
		}
	}
	return nil
}

// timeReclaim returns the time until all cleared items have left memory.
func timeReclaim(
	ctx context.Context, cache *nearcache.Cache[int64, *subject.Value], c clearing, entries int,
) (time.Duration, error) {
	cleared := cache.Stats().Evictions.Cleared
	start := time.Now()
	if err := c.clear(ctx, cache); err != nil {
		return 0, err
	}
	for cache.Stats().Evictions.Cleared-cleared < uint64(entries) {
		if time.Since(start) > time.Minute {
			return 0, fmt.Errorf("%d of %d were reclaimed in a minute", cache.Stats().Evictions.Cleared-cleared, entries)
		}
		time.Sleep(20 * time.Millisecond) // since Stats takes a while itself
	}
	return time.Since(start), nil
}

// watchClear times every read of the hot items in a window before a clear and in
// one of the same length that begins with it.
func watchClear(
	ctx context.Context, f *result.File, cache *nearcache.Cache[int64, *subject.Value], c clearing, length time.Duration,
) error {
	key := func(metric string) result.Key {
		return result.Key{Section: clearSection, Case: c.name, Subject: subject.Nearcache, Metric: metric}
	}
	r := startReaders(ctx, cache)
	time.Sleep(50 * time.Millisecond) // to warm up
	r.window.Store(before)
	time.Sleep(length)
	r.window.Store(meanwhile)
	start := time.Now()
	err := c.clear(ctx, cache)
	took := time.Since(start)
	time.Sleep(length)
	recorded := r.stop()
	f.Add(key(callTime), float64(took)/1e3)
	for _, q := range readerQuantiles {
		f.Add(key(latency(q.name, before)), float64(recorded[before].Quantile(q.part)))
		f.Add(key(latency(q.name, meanwhile)), float64(recorded[meanwhile].Quantile(q.part)))
	}
	return err
}

// readers read hot items, one goroutine for each core but one, and time each read.
type readers struct {
	done     chan struct{}
	all      sync.WaitGroup
	window   atomic.Int32
	recorded [][windows]stats.Histogram // each reader's, written by it alone until it has ended
}

func startReaders(ctx context.Context, cache *nearcache.Cache[int64, *subject.Value]) *readers {
	n := max(1, runtime.GOMAXPROCS(0)-1)
	r := &readers{done: make(chan struct{}), recorded: make([][windows]stats.Histogram, n)}
	for i := range r.recorded {
		r.all.Go(func() {
			rng := rand.New(rand.NewPCG(5, uint64(i)))
			for {
				select {
				case <-r.done:
					return
				default:
				}
				h := &r.recorded[i][r.window.Load()]
				for range 256 {
					key := -1 - rng.Int64N(hotKeys)
					start := time.Now()
					_, _ = cache.Get(ctx, key)
					h.Record(time.Since(start))
				}
			}
		})
	}
	return r
}

// stop ends the readers and returns what all of them recorded, by window.
func (r *readers) stop() *[windows]stats.Histogram {
	close(r.done)
	r.all.Wait()
	all := &r.recorded[0]
	for i := range r.recorded[1:] {
		for w := range all {
			all[w].Merge(&r.recorded[i+1][w])
		}
	}
	return all
}
