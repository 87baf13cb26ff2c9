package main

import (
	"context"
	"fmt"
	"runtime"
	"strconv"
	"sync"

	"golang.org/x/sync/singleflight"

	"github.com/nearcache/nearcache/benchmarks/internal/drive"
	"github.com/nearcache/nearcache/benchmarks/internal/result"
	"github.com/nearcache/nearcache/benchmarks/internal/subject"
)

const (
	missSection = "misses"

	// flightName is the reference: what a programmer would write around a map.
	flightName = "singleflight+map"
)

// leaves is in the names of cases whose contexts can end.
const leaves = ", contexts that can end"

// missLoad is a way to miss.
type missLoad struct {
	capacity int
	leaves   bool
}

func (m missLoad) name(kind string) string {
	name := kind + " keys, each load evicts an item"
	if m.capacity == roomForAll {
		name = kind + " keys, room for all"
	}
	if m.leaves {
		name += leaves
	}
	return name
}

const (
	roomForAll = 4 << 20
	roomForFew = 10_000
)

func measureMisses(ctx context.Context, b *bench) error {
	for _, m := range []missLoad{{roomForFew, false}, {roomForFew, true}, {roomForAll, false}} {
		if err := measureMissesOf[int64](ctx, b, m); err != nil {
			return err
		}
		if err := measureMissesOf[string](ctx, b, m); err != nil {
			return err
		}
	}
	return nil
}

// loader is a subject that loads what is not held.
type loader[K subject.Key] struct {
	name  string
	get   func(K) bool
	close func()
	at    drive.Cursor
}

// measureMissesOf asks for keys that were never asked for. The loader does nothing
// but return an item that exists already.
func measureMissesOf[K subject.Key](ctx context.Context, b *bench, m missLoad) error {
	in := m.name(kind[K]())
	b.progress("misses: %s", in)
	loaders, err := openLoaders[K](b, m)
	defer func() {
		for _, l := range loaders {
			l.close()
		}
		runtime.GC()
	}()
	if err != nil {
		return err
	}
	r := fresh[K](1<<21, 0)
	key := func(l *loader[K], metric string) result.Key {
		return result.Key{Section: missSection, Case: in, Subject: l.name, Metric: metric}
	}
	for _, l := range loaders {
		if m.capacity == roomForFew {
			drive.Run(l.get, r, &l.at, 1, 4*roomForFew, 0)
		}
		objects, bytes := drive.Allocs(l.get, r, &l.at, 20*memoryBlock)
		b.file.Add(key(l, allocs), objects)
		b.file.Add(key(l, heap), bytes)
	}
	for round := range b.fewer() {
		for _, i := range rotated(len(loaders), round) {
			if err := ctx.Err(); err != nil {
				return err
			}
			l := loaders[i]
			runtime.GC()
			b.file.Add(key(l, perOp), drive.Run(l.get, r, &l.at, 1, memoryBlock, 2*b.turn).NsPerOp())
		}
	}
	return nil
}

func openLoaders[K subject.Key](b *bench, m missLoad) ([]*loader[K], error) {
	value := item(subject.KeyOf[K](0))
	load := func(K) *subject.Value { return value }
	var loaders []*loader[K]
	for _, s := range chosen(b, subject.Local[K]()) {
		cache, err := s.Open(subject.Config[K]{Capacity: m.capacity, TTL: ttl, Load: load, ReadThrough: true, Leaves: m.leaves})
		if err != nil {
			return loaders, fmt.Errorf("%s: %w", s.Name, err)
		}
		if cache.Load == nil {
			cache.Close() // it has no loader
			continue
		}
		loaders = append(loaders, &loader[K]{name: s.Name, get: cache.Load, close: cache.Close})
	}
	if subject.Matches(flightName, b.subjects) {
		get, gone := singleflightMap(m, load)
		loaders = append(loaders, &loader[K]{name: flightName, get: get, close: gone})
	}
	return loaders, nil
}

// singleflightMap reads through a map with a lock, one load for each key at a
// time. A full map is emptied, since that costs least. A caller whose context can
// end has the load run in a goroutine, and waits for either.
func singleflightMap[K subject.Key](m missLoad, load func(K) *subject.Value) (get func(K) bool, gone func()) {
	var mu sync.RWMutex
	var flights singleflight.Group
	items := map[K]*subject.Value{}
	name := func(key K) string {
		switch k := any(key).(type) {
		case int64:
			return strconv.FormatInt(k, 10)
		case string:
			return k
		}
		return ""
	}
	ctx, cancel := context.WithCancel(context.Background())
	wait := flights.Do
	if m.leaves {
		wait = func(name string, load func() (any, error)) (any, error, bool) {
			select {
			case r := <-flights.DoChan(name, load):
				return r.Val, r.Err, r.Shared
			case <-ctx.Done():
				return nil, ctx.Err(), false
			}
		}
	}
	return func(key K) bool {
		mu.RLock()
		v := items[key]
		mu.RUnlock()
		if v != nil {
			return true
		}
		loaded, err, _ := wait(name(key), func() (any, error) {
			v := load(key)
			mu.Lock()
			if len(items) >= m.capacity {
				clear(items)
			}
			items[key] = v
			mu.Unlock()
			return v, nil
		})
		return err == nil && loaded != nil
	}, cancel
}
