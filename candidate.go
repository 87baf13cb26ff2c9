package nearcache

import (
	"context"
	"slices"
	"time"

	"github.com/nearcache/nearcache/internal/transport"
)

// candidate is a value in Redis that may answer a flight.
type candidate[K comparable, V any] struct {
	errand *errand[K, V]
	label  label
	life   time.Duration // that it has left
	value  V
	names  []string // of its regions
}

type verdict int

const (
	invalid verdict = iota
	valid
	doubted // something was cleared since: it depends on when its regions were
)

// judge decodes a value, and says what it is worth.
func (c *candidate[K, V]) judge(s *shared[K, V], v *transport.Value, r *transport.Reading) verdict {
	e := c.errand
	if !v.Found {
		return invalid
	}
	l, data, err := readLabel(v.Bytes)
	if err != nil {
		s.stats.undecodable.Add(1)
		if len(v.Bytes) > transport.IDAt {
			e.seen = string(v.Bytes[transport.IDAt:min(len(v.Bytes), transport.IDAt+transport.IDLength)])
		}
		return invalid
	}
	e.seen, c.label, c.life = l.id, l, min(v.Life, l.life)
	if c.life <= 0 || l.epoch != r.Epoch || l.count > r.Count || l.count < r.Cleared ||
		l.notFound && (l.count != r.Count && s.notFoundRegions == nil || s.notFounds <= 0) ||
		e.flight.ahead != nil && !s.isNewer(c) {
		return invalid
	}
	if l.kind != s.kind {
		s.stats.undecodable.Add(1) // of another type, or another application's
		return invalid
	}
	if c.value, err = decodeValue(&s.options, l, data); err != nil {
		s.stats.undecodable.Add(1)
		return invalid
	}
	if l.count == r.Count || s.regions == nil && !l.notFound {
		return valid
	}
	if c.names, err = s.regionsOf(e.flight.key, c.value, l.notFound); err != nil {
		return invalid // the load will show it
	}
	if len(c.names) == 0 {
		return valid
	}
	return doubted
}

// isNewer reports whether a value is younger than the item that its flight is to
// refresh.
func (s *shared[K, V]) isNewer(c *candidate[K, V]) bool {
	held := s.local.lease.now() - c.errand.flight.ahead.Item.started.Load()
	return c.label.life-c.life < time.Duration(held)/2
}

func (s *shared[K, V]) regionsOf(key K, value V, notFound bool) (names []string, err error) {
	if notFound {
		defer recovered("NotFoundRegions", &err)
		return s.notFoundRegions(key), nil
	}
	defer recovered("Regions", &err)
	return s.regions(key, value), nil
}

// settleDoubts answers the flights of those candidates whose regions were not cleared
// since their loads were claimed. It asks for the regions after the values were read.
func (s *shared[K, V]) settleDoubts(ctx context.Context, history, epoch string, doubtful []candidate[K, V]) bool {
	var names []string
	for _, c := range doubtful {
		names = append(names, c.names...)
	}
	slices.Sort(names)
	names = slices.Compact(names)
	reading, err := s.redis.read(ctx, history, nil, names)
	if err != nil {
		return false
	}
	for i := range doubtful {
		c := &doubtful[i]
		outdated := func(name string) bool {
			at, _ := slices.BinarySearch(names, name)
			return reading.Regions[at] > c.label.count
		}
		if reading.Epoch == epoch && c.label.count >= reading.Cleared && !slices.ContainsFunc(c.names, outdated) {
			s.answer(c)
		}
	}
	return true
}

// answer gives a flight its value, and says how it is to be kept: for no longer than
// it would live in Redis.
func (s *shared[K, V]) answer(c *candidate[K, V]) {
	e := c.errand
	e.found = true
	f := e.flight
	defer f.catch()
	f.value = c.value
	if c.label.notFound {
		f.err = ErrNotFound
	}
	s.local.noteCleared(f)
	s.outcome(f.key, f.value, f.err, &f.outcome)
	f.outcome.ttl = min(f.outcome.ttl, c.life)
}
