package nearcache

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/nearcache/nearcache/internal/transport"
)

// candidate is a value in Redis that may become a flight's result.
type candidate[K comparable, V any] struct {
	lookup *sharedLookup[K, V]
	label  label
	life   time.Duration // how long it may still live
	value  V
	names  []string // of its regions
}

type verdict int

const (
	// mostUnpacking bounds the bytes of all values that are being unpacked at a time, in
	// all caches of a backplane. Values of up to leastUnpacked bytes do not count.
	mostUnpacking = 64 << 20
	leastUnpacked = 64 << 10
)

// errNoRoom says that a value was not unpacked, although it could be.
var errNoRoom = errors.New("too many large values are being unpacked")

const (
	invalid verdict = iota
	usable
	doubted // something was cleared since: it is usable only if its regions were not
)

// judge decodes a value and decides whether it is usable. A large value may have to wait
// for others to be decoded, at most until the given time.
func (c *candidate[K, V]) judge(
	ctx context.Context, s *shared[K, V], v *transport.Value, r *transport.Reading, until time.Time,
) verdict {
	sl := c.lookup
	if !v.Found {
		return invalid
	}
	l, data, err := readLabel(v.Bytes)
	if len(v.Bytes) > s.redis.most {
		err = errTooLarge
	}
	if err != nil {
		s.noteRefused(err)
		if len(v.Bytes) > transport.IDAt {
			sl.seenID = string(v.Bytes[transport.IDAt:min(len(v.Bytes), transport.IDAt+transport.IDLength)])
		}
		return invalid
	}
	sl.seenID, c.label, c.life = l.id, l, min(v.Life, l.life)
	if c.life <= 0 || l.epoch != r.Epoch || l.count > r.Count || l.count < r.Cleared ||
		l.notFound && (l.count != r.Count && s.notFoundRegions == nil || s.notFounds <= 0) ||
		sl.flight.refreshOf != nil && !s.isNewer(c) {
		return invalid
	}
	if l.kind != s.kind {
		s.stats.undecodable.Add(1) // of another type, or of another application
		return invalid
	}
	if c.value, err = s.decode(ctx, l, data, until); err != nil {
		s.noteRefused(err)
		return invalid
	}
	if l.count == r.Count || s.regions == nil && !l.notFound {
		return usable
	}
	if c.names, err = s.regionsOf(sl.flight.key, c.value, l.notFound); err != nil {
		return invalid // the load will meet the same error
	}
	if len(c.names) == 0 {
		return usable
	}
	return doubted
}

// decode decodes a value. A large one is unpacked only if there is room for it beside the
// others that are being decoded.
func (s *shared[K, V]) decode(ctx context.Context, l label, data []byte, until time.Time) (value V, err error) {
	n, err := unpackedLength(l, data, s.options.MaxValueBytes)
	if err != nil {
		return value, err
	}
	if n > leastUnpacked {
		if !s.backplane.unpacking.take(ctx, n, until) {
			return value, errNoRoom
		}
		defer s.backplane.unpacking.give(n) // also if the codec ends the goroutine
	}
	return decodeValue(&s.options, l, data)
}

// noteRefused counts a value that cannot be used as it is. It counts as a miss.
func (s *shared[K, V]) noteRefused(err error) {
	switch {
	case errors.Is(err, errTooLarge):
		s.stats.oversized.Add(1)
		if s.backplane.oversized.Allow() {
			s.backplane.logger.Warn("nearcache: a value in Redis is larger than Shared.MaxValueBytes, and counts as a miss",
				"cache", s.cache, "limit", s.options.MaxValueBytes)
		}
	case errors.Is(err, errNoRoom):
		s.stats.noRoom.Add(1)
	default:
		s.stats.undecodable.Add(1)
	}
}

// isNewer reports whether a value is clearly newer than the item that its flight is to
// refresh: less than half as old.
func (s *shared[K, V]) isNewer(c *candidate[K, V]) bool {
	held := s.local.lease.now() - c.lookup.flight.refreshOf.Item.started.Load()
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

// resolveDoubts answers the flights of those candidates whose regions were not cleared
// since their loads were claimed. It reads the regions after the values were read.
func (s *shared[K, V]) resolveDoubts(ctx context.Context, history, epoch string, doubtful []candidate[K, V]) bool {
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

// answer gives a flight its value. The value is kept here for no longer than it would live
// in Redis.
func (s *shared[K, V]) answer(c *candidate[K, V]) {
	sl := c.lookup
	sl.found = true
	f := sl.flight
	defer f.recoverPanic()
	f.value = c.value
	if c.label.notFound {
		f.err = ErrNotFound
	}
	s.local.askForRegions(f)
	s.keeper.of(f.key, f.value, f.err, &f.outcome)
	f.outcome.ttl = min(f.outcome.ttl, c.life)
}
