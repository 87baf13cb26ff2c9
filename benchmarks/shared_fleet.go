package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/nearcache/nearcache/benchmarks/internal/stats"
	"github.com/nearcache/nearcache/benchmarks/internal/subject"
)

const (
	coldStartCase = "cold start"
	coldKeyCase   = "cold key"

	sourceReads = "source reads"
	wholeTime   = "ms"

	loadsOfKey  = "loads per key"
	loaderTime  = "ms of the loader"
	othersP50   = "p50 ms of the others"
	othersMax   = "max ms of the others"
	scriptsRun  = "scripts per key"
	coldItems   = 1000
	warmStores  = 3
	members     = 8
	coldKeyLoad = 20 * time.Millisecond
)

// sharedWay is a cache with the shared level or without.
type sharedWay struct {
	name    string
	options storeOptions
}

func sharedWays(o storeOptions) []sharedWay {
	with, without := o, o
	with.name, with.shared = o.name+"-shared", true
	without.name = o.name + "-unshared"
	return []sharedWay{{subject.Nearcache, with}, {unshared, without}}
}

// measureColdStart has an instance join three that hold all items already, and read
// them. Each instance has a backplane and connections of its own.
func measureColdStart(ctx context.Context, b *bench) error {
	b.progress("shared: cold start")
	keys := keysOf[int64](coldItems)
	ways := sharedWays(storeOptions{name: "cold-start", takes: time.Millisecond})
	for _, w := range ways {
		for i := range warmStores {
			s, err := openStore(b.address(), sharedChannel, w.options)
			if err != nil {
				return err
			}
			defer s.close()
			warm := func() error { _, err := s.cache.GetMany(ctx, keys...); return err }
			if i == 0 && w.options.shared {
				warm = func() error { return s.share(ctx, keys) }
			}
			if err := warm(); err != nil {
				return err
			}
		}
	}
	for round := range b.fewer() {
		for _, g := range []int{1, atATime} {
			for _, i := range rotated(len(ways), round) {
				if err := ctx.Err(); err != nil {
					return err
				}
				took, reads, err := coldStart(ctx, b.address(), ways[i].options, keys, g)
				if err != nil {
					return err
				}
				b.file.Add(sharedKey(coldStartCase, ways[i].name, wholeTime, g), took.Seconds()*1e3)
				b.file.Add(sharedKey(coldStartCase, ways[i].name, sourceReads, g), float64(reads))
			}
		}
	}
	return nil
}

// coldStart returns how long a new instance takes to read all items, so many at a
// time, and how many its source was asked for. It holds a lease from the start; its
// connections for values are not dialled yet.
func coldStart(
	ctx context.Context, address string, o storeOptions, keys []int64, goroutines int,
) (took time.Duration, reads int64, err error) {
	s, err := openStore(address, sharedChannel, o)
	if err != nil {
		return 0, 0, err
	}
	defer s.close()
	var all sync.WaitGroup
	var next atomic.Int64
	var failed atomic.Pointer[error]
	start := time.Now()
	for range goroutines {
		all.Go(func() {
			for i := next.Add(1) - 1; i < int64(len(keys)); i = next.Add(1) - 1 {
				if _, err := s.cache.Get(ctx, keys[i]); err != nil {
					failed.Store(&err)
				}
			}
		})
	}
	all.Wait()
	took = time.Since(start)
	if err := failed.Load(); err != nil {
		return 0, 0, *err
	}
	return took, s.reads.Load(), nil
}

// order tells the processes of a fleet to get a key, all at the same time.
type order struct {
	Cache string
	Key   int64
	At    time.Time
}

// account is what one of them did. Its first one says that it is ready.
type account struct {
	Took  time.Duration // from the call of Get to the value
	Loads int64
	Alone uint64 // requests to Redis that failed or were left out
	Error string
}

// runMember is a process of a fleet. It ends when its input does.
func runMember(t task, in io.Reader, out io.Writer) error {
	ctx := context.Background()
	accounts, orders := json.NewEncoder(out), json.NewDecoder(in)
	stores := map[string]*store{}
	for _, w := range sharedWays(coldKeyOptions) {
		s, err := openStore(t.Redis, sharedChannel, w.options)
		if err != nil {
			return err
		}
		defer s.close()
		stores[w.options.name] = s
	}
	if err := accounts.Encode(account{}); err != nil {
		return err
	}
	for {
		var o order
		if err := orders.Decode(&o); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		s := stores[o.Cache]
		if s == nil {
			return fmt.Errorf("there is no cache %q", o.Cache)
		}
		if err := accounts.Encode(s.carryOut(ctx, o)); err != nil {
			return err
		}
	}
}

var coldKeyOptions = storeOptions{name: "cold-key", takes: coldKeyLoad}

func (s *store) carryOut(ctx context.Context, o order) (a account) {
	reads, alone := s.reads.Load(), s.alone()
	time.Sleep(time.Until(o.At))
	start := time.Now()
	p, err := s.cache.Get(ctx, o.Key)
	a.Took = time.Since(start)
	if !isProduct(o.Key)(p, err) {
		a.Error = fmt.Sprintf("key %d: %v", o.Key, err)
	}
	a.Loads, a.Alone = s.reads.Load()-reads, s.alone()-alone
	return a
}

// alone returns how often Redis was of no use.
func (s *store) alone() uint64 {
	stats := s.cache.Stats().Shared
	return stats.Errors + stats.Skipped.Total()
}

// member is the parent's side of runMember.
type member struct {
	command  *exec.Cmd
	input    io.Closer
	orders   *json.Encoder
	accounts *json.Decoder
}

func startMember(ctx context.Context, address string) (*member, error) {
	command, err := childCommand(ctx, task{Measure: sharedSection, Redis: address})
	if err != nil {
		return nil, err
	}
	in, err := command.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := command.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := command.Start(); err != nil {
		return nil, err
	}
	return &member{command, in, json.NewEncoder(in), json.NewDecoder(out)}, nil
}

// account waits for the next one.
func (m *member) account() (a account, err error) {
	if err := m.accounts.Decode(&a); err != nil {
		return a, fmt.Errorf("a process of the fleet has ended: %w", err)
	}
	if a.Error != "" {
		return a, errors.New(a.Error)
	}
	return a, nil
}

// end ends the process, and waits for that.
func (m *member) end() error {
	_ = m.input.Close()
	return m.command.Wait()
}

// fleet is some processes on one channel.
type fleet []*member

func (f fleet) end() (err error) {
	for _, m := range f {
		err = errors.Join(err, m.end())
	}
	return err
}

// startFleet starts the processes, and returns once all are ready.
func startFleet(ctx context.Context, address string) (f fleet, err error) {
	for range members {
		m, err := startMember(ctx, address)
		if err != nil {
			return f, err
		}
		f = append(f, m)
	}
	for _, m := range f {
		if _, err := m.account(); err != nil {
			return f, err
		}
	}
	return f, nil
}

// get has all processes get a key at once.
func (f fleet) get(cache string, key int64) ([]account, error) {
	// Time enough for all to have read it, and to sleep.
	o := order{Cache: cache, Key: key, At: time.Now().Add(20 * time.Millisecond)}
	for _, m := range f {
		if err := m.orders.Encode(o); err != nil {
			return nil, err
		}
	}
	accounts := make([]account, len(f))
	for i, m := range f {
		var err error
		if accounts[i], err = m.account(); err != nil {
			return nil, err
		}
	}
	return accounts, nil
}

// measureColdKey has eight processes get keys at once that none of them holds.
func measureColdKey(ctx context.Context, b *bench) (err error) {
	b.progress("shared: a cold key in %d processes", members)
	const keysInRound = 5
	f, err := startFleet(ctx, b.address())
	defer func() { err = errors.Join(err, f.end()) }()
	if err != nil {
		return err
	}
	client := redis.NewClient(&redis.Options{Addr: b.address()})
	defer client.Close()
	ways := sharedWays(coldKeyOptions)
	key := int64(0)
	for _, w := range ways { // until all connections are there
		if _, err := f.get(w.options.name, key); err != nil {
			return err
		}
	}
	for range b.rounds {
		others := make([][]float64, len(ways))
		for range keysInRound {
			key++
			for _, i := range rotated(len(ways), int(key)) {
				if err := ctx.Err(); err != nil {
					return err
				}
				before, _, err := spentOn(ctx, client, "evalsha")
				if err != nil {
					return err
				}
				accounts, err := f.get(ways[i].options.name, key)
				if err != nil {
					return err
				}
				after, _, err := spentOn(ctx, client, "evalsha")
				if err != nil {
					return err
				}
				b.file.Add(sharedKey(coldKeyCase, ways[i].name, scriptsRun, 0), after-before)
				others[i] = append(others[i], b.addColdKey(ways[i].name, accounts)...)
			}
		}
		for i, w := range ways {
			b.file.Add(sharedKey(coldKeyCase, w.name, othersP50, 0), stats.Median(others[i]))
			b.file.Add(sharedKey(coldKeyCase, w.name, othersMax, 0), slices.Max(others[i]))
		}
	}
	return nil
}

// addColdKey adds what became of one key, and returns how many ms the Gets of the
// others took than of the one that had loaded it first. Without Shared all load.
func (b *bench) addColdKey(name string, accounts []account) (others []float64) {
	loads, alone, first := int64(0), uint64(0), -1
	for i, a := range accounts {
		loads, alone = loads+a.Loads, alone+a.Alone
		if a.Loads > 0 && (first < 0 || a.Took < accounts[first].Took) {
			first = i
		}
	}
	b.file.Add(sharedKey(coldKeyCase, name, loadsOfKey, 0), float64(loads))
	if alone > 0 {
		b.file.Note(sharedSection, "Of a cold key, with %s: %d of the processes' requests to Redis failed or were left out.", plural(int(loads), "load"), alone)
	}
	for i, a := range accounts {
		if ms := a.Took.Seconds() * 1e3; i != first {
			others = append(others, ms)
		} else {
			b.file.Add(sharedKey(coldKeyCase, name, loaderTime, 0), ms)
		}
	}
	return others
}
