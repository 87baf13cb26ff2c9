//go:build unix

package main

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nearcache/nearcache"
)

const (
	// readers is how many goroutines read in each instance, and so how many loads
	// it has under way at most.
	readers = 50

	// turn is how often a reader makes the reads that are due.
	turn = 20 * time.Millisecond

	// patience is how long a write waits to be confirmed.
	patience = 50 * time.Millisecond
)

// fleet is several instances with one cache each, their users, and the source.
type fleet struct {
	settings
	backplanes []*nearcache.Backplane
	users      sync.WaitGroup

	loads  atomic.Int64
	failed atomic.Int64 // reads
	logged atomic.Int64 // lines
}

// newFleet connects the instances and lets their users in, until ctx ends.
func newFleet(ctx context.Context, s settings, address string, staleness time.Duration) (*fleet, error) {
	f := &fleet{settings: s}
	for range s.instances {
		bp, err := nearcache.Connect(ctx, nearcache.BackplaneOptions{
			RedisConnectionString: address,
			MaxStaleness:          staleness,
			Logger:                slog.New(slog.NewTextHandler(f, nil)),
		})
		if err != nil {
			return f, err
		}
		f.backplanes = append(f.backplanes, bp)
		cache, err := nearcache.New(bp, nearcache.Options[int64, int64]{
			Name: "items", Capacity: 2 * s.keys, TTL: time.Hour, Load: f.load,
		})
		if err != nil {
			return f, err
		}
		for range readers {
			f.users.Go(func() { f.read(ctx, cache) })
		}
		if s.writes > 0 {
			f.users.Go(func() { f.write(ctx, cache) })
		}
	}
	return f, nil
}

// load is the source.
func (f *fleet) load(_ context.Context, key int64) (int64, error) {
	f.loads.Add(1)
	time.Sleep(f.latency)
	return key, nil
}

// read makes one reader's share of the reads. One that had to wait for loads makes
// up for the time.
func (f *fleet) read(ctx context.Context, cache *nearcache.Cache[int64, int64]) {
	time.Sleep(rand.N(turn)) // not all at once
	share := float64(f.reads) / readers
	start := time.Now()
	for made := 0; ctx.Err() == nil; time.Sleep(turn) {
		for due := int(time.Since(start).Seconds() * share); made < due; made++ {
			if _, err := cache.Get(context.Background(), rand.Int64N(int64(f.keys))); err != nil {
				f.failed.Add(1)
			}
		}
	}
}

func (f *fleet) write(ctx context.Context, cache *nearcache.Cache[int64, int64]) {
	tick := time.NewTicker(time.Second / time.Duration(f.writes))
	defer tick.Stop()
	for ctx.Err() == nil {
		<-tick.C
		brief, cancel := context.WithTimeout(ctx, patience)
		_ = cache.Remove(brief, rand.Int64N(int64(f.keys))) // unconfirmed in an outage, and queued
		cancel()
	}
}

// Write takes what the instances log.
func (f *fleet) Write(line []byte) (int, error) {
	f.logged.Add(int64(bytes.Count(line, []byte("\n"))))
	var to io.Writer = io.Discard
	if f.log {
		to = os.Stderr
	}
	return to.Write(line)
}

// close is called after the users' context has ended.
func (f *fleet) close() {
	f.users.Wait()
	for _, bp := range f.backplanes {
		_ = bp.Close()
	}
}

// totals is what all instances have counted so far.
type totals struct {
	at                  time.Time
	loads               int64
	hits, reads, clears uint64
	states              []nearcache.State // of each instance
	live                bool              // all are
}

func (f *fleet) totals() totals {
	t := totals{at: time.Now(), loads: f.loads.Load(), live: true}
	for _, bp := range f.backplanes {
		s := bp.Stats()
		t.clears += s.Clears.Total()
		t.states = append(t.states, s.State)
		t.live = t.live && s.State == nearcache.StateLive
		for _, c := range s.Caches {
			t.hits += c.Hits
			t.reads += c.Hits + c.Misses.Total()
			t.clears += c.Invalidations.Clears
		}
	}
	return t
}
