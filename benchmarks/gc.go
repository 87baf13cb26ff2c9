package main

import (
	"context"
	"math"
	"runtime"
	"runtime/metrics"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nearcache/nearcache/benchmarks/internal/drive"
	"github.com/nearcache/nearcache/benchmarks/internal/result"
	"github.com/nearcache/nearcache/benchmarks/internal/stats"
	"github.com/nearcache/nearcache/benchmarks/internal/subject"
)

const (
	gcSection = "gc"

	heapMB    = "heap MB"
	cycleCPU  = "CPU ms of a cycle"
	cycleTime = "ms of a cycle"
	longest   = "longest pause µs"
	cpuShare  = "CPU %"
	cyclesRun = "cycles"
	runTime   = "s"
	runCPU    = "CPU s of collecting"

	garbageSize  = 512     // bytes that each read leaves behind
	garbageReads = 1 << 23 // reads, of all goroutines together
)

// gcSubjects are those whose heaps differ in kind: objects of two libraries, and
// no objects but the map's own tables.
var gcSubjects = []string{subject.Nearcache, subject.Otter, subject.Timed}

func measureGC(ctx context.Context, b *bench) error {
	if err := measureGCOf(ctx, b, 1_000_000, min(3, b.fewer())); err != nil || !b.large {
		return err
	}
	return measureGCOf(ctx, b, 10_000_000, 1)
}

func measureGCOf(ctx context.Context, b *bench, entries, rounds int) error {
	for round := range rounds {
		for _, i := range rotated(len(gcSubjects), round) {
			name := gcSubjects[i]
			if !subject.Matches(name, b.subjects) {
				continue
			}
			b.progress("gc: %s, %d items", name, entries)
			f, err := inChild(ctx, task{Measure: gcSection, Subject: name, Entries: entries})
			if err != nil {
				return err
			}
			for metric, value := range f {
				b.file.Add(result.Key{Section: gcSection, Case: strconv.Itoa(entries), Subject: name, Metric: metric}, value)
			}
		}
	}
	return nil
}

// gcOf fills a cache and collects a few times; then it reads on all cores, and
// leaves garbage behind as a service does, always as much.
func gcOf(t task) (found, error) {
	_, cache, err := open[int64](t)
	if err != nil {
		return nil, err
	}
	if err := cache.Fill(shuffled[int64](t.Entries), item[int64]); err != nil {
		return nil, err
	}
	f := found{heapMB: float64(liveHeap()) / 1e6}
	var cpu, wall []float64
	for range 5 {
		before, start := readMetrics(), time.Now()
		runtime.GC()
		wall = append(wall, float64(time.Since(start))/1e6)
		cpu = append(cpu, 1e3*(readMetrics().gcCPU-before.gcCPU))
	}
	f[cycleCPU], f[cycleTime] = stats.Median(cpu), stats.Median(wall)

	keys := zipf[int64](t.Entries)
	runtime.GC()
	before, start := readMetrics(), time.Now()
	readWithGarbage(cache, keys)
	f[runTime] = time.Since(start).Seconds()
	runtime.GC() // since the metrics of the CPU are those of the last cycle
	after := readMetrics()
	f[runCPU] = after.gcCPU - before.gcCPU
	f[cpuShare] = 100 * f[runCPU] / (after.busyCPU - before.busyCPU)
	f[cyclesRun] = float64(after.cycles - before.cycles)
	f[longest] = 1e6 * after.longestSince(before)
	runtime.KeepAlive(cache)
	return f, nil
}

// garbage keeps the compiler from leaving the allocation out.
var garbage atomic.Pointer[[garbageSize]byte]

func readWithGarbage(cache *subject.Cache[int64], keys drive.Ring[int64]) {
	var all sync.WaitGroup
	goroutines := runtime.GOMAXPROCS(0)
	for g := range goroutines {
		all.Go(func() {
			for i := range garbageReads / goroutines {
				cache.Get(keys[(i+g*len(keys)/2)&(len(keys)-1)])
				left := new([garbageSize]byte)
				if i%1024 == 0 {
					garbage.Store(left)
				}
			}
		})
	}
	all.Wait()
}

// gcMetrics is what the runtime tells about its collector.
type gcMetrics struct {
	gcCPU, busyCPU float64 // seconds
	cycles         uint64
	pauses         *metrics.Float64Histogram
}

func readMetrics() gcMetrics {
	samples := []metrics.Sample{
		{Name: "/cpu/classes/gc/total:cpu-seconds"},
		{Name: "/cpu/classes/total:cpu-seconds"},
		{Name: "/cpu/classes/idle:cpu-seconds"},
		{Name: "/gc/cycles/total:gc-cycles"},
		{Name: "/sched/pauses/total/gc:seconds"},
	}
	metrics.Read(samples)
	pauses := *samples[4].Value.Float64Histogram()
	pauses.Counts = slices.Clone(pauses.Counts) // since Read may write there again
	return gcMetrics{
		gcCPU:   samples[0].Value.Float64(),
		busyCPU: samples[1].Value.Float64() - samples[2].Value.Float64(),
		cycles:  samples[3].Value.Uint64(),
		pauses:  &pauses,
	}
}

// longestSince returns the upper bound of the longest pause, in seconds.
func (m gcMetrics) longestSince(before gcMetrics) float64 {
	for i := len(m.pauses.Counts) - 1; i >= 0; i-- {
		if m.pauses.Counts[i] == before.pauses.Counts[i] {
			continue
		}
		if bound := m.pauses.Buckets[i+1]; !math.IsInf(bound, 1) {
			return bound
		}
		return m.pauses.Buckets[i]
	}
	return 0
}
