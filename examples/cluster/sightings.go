package main

import (
	"fmt"
	"slices"
	"sync"
	"time"
)

// sightings is what was seen of one instance from outside.
type sightings struct {
	instance int

	mu        sync.Mutex // guards everything below
	effects   latencies  // from a change at the source to this instance serving it
	noEffect  int        // changes that it did not serve within effectLimit
	stale     int        // reads of versions superseded before they began
	oldest    time.Duration
	violation string // the first that was seen
}

// note keeps book of reads and what the ledger says of each.
func (s *sightings) note(reads []read, findings []finding) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, f := range findings {
		if !f.stale {
			continue
		}
		s.stale++
		s.oldest = max(s.oldest, f.age)
		if f.violation && s.violation == "" {
			s.violation = fmt.Sprintf("instance %d served version %d of %v %s after it was superseded",
				s.instance, reads[i].version, reads[i].item, brief(f.age))
		}
	}
}

func (s *sightings) noteEffect(took time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.effects = append(s.effects, took)
}

// noteNoEffect counts what it took so far as the latency, so that it shows.
func (s *sightings) noteNoEffect(took time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.effects = append(s.effects, took)
	s.noEffect++
}

// sighted is a snapshot of sightings, of one instance or added up.
type sighted struct {
	effects   latencies
	noEffect  int
	stale     int
	oldest    time.Duration
	violation string
}

func (s *sightings) snapshot() sighted {
	s.mu.Lock()
	defer s.mu.Unlock()
	return sighted{
		effects:   slices.Clone(s.effects),
		noEffect:  s.noEffect,
		stale:     s.stale,
		oldest:    s.oldest,
		violation: s.violation,
	}
}

func (s *sighted) add(other sighted) {
	s.effects = append(s.effects, other.effects...)
	s.noEffect += other.noEffect
	s.stale += other.stale
	s.oldest = max(s.oldest, other.oldest)
	if s.violation == "" {
		s.violation = other.violation
	}
}
