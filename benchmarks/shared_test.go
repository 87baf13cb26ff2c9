package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nearcache/nearcache/benchmarks/internal/result"
	"github.com/nearcache/nearcache/benchmarks/internal/stats"
	"github.com/nearcache/nearcache/benchmarks/internal/subject"
)

// TestMain runs the tests. With childFlag the process is no test, but one that a
// measurement has started.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "-"+childFlag {
		if err := runChild(os.Args[2]); err != nil {
			panic(err)
		}
		return
	}
	os.Exit(m.Run())
}

func TestProductIsOfSome300Bytes(t *testing.T) {
	text, err := json.Marshal(newProduct(sharedKeys))
	if err != nil {
		t.Fatal(err)
	}
	if len(text) < 250 || len(text) > 350 {
		t.Errorf("%d bytes", len(text))
	}
	if p, err := decoded(text); !isProduct(sharedKeys)(p, err) {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestFirstsLeaveRoomForAll(t *testing.T) {
	last := int64(-1)
	for _, first := range firsts() {
		if first+manyKeys > sharedKeys || last >= 0 && first < last+manyKeys {
			t.Errorf("%d after %d", first, last)
		}
		last = first
	}
}

func TestSharedSection(t *testing.T) {
	b := &bench{
		settings: settings{rounds: 1, turn: time.Millisecond, quick: true},
		file:     &result.File{Machine: result.Machine{CPU: "a CPU", Cores: 2}, Rounds: 1, Quick: true},
		redis:    startRedis(t),
	}
	if err := measureShared(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	for in, metrics := range map[string][]string{
		sharedHitCase:  {perOp, allocs, heap},
		sharedManyCase: {perOp, allocs, heap},
		coldStartCase:  {wholeTime, sourceReads},
		coldKeyCase:    {loadsOfKey, loaderTime, othersP50, othersMax, scriptsRun},
		removeCase:     {p50, p99, inRedis},
		removalsCase:   {persec},
	} {
		for _, metric := range metrics {
			if len(b.file.Subjects(sharedSection, in, metric)) < 2 {
				t.Errorf("%s: %q was not measured of all", in, metric)
			}
		}
	}
	// The median, since a machine that is busy enough lets requests to Redis time out.
	if loads := b.file.Samples(sharedKey(coldKeyCase, subject.Nearcache, loadsOfKey, 0)); stats.Median(loads) != 1 {
		t.Errorf("a cold key was loaded %v times", loads)
	}
	if loads := b.file.Samples(sharedKey(coldKeyCase, unshared, loadsOfKey, 0)); stats.Median(loads) != members {
		t.Errorf("without Shared, a cold key was loaded %v times", loads)
	}
	for _, x := range b.file.Xs(sharedSection, coldStartCase, sourceReads) {
		if reads := b.file.Median(sharedKey(coldStartCase, subject.Nearcache, sourceReads, int(x))); reads > coldItems/10 {
			t.Errorf("%v goroutines: the fourth instance read %v items from the source", x, reads)
		}
	}

	dir := t.TempDir()
	if err := writeReport(b.file, dir); err != nil {
		t.Fatal(err)
	}
	bytes, err := os.ReadFile(filepath.Join(dir, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	text := string(bytes)
	if strings.Contains(text, "NaN") || strings.Contains(text, "%!") {
		t.Errorf("not all is formatted:\n%s", text)
	}
	if ragged := raggedTables(text); len(ragged) > 0 {
		t.Errorf("ragged: %q", ragged)
	}
}

func TestReportOfTheSharedLevel(t *testing.T) {
	f := &result.File{Machine: result.Machine{CPU: "a CPU", Cores: 2}, Rounds: 2}
	for _, x := range []int{1, 4} {
		f.Add(sharedKey(sharedHitCase, subject.Nearcache, perOp, x), 60_000, 66_000)
		f.Add(sharedKey(sharedHitCase, redisGet, perOp, x), 50_000, 50_000)
	}
	f.Add(sharedKey(coldKeyCase, subject.Nearcache, loadsOfKey, 0), 1, 1, 2)
	dir := t.TempDir()
	if err := writeReport(f, dir); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"| a hit of the shared level, beside GET + JSON: 1 goroutine | ≤ 1.30× | 1.26× | yes |",
		"| loads of a cold key in a fleet, at most | ≤ 1.0 | 2.0 | no |",
		"| **nearcache** | 63 ± 1.5 | 1.26 | 63 ± 1.5 | 1.26 | – | – |",
		"![µs per read of what is in Redis](shared-hit.svg)",
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("%q is missing in:\n%s", want, text)
		}
	}
	if strings.Contains(string(text), "items at once") {
		t.Error("it shows what was not measured")
	}
	if ragged := raggedTables(string(text)); len(ragged) > 0 {
		t.Errorf("ragged: %q", ragged)
	}
}
