package main

import (
	"context"
	"encoding/json"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/nearcache/nearcache"
	"github.com/nearcache/nearcache/benchmarks/internal/drive"
	"github.com/nearcache/nearcache/benchmarks/internal/result"
	"github.com/nearcache/nearcache/benchmarks/internal/subject"
)

const (
	sharedSection = "shared"

	sharedHitCase  = "hit"
	sharedManyCase = "many"

	// unshared is a cache that is the same but for SharedOptions.
	unshared = "nearcache without Shared"

	redisGet  = "GET + JSON"
	redisMGet = "MGET + JSON"
	bareReads = "the same commands + JSON" // what nearcache asks, without nearcache

	oneByOne = "nearcache, 100 × Get"
	someGets = "nearcache, 100 × Get, 16 at a time"

	sharedChannel   = "bench-shared"
	unsharedChannel = "bench-unshared" // where nobody has values in Redis

	sharedKeys = 1024
	manyKeys   = 100
	atATime    = 16
)

// sharedGoroutines are how many read at a time: what they wait for is the network.
var sharedGoroutines = []int{1, 4, 16}

func measureShared(ctx context.Context, b *bench) error {
	if b.redis == nil {
		return errNoRedis
	}
	for _, measure := range []func(context.Context, *bench) error{
		measureSharedReads, measureColdStart, measureColdKey, measureRemove, measureRemovals,
	} {
		if err := measure(ctx, b); err != nil {
			return err
		}
	}
	return nil
}

// product is an item of some 300 bytes of JSON.
type product struct {
	ID          int64     `json:"id"`
	Name        string    `json:"name"`
	Description string    `json:"description"`
	Price       float64   `json:"price"`
	Currency    string    `json:"currency"`
	Tags        []string  `json:"tags"`
	Stock       int       `json:"stock"`
	Available   bool      `json:"available"`
	Updated     time.Time `json:"updated"`
}

func newProduct(id int64) *product {
	return &product{
		ID: id, Name: "an item of the catalogue", Price: 19.99, Currency: "EUR", Stock: 42, Available: true,
		Description: "What it is, what it is good for, and whatever else a shop has to say of it in two lines or three.",
		Tags:        []string{"books", "science", "paperback"},
		Updated:     time.Date(2025, 11, 3, 12, 30, 15, 0, time.UTC),
	}
}

// store is an instance with a cache of products, which counts what its source is
// asked for.
type store struct {
	cache *nearcache.Cache[int64, *product]
	reads atomic.Int64
	close func()
}

// storeOptions say what a store is to be.
type storeOptions struct {
	name     string
	shared   bool
	capacity int           // 0: the default
	takes    time.Duration // a load
}

// newStore opens a store on a backplane, which it closes.
func newStore(bp *nearcache.Backplane, o storeOptions) (*store, error) {
	s := &store{close: func() { _ = bp.Close() }}
	options := nearcache.Options[int64, *product]{
		Name: o.name, Capacity: o.capacity, TTL: ttl,
		Load: func(_ context.Context, key int64) (*product, error) {
			s.reads.Add(1)
			time.Sleep(o.takes)
			return newProduct(key), nil
		},
		LoadMany: func(_ context.Context, keys []int64) (map[int64]*product, error) {
			s.reads.Add(int64(len(keys)))
			time.Sleep(o.takes)
			got := make(map[int64]*product, len(keys))
			for _, key := range keys {
				got[key] = newProduct(key)
			}
			return got, nil
		},
	}
	if o.shared {
		options.Shared = &nearcache.SharedOptions[*product]{}
	}
	var err error
	s.cache, err = nearcache.New(bp, options)
	return s, err
}

// openStore opens a store on a backplane of its own.
func openStore(address, channel string, o storeOptions) (*store, error) {
	bp, err := subject.JoinChannel(address, channel)
	if err != nil {
		return nil, err
	}
	s, err := newStore(bp, o)
	if err != nil {
		_ = bp.Close()
	}
	return s, err
}

// share sees to it that the items of keys are in Redis.
func (s *store) share(ctx context.Context, keys []int64) error {
	before := s.cache.Stats().Shared
	if _, err := s.cache.GetMany(ctx, keys...); err != nil {
		return err
	}
	for deadline := time.Now().Add(giveUpIn); ; time.Sleep(time.Millisecond) {
		now := s.cache.Stats().Shared
		if now.Stored+now.Hits-before.Stored-before.Hits >= uint64(len(keys)) {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%d of %d items were stored in Redis", now.Stored-before.Stored, len(keys))
		}
	}
}

// sharedReader is a way to read what is in Redis: one item, or as many as follow it.
type sharedReader struct {
	name string
	read func(first int64) bool
	at   drive.Cursor
}

// sharedReads are the ways to read what is in Redis and not in memory.
//
// Misses are forced by room for a single item. Keys are asked for in their order, so
// the one that is held is never the next, and nobody joins another's load: each Get
// registers a load, asks Redis, decodes, and keeps the item in place of the last one,
// as any miss does.
type sharedReads struct {
	store      *store
	plain      *plain
	keys       []int64
	hits, many []*sharedReader
}

func openSharedReads(ctx context.Context, address string) (*sharedReads, error) {
	s, err := openStore(address, sharedChannel, storeOptions{name: "reads", shared: true, capacity: 1})
	if err != nil {
		return nil, err
	}
	keys := keysOf[int64](sharedKeys)
	if err := s.share(ctx, keys); err != nil {
		s.close()
		return nil, err
	}
	p, err := openPlain(ctx, address, keys)
	if err != nil {
		s.close()
		return nil, err
	}
	s.reads.Store(0)
	get := func(key int64) bool { return isProduct(key)(s.cache.Get(ctx, key)) }
	manyBy := func(read func(context.Context, ...int64) (map[int64]*product, error)) func(int64) bool {
		return func(first int64) bool {
			got, err := read(ctx, keys[first:first+manyKeys]...)
			return err == nil && len(got) == manyKeys
		}
	}
	return &sharedReads{
		store: s, plain: p, keys: keys,
		hits: []*sharedReader{
			{name: subject.Nearcache, read: get},
			{name: redisGet, read: func(key int64) bool { return isProduct(key)(p.get(ctx, key)) }},
			{name: bareReads, read: func(key int64) bool {
				got, err := p.ask(ctx, key)
				return isProduct(key)(got[key], err)
			}},
		},
		many: []*sharedReader{
			{name: subject.Nearcache, read: manyBy(s.cache.GetMany)},
			{name: oneByOne, read: func(first int64) bool {
				return !slices.ContainsFunc(keys[first:first+manyKeys], func(key int64) bool { return !get(key) })
			}},
			{name: someGets, read: func(first int64) bool { return allOf(keys[first:first+manyKeys], get) }},
			{name: redisMGet, read: manyBy(p.mget)},
			{name: bareReads, read: manyBy(p.ask)},
		},
	}, nil
}

func (s *sharedReads) close() {
	s.store.close()
	_ = s.plain.client.Close()
}

func measureSharedReads(ctx context.Context, b *bench) error {
	s, err := openSharedReads(ctx, b.address())
	if err != nil {
		return err
	}
	defer s.close()
	if err := sharedTurns(ctx, b, sharedHitCase, s.hits, s.keys, sharedGoroutines, 2*b.turn); err != nil {
		return err
	}
	if err := sharedTurns(ctx, b, sharedManyCase, s.many, firsts(), []int{1}, 6*b.turn); err != nil {
		return err
	}
	stats := s.store.cache.Stats()
	loads, held, read := s.store.reads.Load(), stats.Hits, stats.Shared.Hits
	if float64(loads)+float64(held) > 1e-4*float64(read) {
		b.file.Note(sharedSection, "Of the reads of what is in Redis, %d were found there, %d loaded from the source, and %d answered from memory.", read, loads, held)
	}
	return nil
}

// firsts returns where so many keys begin, never twice the same in a row.
func firsts() drive.Ring[int64] {
	r := make(drive.Ring[int64], 8)
	for i := range r {
		r[i] = int64(i) * 115 // 7·115 + 100 < sharedKeys
	}
	return r
}

// sharedTurns lets readers take turns.
func sharedTurns(
	ctx context.Context, b *bench, in string, readers []*sharedReader, ring drive.Ring[int64], goroutines []int, turn time.Duration,
) error {
	readers = slices.DeleteFunc(readers, func(r *sharedReader) bool {
		return !subject.Matches(r.name, b.subjects) && r.name != redisGet && r.name != redisMGet
	})
	b.progress("shared: %s", in)
	for _, r := range readers {
		drive.Run(r.read, ring, &r.at, slices.Max(goroutines), 1, turn) // until all connections are there
		objects, bytes := drive.Allocs(r.read, ring, &r.at, 16)
		b.file.Add(sharedKey(in, r.name, allocs, 0), objects)
		b.file.Add(sharedKey(in, r.name, heap, 0), bytes)
	}
	var failed int64
	for round := range b.rounds {
		for _, g := range goroutines {
			for _, i := range rotated(len(readers), round) {
				if err := ctx.Err(); err != nil {
					return err
				}
				r := readers[i]
				runtime.GC()
				t := drive.Run(r.read, ring, &r.at, g, 1, turn)
				b.file.Add(sharedKey(in, r.name, perOp, g), t.NsPerOp())
				failed += t.Ops - t.True
			}
		}
	}
	if failed > 0 {
		return fmt.Errorf("%s: %d reads failed", in, failed)
	}
	return nil
}

func sharedKey(in, name, metric string, x int) result.Key {
	return result.Key{Section: sharedSection, Case: in, Subject: name, Metric: metric, X: float64(x)}
}

// isProduct returns what reports whether a read returned the product of a key.
func isProduct(key int64) func(*product, error) bool {
	return func(p *product, err error) bool { return err == nil && p.ID == key }
}

// allOf reports whether it is so of all keys, some of which are asked at a time.
func allOf(keys []int64, so func(int64) bool) bool {
	var all sync.WaitGroup
	var next, yes atomic.Int64
	for range atATime {
		all.Go(func() {
			for i := next.Add(1) - 1; i < int64(len(keys)); i = next.Add(1) - 1 {
				if so(keys[i]) {
					yes.Add(1)
				}
			}
		})
	}
	all.Wait()
	return yes.Load() == int64(len(keys))
}

// plain is Redis without nearcache: the same products under keys of their own.
type plain struct{ client *redis.Client }

func openPlain(ctx context.Context, address string, keys []int64) (*plain, error) {
	p := &plain{redis.NewClient(&redis.Options{Addr: address})}
	_, err := p.client.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for _, key := range keys {
			text, err := json.Marshal(newProduct(key))
			if err != nil {
				return err
			}
			pipe.Set(ctx, plainKey(key), text, ttl)
		}
		return nil
	})
	if err != nil {
		_ = p.client.Close()
		return nil, err
	}
	return p, nil
}

// plainKey is about as long as nearcache's.
func plainKey(key int64) string { return "{bench-plain}:value:reads:" + strconv.FormatInt(key, 10) }

func (p *plain) get(ctx context.Context, key int64) (*product, error) {
	text, err := p.client.Get(ctx, plainKey(key)).Bytes()
	if err != nil {
		return nil, err
	}
	return decoded(text)
}

func decoded(text []byte) (*product, error) {
	var p product
	return &p, json.Unmarshal(text, &p)
}

func (p *plain) mget(ctx context.Context, keys ...int64) (map[int64]*product, error) {
	names := make([]string, len(keys))
	for i, key := range keys {
		names[i] = plainKey(key)
	}
	values, err := p.client.MGet(ctx, names...).Result()
	if err != nil {
		return nil, err
	}
	got := make(map[int64]*product, len(keys))
	for i, value := range values {
		text, _ := value.(string)
		if got[keys[i]], err = decoded([]byte(text)); err != nil {
			return nil, err
		}
	}
	return got, nil
}

// ask sends the commands that nearcache sends for so many keys, in one pipeline.
func (p *plain) ask(ctx context.Context, keys ...int64) (map[int64]*product, error) {
	values := make([]*redis.StringCmd, len(keys))
	_, err := p.client.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for i, key := range keys {
			pipe.PTTL(ctx, plainKey(key))
			values[i] = pipe.Get(ctx, plainKey(key))
		}
		pipe.HMGet(ctx, "{"+sharedChannel+"}:clears", "epoch", "n:reads", "c:reads")
		pipe.Info(ctx, "replication")
		return nil
	})
	if err != nil {
		return nil, err
	}
	got := make(map[int64]*product, len(keys))
	for i, value := range values {
		text, err := value.Bytes()
		if err != nil {
			return nil, err
		}
		if got[keys[i]], err = decoded(text); err != nil {
			return nil, err
		}
	}
	return got, nil
}
