package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nearcache/nearcache/benchmarks/internal/result"
)

const (
	keptResults = "../docs/bench/results.json"
	summaryPage = "../docs/benchmarks.md"

	makeThemAgain = "go run . -render ../docs/bench/results.json -out ../docs/bench -summary ../docs/benchmarks.md"
)

// readText reads a file as it is in the repository, wherever it was checked out.
func readText(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(string(text), "\r\n", "\n")
}

func readResults(t *testing.T) *result.File {
	t.Helper()
	f, err := result.Read(keptResults)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestSummaryIsThatOfTheResults(t *testing.T) {
	page := readText(t, summaryPage)
	want, err := summarize(page, readResults(t))
	if err != nil {
		t.Fatal(err)
	}
	if page != want {
		t.Errorf("%s is not that of %s: %s", summaryPage, keptResults, makeThemAgain)
	}
	if strings.Contains(want, "NaN") || strings.Contains(want, "%!") {
		t.Error("not all is formatted")
	}
	if ragged := raggedTables(want); len(ragged) > 0 {
		t.Errorf("ragged: %q", ragged)
	}
}

func TestReportIsThatOfTheResults(t *testing.T) {
	dir := t.TempDir()
	if err := writeReport(readResults(t), dir); err != nil {
		t.Fatal(err)
	}
	made, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range made {
		kept := filepath.Join(filepath.Dir(keptResults), filepath.Base(file))
		if readText(t, file) != readText(t, kept) {
			t.Errorf("%s is not that of %s: %s", kept, keptResults, makeThemAgain)
		}
	}
}

func TestSummaryRefuses(t *testing.T) {
	page, whole := readText(t, summaryPage), readResults(t)
	const mark = "<!-- results: hits -->"
	for name, test := range map[string]struct {
		page string
		file *result.File
		want string
	}{
		"a page without a part":   {strings.Replace(page, mark, "", 1), whole, "has no part \"hits\""},
		"a part that is unknown":  {strings.Replace(page, mark, "<!-- results: nothing -->", 1), whole, `["nothing"]`},
		"a part that is twice":    {page + mark + "\n<!-- end of results -->\n", whole, `["hits"]`},
		"results of some section": {page, &result.File{}, `section "hits" was not measured`},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := summarize(test.page, test.file); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}
