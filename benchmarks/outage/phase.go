//go:build unix

package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/nearcache/nearcache/benchmarks/internal/measure"
)

// result is what one run found.
type result struct {
	phases   []phase
	recovery time.Duration // from the return of Redis until all instances were live
	clears   uint64        // since then, of all instances
	failed   int64
	logged   int64
}

// phase is a part of a run.
type phase struct {
	name        string
	lasted      time.Duration
	loads, peak int64 // in all, and in the second that had the most
	hits, reads uint64
	states      []string // in which instances were found, in the order of their first sight
	live        time.Time
}

// sampling is how often a phase is looked at.
const sampling = 100 * time.Millisecond

// run makes one measurement with a Redis of its own.
func run(ctx context.Context, s settings, staleness time.Duration) (r result, err error) {
	server, err := measure.StartServer()
	if err != nil {
		return r, err
	}
	defer server.Kill()
	using, leave := context.WithCancel(ctx)
	f, err := newFleet(using, s, server.Addr, staleness)
	defer f.close()
	defer leave()
	if err != nil {
		return r, err
	}
	f.observe(ctx, "warm-up", s.warm)

	begin, end := func() error { server.Kill(); return nil }, server.Restart
	if s.freeze {
		begin = func() error { return server.Signal(syscall.SIGSTOP) }
		end = func() error { return server.Signal(syscall.SIGCONT) }
	}
	r.phases = append(r.phases, f.observe(ctx, "before", s.before))
	logged := f.logged.Load()
	if err := begin(); err != nil {
		return r, err
	}
	// A lease is a fifth of its life old at most when Redis goes.
	leased := min(s.outage, staleness*4/5)
	r.phases = append(r.phases, f.observe(ctx, "outage, leases last", leased))
	if leased < s.outage {
		r.phases = append(r.phases, f.observe(ctx, "outage, leases run out", s.outage-leased))
	}
	clears, back := f.totals().clears, time.Now()
	if err := end(); err != nil {
		return r, err
	}
	peak := min(s.after, 5*time.Second)
	returning := f.observe(ctx, "Redis is back", peak)
	r.phases = append(r.phases, returning)
	if peak < s.after {
		r.phases = append(r.phases, f.observe(ctx, "after that", s.after-peak))
	}
	r.recovery = returning.live.Sub(back)
	r.clears = f.totals().clears - clears
	r.failed, r.logged = f.failed.Load(), f.logged.Load()-logged
	return r, ctx.Err()
}

// observe watches the fleet for a while.
func (f *fleet) observe(ctx context.Context, name string, length time.Duration) phase {
	p := phase{name: name}
	first := f.totals()
	samples := []totals{first}
	tick := time.NewTicker(sampling)
	defer tick.Stop()
	for last := first; last.at.Sub(first.at) < length-sampling/2 && ctx.Err() == nil; {
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
		last = f.totals()
		samples = append(samples, last)
		for _, state := range last.states {
			if !slices.Contains(p.states, state.String()) {
				p.states = append(p.states, state.String())
			}
		}
		if last.live && p.live.IsZero() {
			p.live = last.at
		}
		p.lasted = last.at.Sub(first.at)
		p.loads, p.hits, p.reads = last.loads-first.loads, last.hits-first.hits, last.reads-first.reads
		if second := len(samples) - int(time.Second/sampling) - 1; second >= 0 && second%5 == 0 {
			fmt.Fprintf(os.Stderr, "%-24s %5.1f s %7d loads/s %v\n", name, p.lasted.Seconds(),
				last.loads-samples[second].loads, last.states)
		}
	}
	for i, from := range samples {
		for _, to := range samples[i:] {
			if to.at.Sub(from.at) > time.Second+sampling/2 {
				break
			}
			p.peak = max(p.peak, to.loads-from.loads)
		}
	}
	return p
}
