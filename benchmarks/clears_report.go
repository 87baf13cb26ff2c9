package main

import (
	"github.com/nearcache/nearcache/benchmarks/internal/result"
	"github.com/nearcache/nearcache/benchmarks/internal/stats"
	"github.com/nearcache/nearcache/benchmarks/internal/subject"
)

func renderClears(r *report) {
	r.say("## Clearing")
	r.say("A cache on `Local()` with 1 000 000 items (`-quick`: 200 000) that are all cleared by one call, and reclaimed in the background. Meanwhile goroutines, one for each core but one, " +
		"read 64 hot items, which are of another region; `Clear` takes them as well, and each is loaded once. Each read is timed, which takes two looks at the clock and is part of the numbers.")
	calls := table{head: []string{"", "the call, µs", "reclaimed after, ms"}, numbers: 2}
	reads := table{head: []string{"ns per read"}}
	for _, q := range readerQuantiles {
		reads.head = append(reads.head, q.name+" before", "meanwhile", "ratio")
	}
	reads.numbers = len(reads.head) - 1
	for _, in := range r.file.Cases(clearSection, callTime) {
		calls.row("`"+in+"`", spreadOf(r.file.Samples(clearKey(in, callTime))), number(r.file.Median(clearKey(in, reclaimTime))))
		cells := []string{"`" + in + "`"}
		for _, q := range readerQuantiles {
			quiet := r.file.Samples(clearKey(in, latency(q.name, before)))
			busy := r.file.Samples(clearKey(in, latency(q.name, meanwhile)))
			cells = append(cells, number(stats.Median(quiet)), number(stats.Median(busy)), ratioText(stats.Ratio(busy, quiet)))
		}
		reads.row(cells...)
	}
	r.table(calls)
	r.table(reads)
}

func clearKey(in, metric string) result.Key {
	return result.Key{Section: clearSection, Case: in, Subject: subject.Nearcache, Metric: metric}
}
