package main

import (
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/nearcache/nearcache/benchmarks/internal/result"
	"github.com/nearcache/nearcache/benchmarks/internal/subject"
)

func TestNumber(t *testing.T) {
	for _, test := range []struct {
		x    float64
		want string
	}{
		{0, "0"}, {0.001, "0"}, {0.5, "0.5"}, {0.123, "0.12"}, {1, "1.0"}, {9.87, "9.9"}, {42.4, "42"}, {999.6, "1 000"},
		{1234567, "1 234 567"}, {-1234, "−1 234"}, {math.NaN(), "–"},
	} {
		if got := number(test.x); got != test.want {
			t.Errorf("%v is %q, want %q", test.x, got, test.want)
		}
	}
}

func TestSpreadOf(t *testing.T) {
	if got := spreadOf([]float64{10, 20, 30, 40, 50}); got != "30 ± 10" {
		t.Errorf("got %q", got)
	}
	if got := spreadOf([]float64{10}); got != "10" {
		t.Errorf("got %q", got)
	}
	if got := spreadOf(nil); got != "–" {
		t.Errorf("got %q", got)
	}
}

func TestRotatedBeginsWithAnotherInEachRound(t *testing.T) {
	first := map[int]bool{}
	for round := range 5 {
		seen := map[int]bool{}
		order := rotated(5, round)
		for _, i := range order {
			seen[i] = true
		}
		if len(seen) != 5 {
			t.Errorf("round %d: %v", round, order)
		}
		first[order[0]] = true
	}
	if len(first) != 5 {
		t.Errorf("began with %v", first)
	}
}

func TestRingsHoldTheKeysTheySay(t *testing.T) {
	for name, r := range map[string][]string{"evenly": evenly[string](64), "zipf": zipf[string](64), "fresh": fresh[string](64, 0)} {
		if len(r)&(len(r)-1) != 0 {
			t.Errorf("%s: a length of %d is no power of two", name, len(r))
		}
		seen := map[string]bool{}
		for _, key := range r {
			seen[key] = true
		}
		if len(seen) != 64 {
			t.Errorf("%s: %d keys", name, len(seen))
		}
	}
}

// raggedTables returns the lines of Markdown tables whose number of cells is not that of
// the line before.
func raggedTables(text string) (ragged []string) {
	cells := 0
	for line := range strings.Lines(text) {
		n := strings.Count(line, "|")
		if !strings.HasPrefix(line, "|") {
			n = 0
		} else if cells != 0 && n != cells {
			ragged = append(ragged, line)
		}
		cells = n
	}
	return ragged
}

func TestReportOfAFewSeries(t *testing.T) {
	f := &result.File{Machine: result.Machine{CPU: "a CPU", Cores: 2}, Rounds: 2}
	in := hitCase("int64", "64 keys")
	for _, x := range []float64{1, 2} {
		f.Add(hitKey(in, subject.Nearcache, perOp, x), 50, 60)
		f.Add(hitKey(in, subject.Otter, perOp, x), 100, 120)
		f.Add(hitKey(in, subject.Timed, perOp, x), 50, 40)
	}
	f.Add(hitKey(in, subject.Nearcache, allocs, 0), 0.001)
	for _, x := range capacities {
		f.Add(ratioKey("loop", subject.Nearcache, hitRatio, x), 20)
		f.Add(ratioKey("loop", "golang-lru", hitRatio, x), 22+x/50)
	}
	f.Note(hitSection, "a note")
	f.Note(invalidationSection, "left out")

	dir := t.TempDir()
	if err := writeReport(f, dir); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(text), "NaN") || strings.Contains(string(text), "%!") {
		t.Errorf("not all is formatted:\n%s", text)
	}
	if ragged := raggedTables(string(text)); len(ragged) > 0 {
		t.Errorf("ragged: %q", ragged)
	}
	for _, want := range []string{
		"| hits, beside otter: int64 keys, 64 keys, 1 goroutine | ≥ 1.80× | 2.00× | yes |",
		"| time of a hit, beside map+RWMutex+TTL: int64 keys, 64 keys | ≤ 1.10× | 1.25× | no |",
		"| hit ratio beyond LRU's, at each capacity | ≥ −1.0 points | −3.0 points (loop at 50 %) | no |",
		"| **nearcache** | 55 ± 2.5 | 55 ± 2.5 | 0 |",
		"- *hits*: a note",
		"- *invalidation*: left out",
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("%q is missing in:\n%s", want, text)
		}
	}
	for _, link := range regexp.MustCompile(`\]\(([^#)]+)\)`).FindAllStringSubmatch(string(text), -1) {
		if _, err := os.Stat(filepath.Join(dir, link[1])); err != nil {
			t.Error(err)
		}
	}
}

func TestSectionsThatDoNotExistAreRefused(t *testing.T) {
	if _, err := newBench(settings{only: []string{"hits", "nothing"}}); err == nil {
		t.Error("accepted")
	}
}
