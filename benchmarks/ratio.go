package main

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync"

	"github.com/nearcache/nearcache/benchmarks/internal/result"
	"github.com/nearcache/nearcache/benchmarks/internal/subject"
	"github.com/nearcache/nearcache/internal/trace"
)

const (
	ratioSection = "ratio"

	hitRatio = "hit %"
	uniques  = "keys"
	accesses = "accesses"
)

// capacities are parts of a trace's keys, in per cent.
var capacities = []float64{0.5, 1, 2.5, 5, 10, 25, 50}

// evicting are the subjects whose policies are compared; the others evict as one
// of them does, or as nobody would want it.
var evicting = []string{subject.Nearcache, subject.Otter, "theine", "ristretto", "golang-lru"}

func measureRatios(ctx context.Context, b *bench) error {
	traces := trace.Generated()
	if b.traces != "" {
		recorded, err := trace.Read(b.traces)
		if err != nil {
			return err
		}
		if len(recorded) == 0 {
			return fmt.Errorf("no traces NAME.gz in %s", b.traces)
		}
		traces = append(traces, recorded...)
	}
	for _, t := range traces {
		b.progress("ratio: %s", t.Name)
		if err := measureTrace(ctx, b, t); err != nil {
			return fmt.Errorf("%s: %w", t.Name, err)
		}
	}
	return nil
}

// measureTrace runs a trace through each policy at each capacity. What is found
// does not depend on time, so as many run at once as there are cores.
func measureTrace(ctx context.Context, b *bench, t trace.Trace) error {
	unique := t.Unique()
	fact := func(metric string, value int) {
		b.file.Add(result.Key{Section: ratioSection, Case: t.Name, Metric: metric}, float64(value))
	}
	fact(uniques, unique)
	fact(accesses, len(t.Keys))
	b.file.Note(ratioSection+": "+t.Name, "%s", t.About)

	var mu sync.Mutex // guards what the runs write
	var failed error
	var all sync.WaitGroup
	free := make(chan struct{}, runtime.GOMAXPROCS(0))
	for _, s := range chosen(b, subject.Local[int64]()) {
		if !slices.Contains(evicting, s.Name) {
			continue
		}
		for _, percent := range capacities {
			key := result.Key{Section: ratioSection, Case: t.Name, Subject: s.Name, Metric: hitRatio, X: percent}
			mu.Lock()
			b.file.Add(key) // in this order, whichever is done first
			mu.Unlock()
			free <- struct{}{}
			all.Go(func() {
				defer func() { <-free }()
				ratio, err := hitRatioOf(ctx, s, t.Keys, max(1, int(percent*float64(unique)/100)))
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					failed = err
					return
				}
				b.file.Add(key, 100*ratio)
			})
		}
	}
	all.Wait()
	return failed
}

// hitRatioOf asks for each key in turn, and puts in what is not held. nearcache
// does that itself, by its loader. Peers that apply writes in the background are
// waited for after each, so that none loses one.
func hitRatioOf(ctx context.Context, s subject.Subject[int64], keys []uint64, capacity int) (float64, error) {
	loads := 0
	value := item(int64(0))
	load := func(int64) *subject.Value { loads++; return value }
	cache, err := s.Open(subject.Config[int64]{Capacity: capacity, TTL: ttl, Load: load, Exact: true})
	if err != nil {
		return 0, fmt.Errorf("%s: %w", s.Name, err)
	}
	defer cache.Close()
	for i, number := range keys {
		if i%4096 == 0 && ctx.Err() != nil {
			return 0, ctx.Err()
		}
		key := int64(number)
		if cache.Get(key) {
			continue
		}
		cache.Set(key, load(key))
		if cache.Settle != nil {
			cache.Settle()
		}
	}
	return 1 - float64(loads)/float64(len(keys)), nil
}
