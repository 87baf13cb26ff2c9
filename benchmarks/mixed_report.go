package main

import (
	"fmt"
	"strings"

	"github.com/nearcache/nearcache/benchmarks/internal/chart"
	"github.com/nearcache/nearcache/benchmarks/internal/result"
	"github.com/nearcache/nearcache/benchmarks/internal/stats"
	"github.com/nearcache/nearcache/benchmarks/internal/subject"
)

func renderMixed(r *report) {
	cores := float64(r.file.Machine.Cores)
	r.say("## Reads and writes")
	r.say("int64 keys, in this process alone: nearcache is on `Local()`, with regions and statistics on. *All held*: 100 000 keys (Zipf 1.01), room for " +
		"200 000, and a set replaces an item. *Room for a tenth*: 1 000 000 keys (Zipf 1.01), room for 100 000; a get that misses loads the item and keeps it, " +
		"by the cache's own loader (nearcache, otter, theine) or by a set after the get. *Contexts that can end* are what a service has, [see below](#misses); the others have `context.Background()`. *Loads* is how many of the gets needed one: a cache " +
		"that keeps more of what matters has less to do. *Set of new keys* never sets one twice, so that each evicts another. " +
		"ristretto drops writes when they come too fast, and spends no time on those.")
	for _, in := range r.file.Cases(mixedSection, perOp) {
		r.say("### %s", upperFirst(in))
		bars := chart.Bars{
			Title:          upperFirst(in),
			Subtitle:       fmt.Sprintf("Million operations per second, %d goroutines on as many cores; more is better.", int(cores)),
			HigherIsBetter: true,
		}
		loads := strings.Contains(in, "room for a tenth")
		t := table{head: []string{"ns per operation", "1 goroutine", plural(int(cores), "goroutine"), "allocations", "bytes", "× otter", fmt.Sprintf("× otter, %d goroutines", int(cores))}}
		if loads {
			t.head = append(t.head, "loads, % of gets")
		}
		t.numbers = len(t.head) - 1
		for _, name := range r.file.Subjects(mixedSection, in, perOp) {
			cells := []string{name,
				spreadOf(r.file.Samples(mixedKey(in, name, perOp, 1))), spreadOf(r.file.Samples(mixedKey(in, name, perOp, cores))),
				number(r.file.Median(mixedKey(in, name, allocs, 0))), number(whole(r.file.Median(mixedKey(in, name, heap, 0)))),
				ratioText(mixedRatio(r.file, in, name, 1)), ratioText(mixedRatio(r.file, in, name, cores)),
			}
			if loads {
				cells = append(cells, number(100*r.file.Median(mixedKey(in, name, loadsPerGet, cores))))
			}
			t.row(cells...)
			rate := 1e3 / r.file.Median(mixedKey(in, name, perOp, cores))
			bars.Bars = append(bars.Bars, chart.Bar{Label: name, Value: rate, Text: number(rate), Tone: tone(name)})
		}
		r.chart("mixed-"+fileName(in), "operations per second, "+in, bars.SVG())
		r.table(t)
	}
}

func mixedKey(in, name, metric string, x float64) result.Key {
	return result.Key{Section: mixedSection, Case: in, Subject: name, Metric: metric, X: x}
}

// mixedRatio returns how many times as much a subject does as otter.
func mixedRatio(f *result.File, in, name string, goroutines float64) float64 {
	return stats.Ratio(f.Samples(mixedKey(in, subject.Otter, perOp, goroutines)), f.Samples(mixedKey(in, name, perOp, goroutines)))
}

func renderMisses(r *report) {
	r.say("## Misses")
	r.say("The cost of a read-through beside the load: keys that were never asked for, and a loader that returns at once. nearcache lets a caller leave when its context ends, "+
		"without harm to other callers that wait for the same load. So where contexts can end each load has a goroutine of its own; with `context.Background()` it runs in the caller's. "+
		"In otter and theine it always runs in a caller's, and that caller cannot leave. %s is a map with a lock and `golang.org/x/sync/singleflight`, by `DoChan` where contexts can end; it forgets all when it is full. "+
		"ristretto, golang-lru and ttlcache as set up here have no loader.", flightName)
	for _, in := range r.file.Cases(missSection, perOp) {
		r.say("### %s", upperFirst(in))
		bars := chart.Bars{Title: "One miss: " + in, Subtitle: "ns beside the load, one goroutine; less is better."}
		t := table{head: []string{"", "ns", "allocations", "bytes"}, numbers: 3}
		for _, name := range r.file.Subjects(missSection, in, perOp) {
			samples := r.file.Samples(missKey(in, name, perOp))
			t.row(name, spreadOf(samples), number(r.file.Median(missKey(in, name, allocs))), number(whole(r.file.Median(missKey(in, name, heap)))))
			ns := stats.Median(samples)
			bars.Bars = append(bars.Bars, chart.Bar{Label: name, Value: ns, Text: number(ns) + " ns", Tone: tone(name)})
		}
		r.chart("misses-"+fileName(in), "ns per miss, "+in, bars.SVG())
		r.table(t)
	}
}

func missKey(in, name, metric string) result.Key {
	return result.Key{Section: missSection, Case: in, Subject: name, Metric: metric}
}
