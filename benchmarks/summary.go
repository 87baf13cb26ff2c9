package main

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nearcache/nearcache/benchmarks/internal/result"
	"github.com/nearcache/nearcache/benchmarks/internal/stats"
	"github.com/nearcache/nearcache/benchmarks/internal/subject"
)

// A page such as docs/benchmarks.md explains the figures of a run. The figures
// themselves are generated, so that they are not written twice: each of these parts
// stands between two marks, "<!-- results: NAME -->" and "<!-- end of results -->".
var summaryParts = []struct {
	name   string
	render func(*report)
}{
	{"machine", (*report).origin},
	{"hits", summarizeHits},
	{"hit ratios to peers", summarizeHitFactors},
	{"reads and writes", summarizeMixed},
	{"misses", summarizeMisses},
	{"shared hits", summarizeSharedHits},
	{"shared level", summarizeShared},
	{"memory", summarizeMemory},
	{"garbage collection", summarizeGC},
	{"hit ratio", summarizeRatios},
	{"invalidation", (*report).invalidationLatencies},
	{"removals", summarizeRemovals},
	{"clearing", summarizeClears},
}

var summaryMarks = regexp.MustCompile(`(?s)<!-- results: ([^\n]+?) -->\n.*?<!-- end of results -->`)

// summarize returns a page with its generated parts made again from f. Each part has to
// be in the page once, and f has to be of a whole run.
func summarize(page string, f *result.File) (string, error) {
	for _, s := range sections() {
		if !f.Has(s.name) {
			return "", fmt.Errorf("the summary needs a whole run, and section %q was not measured", s.name)
		}
	}
	parts := map[string]string{}
	for _, part := range summaryParts {
		r := &report{file: f}
		part.render(r)
		parts[part.name] = strings.TrimRight(r.text.String(), "\n")
	}
	var unknown []string
	page = summaryMarks.ReplaceAllStringFunc(page, func(old string) string {
		name := summaryMarks.FindStringSubmatch(old)[1]
		text, known := parts[name]
		if !known {
			unknown = append(unknown, name)
			return old
		}
		delete(parts, name)
		return "<!-- results: " + name + " -->\n\n" + text + "\n\n<!-- end of results -->"
	})
	if len(unknown) > 0 {
		return "", fmt.Errorf("the page has parts that do not exist, or that it has twice: %q", unknown)
	}
	for _, part := range summaryParts {
		if _, left := parts[part.name]; left {
			return "", fmt.Errorf("the page has no part %q", part.name)
		}
	}
	return page, nil
}

// writeSummary makes the generated parts of the page at path again.
func writeSummary(f *result.File, path string) error {
	page, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	text, err := summarize(string(page), f)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return os.WriteFile(path, []byte(text), 0o644)
}

// origin says where and when was measured.
func (r *report) origin() {
	m := r.file.Machine
	redis := "no Redis"
	if m.Redis != "" {
		redis = "Redis " + m.Redis + " on the same machine"
	}
	r.say("%s, %d cores, %s, %s, %s. Measured on %s in %v, in %d rounds.", m.CPU, m.Cores, m.OS, m.Go, redis,
		r.file.Began.Format(time.DateOnly), r.file.Took, r.file.Rounds)
}

var (
	summaryKinds     = []string{"int64", "string"}
	summaryWorkloads = []string{"1 key", "64 keys", "100k keys, Zipf"}

	// summaryHits are the subjects whose hits return an object, and of which a reader
	// may choose one.
	summaryHits = []string{
		subject.Nearcache, subject.Nearcache + " LRU", subject.Otter, "theine", "ristretto",
		"golang-lru expirable", "golang-lru", "ttlcache", subject.Timed, "map+RWMutex",
	}
)

func summarizeHits(r *report) {
	cores := float64(r.file.Machine.Cores)
	for _, kind := range summaryKinds {
		t := table{head: []string{"ns per hit, " + kind + " keys"}}
		for _, workload := range summaryWorkloads {
			t.head = append(t.head, workload, plural(int(cores), "goroutine"))
		}
		t.numbers = len(t.head) - 1
		for _, name := range summaryHits {
			cells := []string{name}
			for _, workload := range summaryWorkloads {
				for _, goroutines := range []float64{1, cores} {
					cells = append(cells, number(r.file.Median(hitKey(hitCase(kind, workload), name, perOp, goroutines))))
				}
			}
			t.row(cells...)
		}
		r.table(t)
	}
}

// summarizeHitFactors compares hits with those of the fastest peer, and with a map.
func summarizeHitFactors(r *report) {
	t := table{head: append([]string{"hits of nearcache"}, summaryWorkloads...), numbers: len(summaryWorkloads)}
	row := func(what, kind string, factor func(in string) float64) {
		cells := []string{what + ", " + kind + " keys"}
		for _, workload := range summaryWorkloads {
			cells = append(cells, ratioText(factor(hitCase(kind, workload))))
		}
		t.row(cells...)
	}
	for _, goroutines := range []int{1, r.file.Machine.Cores} {
		for _, kind := range summaryKinds {
			row("× "+subject.Otter+", "+plural(goroutines, "goroutine"), kind, func(in string) float64 {
				return hitRatioTo(r.file, in, subject.Otter, subject.Nearcache, float64(goroutines))
			})
		}
	}
	for _, kind := range summaryKinds {
		row("time ÷ "+subject.Timed+", 1 goroutine", kind, func(in string) float64 {
			return hitRatioTo(r.file, in, subject.Nearcache, subject.Timed, 1)
		})
	}
	r.table(t)
}

func summarizeMixed(r *report) {
	cores := float64(r.file.Machine.Cores)
	t := table{head: []string{"operations, × " + subject.Otter, "1 goroutine", plural(int(cores), "goroutine")}, numbers: 2}
	for _, in := range r.file.Cases(mixedSection, perOp) {
		t.row(in, ratioText(mixedRatio(r.file, in, subject.Nearcache, 1)), ratioText(mixedRatio(r.file, in, subject.Nearcache, cores)))
	}
	r.table(t)
}

func summarizeMisses(r *report) {
	t := table{head: []string{"ns per miss", subject.Nearcache, "its allocations", subject.Otter, flightName}, numbers: 4}
	for _, in := range r.file.Cases(missSection, perOp) {
		of := func(name string) string { return spreadOf(r.file.Samples(missKey(in, name, perOp))) }
		t.row(in, of(subject.Nearcache), number(r.file.Median(missKey(in, subject.Nearcache, allocs))), of(subject.Otter), of(flightName))
	}
	r.table(t)
}

func summarizeSharedHits(r *report) {
	xs := r.file.Xs(sharedSection, sharedHitCase, perOp)
	t := table{head: []string{"µs per read"}}
	for _, x := range xs {
		t.head = append(t.head, plural(int(x), "goroutine"), "÷ "+redisGet)
	}
	t.numbers = len(t.head) - 1
	for _, name := range []string{subject.Nearcache, bareReads, redisGet} {
		cells := []string{name}
		for _, x := range xs {
			ns := r.sharedSamples(sharedHitCase, name, perOp, x)
			cells = append(cells, number(stats.Median(ns)/1e3), ratioText(stats.Ratio(ns, r.sharedSamples(sharedHitCase, redisGet, perOp, x))))
		}
		t.row(cells...)
	}
	r.table(t)
}

func summarizeShared(r *report) {
	t := table{head: []string{"", subject.Nearcache, "without `Shared`", "the peer"}, numbers: 3}
	median := func(in, metric string, x float64, names ...string) (cells []string) {
		for _, name := range names {
			cells = append(cells, number(stats.Median(r.sharedSamples(in, name, metric, x))))
		}
		return cells
	}
	row := func(what string, cells []string, peer string) {
		t.row(append(append([]string{what}, cells...), peer)...)
	}
	both := []string{subject.Nearcache, unshared}
	many := func(name string) string {
		return number(stats.Median(r.sharedSamples(sharedManyCase, name, perOp, 1)) / 1e3)
	}

	row(fmt.Sprintf("source reads of a fourth instance that gets %s items", number(coldItems)), median(coldStartCase, sourceReads, 1, both...), "")
	row(fmt.Sprintf("loads of a cold key that %d processes ask for at once", members), median(coldKeyCase, loadsOfKey, 0, both...), "")
	row(fmt.Sprintf("ms that the other %d wait, with a load of %d ms", members-1, coldKeyLoad.Milliseconds()), median(coldKeyCase, othersP50, 0, both...), "")
	t.row(fmt.Sprintf("µs for %d items that are in Redis, by one `GetMany`", manyKeys), many(subject.Nearcache), "", many(redisMGet)+" ("+redisMGet+")")
	t.row("the same, by one `Get` after another", many(oneByOne), "", "")
	row("µs until Redis has accepted a `Remove`, p50", median(removeCase, p50, 0, both...), median(removeCase, p50, 0, publish)[0]+" ("+publish+")")
	row("µs of it in Redis", median(removeCase, inRedis, 0, both...), median(removeCase, inRedis, 0, publish)[0]+" ("+publish+")")
	row("keys removed per second, one a call", median(removalsCase, persec, 1, both...), median(removalsCase, persec, 1, publish)[0]+" ("+publish+")")
	row("the same, "+number(removeMany)+" a call", median(removalsCase, persec, removeMany, both...), "")
	r.table(t)
}

func summarizeMemory(r *report) {
	t := table{head: []string{"bytes per item"}}
	var names []string
	for _, kind := range summaryKinds {
		t.head = append(t.head, kind+" keys")
		for _, name := range r.file.Subjects(memorySection, kind, perEntry) {
			if !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	t.numbers = len(summaryKinds)
	for _, name := range names {
		cells := []string{name}
		for _, kind := range summaryKinds {
			cells = append(cells, number(r.file.Median(memoryKey(kind, name))))
		}
		t.row(cells...)
	}
	r.table(t)
}

func summarizeGC(r *report) {
	t := table{head: []string{"", "items", "a cycle, ms", "collecting, % of the CPU", "longest pause, µs"}, numbers: 4}
	for _, in := range gcCases(r.file) {
		items, _ := strconv.ParseFloat(in, 64)
		for _, name := range r.file.Subjects(gcSection, in, heapMB) {
			of := func(metric string) string {
				return number(r.file.Median(result.Key{Section: gcSection, Case: in, Subject: name, Metric: metric}))
			}
			t.row(name, number(items), of(cycleTime), of(cpuShare), of(longest))
		}
	}
	r.table(t)
}

func summarizeRatios(r *report) {
	cases := r.file.Cases(ratioSection, hitRatio)
	names := r.file.Subjects(ratioSection, first(cases), hitRatio)
	t := table{head: append([]string{"hits, % of the reads"}, names...), numbers: len(names)}
	cells := []string{fmt.Sprintf("the mean of %d traces", len(cases))}
	for _, name := range names {
		cells = append(cells, fmt.Sprintf("%.1f", meanRatio(r.file, name, "")))
	}
	t.row(cells...)
	r.table(t)

	t = table{head: []string{"nearcache beyond LRU (golang-lru), the least", "points", "where"}}
	for _, target := range ratioTargets(r.file) {
		if target.where != "" {
			t.row(strings.TrimPrefix(target.what, "hit ratio beyond LRU's, "), number(target.found), target.where)
		}
	}
	r.table(t)
}

func summarizeRemovals(r *report) {
	r.removalRates()
	t := table{head: []string{"", "per second"}, numbers: 1}
	t.row("removals of another instance that are applied, "+number(removeMany)+" keys a call",
		spreadOf(r.file.Samples(invalidationKey(appliedCase, subject.Nearcache, persec))))
	r.table(t)
}

func summarizeClears(r *report) {
	t := table{head: []string{"", "the call, µs", "reclaimed after, ms", "readers' p99.9 meanwhile ÷ before"}, numbers: 3}
	for _, in := range r.file.Cases(clearSection, callTime) {
		t.row("`"+in+"`", number(r.file.Median(clearKey(in, callTime))), number(r.file.Median(clearKey(in, reclaimTime))),
			ratioText(stats.Ratio(r.file.Samples(clearKey(in, latency("p99.9", meanwhile))), r.file.Samples(clearKey(in, latency("p99.9", before))))))
	}
	r.table(t)
}
