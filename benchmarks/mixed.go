package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync/atomic"

	"github.com/nearcache/nearcache/benchmarks/internal/drive"
	"github.com/nearcache/nearcache/benchmarks/internal/result"
	"github.com/nearcache/nearcache/benchmarks/internal/subject"
)

const (
	mixedSection = "mixed"
	loadsPerGet  = "loads/get"
)

// access is one step of a mixed load.
type access struct {
	key   int64
	write *subject.Value // nil: it is a get
}

// mix is a load on caches that hold things in this process only.
type mix struct {
	name     string
	capacity int
	ring     drive.Ring[access]
	prefill  int  // items that are put in first
	through  bool // a miss is followed by a load, as in a service
	leaves   bool // contexts can end
}

// mixes returns the loads. Where not all items fit, a get that misses loads the
// item and keeps it: in nearcache that is what Get does, and a peer is asked
// through its own loader if it has one.
func mixes() []mix {
	all, some := zipf[int64](100_000), zipf[int64](1_000_000)
	ever := fresh[int64](1<<21, 0)
	return []mix{
		{"95 % get, 5 % set, all held", 200_000, mixed(all, 0.05), 100_000, false, false},
		{"75 % get, 25 % set, all held", 200_000, mixed(all, 0.25), 100_000, false, false},
		{"95 % get, 5 % set, room for a tenth", 100_000, mixed(some, 0.05), 0, true, false},
		{"75 % get, 25 % set, room for a tenth", 100_000, mixed(some, 0.25), 0, true, false},
		{"95 % get, 5 % set, room for a tenth" + leaves, 100_000, mixed(some, 0.05), 0, true, true},
		{"set of new keys, capacity 10k", 10_000, mixed(ever, 1), 0, false, false},
		{"set of new keys, capacity 100k", 100_000, mixed(ever, 1), 0, false, false},
	}
}

// mixed makes a random part of the accesses to keys writes, of an item that exists
// already: making it is no part of what is measured.
func mixed(keys drive.Ring[int64], writes float64) drive.Ring[access] {
	rng := rand.New(rand.NewPCG(4, uint64(100*writes)))
	r := make(drive.Ring[access], len(keys))
	var values [1024]*subject.Value
	for i := range values {
		values[i] = item(int64(i))
	}
	for i, key := range keys {
		r[i].key = key
		if rng.Float64() < writes {
			r[i].write = values[i%len(values)]
		}
	}
	return r
}

// writer is a subject under a mixed load.
type writer struct {
	subject.Subject[int64]
	cache *subject.Cache[int64]
	op    func(access) bool
	at    drive.Cursor
	loads atomic.Int64
}

func measureMixed(ctx context.Context, b *bench) error {
	for _, m := range mixes() {
		b.progress("mixed: %s", m.name)
		if err := measureMix(ctx, b, m); err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		runtime.GC()
	}
	return nil
}

func measureMix(ctx context.Context, b *bench, m mix) error {
	writers, err := openWriters(b, m)
	defer func() {
		for _, w := range writers {
			w.cache.Close()
		}
	}()
	if err != nil {
		return err
	}
	key := func(w *writer, metric string, x int) result.Key {
		return result.Key{Section: mixedSection, Case: m.name, Subject: w.Name, Metric: metric, X: float64(x)}
	}
	for _, w := range writers { // until it is full, and has seen what is popular
		drive.Run(w.op, m.ring, &w.at, 1, memoryBlock, 12*b.turn)
		objects, bytes := drive.Allocs(w.op, m.ring, &w.at, 20*memoryBlock)
		b.file.Add(key(w, allocs, 0), objects)
		b.file.Add(key(w, heap, 0), bytes)
	}
	for round := range b.fewer() {
		for _, g := range []int{1, runtime.GOMAXPROCS(0)} {
			for _, i := range rotated(len(writers), round) {
				if err := ctx.Err(); err != nil {
					return err
				}
				w := writers[i]
				runtime.GC()
				w.loads.Store(0)
				turn := drive.Run(w.op, m.ring, &w.at, g, memoryBlock, 3*b.turn)
				b.file.Add(key(w, perOp, g), turn.NsPerOp())
				if m.through {
					gets := float64(turn.Ops) * readPart(m.ring)
					b.file.Add(key(w, loadsPerGet, g), float64(w.loads.Load())/gets)
				}
			}
		}
	}
	return nil
}

func openWriters(b *bench, m mix) ([]*writer, error) {
	subjects := subject.Local[int64]()
	if !m.through && m.prefill > 0 {
		subjects = append(subjects, subject.References[int64]()...) // nothing needs to be evicted
	}
	var writers []*writer
	for _, s := range chosen(b, subjects) {
		w := &writer{Subject: s}
		load := func(key int64) *subject.Value { w.loads.Add(1); return item(key) }
		cache, err := s.Open(subject.Config[int64]{
			Capacity: m.capacity, TTL: ttl, Load: load, ReadThrough: m.through, Leaves: m.leaves, Regions: true,
		})
		if err != nil {
			return writers, fmt.Errorf("%s: %w", s.Name, err)
		}
		get := cache.Get
		if m.through {
			get = cache.ReadThrough(load)
		}
		w.cache = cache
		w.op = func(a access) bool {
			if a.write != nil {
				cache.Set(a.key, a.write)
				return true
			}
			return get(a.key)
		}
		writers = append(writers, w)
		if err := cache.Fill(shuffled[int64](m.prefill), item[int64]); err != nil {
			return writers, fmt.Errorf("%s: %w", s.Name, err)
		}
	}
	return writers, nil
}

// readPart returns the part of gets.
func readPart(r drive.Ring[access]) float64 {
	gets := 0
	for _, a := range r {
		if a.write == nil {
			gets++
		}
	}
	return float64(gets) / float64(len(r))
}
