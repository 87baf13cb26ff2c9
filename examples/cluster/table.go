package main

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/nearcache/nearcache"
)

const legend = `
A read is one Cache.Get; users ask for a hundred at a time, over HTTP. Change to
effect is the time from the source taking a change to this instance serving it,
where another instance was told; it includes the reload from the slow source. A
stale read returned a version superseded before the read began; oldest is how
long before, at most. reads/s and hits are of the last second, all else counts
from the start.

`

// row is one line of the table.
type row struct {
	name    string
	reads   uint64 // in the period
	hits    uint64 // of these
	period  time.Duration
	loads   uint64
	found   uint64 // in Redis
	failed  uint64 // lookups there
	sent    uint64
	applied uint64
	seen    sighted
}

// rows returns a row for each instance and their total. Reads and hits are those
// between two sets of statistics, period apart; nil is one without any reads.
func (t *traffic) rows(last, now []nearcache.BackplaneStats, period time.Duration) []row {
	var rows []row
	total := row{name: "total", period: period}
	if last == nil {
		last = make([]nearcache.BackplaneStats, len(t.instances))
	}
	if now == nil {
		now = last
	}
	for i, s := range now {
		name := strconv.Itoa(t.instances[i].number)
		if s.State != nearcache.StateLive {
			name += " (down)" // of its backplane; the instance itself serves
		}
		r := row{name: name, period: period, sent: s.Published, applied: s.Applied, seen: t.sightings[i].snapshot()}
		r.reads, r.hits, r.loads = gets(s)
		for _, c := range s.Caches {
			r.found += c.Shared.Hits
			r.failed += c.Shared.Errors + c.Shared.Skipped.Total()
		}
		readsBefore, hitsBefore, _ := gets(last[i])
		r.reads -= readsBefore
		r.hits -= hitsBefore
		rows = append(rows, r)

		total.reads += r.reads
		total.hits += r.hits
		total.loads += r.loads
		total.found += r.found
		total.failed += r.failed
		total.sent += r.sent
		total.applied += r.applied
		total.seen.add(r.seen)
	}
	return append(rows, total)
}

// gets adds up what an instance's caches were asked for.
func gets(s nearcache.BackplaneStats) (reads, hits, loads uint64) {
	for _, c := range s.Caches {
		hits += c.Hits
		reads += c.Hits + c.Misses.Total()
		loads += c.Loads
	}
	return reads, hits, loads
}

// table shows rows: on a terminal all of them, always in the same place, and
// elsewhere a line for the total, and all of them at the end.
type table struct {
	out     io.Writer
	redraws bool
	drawn   int  // lines of the last drawing, which the next one replaces
	headed  bool // the lines for the total have their headings
}

func newTable(out *os.File) *table {
	info, err := out.Stat()
	terminal := err == nil && info.Mode()&os.ModeCharDevice != 0
	return &table{out: out, redraws: terminal && os.Getenv("TERM") != "dumb"}
}

// begin forgets what was drawn: another run follows below it.
func (t *table) begin() { t.drawn, t.headed = 0, false }

// progress shows a run that is under way towards a goal. The last row is the total.
func (t *table) progress(elapsed time.Duration, goal string, rows []row) {
	elapsed = elapsed.Round(time.Second)
	if t.redraws {
		t.draw(fmt.Sprintf("%v of %s", elapsed, goal), rows)
		return
	}
	var b strings.Builder
	if !t.headed {
		writeHeadings(&b, "total at")
		t.headed = true
	}
	total := rows[len(rows)-1]
	total.name = elapsed.String()
	total.write(&b)
	_, _ = io.WriteString(t.out, b.String())
}

// finish shows a run that is over.
func (t *table) finish(ran time.Duration, rows []row) {
	if t.headed {
		_, _ = io.WriteString(t.out, "\n")
	}
	t.draw(fmt.Sprintf("%.1fs, the whole run", ran.Seconds()), rows)
}

func (t *table) draw(title string, rows []row) {
	var b strings.Builder
	if t.redraws {
		if t.drawn > 0 {
			fmt.Fprintf(&b, "\x1b[%dA\x1b[J", t.drawn) // up, and clear from there
		}
		b.WriteString("\x1b[?7l") // no wrapping: a line that is drawn stays one line
	}
	fmt.Fprintln(&b, title)
	writeHeadings(&b, "instance")
	for _, r := range rows {
		r.write(&b)
	}
	b.WriteByte('\n')
	t.drawn = strings.Count(b.String(), "\n")
	if t.redraws {
		b.WriteString("\x1b[?7h")
	}
	_, _ = io.WriteString(t.out, b.String())
}

const columns = "%-9s %7s %6s %7s %5s %7s %7s %7s %6s %7s\n"

func writeHeadings(b *strings.Builder, first string) {
	fmt.Fprintln(b, "                                 invalidations change to effect   stale reads")
	fmt.Fprintf(b, columns, first, "reads/s", "hits", "loads", "sent", "applied", "p50", "p99", "count", "oldest")
}

func (r row) write(b *strings.Builder) {
	fmt.Fprintf(b, columns, r.name, short(r.perSecond()), percent(r.hits, r.reads),
		short(r.loads), short(r.sent), short(r.applied),
		brief(r.seen.effects.percentile(50)), brief(r.seen.effects.percentile(99)),
		short(uint64(r.seen.stale)), brief(r.seen.oldest))
}

func (r row) perSecond() uint64 { return uint64(float64(r.reads) / r.period.Seconds()) }

func percent(part, whole uint64) string {
	if whole == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f%%", 100*float64(part)/float64(whole))
}

// short writes n in at most seven characters, up to 99,999 million.
func short(n uint64) string {
	if n >= 1_000_000 {
		return fmt.Sprintf("%.1fM", float64(n)/1_000_000)
	}
	return grouped(n)
}

// grouped writes n with a comma at every third digit.
func grouped(n uint64) string {
	digits := strconv.FormatUint(n, 10)
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}
