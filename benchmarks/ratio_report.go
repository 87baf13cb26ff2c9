package main

import (
	"fmt"
	"math"
	"strings"

	"github.com/nearcache/nearcache/benchmarks/internal/chart"
	"github.com/nearcache/nearcache/benchmarks/internal/result"
)

func renderRatios(r *report) {
	r.say("## Hit ratio")
	r.say("Each trace is read in its order by one goroutine; what is not held is put in, by nearcache's own loader or by a set. " +
		"Capacities are parts of the trace's different keys. otter and ristretto apply writes in the background, and theine does too: they are waited for " +
		"after each write (otter's `CleanUp`, with an executor that runs in the caller; `Wait` of the other two), which is the best that their policies can do. golang-lru is strict LRU.")
	cases := r.file.Cases(ratioSection, hitRatio)
	meanTable(r, cases)
	for _, in := range cases {
		xs := r.file.Xs(ratioSection, in, hitRatio)
		about := fmt.Sprintf("%s keys, %s reads", number(r.file.Median(ratioKey(in, "", uniques, 0))), number(r.file.Median(ratioKey(in, "", accesses, 0))))
		for _, n := range r.file.Notes {
			if n.Section == ratioSection+": "+in {
				about = n.Text + ". " + about
			}
		}
		lines := chart.Lines{
			Title: "Hit ratio: " + in, Subtitle: upperFirst(about) + ".",
			XTitle: "capacity, % of the keys", YTitle: "hits, % of the reads",
		}
		t := table{head: []string{"hits, % of the reads"}}
		for _, x := range xs {
			lines.X = append(lines.X, fmt.Sprintf("%g %%", x))
			t.head = append(t.head, fmt.Sprintf("%g %%", x))
		}
		t.numbers = len(xs)
		for _, name := range r.file.Subjects(ratioSection, in, hitRatio) {
			cells, line := []string{name}, chart.Line{Name: name, Tone: tone(name)}
			for _, x := range xs {
				ratio := r.file.Median(ratioKey(in, name, hitRatio, x))
				line.Y = append(line.Y, ratio)
				cells = append(cells, fmt.Sprintf("%.1f", ratio))
			}
			lines.Lines = append(lines.Lines, line)
			t.row(cells...)
		}
		r.say("### %s", upperFirst(in))
		r.chart("ratio-"+fileName(in), "hit ratio by capacity, "+in, lines.SVG())
		r.table(t)
	}
}

// meanTable has the mean over the capacities of each trace.
func meanTable(r *report, cases []string) {
	t := table{head: []string{"mean over the capacities"}}
	names := r.file.Subjects(ratioSection, first(cases), hitRatio)
	t.head = append(t.head, names...)
	t.numbers = len(names)
	for _, in := range append(cases, "") {
		cells := []string{in}
		if in == "" {
			cells[0] = "all"
		}
		for _, name := range names {
			cells = append(cells, fmt.Sprintf("%.1f", meanRatio(r.file, name, in)))
		}
		t.row(cells...)
	}
	r.table(t)
}

func ratioKey(in, name, metric string, x float64) result.Key {
	return result.Key{Section: ratioSection, Case: in, Subject: name, Metric: metric, X: x}
}

// meanRatio returns the mean hit ratio over the capacities of a trace, or of all
// traces for "".
func meanRatio(f *result.File, name, in string) float64 {
	if in != "" {
		sum, xs := 0.0, f.Xs(ratioSection, in, hitRatio)
		for _, x := range xs {
			sum += f.Median(ratioKey(in, name, hitRatio, x))
		}
		return sum / float64(len(xs))
	}
	sum, cases := 0.0, f.Cases(ratioSection, hitRatio)
	for _, c := range cases {
		sum += meanRatio(f, name, c)
	}
	return sum / float64(len(cases))
}

// worstAgainst returns where one subject is furthest below another: at which
// capacity of which trace, and by how many points (negative: below).
func worstAgainst(f *result.File, one, other string) (points float64, where string) {
	points = math.Inf(1)
	for _, in := range f.Cases(ratioSection, hitRatio) {
		for _, x := range f.Xs(ratioSection, in, hitRatio) {
			d := f.Median(ratioKey(in, one, hitRatio, x)) - f.Median(ratioKey(in, other, hitRatio, x))
			if d < points {
				points, where = d, fmt.Sprintf("%s at %g %%", in, x)
			}
		}
	}
	if where == "" {
		return math.NaN(), ""
	}
	return points, where
}

func first(names []string) string { return strings.Join(names[:min(1, len(names))], "") }
