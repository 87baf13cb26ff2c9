package main

import (
	"slices"
	"strconv"

	"github.com/nearcache/nearcache/benchmarks/internal/chart"
	"github.com/nearcache/nearcache/benchmarks/internal/result"
)

func renderMemory(r *report) {
	r.say("## Memory")
	r.say("Bytes of heap for each item held, each in a process of its own: what is in use after two collections, less what was in use before the cache was made, " +
		"divided by the items it holds. Keys and values are made before and stay, so they are not in it; a pointer and a key in the cache's own tables are. " +
		"The cache is full: a tenth more was put in than there is room for. References hold all that was put in.")
	for _, in := range r.file.Cases(memorySection, perEntry) {
		key := func(name, metric string) result.Key {
			return result.Key{Section: memorySection, Case: in, Subject: name, Metric: metric}
		}
		r.say("### %s", upperFirst(in)+" keys")
		bars := chart.Bars{
			Title:    "Memory of an item: " + in + " keys",
			Subtitle: "Bytes of heap for each item in a full cache, without key and value themselves; less is better.",
		}
		t := table{head: []string{"", "bytes per item", "items"}, numbers: 2}
		for _, name := range r.file.Subjects(memorySection, in, perEntry) {
			bytes := r.file.Median(key(name, perEntry))
			t.row(name, number(bytes), number(r.file.Median(key(name, heldEntries))))
			bars.Bars = append(bars.Bars, chart.Bar{Label: name, Value: bytes, Text: number(bytes) + " B", Tone: tone(name)})
		}
		r.chart("memory-"+in, "bytes per item, "+in+" keys", bars.SVG())
		r.table(t)
	}
}

func memoryKey(in, name string) result.Key {
	return result.Key{Section: memorySection, Case: in, Subject: name, Metric: perEntry}
}

func renderGC(r *report) {
	r.say("## Garbage collection")
	r.say("A cache of int64 keys, full, in a process of its own. *A cycle* is a forced collection, the median of five: its time, and the CPU time of all cores. Then all "+
		"cores read, %s times together (Zipf 1.01), and leave %d bytes of garbage behind with each read: how long that took, the CPU time of collecting and its part of all, and the longest pause. "+
		"A larger heap is collected more rarely.", number(garbageReads), garbageSize)
	t := table{
		head:    []string{"", "items", "heap, MB", "a cycle, ms", "its CPU, ms", "reading, s", "cycles", "CPU of collecting, s", "of all, %", "longest pause, µs"},
		numbers: 9,
	}
	for _, in := range gcCases(r.file) {
		for _, name := range r.file.Subjects(gcSection, in, heapMB) {
			of := func(metric string) string {
				return spreadOf(r.file.Samples(result.Key{Section: gcSection, Case: in, Subject: name, Metric: metric}))
			}
			items, _ := strconv.ParseFloat(in, 64)
			t.row(name, number(items), of(heapMB), of(cycleTime), of(cycleCPU), of(runTime), of(cyclesRun), of(runCPU), of(cpuShare), of(longest))
		}
	}
	r.table(t)
}

// gcCases returns the numbers of items that were measured, ascending.
func gcCases(f *result.File) []string {
	cases := f.Cases(gcSection, heapMB)
	slices.SortFunc(cases, func(a, b string) int { return len(a) - len(b) })
	return cases
}
