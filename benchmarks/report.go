package main

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/nearcache/nearcache/benchmarks/internal/chart"
	"github.com/nearcache/nearcache/benchmarks/internal/result"
	"github.com/nearcache/nearcache/benchmarks/internal/stats"
	"github.com/nearcache/nearcache/benchmarks/internal/subject"
)

// report is a Markdown file in the making, with its charts beside it.
type report struct {
	file *result.File
	dir  string
	text strings.Builder
	err  error // the first that occurred
}

// writeReport renders what was measured into a folder.
func writeReport(f *result.File, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	r := &report{file: f, dir: dir}
	r.opening()
	r.targets()
	for _, s := range sections() {
		if f.Has(s.name) {
			s.render(r)
		}
		r.notes(s.name)
	}
	r.subjects()
	path := filepath.Join(dir, "README.md")
	if r.err == nil {
		r.err = os.WriteFile(path, []byte(r.text.String()), 0o644)
	}
	if r.err == nil {
		fmt.Fprintln(os.Stderr, path)
	}
	return r.err
}

func (r *report) opening() {
	r.say("# nearcache and its peers, measured")
	r.origin()
	if r.file.Quick {
		r.say("**A short look** (`-quick`): caches are smaller and numbers rougher than those of a whole run.")
	}
	r.say("```sh\ncd benchmarks && go run .\n```")
	r.say("In each round each subject has one short turn, in another order each time, so that other work of the machine " +
		"affects all alike. Numbers are medians over the rounds; behind ± is half of the distance between the quartiles. Ratios are medians " +
		"of the ratios within each round. Every operation goes through one call of a function value and the same loop. " +
		"Their cost is part of all numbers, and is shown as *empty loop*. Nothing expires during a measurement. " +
		"How each subject is set up is [at the end](#subjects).")
}

// subjects says what was compared.
func (r *report) subjects() {
	r.say("## Subjects")
	t := table{head: []string{"", "module", "set up", "what a hit's number includes"}}
	for _, a := range subject.Abouts() {
		if !r.file.HasSubject(a.Name) {
			continue
		}
		module := "standard library"
		if a.Module != "" {
			module = "`" + a.Module + "` " + r.file.Modules[a.Module]
		}
		t.row(a.Name, module, a.Setup, a.Hit)
	}
	r.table(t)
}

// notes lists what a reader of a section should know.
func (r *report) notes(section string) {
	for _, n := range r.file.Notes {
		if n.Section == section {
			r.say("- *%s*: %s", section, n.Text)
		}
	}
}

// say writes a paragraph.
func (r *report) say(format string, args ...any) {
	if len(args) == 0 {
		r.text.WriteString(format)
	} else {
		fmt.Fprintf(&r.text, format, args...)
	}
	r.text.WriteString("\n\n")
}

// chart writes a drawing beside the report and shows it.
func (r *report) chart(name, alt string, svg []byte) {
	name += ".svg"
	if err := os.WriteFile(filepath.Join(r.dir, name), svg, 0o644); err != nil && r.err == nil {
		r.err = err
	}
	r.say("![%s](%s)", alt, name)
}

// table is a Markdown table in the making. Columns of numbers are on the right.
type table struct {
	head    []string
	numbers int // how many of the last columns are numbers
	rows    [][]string
}

func (t *table) row(cells ...string) { t.rows = append(t.rows, cells) }

func (r *report) table(t table) {
	line := func(cells []string) {
		r.text.WriteString("| " + strings.Join(cells, " | ") + " |\n")
	}
	line(t.head)
	for i := range t.head {
		r.text.WriteString("|---")
		if i >= len(t.head)-t.numbers {
			r.text.WriteString(":")
		}
	}
	r.text.WriteString("|\n")
	for _, cells := range t.rows {
		if strings.HasPrefix(cells[0], subject.Nearcache) {
			cells = append([]string{"**" + cells[0] + "**"}, cells[1:]...)
		}
		line(cells)
	}
	r.text.WriteString("\n")
}

// tone colours a subject in charts.
func tone(name string) chart.Tone {
	switch name {
	case subject.Nearcache:
		return chart.Ours
	case subject.Timed, "map+RWMutex", "sync.Map", subject.EmptyLoop, publish, flightName, redisGet, redisMGet, bareReads:
		return chart.Reference
	}
	if strings.HasPrefix(name, subject.Nearcache) {
		return chart.Variant
	}
	return chart.Peer
}

// number formats x with two digits or all before the point, and a space between
// thousands; an en dash stands for no number.
func number(x float64) string {
	switch {
	case math.IsNaN(x):
		return "–"
	case x <= -0.005:
		return "−" + number(-x)
	case x < 0.005:
		return "0"
	case x < 0.995:
		return strings.TrimRight(strconv.FormatFloat(x, 'f', 2, 64), "0")
	case x < 9.95:
		return strconv.FormatFloat(x, 'f', 1, 64)
	}
	text := strconv.FormatFloat(x, 'f', 0, 64)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + " " + text[i:]
	}
	return text
}

// spreadOf formats the median of samples and their spread.
func spreadOf(samples []float64) string {
	if len(samples) < 2 {
		return number(stats.Median(samples))
	}
	return number(stats.Median(samples)) + " ± " + number(stats.Spread(samples))
}

// ratioText formats a ratio.
func ratioText(x float64) string {
	if math.IsNaN(x) {
		return "–"
	}
	return strconv.FormatFloat(x, 'f', 2, 64)
}
