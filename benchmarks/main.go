package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"github.com/nearcache/nearcache/benchmarks/internal/result"
)

func main() {
	var s settings
	var only, subjects, results, summary, child string
	var guarded bool
	var bound float64
	flag.StringVar(&s.out, "out", "results", "the folder for the report, its charts and results.json")
	flag.StringVar(&only, "only", "", "measure only these sections, with commas: "+strings.Join(sectionNames(), ","))
	flag.StringVar(&subjects, "subjects", "", "measure only subjects whose names begin so, with commas: near,otter,map")
	flag.IntVar(&s.rounds, "rounds", 10, "rounds of the hit section; the others have half as many, rounded up")
	flag.DurationVar(&s.turn, "turn", 25*time.Millisecond, "how long each subject is measured in each round")
	flag.BoolVar(&s.quick, "quick", false, "a short look: three rounds, smaller caches, no 10 million items")
	flag.StringVar(&s.traces, "traces", "", "a folder of recorded traces NAME.gz for the hit ratios, one key number a line")
	flag.BoolVar(&s.large, "large", true, "measure garbage collection with 10 million items as well; takes 3 GB")
	flag.StringVar(&results, "render", "", "measure nothing, make the report from this results.json")
	flag.StringVar(&summary, "summary", "", "put the figures into this page as well, between its marks: ../docs/benchmarks.md")
	flag.BoolVar(&guarded, "guard", false, "check in a few seconds that hits are not slow beyond -bound, and do not allocate")
	flag.Float64Var(&bound, "bound", 2.5, "the bound of -guard: the time of a hit as a multiple of that of the reference")
	flag.StringVar(&child, childFlag, "", "used by the program itself, to measure in a process of its own")
	flag.Parse()
	s.only, s.subjects = list(only), list(subjects)
	if s.quick {
		s.rounds, s.large = min(s.rounds, 3), false
	}

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	var err error
	switch {
	case flag.NArg() > 0:
		err = fmt.Errorf("unknown argument %q", flag.Arg(0))
	case child != "":
		err = runChild(child)
	case guarded:
		err = guard(bound)
	case results != "":
		err = renderAgain(results, s.out, summary)
	default:
		err = measureAll(ctx, s, summary)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "benchmarks:", err)
		os.Exit(1)
	}
}

// list splits a flag's value at its commas.
func list(text string) []string {
	return strings.FieldsFunc(text, func(r rune) bool { return r == ',' })
}

// renderAgain makes the report of an earlier run, and the summary.
func renderAgain(path, out, summary string) error {
	f, err := result.Read(path)
	if err != nil {
		return err
	}
	return render(f, out, summary)
}

// render makes the report, and the summary if there is a page for it.
func render(f *result.File, out, summary string) error {
	err := writeReport(f, out)
	if summary != "" {
		err = errors.Join(err, writeSummary(f, summary))
	}
	return err
}

// measureAll measures the chosen sections and writes the report of those that
// were finished, even if one fails.
func measureAll(ctx context.Context, s settings, summary string) error {
	if err := os.MkdirAll(s.out, 0o755); err != nil {
		return err
	}
	b, err := newBench(s)
	if err != nil {
		return err
	}
	defer b.close()
	measured := b.measure(ctx)
	path := filepath.Join(s.out, "results.json")
	return errors.Join(measured, b.file.Write(path), render(b.file, s.out, summary))
}
