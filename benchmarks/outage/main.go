//go:build unix

// Command outage measures what an outage of Redis does to the source behind the
// caches: it kills a Redis under instances that read, and starts it again.
//
//	go run ./outage -help
package main

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"time"

	"github.com/nearcache/nearcache/benchmarks/internal/measure"
)

type settings struct {
	freeze    bool
	instances int
	keys      int
	reads     int // per second and instance
	writes    int // per second and instance
	latency   time.Duration
	warm      time.Duration
	before    time.Duration
	outage    time.Duration
	after     time.Duration
	runs      int
	log       bool
	staleness []time.Duration
}

func main() {
	var s settings
	flag.BoolVar(&s.freeze, "freeze", false, "stop the process of Redis (SIGSTOP) instead of killing it")
	flag.IntVar(&s.instances, "instances", 3, "instances, all in this process")
	flag.IntVar(&s.keys, "keys", 10_000, "items, read equally often by each instance")
	flag.IntVar(&s.reads, "reads", 50_000, "reads per second of each instance")
	flag.IntVar(&s.writes, "writes", 0, "calls of Remove per second of each instance")
	flag.DurationVar(&s.latency, "latency", time.Millisecond, "what a load takes")
	flag.DurationVar(&s.warm, "warm", 3*time.Second, "time to warm up, not measured")
	flag.DurationVar(&s.before, "before", 10*time.Second, "time before the outage")
	flag.DurationVar(&s.outage, "outage", 30*time.Second, "time without Redis")
	flag.DurationVar(&s.after, "after", 20*time.Second, "time after the outage")
	flag.IntVar(&s.runs, "runs", 1, "runs; the table has their medians, lowest and highest")
	flag.BoolVar(&s.log, "log", false, "show what the library logs")
	staleness := flag.String("staleness", "5s", "MaxStaleness; several, with commas between them, make a table each")
	flag.Parse()
	var err error
	for text := range strings.SplitSeq(*staleness, ",") {
		d, wrong := time.ParseDuration(text)
		s.staleness, err = append(s.staleness, d), cmp.Or(err, wrong)
	}
	if err == nil {
		err = measureAll(s)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "outage:", err)
		os.Exit(1)
	}
}

func measureAll(s settings) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	for _, staleness := range s.staleness {
		var runs []result
		for i := range s.runs {
			fmt.Fprintf(os.Stderr, "MaxStaleness %v, run %d of %d\n", staleness, i+1, s.runs)
			r, err := run(ctx, s, staleness)
			if err != nil {
				return err
			}
			runs = append(runs, r)
		}
		report(s, staleness, runs)
	}
	return nil
}

// report prints one Markdown table.
func report(s settings, staleness time.Duration, runs []result) {
	how := "killed"
	if s.freeze {
		how = "frozen"
	}
	fmt.Printf("\nMaxStaleness %v, Redis %s for %v. %d instances in one process, %d keys, %d reads/s and %d writes/s each. "+
		"Theory without Redis: keys × instances / MaxStaleness = %.0f loads/s. Runs: %d.\n\n",
		staleness, how, s.outage, s.instances, s.keys, s.reads, s.writes,
		float64(s.keys*s.instances)/staleness.Seconds(), len(runs))
	fmt.Println("| phase | s | loads/s | in the peak second | loads of each copy | hits % | states |")
	fmt.Println("|---|---|---|---|---|---|---|")
	for i, p := range runs[0].phases {
		of := func(decimals int, value func(phase) float64) string {
			return spread(runs, decimals, func(r result) float64 { return value(r.phases[i]) })
		}
		fmt.Printf("| %s | %s | %s | %s | %s | %s | %s |\n", p.name,
			of(1, func(p phase) float64 { return p.lasted.Seconds() }),
			of(0, func(p phase) float64 { return float64(p.loads) / p.lasted.Seconds() }),
			of(0, func(p phase) float64 { return float64(p.peak) }),
			of(2, func(p phase) float64 { return float64(p.loads) / float64(s.keys*s.instances) }),
			of(1, func(p phase) float64 { return 100 * float64(p.hits) / float64(p.reads) }),
			strings.Join(p.states, ", "))
	}
	fmt.Printf("\nAll live again after %s s. Clears of each instance since: %s on average. Reads that failed: %s. "+
		"Log lines of each instance: %s.\n",
		spread(runs, 2, func(r result) float64 { return r.recovery.Seconds() }),
		spread(runs, 1, func(r result) float64 { return float64(r.clears) / float64(s.instances) }),
		spread(runs, 0, func(r result) float64 { return float64(r.failed) }),
		spread(runs, 1, func(r result) float64 { return float64(r.logged) / float64(s.instances) }))
}

func spread(runs []result, decimals int, value func(result) float64) string {
	var found []float64
	for _, r := range runs {
		found = append(found, value(r))
	}
	return measure.Spread(found, decimals)
}
