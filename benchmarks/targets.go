package main

import (
	"fmt"
	"math"
	"strings"

	"github.com/nearcache/nearcache/benchmarks/internal/result"
	"github.com/nearcache/nearcache/benchmarks/internal/stats"
	"github.com/nearcache/nearcache/benchmarks/internal/subject"
)

// target is a number that nearcache means to reach.
type target struct {
	what   string
	found  float64 // NaN: not measured
	atMost bool    // else at least
	bound  float64
	unit   string
	where  string // what is worst, if it is one of many
}

func (t target) reached() bool {
	if t.atMost {
		return t.found <= t.bound
	}
	return t.found >= t.bound
}

func (r *report) targets() {
	t := table{head: []string{"target", "wanted", "found", "reached"}}
	for _, target := range allTargets(r.file) {
		if math.IsNaN(target.found) {
			continue
		}
		sign, verdict := "≥", "no"
		if target.atMost {
			sign = "≤"
		}
		if target.reached() {
			verdict = "yes"
		}
		found := target.amount(target.found)
		if target.where != "" {
			found += " (" + target.where + ")"
		}
		t.row(target.what, sign+" "+target.amount(target.bound), found, verdict)
	}
	if len(t.rows) > 0 {
		r.say("## Targets")
		r.say("What nearcache means to reach, and did here.")
		r.table(t)
	}
}

// times is the unit of a ratio.
const times = "×"

// amount formats a number of a target.
func (t target) amount(x float64) string {
	if t.unit == times {
		return ratioText(x) + times
	}
	return number(x) + t.unit
}

func allTargets(f *result.File) (all []target) {
	all = append(all, hitTargets(f)...)
	all = append(all, mixedTargets(f)...)
	all = append(all, ratioTargets(f)...)
	for _, kind := range []string{"int64", "string"} {
		all = append(all, target{
			what:   "bytes per item beyond otter's, " + kind + " keys",
			found:  f.Median(memoryKey(kind, subject.Nearcache)) - f.Median(memoryKey(kind, subject.Otter)),
			atMost: true, bound: 16, unit: " B",
		})
	}
	for _, in := range f.Cases(missSection, perOp) {
		all = append(all,
			target{what: "a miss beside the load, " + in, found: f.Median(missKey(in, subject.Nearcache, perOp)), atMost: true, bound: 2000, unit: " ns"},
			target{what: "allocations of a miss, " + in, found: whole(f.Median(missKey(in, subject.Nearcache, allocs))), atMost: true, bound: 6})
	}
	all = append(all, target{
		what:  "key removals applied per second",
		found: f.Median(result.Key{Section: invalidationSection, Case: appliedCase, Subject: subject.Nearcache, Metric: persec}),
		bound: 1e6,
	})
	for _, in := range f.Cases(clearSection, callTime) {
		all = append(all,
			target{what: "the call of " + in, found: f.Median(clearKey(in, callTime)), atMost: true, bound: 1000, unit: " µs"},
			target{
				what:   "readers' p99.9 while " + in + " is reclaimed, beside that before",
				found:  stats.Ratio(f.Samples(clearKey(in, latency("p99.9", meanwhile))), f.Samples(clearKey(in, latency("p99.9", before)))),
				atMost: true, bound: 2, unit: times,
			})
	}
	return append(all, sharedTargets(f)...)
}

func sharedTargets(f *result.File) (all []target) {
	for _, x := range f.Xs(sharedSection, sharedHitCase, perOp) {
		all = append(all, target{
			what: "a hit of the shared level, beside " + redisGet + ": " + plural(int(x), "goroutine"),
			found: stats.Ratio(f.Samples(sharedKey(sharedHitCase, subject.Nearcache, perOp, int(x))),
				f.Samples(sharedKey(sharedHitCase, redisGet, perOp, int(x)))),
			atMost: true, bound: 1.3, unit: times,
		})
	}
	for _, x := range f.Xs(sharedSection, coldStartCase, sourceReads) {
		all = append(all, target{
			what:   "source reads of an instance that joins: " + plural(int(x), "goroutine"),
			found:  stats.Greatest(f.Samples(sharedKey(coldStartCase, subject.Nearcache, sourceReads, int(x)))),
			atMost: true, bound: 0,
		})
	}
	loads := f.Samples(sharedKey(coldKeyCase, subject.Nearcache, loadsOfKey, 0))
	return append(all, target{
		what: "loads of a cold key in a fleet, at most", found: stats.Greatest(loads), atMost: true, bound: 1,
	})
}

func hitTargets(f *result.File) (all []target) {
	cores := float64(f.Machine.Cores)
	for _, kind := range []string{"int64", "string"} {
		one, hot, zipf := hitCase(kind, "1 key"), hitCase(kind, "64 keys"), hitCase(kind, "100k keys, Zipf")
		against := func(in string, goroutines, bound float64) target {
			return target{
				what:  fmt.Sprintf("hits, beside otter: %s, %s", in, plural(int(goroutines), "goroutine")),
				found: hitRatioTo(f, in, subject.Otter, subject.Nearcache, goroutines), bound: bound, unit: times,
			}
		}
		beside := func(in string, bound float64) target {
			return target{
				what:  "time of a hit, beside " + subject.Timed + ": " + in,
				found: hitRatioTo(f, in, subject.Nearcache, subject.Timed, 1), atMost: true, bound: bound, unit: times,
			}
		}
		all = append(all,
			against(hot, 1, 1.8), against(zipf, 1, 1.4), beside(hot, 1.1), beside(zipf, 1.4),
			against(one, cores, 1.6), against(hot, cores, 1.6))
		for _, in := range []string{one, hot, zipf} {
			all = append(all, target{
				what:  "allocations of a hit: " + in,
				found: whole(f.Median(hitKey(in, subject.Nearcache, allocs, 0))), atMost: true, bound: 0,
			})
		}
	}
	return all
}

func mixedTargets(f *result.File) (all []target) {
	for _, in := range f.Cases(mixedSection, perOp) {
		if strings.HasSuffix(in, leaves) {
			continue // only nearcache's callers can leave
		}
		for _, x := range f.Xs(mixedSection, in, perOp) {
			all = append(all, target{
				what:  fmt.Sprintf("operations, beside otter: %s, %s", in, plural(int(x), "goroutine")),
				found: mixedRatio(f, in, subject.Nearcache, x), bound: 1, unit: times,
			})
		}
	}
	return all
}

func ratioTargets(f *result.File) []target {
	worst, where := worstAgainst(f, subject.Nearcache, "golang-lru")
	worstMean, whereMean := math.NaN(), ""
	for _, in := range f.Cases(ratioSection, hitRatio) {
		if d := meanRatio(f, subject.Nearcache, in) - meanRatio(f, "golang-lru", in); !(d >= worstMean) {
			worstMean, whereMean = d, in
		}
	}
	return []target{
		{what: "hit ratio beyond LRU's, mean of each trace", found: worstMean, bound: -1, unit: " points", where: whereMean},
		{what: "hit ratio beyond LRU's, at each capacity", found: worst, bound: -1, unit: " points", where: where},
		{what: "hit ratio beyond otter's, mean of all", found: meanRatio(f, subject.Nearcache, "") - meanRatio(f, subject.Otter, ""), bound: 0, unit: " points"},
	}
}
