package eviction

import (
	"math"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// reference is a policy written for clarity alone. It knows keys, not nodes.
type reference interface {
	add(key int, hash uint64, weight uint32) (victims []int)
	remove(key int)
	touch(key int) // what Policy.Touch does
	use(key int)   // what Node.Use does
	len() int
	weight() int64
}

// referenceQueue has keys, the oldest first, and what they weigh.
type referenceQueue struct {
	keys    []int
	weights map[int]uint32
}

func (q *referenceQueue) push(key int, weight uint32) {
	if q.weights == nil {
		q.weights = map[int]uint32{}
	}
	q.keys = append(q.keys, key)
	q.weights[key] = weight
}

// remove returns the weight of the key, 0 if it is not there.
func (q *referenceQueue) remove(key int) (weight uint32) {
	q.keys = slices.DeleteFunc(slices.Clone(q.keys), func(k int) bool { return k == key })
	weight = q.weights[key]
	delete(q.weights, key)
	return weight
}

func (q *referenceQueue) pop() (key int, weight uint32) {
	key = q.keys[0]
	return key, q.remove(key)
}

func (q *referenceQueue) len() int { return len(q.keys) }

func (q *referenceQueue) weight() (sum int64) {
	for _, weight := range q.weights {
		sum += int64(weight)
	}
	return sum
}

// within reports whether that many nodes of that weight keep to limits.
func within(limits Limits, entries int, weight int64) bool {
	return (limits.Entries == 0 || entries <= limits.Entries) && (limits.Weight == 0 || weight <= limits.Weight)
}

// referenceLRU has the keys in order of their last hit.
type referenceLRU struct {
	limits Limits
	referenceQueue
}

func (r *referenceLRU) add(key int, _ uint64, weight uint32) (victims []int) {
	for !within(r.limits, r.len()+1, r.weight()+int64(weight)) {
		victim, _ := r.pop()
		victims = append(victims, victim)
	}
	r.push(key, weight)
	return victims
}

func (r *referenceLRU) remove(key int) { r.referenceQueue.remove(key) }
func (r *referenceLRU) touch(key int)  { r.push(key, r.referenceQueue.remove(key)) }
func (r *referenceLRU) use(int)        {}

// referenceAdaptive follows Adaptive's doc comment, on lists.
type referenceAdaptive struct {
	limits         Limits
	small, main    referenceQueue
	ghost          referenceGhost
	used, returned map[int]bool
	hash           map[int]uint64
	share          float64
	trust, returns int
	known          bool // trust has been limited
}

func newReferenceAdaptive(limits Limits) *referenceAdaptive {
	return &referenceAdaptive{
		limits: limits, share: 0.1, used: map[int]bool{}, returned: map[int]bool{}, hash: map[int]uint64{},
	}
}

// shares returns small's and main's shares, 0 for no limit.
func (r *referenceAdaptive) shares() (small, main Limits) {
	if entries := r.limits.Entries; entries > 0 {
		small.Entries = max(1, int(r.share*float64(entries)))
		main.Entries = entries - small.Entries
	}
	if weight := r.limits.Weight; weight > 0 {
		small.Weight = max(1, int64(r.share*float64(weight)))
		main.Weight = weight - small.Weight
	}
	return small, main
}

// mainHolds reports whether that is within main's share, which may be 0.
func (r *referenceAdaptive) mainHolds(entries int, weight int64) bool {
	_, main := r.shares()
	return (r.limits.Entries == 0 || entries <= main.Entries) && (r.limits.Weight == 0 || weight <= main.Weight)
}

func (r *referenceAdaptive) add(key int, hash uint64, weight uint32) (victims []int) {
	for !within(r.limits, r.len()+1, r.weight()+int64(weight)) {
		r.ghost.renew(hash)
		victims = append(victims, r.evict())
	}
	switch origin := r.ghost.take(hash); {
	case origin != unknown && r.mayReturn(origin):
		r.main.push(key, weight)
		r.returned[key] = true
	default:
		if len(victims) == 0 {
			r.fillMain(weight)
		}
		r.small.push(key, weight)
		r.returned[key] = false
	}
	r.used[key], r.hash[key] = false, hash
	return victims
}

func (r *referenceAdaptive) evict() (victim int) {
	nodes := r.len()
	for r.small.len() > 0 && r.mainHolds(r.main.len(), r.main.weight()) {
		oldest, weight := r.small.pop()
		if !r.used[oldest] {
			r.ghost.add(r.hash[oldest], fromSmall, max(64, nodes))
			return oldest
		}
		r.used[oldest] = false
		r.main.push(oldest, weight)
	}
	for {
		oldest, weight := r.main.pop()
		if !r.used[oldest] {
			r.ghost.add(r.hash[oldest], fromMain, max(64, nodes))
			return oldest
		}
		if r.returned[oldest] {
			// Nodes wait outside the queue here while they are looked at.
			r.changeTrust(1, nodes)
		}
		r.used[oldest], r.returned[oldest] = false, false
		r.main.push(oldest, weight)
	}
}

func (r *referenceAdaptive) changeTrust(by, nodes int) {
	most := max(2, nodes/5)
	if !r.known {
		r.known, r.trust = true, most
	}
	r.trust = max(min(min(r.trust, most)+by, most), -most)
}

func (r *referenceAdaptive) mayReturn(origin origin) bool {
	small, main := 1.0, 1.0
	for _, set := range r.ghost.sets {
		for _, item := range set {
			if item.origin == fromSmall {
				small++
			} else {
				main++
			}
		}
	}
	step := 1 / float64(max(1, r.len()))
	if origin == fromSmall {
		r.share = min(r.share+step*max(1, main/small), 0.8)
	} else {
		r.share = max(r.share-step*max(1, 1/(main/small)), 0.01)
		r.changeTrust(-1, r.len())
	}
	if r.trust >= 0 {
		return true
	}
	r.returns++
	return r.returns%8 == 0
}

func (r *referenceAdaptive) fillMain(weight uint32) {
	for r.small.len() > 0 {
		small, _ := r.shares()
		oldest := r.small.keys[0]
		if within(small, r.small.len()+1, r.small.weight()+int64(weight)) ||
			!r.mainHolds(r.main.len()+1, r.main.weight()+int64(r.small.weights[oldest])) {
			return
		}
		r.main.push(r.small.pop())
		r.used[oldest] = false
	}
}

func (r *referenceAdaptive) remove(key int) {
	r.small.remove(key)
	r.main.remove(key)
}

func (r *referenceAdaptive) use(key int)   { r.used[key] = true }
func (r *referenceAdaptive) touch(key int) { r.use(key) }
func (r *referenceAdaptive) len() int      { return r.small.len() + r.main.len() }
func (r *referenceAdaptive) weight() int64 { return r.small.weight() + r.main.weight() }

func TestLRUModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limits := drawLimits(t)
		compare(t, limits, NewLRU[int](limits), &referenceLRU{limits: limits})
	})
}

func TestAdaptiveModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limits := drawLimits(t)
		compare(t, limits, NewAdaptive[int](limits), newReferenceAdaptive(limits))
	})
}

func drawLimits(t *rapid.T) (limits Limits) {
	kind := rapid.IntRange(1, 3).Draw(t, "limits")
	if kind&1 != 0 {
		limits.Entries = rapid.OneOf(rapid.IntRange(1, 20), rapid.IntRange(21, 60)).Draw(t, "entries")
	}
	if kind&2 != 0 {
		limits.Weight = rapid.OneOf(rapid.Int64Range(1, 20), rapid.Int64Range(21, 200)).Draw(t, "weight")
	}
	return limits
}

// drawWeights returns a generator of weights that go with limits.
func drawWeights(t *rapid.T, limits Limits) *rapid.Generator[uint32] {
	most := uint32(math.MaxUint32)
	if limits.Weight > 0 {
		most = uint32(limits.Weight)
	}
	switch rapid.IntRange(0, 2).Draw(t, "weights") {
	case 0:
		return rapid.Just(uint32(1))
	case 1: // light ones
		return rapid.Uint32Range(0, min(most, 4))
	default: // a heavy one among light ones
		return rapid.OneOf(rapid.Uint32Range(0, min(most, 4)), rapid.Uint32Range(0, min(most, 4)), rapid.Uint32Range(0, most))
	}
}

// compare runs random operations on p and on want, which have to evict the same keys
// in the same order, and checks p after each.
func compare(t *rapid.T, limits Limits, p Policy[int], want reference) {
	most := limits.Entries
	if most == 0 {
		most = int(min(limits.Weight, 60))
	}
	keys := rapid.IntRange(0, 2*most+1)
	kinds := rapid.IntRange(0, 15)
	weights := drawWeights(t, limits)
	// Keys may share a hash, and nodes that left may come back.
	keysPerHash := rapid.IntRange(1, 2).Draw(t, "keys per hash")
	reuseNodes := rapid.Bool().Draw(t, "reuse nodes")

	hashOf := func(key int) uint64 { return uint64(key / keysPerHash) }
	held, left := map[int]*Node[int]{}, map[int]*Node[int]{}
	drop := func(key int) {
		left[key] = held[key]
		delete(held, key)
	}
	for range rapid.SampledFrom([]int{10, 100, 1000}).Draw(t, "steps") {
		key, kind := keys.Draw(t, "key"), kinds.Draw(t, "kind")
		n := held[key]
		switch {
		case n == nil:
			fresh := newNode(key)
			if reuseNodes && left[key] != nil {
				fresh = left[key]
			}
			hash, weight := hashOf(key), weights.Draw(t, "weight")
			var victims []int
			for v := p.Evict(hash, weight); v != nil; v = p.Evict(hash, weight) {
				require.Same(t, held[v.Item], v)
				p.Remember(hashOf(v.Item))
				victims = append(victims, v.Item)
				drop(v.Item)
			}
			p.Add(fresh, hash, weight)
			held[key] = fresh
			require.Equal(t, want.add(key, hash, weight), victims)
			require.Equal(t, weight, fresh.Weight())
		case kind == 0:
			p.Remove(n)
			want.remove(key)
			drop(key)
		case kind == 1:
			fresh := newNode(key)
			p.Replace(n, fresh)
			require.Equal(t, n.weight, fresh.weight)
			require.Nil(t, n.next)
			held[key] = fresh
			want.touch(key)
		case kind < 9:
			p.Touch(n)
			want.touch(key)
		default:
			n.Use()
			want.use(key)
		}
		require.Equal(t, want.len(), p.Len())
		require.Equal(t, want.weight(), p.Weight())
		require.True(t, within(limits, p.Len(), p.Weight()))
		require.NoError(t, p.Check())
	}
}
