package main

import (
	"context"
	"fmt"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/nearcache/nearcache/benchmarks/internal/drive"
	"github.com/nearcache/nearcache/benchmarks/internal/result"
	"github.com/nearcache/nearcache/benchmarks/internal/subject"
)

const (
	hitSection = "hits"

	perOp  = "ns/op"
	allocs = "allocs/op"
	heap   = "B/op"

	// ttl is longer than any section takes, so nothing expires.
	ttl = time.Hour

	// memoryBlock and networkBlock are how many operations go between two looks at
	// the clock: enough for it not to matter, and few enough for a turn to end.
	memoryBlock, networkBlock = 512, 4
)

// workload is an order of hits.
type workload[K subject.Key] struct {
	name string
	keys int // how many are held
	ring drive.Ring[K]
}

func workloads[K subject.Key]() []workload[K] {
	return []workload[K]{
		{"1 key", 1, evenly[K](1)},
		{"64 keys", 64, evenly[K](64)},
		{"100k keys, Zipf", 100_000, zipf[K](100_000)},
	}
}

// hitCase names what one table of the report shows.
func hitCase(kind, workload string) string { return kind + " keys, " + workload }

func measureHits(ctx context.Context, b *bench) error {
	if b.redis == nil {
		b.file.Note(hitSection, "Without Redis, %s is on `Local()` here and holds no lease: %v.", subject.Nearcache, errNoRedis)
	}
	if err := measureHitsOf[int64](ctx, b); err != nil {
		return err
	}
	return measureHitsOf[string](ctx, b)
}

func measureHitsOf[K subject.Key](ctx context.Context, b *bench) error {
	for _, w := range workloads[K]() {
		if err := measureWorkload(ctx, b, w); err != nil {
			return fmt.Errorf("%s: %w", hitCase(kind[K](), w.name), err)
		}
	}
	return nil
}

// player is a subject with its cache open and filled, and its place in the ring.
type player[K subject.Key] struct {
	subject.Subject[K]
	cache     *subject.Cache[K]
	at        drive.Cursor
	loads     atomic.Int64 // since it was filled
	ops, hits int64
}

func (p *player[K]) block() int {
	if p.Network {
		return networkBlock
	}
	return memoryBlock
}

// measureWorkload has all subjects open at once, so that they can take turns.
func measureWorkload[K subject.Key](ctx context.Context, b *bench, w workload[K]) error {
	in := hitCase(kind[K](), w.name)
	b.progress("hits: %s", in)
	if b.redis != nil {
		if err := subject.Seed(b.address(), keysOf[K](w.keys), item[K]); err != nil {
			return err
		}
	}
	players, err := openPlayers(b, w)
	defer func() {
		for _, p := range players {
			p.cache.Close()
		}
		runtime.GC()
	}()
	if err != nil {
		return err
	}
	key := func(p *player[K], metric string, x int) result.Key {
		return result.Key{Section: hitSection, Case: in, Subject: p.Name, Metric: metric, X: float64(x)}
	}
	for _, p := range players {
		n := 20 * p.block()
		objects, bytes := drive.Allocs(p.cache.Get, w.ring, &p.at, n)
		b.file.Add(key(p, allocs, 0), objects)
		b.file.Add(key(p, heap, 0), bytes)
	}
	for round := range b.rounds {
		for _, g := range goroutines() {
			for _, i := range rotated(len(players), round) {
				if err := ctx.Err(); err != nil {
					return err
				}
				p := players[i]
				turn := drive.Run(p.cache.Get, w.ring, &p.at, g, p.block(), b.turn)
				b.file.Add(key(p, perOp, g), turn.NsPerOp())
				p.ops, p.hits = p.ops+turn.Ops, p.hits+turn.True
			}
		}
	}
	for _, p := range players {
		if missed := float64(p.ops-p.hits+p.loads.Load()) / float64(p.ops); missed > 1e-6 {
			b.file.Note(hitSection, "%s, %s: %.4f %% of the reads were no hits.", in, p.Name, 100*missed)
		}
	}
	return nil
}

func openPlayers[K subject.Key](b *bench, w workload[K]) ([]*player[K], error) {
	var players []*player[K]
	stored := shuffled[K](w.keys)
	for _, s := range chosen(b, subject.Hits[K]()) {
		p := &player[K]{Subject: s}
		cache, err := s.Open(subject.Config[K]{
			Capacity: 200_000, // so that all are held, whatever shards a cache has
			TTL:      ttl,
			Regions:  true,
			Redis:    b.address(),
			Load:     func(key K) *subject.Value { p.loads.Add(1); return item(key) },
		})
		if err != nil {
			return players, fmt.Errorf("%s: %w", s.Name, err)
		}
		p.cache = cache
		players = append(players, p)
		if err := cache.Fill(stored, item[K]); err != nil {
			return players, fmt.Errorf("%s: %w", s.Name, err)
		}
		p.loads.Store(0)
	}
	return players, nil
}
