package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/nearcache/nearcache/benchmarks/internal/subject"
)

const (
	removeCase   = "remove"
	removalsCase = "removals"

	inRedis = "µs in Redis"
)

// remover is a way to tell others of a change.
type remover struct {
	name    string
	command string                                     // what Redis is sent
	prepare func(ctx context.Context, k []int64) error // may be nil
	remove  func(ctx context.Context, keys ...int64) error
}

// openRemovers opens the ways, each with one other instance that hears of it.
func openRemovers(b *bench) (removers []*remover, end func(), err error) {
	var opened []func()
	end = func() {
		for _, c := range opened {
			c()
		}
	}
	for _, w := range []struct {
		name, channel string
		shared        bool
	}{{subject.Nearcache, sharedChannel, true}, {unshared, unsharedChannel, false}} {
		var both [2]*store
		for i := range both {
			s, err := openStore(b.address(), w.channel, storeOptions{name: "removals", shared: w.shared})
			if err != nil {
				return removers, end, err
			}
			opened = append(opened, s.close)
			both[i] = s
		}
		r := &remover{
			name: w.name, command: "evalsha",
			remove: both[0].cache.Remove,
		}
		if w.shared {
			r.prepare = both[0].share
		}
		removers = append(removers, r)
	}
	client := redis.NewClient(&redis.Options{Addr: b.address(), PoolSize: removeWriters})
	opened = append(opened, func() { _ = client.Close() })
	_, stop, err := subscribe(client)
	if err != nil {
		return removers, end, err
	}
	opened = append(opened, stop)
	removers = append(removers, &remover{
		name: publish, command: "publish",
		remove: func(ctx context.Context, _ ...int64) error { return client.Publish(ctx, channel, message).Err() },
	})
	return removers, end, nil
}

const (
	removeWriters = 64
	removeMany    = 1000
)

// measureRemove times Remove of one key, one after another, until Redis has accepted
// it. With the shared level each key has a value in Redis.
func measureRemove(ctx context.Context, b *bench) error {
	b.progress("shared: Remove")
	const shots = 200
	removers, end, err := openRemovers(b)
	defer end()
	if err != nil {
		return err
	}
	client := redis.NewClient(&redis.Options{Addr: b.address()})
	defer client.Close()
	keys := keysOf[int64](shots)
	for round := range b.rounds + 1 {
		for _, i := range rotated(len(removers), round) {
			r := removers[i]
			if r.prepare != nil {
				if err := r.prepare(ctx, keys); err != nil {
					return err
				}
			}
			calls, spent, err := spentOn(ctx, client, r.command)
			if err != nil {
				return err
			}
			took := make([]float64, 0, shots)
			for _, key := range keys {
				start := time.Now()
				if err := r.remove(ctx, key); err != nil {
					return fmt.Errorf("%s: %w", r.name, err)
				}
				took = append(took, float64(time.Since(start))/1e3)
			}
			callsAfter, spentAfter, err := spentOn(ctx, client, r.command)
			if err != nil {
				return err
			}
			if round > 0 { // the first is to warm up
				addQuantiles(b.file, sharedKey(removeCase, r.name, "", 0), took)
				b.file.Add(sharedKey(removeCase, r.name, inRedis, 0), (spentAfter-spent)/(callsAfter-calls))
			}
		}
	}
	return nil
}

// spentOn returns how often Redis has run a command, and how many µs it took in all.
func spentOn(ctx context.Context, client *redis.Client, command string) (calls, spent float64, err error) {
	text, err := client.Info(ctx, "commandstats").Result()
	for line := range strings.Lines(text) {
		fields, found := strings.CutPrefix(strings.TrimSpace(line), "cmdstat_"+command+":")
		if !found {
			continue
		}
		for field := range strings.SplitSeq(fields, ",") {
			switch name, value, _ := strings.Cut(field, "="); name {
			case "calls":
				calls, _ = strconv.ParseFloat(value, 64)
			case "usec":
				spent, _ = strconv.ParseFloat(value, 64)
			}
		}
	}
	return calls, spent, err
}

// measureRemovals lets 64 goroutines remove one key at a time, and then four a
// thousand, and wait for each removal. The keys have no values in Redis, since none
// could be put there as fast.
func measureRemovals(ctx context.Context, b *bench) error {
	removers, end, err := openRemovers(b)
	defer end()
	if err != nil {
		return err
	}
	for _, r := range removers {
		if r.prepare == nil {
			continue
		}
		if err := r.prepare(ctx, []int64{0}); err != nil { // so that the channel is known to have values
			return err
		}
	}
	for _, n := range []int{1, removeMany} {
		b.progress("shared: removals, %d a call", n)
		for round := range b.fewer() {
			for _, i := range rotated(len(removers), round) {
				if err := ctx.Err(); err != nil {
					return err
				}
				r, writers := removers[i], removeWriters
				if n > 1 {
					if r.name == publish {
						continue
					}
					writers = 4
				}
				rate, err := writesPerSecond(writers, 20*b.turn, func(i int64) error { return r.remove(ctx, keysFrom(i*int64(n), n)...) })
				if err != nil {
					return fmt.Errorf("%s: %w", r.name, err)
				}
				b.file.Add(sharedKey(removalsCase, r.name, persec, n), rate*float64(n))
			}
		}
	}
	return nil
}

func keysFrom(first int64, n int) []int64 { return fresh[int64](n, first) }
