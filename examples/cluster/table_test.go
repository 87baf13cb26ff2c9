package main

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

var wideRows = []row{
	{
		name: "16 (down)", reads: 999_999, hits: 999_999, period: time.Second,
		loads: 999_999, sent: 9_999, applied: 999_999,
		seen: sighted{
			effects: latencies{99 * time.Millisecond, 3 * time.Second},
			stale:   99_999,
			oldest:  99 * time.Millisecond,
		},
	},
	{name: "total", period: time.Second, loads: 123_456_789},
}

func TestTableIsPlainWithoutTerminal(t *testing.T) {
	var out bytes.Buffer
	table := &table{out: &out}
	table.progress(time.Second, "2s", wideRows)
	table.progress(2*time.Second, "2s", wideRows)
	if n := strings.Count(out.String(), "\n"); n != 4 { // of which two are headings
		t.Errorf("%d lines in\n%s", n, out.String())
	}
	for _, want := range []string{"\n1s ", "\n2s "} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
	if n := strings.Count(out.String(), "123.5M"); n != 2 {
		t.Errorf("%d times the total of 123.5M in\n%s", n, out.String())
	}

	table.finish(2*time.Second, wideRows)
	if strings.Contains(out.String(), "\x1b") {
		t.Errorf("an escape code in %q", out.String())
	}
	if n := strings.Count(out.String(), "999,999"); n != 3 {
		t.Errorf("%d times 999,999 in\n%s", n, out.String())
	}
	for line := range strings.Lines(out.String()) {
		if len(line) > 80 {
			t.Errorf("wider than a terminal: %q", line)
		}
	}
}

func TestTableRedrawsInPlace(t *testing.T) {
	var out bytes.Buffer
	table := &table{out: &out, redraws: true}
	table.progress(time.Second, "2s", wideRows)
	if strings.Contains(out.String(), "A\x1b[J") {
		t.Errorf("moved before anything was drawn: %q", out.String())
	}
	out.Reset()
	table.finish(2*time.Second, wideRows)
	const lines = "\x1b[6A\x1b[J" // title, two of headings, two rows, an empty one
	if !strings.HasPrefix(out.String(), lines) {
		t.Errorf("got %q, want it to begin with %q", out.String(), lines)
	}
}

func TestGrouped(t *testing.T) {
	for n, want := range map[uint64]string{0: "0", 999: "999", 1000: "1,000", 1234567: "1,234,567"} {
		if got := grouped(n); got != want {
			t.Errorf("%d: got %q, want %q", n, got, want)
		}
	}
}

func TestVerdictNamesTheViolation(t *testing.T) {
	var out bytes.Buffer
	verdict{ran: time.Second, reads: 900, loads: 9, violation: "instance 2 served version 1"}.print(&out)
	for _, want := range []string{
		"After 1.0 seconds",
		"Reads: 900, of which 9 reached the source; 891 were saved, 100 to 1.",
		"VIOLATION: instance 2 served version 1.",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
	if strings.Contains(out.String(), "OK") {
		t.Errorf("OK in\n%s", out.String())
	}
}

func TestComparison(t *testing.T) {
	tests := []struct {
		name          string
		without, with verdict
		says          string
		err           error
	}{
		{"it spares reads", verdict{asked: 2000, served: 9000}, verdict{asked: 500, served: 9000, found: 1}, "OK: sharing spared it 75.0%", nil},
		{"it spares none", verdict{asked: 2000}, verdict{asked: 2000, found: 1}, "OK: sharing spared it 0.0%", nil},
		{"it costs reads", verdict{asked: 2000}, verdict{asked: 2001, found: 1}, "FAILED: with sharing", errMoreReads},
		{
			"Redis was away", verdict{asked: 2000}, verdict{asked: 2001, found: 1, gaps: 3},
			"Redis was away in the second run", errMoreReads,
		},
		{"nothing was shared", verdict{asked: 2000}, verdict{asked: 1900}, "FAILED: no instance", errMoreReads},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var out bytes.Buffer
			if err := printComparison(&out, test.without, test.with); err != test.err {
				t.Errorf("got %v, want %v", err, test.err)
			}
			for _, want := range []string{test.says, "2,000 times for", grouped(uint64(test.with.asked)) + " times for"} {
				if !strings.Contains(out.String(), want) {
					t.Errorf("no %q in\n%s", want, out.String())
				}
			}
		})
	}
}

func TestLogTailKeepsTheLastLines(t *testing.T) {
	var logs logTail
	one := &linePrefixer{prefix: "instance 1: ", to: &logs}
	for range heldLines + 2 {
		_, _ = one.Write([]byte("cannot subs"))
		_, _ = one.Write([]byte("cribe\n"))
	}
	var out bytes.Buffer
	logs.release(&out)
	if want := "(2 earlier lines"; !strings.HasPrefix(out.String(), want) {
		t.Errorf("got %q, want it to begin with %q", out.String(), want)
	}
	if n := strings.Count(out.String(), "instance 1: cannot subscribe\n"); n != heldLines {
		t.Errorf("%d lines in %q, want %d", n, out.String(), heldLines)
	}

	out.Reset()
	_, _ = one.Write([]byte("subscribed\n"))
	if out.String() != "instance 1: subscribed\n" {
		t.Errorf("after release: %q", out.String())
	}
}
