package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/nearcache/nearcache"
)

// errViolation says that the verdict names a violation.
var errViolation = errors.New("consistency violated")

// verdict is the result of a run.
type verdict struct {
	ran         time.Duration
	reads       uint64
	loads       uint64
	found       uint64 // values in Redis
	failed      uint64 // lookups there
	asked       int64  // reads, by the source's own count
	served      int64  // reads by users
	changed     int64
	cleared     int64
	unconfirmed int64
	sent        uint64
	applied     uint64
	gaps        uint64
	seen        sighted
	violation   string // empty if there was none
	brokeOff    bool   // so it proves less
}

func newVerdict(ran time.Duration, final []nearcache.BackplaneStats, t *traffic) verdict {
	rows := t.rows(nil, final, ran)
	total := rows[len(rows)-1]
	v := verdict{
		ran:         ran,
		reads:       total.reads,
		loads:       total.loads,
		changed:     t.changed.Load(),
		cleared:     t.cleared.Load(),
		unconfirmed: t.unconfirmed.Load(),
		sent:        total.sent,
		applied:     total.applied,
		found:       total.found,
		failed:      total.failed,
		served:      t.served.Load(),
		asked:       t.catalogue.asked.Load(),
		seen:        total.seen,
		violation:   total.seen.violation,
	}
	for _, s := range final {
		v.gaps += s.Clears.Total() - s.Clears.Start
	}
	return v
}

func (v verdict) print(out io.Writer) {
	var b strings.Builder
	say := func(format string, args ...any) { fmt.Fprintf(&b, format, args...) }

	say("After %.1f seconds:\nReads: %s, of which %s reached the source; %s were saved", v.ran.Seconds(),
		grouped(v.reads), grouped(v.loads), grouped(v.reads-min(v.loads, v.reads)))
	if v.loads > 0 {
		say(", %.0f to 1", float64(v.reads)/float64(v.loads))
	}
	if v.found > 0 {
		say(", %s of them by values in Redis", grouped(v.found))
	}
	say(".\nChanges: %d items and %d categories; %s invalidations sent, %s applied.\n",
		v.changed, v.cleared, grouped(v.sent), grouped(v.applied))
	if v.failed > 0 {
		say("Not shared: %s loads, since a change was under way, or Redis did not answer in time.\n", grouped(v.failed))
	}
	if v.unconfirmed > 0 {
		say("Unconfirmed: %d of these, which Redis did not accept at the time.\n", v.unconfirmed)
	}
	if v.gaps > 0 {
		say("Gaps: %d times an instance cleared all, since it may have missed messages.\n", v.gaps)
	}
	if effects := v.seen.effects; len(effects) > 0 {
		say("Change to effect: half within %s, 99%% within %s, the worst %s.\n",
			brief(effects.percentile(50)), brief(effects.percentile(99)), brief(effects.percentile(100)))
	}
	if v.seen.noEffect > 0 {
		say("No effect: %d times a change was not served within %v.\n", v.seen.noEffect, effectLimit)
	}
	say("Stale reads: %s", grouped(uint64(v.seen.stale)))
	if v.seen.stale > 0 {
		say(", the oldest by %s", brief(v.seen.oldest))
	}
	switch {
	case v.violation != "":
		say(".\nVIOLATION: %s.\n", v.violation)
	case v.brokeOff:
		say(".\nFAILED: the run broke off; until then nothing was served too late.\n")
	default:
		say(".\nOK: nothing was served more than %v after it was superseded.\n", tolerance)
	}
	_, _ = io.WriteString(out, b.String())
}
