package main

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/nearcache/nearcache/benchmarks/internal/chart"
	"github.com/nearcache/nearcache/benchmarks/internal/result"
	"github.com/nearcache/nearcache/benchmarks/internal/stats"
	"github.com/nearcache/nearcache/benchmarks/internal/subject"
)

func renderHits(r *report) {
	r.say("## Hits")
	r.say("A read of what is in memory: ns of wall time for each, of all goroutines together. nearcache is connected to Redis and " +
		"holds a lease, with TTL, regions and statistics on. Every cache has room for more than is asked for, and values are pointers. " +
		"Keys were put in in an order of their own, and strings are asked for by other strings than those put in. " +
		"*× otter* is how many times as many reads as otter's in the same time, and *÷ map* the time as a multiple of that of " +
		subject.Timed + ", with one goroutine.")
	for _, in := range r.file.Cases(hitSection, perOp) {
		r.say("### %s", upperFirst(in))
		name := "hits-" + fileName(in)
		r.chart(name, "ns per hit, "+in, hitBars(r.file, in).SVG())
		r.chart(name+"-parallel", "hits per second by goroutines, "+in, hitLines(r.file, in).SVG())
		hitTable(r, in)
	}
}

// hitKey names a series of the hit section.
func hitKey(in, name, metric string, x float64) result.Key {
	return result.Key{Section: hitSection, Case: in, Subject: name, Metric: metric, X: x}
}

func hitTable(r *report, in string) {
	xs := r.file.Xs(hitSection, in, perOp)
	cores := float64(r.file.Machine.Cores)
	t := table{head: []string{"ns per hit"}}
	for _, x := range xs {
		t.head = append(t.head, plural(int(x), "goroutine"))
	}
	t.head = append(t.head, "allocations", "bytes", "× otter", fmt.Sprintf("× otter, %d goroutines", int(cores)), "÷ map")
	t.numbers = len(t.head) - 1
	for _, name := range r.file.Subjects(hitSection, in, perOp) {
		cells := []string{name}
		for _, x := range xs {
			cells = append(cells, spreadOf(r.file.Samples(hitKey(in, name, perOp, x))))
		}
		if name == subject.EmptyLoop {
			t.row(append(cells, "0", "0", "", "", "")...)
			continue
		}
		cells = append(cells, number(r.file.Median(hitKey(in, name, allocs, 0))), number(whole(r.file.Median(hitKey(in, name, heap, 0)))),
			ratioText(hitRatioTo(r.file, in, subject.Otter, name, 1)),
			ratioText(hitRatioTo(r.file, in, subject.Otter, name, cores)),
			ratioText(hitRatioTo(r.file, in, name, subject.Timed, 1)))
		t.row(cells...)
	}
	r.table(t)
}

// whole leaves out what others allocated meanwhile, or what is allocated only now
// and then.
func whole(x float64) float64 { return math.Floor(x + 0.1) }

// hitRatioTo returns the time of one subject as a multiple of another's.
func hitRatioTo(f *result.File, in, one, other string, goroutines float64) float64 {
	return stats.Ratio(f.Samples(hitKey(in, one, perOp, goroutines)), f.Samples(hitKey(in, other, perOp, goroutines)))
}

func hitBars(f *result.File, in string) chart.Bars {
	bars := chart.Bars{
		Title:    "One hit: " + in,
		Subtitle: "ns per hit with one goroutine; less is better. nearcache holds a lease on a live Redis.",
	}
	for _, name := range f.Subjects(hitSection, in, perOp) {
		if name == subject.EmptyLoop {
			continue
		}
		ns := f.Median(hitKey(in, name, perOp, 1))
		text := number(ns) + " ns"
		if note := unlike(name); note != "" {
			text += ", " + note
		}
		bars.Bars = append(bars.Bars, chart.Bar{Label: name, Value: ns, Text: text, Tone: tone(name)})
	}
	return bars
}

// unlike says in a word how a hit differs from those that return an object.
func unlike(name string) string {
	return map[string]string{
		"golang-lru":     "no TTL",
		"map+RWMutex":    "no TTL",
		"sync.Map":       "no TTL",
		"go-redis/cache": "decoded",
		"rueidis":        "a string",
		"rueidis JSON":   "decoded",
		"go-redis CSC":   "a string",
		"Redis GET":      "a string",
	}[name]
}

// inLines are the subjects whose lines a reader can tell apart.
var inLines = []string{
	subject.Nearcache, subject.Otter, "theine", "ristretto", "golang-lru expirable", "sturdyc", "ttlcache", "rueidis", subject.Timed,
}

func hitLines(f *result.File, in string) chart.Lines {
	xs := f.Xs(hitSection, in, perOp)
	lines := chart.Lines{
		Title: "Hits by goroutines: " + in,
		Subtitle: fmt.Sprintf("Million hits per second on %d cores; more is better.",
			f.Machine.Cores),
		X: places(xs), XTitle: "goroutines", YTitle: "million hits/s", FromZero: true,
	}
	present := f.Subjects(hitSection, in, perOp)
	for _, name := range inLines {
		if !slices.Contains(present, name) {
			continue
		}
		line := chart.Line{Name: name, Tone: tone(name)}
		for _, x := range xs {
			line.Y = append(line.Y, 1e3/f.Median(hitKey(in, name, perOp, x)))
		}
		lines.Lines = append(lines.Lines, line)
	}
	return lines
}

func places(xs []float64) (names []string) {
	for _, x := range xs {
		names = append(names, fmt.Sprint(x))
	}
	return names
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// fileName makes a name of words and numbers.
func fileName(text string) string {
	words := strings.FieldsFunc(strings.ToLower(text), func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9')
	})
	return strings.Join(words, "-")
}

// upperFirst begins a heading; names of types stay as they are.
func upperFirst(text string) string {
	if strings.HasPrefix(text, "int64") {
		return text
	}
	return strings.ToUpper(text[:1]) + text[1:]
}
