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

// referenceS3FIFO follows Algorithm 1 of the paper, with the departures that
// S3FIFO's doc comment names, for nodes that weigh something.
type referenceS3FIFO struct {
	limits      Limits
	small, main referenceQueue
	ghost       referenceGhost
	freq        map[int]int
	hash        map[int]uint64
}

func newReferenceS3FIFO(limits Limits) *referenceS3FIFO {
	return &referenceS3FIFO{limits: limits, freq: map[int]int{}, hash: map[int]uint64{}}
}

func (r *referenceS3FIFO) add(key int, hash uint64, weight uint32) (victims []int) {
	for !within(r.limits, r.len()+1, r.weight()+int64(weight)) {
		r.ghost.renew(hash)
		if r.small.len() > 0 && !r.mainIsOver() {
			victims = append(victims, r.evictSmall())
		} else {
			victims = append(victims, r.evictMain())
		}
	}
	if r.ghost.take(hash) {
		r.main.push(key, weight)
	} else {
		r.small.push(key, weight)
	}
	r.freq[key], r.hash[key] = 0, hash
	return victims
}

// mainIsOver reports whether main has more of some limit than small leaves it.
func (r *referenceS3FIFO) mainIsOver() bool {
	entries, weight := r.limits.Entries, r.limits.Weight
	return entries > 0 && r.main.len() > entries-max(1, entries/10) ||
		weight > 0 && r.main.weight() > weight-max(1, weight/10)
}

func (r *referenceS3FIFO) evictSmall() (victim int) {
	for r.small.len() > 0 {
		nodes := r.len()
		tail, weight := r.small.pop()
		if r.freq[tail] <= 1 {
			r.ghost.add(r.hash[tail], nodes-nodes/10)
			return tail
		}
		r.freq[tail] = 0
		r.main.push(tail, weight)
		if r.mainIsOver() {
			break
		}
	}
	return r.evictMain()
}

func (r *referenceS3FIFO) evictMain() (victim int) {
	for {
		tail, weight := r.main.pop()
		if r.freq[tail] == 0 {
			return tail
		}
		r.freq[tail]--
		r.main.push(tail, weight)
	}
}

func (r *referenceS3FIFO) remove(key int) {
	r.small.remove(key)
	r.main.remove(key)
}

func (r *referenceS3FIFO) use(key int)   { r.freq[key] = min(r.freq[key]+1, 3) }
func (r *referenceS3FIFO) touch(key int) { r.use(key) }
func (r *referenceS3FIFO) len() int      { return r.small.len() + r.main.len() }
func (r *referenceS3FIFO) weight() int64 { return r.small.weight() + r.main.weight() }

func TestLRUModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limits := drawLimits(t)
		compare(t, limits, func(func(*int) uint64) Policy[int] { return NewLRU[int](limits) }, &referenceLRU{limits: limits})
	})
}

func TestS3FIFOModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limits := drawLimits(t)
		compare(t, limits, func(hash func(*int) uint64) Policy[int] { return NewS3FIFO(limits, hash) }, newReferenceS3FIFO(limits))
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

// compare runs random operations on the policy that make returns and on want,
// which have to evict the same keys in the same order, and checks the policy
// after each.
func compare(t *rapid.T, limits Limits, make func(hash func(*int) uint64) Policy[int], want reference) {
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

	hashOf := func(key *int) uint64 { return uint64(*key / keysPerHash) }
	p := make(hashOf)
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
			hash, weight := hashOf(&key), weights.Draw(t, "weight")
			var victims []int
			for v := p.Evict(hash, weight); v != nil; v = p.Evict(hash, weight) {
				require.Same(t, held[v.Item], v)
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
