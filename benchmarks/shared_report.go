package main

import (
	"fmt"
	"strconv"

	"github.com/nearcache/nearcache/benchmarks/internal/chart"
	"github.com/nearcache/nearcache/benchmarks/internal/stats"
	"github.com/nearcache/nearcache/benchmarks/internal/subject"
)

func renderShared(r *report) {
	r.say("## The shared level")
	r.say("`Options.Shared`: values kept in Redis, between memory and the source. Items are structs of nine fields and some 300 bytes of JSON; the codec is the default.")
	renderSharedHits(r)
	renderSharedMany(r)
	renderColdStart(r)
	renderColdKey(r)
	renderRemove(r)
}

// sharedSamples returns the samples of a series of the section.
func (r *report) sharedSamples(in, name, metric string, x float64) []float64 {
	return r.file.Samples(sharedKey(in, name, metric, int(x)))
}

// scaled returns samples in another unit.
func scaled(samples []float64, by float64) []float64 {
	all := make([]float64, len(samples))
	for i, sample := range samples {
		all[i] = sample * by
	}
	return all
}

func renderSharedHits(r *report) {
	if !r.measured(sharedHitCase, perOp) {
		return
	}
	r.say("### A hit of the shared level")
	r.say("`Get` of an item that is not in memory and has a value in Redis: the miss in memory, a load registered, "+
		"the round trip, the checks, the decoding, and the item kept in memory, where it replaces another (the cache has room for one, and keys are asked for in turn). "+
		"*%s* is go-redis's `Get` and `json.Unmarshal`, and keeps nothing. *%s* is the pipeline that nearcache sends, without nearcache: GET, PTTL, HMGET of what was cleared, and INFO; "+
		"its distance from the GET is the protocol's, and that of nearcache from it is the library's. Wall time for each read, of all goroutines together.", redisGet, bareReads)
	xs := r.file.Xs(sharedSection, sharedHitCase, perOp)
	bars := chart.Bars{
		Title:    "A read of what is in Redis and not in memory",
		Subtitle: "µs with one goroutine, decoded; Redis is on the same machine; less is better.",
	}
	t := table{head: []string{"µs per read"}}
	for _, x := range xs {
		t.head = append(t.head, plural(int(x), "goroutine"), "÷ "+redisGet)
	}
	t.head = append(t.head, "allocations", "bytes")
	t.numbers = len(t.head) - 1
	for _, name := range r.file.Subjects(sharedSection, sharedHitCase, perOp) {
		cells := []string{name}
		for _, x := range xs {
			ns := r.sharedSamples(sharedHitCase, name, perOp, x)
			cells = append(cells, spreadOf(scaled(ns, 1e-3)), ratioText(stats.Ratio(ns, r.sharedSamples(sharedHitCase, redisGet, perOp, x))))
		}
		t.row(append(cells, r.allocated(sharedHitCase, name)...)...)
		us := stats.Median(r.sharedSamples(sharedHitCase, name, perOp, 1)) / 1e3
		bars.Bars = append(bars.Bars, chart.Bar{Label: name, Value: us, Text: number(us) + " µs", Tone: tone(name)})
	}
	r.chart("shared-hit", "µs per read of what is in Redis", bars.SVG())
	r.table(t)
}

// allocated returns the cells of what an operation allocates.
func (r *report) allocated(in, name string) []string {
	return []string{
		number(whole(r.file.Median(sharedKey(in, name, allocs, 0)))),
		number(whole(r.file.Median(sharedKey(in, name, heap, 0)))),
	}
}

// measured reports whether a part of the section was.
func (r *report) measured(in, metric string) bool {
	return len(r.file.Subjects(sharedSection, in, metric)) > 0
}

func renderSharedMany(r *report) {
	if !r.measured(sharedManyCase, perOp) {
		return
	}
	r.say("### %d items at once", manyKeys)
	r.say("Items that have values in Redis and are not in memory: one `GetMany`, with a `LoadMany`, against `Get`s one after another or %d at a time, against go-redis's MGET and `json.Unmarshal` of each, "+
		"and against the pipeline that nearcache sends. All but the `Get`s make a map.", atATime)
	bars := chart.Bars{
		Title:    fmt.Sprintf("%d items that are in Redis and not in memory", manyKeys),
		Subtitle: "µs for all of them, decoded; Redis is on the same machine; less is better.",
	}
	t := table{head: []string{"µs for " + strconv.Itoa(manyKeys), "", "÷ " + redisMGet, "÷ GetMany", "allocations", "bytes"}, numbers: 5}
	for _, name := range r.file.Subjects(sharedSection, sharedManyCase, perOp) {
		ns := r.sharedSamples(sharedManyCase, name, perOp, 1)
		label := name
		if name == subject.Nearcache {
			label += ", GetMany"
		}
		cells := []string{
			label, spreadOf(scaled(ns, 1e-3)),
			ratioText(stats.Ratio(ns, r.sharedSamples(sharedManyCase, redisMGet, perOp, 1))),
			ratioText(stats.Ratio(ns, r.sharedSamples(sharedManyCase, subject.Nearcache, perOp, 1))),
		}
		t.row(append(cells, r.allocated(sharedManyCase, name)...)...)
		us := stats.Median(ns) / 1e3
		bars.Bars = append(bars.Bars, chart.Bar{Label: label, Value: us, Text: number(us) + " µs", Tone: tone(name)})
	}
	r.chart("shared-many", "µs for many items that are in Redis", bars.SVG())
	r.table(t)
}

func renderColdStart(r *report) {
	if !r.measured(coldStartCase, wholeTime) {
		return
	}
	xs := r.file.Xs(sharedSection, coldStartCase, wholeTime)
	r.say("### A fourth instance")
	r.say("Three instances hold %s items; a fourth one, with a lease and nothing in memory, gets them all, one after another or %d at a time. A load takes 1 ms, and a little more, as it sleeps. "+
		"Dialling the connections for values is part of the time. What nearcache saves is the source: one that takes no CPU, and any number of loads at once, answers many goroutines as fast as Redis does.", number(coldItems), atATime)
	t := table{head: []string{""}}
	for _, x := range xs {
		t.head = append(t.head, sourceReads+", "+plural(int(x), "goroutine"), "ms", "÷ "+unshared)
	}
	t.numbers = len(t.head) - 1
	for _, name := range r.file.Subjects(sharedSection, coldStartCase, wholeTime) {
		cells := []string{name}
		for _, x := range xs {
			ms := r.sharedSamples(coldStartCase, name, wholeTime, x)
			cells = append(cells, spreadOf(r.sharedSamples(coldStartCase, name, sourceReads, x)), spreadOf(ms),
				ratioText(stats.Ratio(ms, r.sharedSamples(coldStartCase, unshared, wholeTime, x))))
		}
		t.row(cells...)
	}
	r.table(t)
}

func renderColdKey(r *report) {
	if !r.measured(coldKeyCase, loadsOfKey) {
		return
	}
	n := len(r.sharedSamples(coldKeyCase, subject.Nearcache, loadsOfKey, 0))
	r.say("### A cold key in %d processes", members)
	r.say("%d processes get the same key at the same time, which is nowhere yet; a load takes %d ms. So with %s, and as many without Shared, in turn. "+
		"*The others* are all but the process that had it loaded first: with Shared they wait for its value, and without it they load it themselves. Each time is from the call of `Get`, "+
		"which begins late in some processes, as they share the machine; *the slowest* is that of a round of five keys. *Scripts* are what Redis ran for a key, for all processes together: "+
		"claims, looks for the value, its storing, and now and then a probe.",
		members, coldKeyLoad.Milliseconds(), plural(n, "key"))
	t := table{head: []string{"", "loads per key", "the most", "the loader, ms", "the others, ms", "the slowest, ms", "scripts"}, numbers: 6}
	for _, name := range []string{subject.Nearcache, unshared} {
		of := func(metric string) []float64 { return r.sharedSamples(coldKeyCase, name, metric, 0) }
		t.row(name, number(stats.Median(of(loadsOfKey))), number(stats.Greatest(of(loadsOfKey))), spreadOf(of(loaderTime)),
			spreadOf(of(othersP50)), spreadOf(of(othersMax)), number(stats.Median(of(scriptsRun))))
	}
	r.table(t)
}

func renderRemove(r *report) {
	if !r.measured(removeCase, p50) {
		return
	}
	r.say("### Publishing")
	r.say("`Remove` of one key until Redis has accepted it, one after another, against PUBLISH, each with one other instance that hears of it. With the shared level the key has a value in Redis, which is deleted in the same step; " +
		"without it no instance on the channel has any. *µs in Redis* is what Redis itself spends on a message, as its INFO says.")
	t := table{head: []string{"", "p50 µs", "÷ PUBLISH", "p99 µs", "µs in Redis"}, numbers: 4}
	names := []string{subject.Nearcache, unshared, publish}
	for _, name := range names {
		of := func(metric string) []float64 { return r.sharedSamples(removeCase, name, metric, 0) }
		t.row(name, spreadOf(of(p50)), ratioText(stats.Ratio(of(p50), r.sharedSamples(removeCase, publish, p50, 0))), spreadOf(of(p99)), spreadOf(of(inRedis)))
	}
	r.table(t)
	r.say("Keys removed per second: by %d goroutines one at a time, and by four goroutines %s a call. The keys have no values.", removeWriters, number(removeMany))
	t = table{head: []string{"keys per second", "one a call", "÷ " + unshared, number(removeMany) + " a call", "÷ " + unshared}, numbers: 4}
	for _, name := range names {
		cells := []string{name}
		for _, n := range []float64{1, removeMany} {
			rate := r.sharedSamples(removalsCase, name, persec, n)
			cells = append(cells, spreadOf(rate), ratioText(stats.Ratio(rate, r.sharedSamples(removalsCase, unshared, persec, n))))
		}
		t.row(cells...)
	}
	r.table(t)
}
