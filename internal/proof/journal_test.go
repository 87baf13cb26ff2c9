package proof

import (
	"fmt"
	"hash/fnv"
	"slices"
	"strings"
	"sync"
	"time"
)

// journal is what happened in a schedule: the newest events, or all, and the
// first thing that was wrong.
type journal struct {
	start  time.Time
	keep   int  // events; 0: all
	hashed bool // every event goes into a hash

	mu      sync.Mutex // guards everything below
	events  []event
	hashes  map[string]uint64 // by actor
	failure string
}

type event struct {
	at     time.Duration
	actor  string
	format string
	args   []any
}

func (e event) String() string {
	return fmt.Sprintf("%13v %-7s %s", e.at, e.actor, fmt.Sprintf(e.format, e.args...))
}

// now is the time since the schedule began.
func (j *journal) now() time.Duration { return time.Since(j.start) }

// log notes what an actor does. At one instant actors come in any order, but each
// does what it does in order.
func (j *journal) log(actor, format string, args ...any) {
	e := event{at: j.now(), actor: actor, format: format, args: args}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.failure != "" {
		return
	}
	if j.hashed {
		h := fnv.New64a()
		fmt.Fprint(h, j.hashes[actor], e.String())
		j.hashes[actor] = h.Sum64()
	}
	if j.keep > 0 && len(j.events) >= 2*j.keep {
		j.events = append(j.events[:0], j.events[j.keep:]...)
	}
	j.events = append(j.events, e)
}

// fail notes what is wrong. The first counts, and ends the schedule.
func (j *journal) fail(format string, args ...any) {
	j.log("PROOF", format, args...)
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.failure == "" {
		j.failure = fmt.Sprintf(format, args...)
	}
}

func (j *journal) failed() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.failure
}

// String lists the events.
func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	events := j.events
	if j.keep > 0 && len(events) > j.keep {
		events = events[len(events)-j.keep:]
	}
	var b strings.Builder
	for _, e := range events {
		fmt.Fprintln(&b, e)
	}
	return b.String()
}

// hash is that of all actors' events.
func (j *journal) hash() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	var actors []string
	for actor, h := range j.hashes {
		actors = append(actors, fmt.Sprintf("%s:%016x", actor, h))
	}
	slices.Sort(actors)
	return strings.Join(actors, " ")
}
