package main

import (
	"context"
	"runtime"

	"github.com/nearcache/nearcache/benchmarks/internal/result"
	"github.com/nearcache/nearcache/benchmarks/internal/subject"
)

const (
	memorySection = "memory"
	perEntry      = "B/entry"
	heldEntries   = "entries"

	// inRegions is nearcache with each item in a region.
	inRegions = "nearcache, each in a region"
)

func measureMemory(ctx context.Context, b *bench) error {
	if err := measureMemoryOf[int64](ctx, b); err != nil {
		return err
	}
	return measureMemoryOf[string](ctx, b)
}

func measureMemoryOf[K subject.Key](ctx context.Context, b *bench) error {
	entries := 1_000_000
	if b.quick {
		entries = 200_000
	}
	measure := func(name string, t task) error {
		b.progress("memory: %s keys, %s", kind[K](), name)
		f, err := inChild(ctx, t)
		if err != nil {
			return err
		}
		for _, metric := range []string{perEntry, heldEntries} {
			b.file.Add(result.Key{Section: memorySection, Case: kind[K](), Subject: name, Metric: metric}, f[metric])
		}
		return nil
	}
	for _, s := range chosen(b, append(subject.Local[K](), subject.References[K]()...)) {
		t := task{Measure: memorySection, Kind: kind[K](), Subject: s.Name, Entries: entries}
		if err := measure(s.Name, t); err != nil {
			return err
		}
		if s.Name == subject.Nearcache {
			t.Regions = true
			if err := measure(inRegions, t); err != nil {
				return err
			}
		}
	}
	return nil
}

// memoryOf returns what a full cache takes for each item. Keys and items are made
// before, and stay: what is counted is what the cache adds to them. A tenth more is
// put in than there is room for, so that it is as full as it is in service.
func memoryOf[K subject.Key](t task) (found, error) {
	s, cache, err := open[K](task{Measure: t.Measure, Subject: t.Subject, Entries: 1})
	if err != nil {
		return nil, err
	}
	cache.Close() // what the first of a kind allocates once is not counted

	n := t.Entries
	if !s.Unbounded {
		n += n / 10
	}
	keys := shuffled[K](n)
	values := make([]*subject.Value, n)
	for i, key := range keys {
		values[i] = item(key)
	}
	before := liveHeap()
	if _, cache, err = open[K](t); err != nil {
		return nil, err
	}
	next := 0
	if err := cache.Fill(keys, func(K) *subject.Value { next++; return values[next-1] }); err != nil {
		return nil, err
	}
	after := liveHeap()
	held := cache.Len()
	runtime.KeepAlive(keys)
	runtime.KeepAlive(values)
	runtime.KeepAlive(cache)
	return found{perEntry: float64(after-before) / float64(held), heldEntries: float64(held)}, nil
}

// liveHeap returns the bytes that are in use. It takes two collections until what
// was pooled is gone.
func liveHeap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
