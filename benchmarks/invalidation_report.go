package main

import (
	"github.com/nearcache/nearcache/benchmarks/internal/chart"
	"github.com/nearcache/nearcache/benchmarks/internal/result"
	"github.com/nearcache/nearcache/benchmarks/internal/stats"
	"github.com/nearcache/nearcache/benchmarks/internal/subject"
)

func renderInvalidation(r *report) {
	r.say("## Invalidation")
	r.say("Both ends and Redis on one machine, and all take turns. *nearcache*: from the call of `Remove` on one instance until the item is gone from another's memory. " +
		"*PUBLISH*: from the call until a subscriber has the message. *rueidis* and *go-redis CSC*: from the call of SET by another client until a read is no longer answered " +
		"with the old version from memory.")
	bars := chart.Bars{
		Title:    "From a change to its effect elsewhere",
		Subtitle: "Median, in µs, on one machine; less is better.",
	}
	for _, name := range r.file.Subjects(invalidationSection, latencyCase, p50) {
		us := r.file.Median(invalidationKey(latencyCase, name, p50))
		bars.Bars = append(bars.Bars, chart.Bar{Label: name, Value: us, Text: number(us) + " µs", Tone: tone(name)})
	}
	r.chart("invalidation", "µs from a change to its effect elsewhere", bars.SVG())
	r.invalidationLatencies()

	r.say("64 goroutines that each `Remove` one key and wait until Redis has accepted it, against 64 that each PUBLISH and wait, with 64 connections; one receiver. " +
		"nearcache has one connection: what gathers while a message is under way travels in the next one together.")
	r.removalRates()

	r.say("An instance that holds 1 000 000 items (`-quick`: 100 000) has all of them removed by another, 1 000 keys a call: **%s key removals per second**, "+
		"from the first call until the last is applied. The sender, Redis and the receiver share the machine.",
		spreadOf(r.file.Samples(invalidationKey(appliedCase, subject.Nearcache, persec))))
}

// invalidationKey names a series of the invalidation section.
func invalidationKey(in, name, metric string) result.Key {
	return result.Key{Section: invalidationSection, Case: in, Subject: name, Metric: metric}
}

// invalidationLatencies is the table of how long a change takes to have its effect.
func (r *report) invalidationLatencies() {
	t := table{head: []string{"µs", "p50", "p99", "p50 ÷ PUBLISH"}, numbers: 3}
	for _, name := range r.file.Subjects(invalidationSection, latencyCase, p50) {
		half := r.file.Samples(invalidationKey(latencyCase, name, p50))
		t.row(name, spreadOf(half), spreadOf(r.file.Samples(invalidationKey(latencyCase, name, p99))),
			ratioText(stats.Ratio(half, r.file.Samples(invalidationKey(latencyCase, publish, p50)))))
	}
	r.table(t)
}

// removalRates is the table of removals per second, one at a time.
func (r *report) removalRates() {
	t := table{head: []string{"", "per second", "÷ PUBLISH"}, numbers: 2}
	for _, name := range r.file.Subjects(invalidationSection, throughputCase, persec) {
		rate := r.file.Samples(invalidationKey(throughputCase, name, persec))
		t.row(name, spreadOf(rate), ratioText(stats.Ratio(rate, r.file.Samples(invalidationKey(throughputCase, publish, persec)))))
	}
	r.table(t)
}
