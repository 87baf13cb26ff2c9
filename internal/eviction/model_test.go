package eviction

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// reference is a policy written for clarity alone. It knows keys, not nodes.
type reference interface {
	add(key int, hash uint64) (victim int, evicted bool)
	remove(key int)
	touch(key int) // what Policy.Touch does
	use(key int)   // what Node.Use does
	len() int
}

// referenceLRU has the keys in order of their last hit, the oldest first.
type referenceLRU struct {
	capacity int
	keys     []int
}

func (r *referenceLRU) add(key int, _ uint64) (victim int, evicted bool) {
	if len(r.keys) == r.capacity {
		victim, evicted = r.keys[0], true
		r.remove(victim)
	}
	r.keys = append(r.keys, key)
	return victim, evicted
}

func (r *referenceLRU) remove(key int) {
	r.keys = slices.DeleteFunc(r.keys, func(k int) bool { return k == key })
}

func (r *referenceLRU) touch(key int) {
	r.remove(key)
	r.keys = append(r.keys, key)
}

func (r *referenceLRU) use(int)  {}
func (r *referenceLRU) len() int { return len(r.keys) }

// referenceS3FIFO follows Algorithm 1 of the paper line by line, with the
// departures that S3FIFO's doc comment names. The queues have their tail, the
// oldest, first.
type referenceS3FIFO struct {
	capacity    int
	small, main []int
	ghost       referenceGhost
	freq        map[int]int
	hash        map[int]uint64
}

func newReferenceS3FIFO(capacity int) *referenceS3FIFO {
	r := &referenceS3FIFO{capacity: capacity, freq: map[int]int{}, hash: map[int]uint64{}}
	r.ghost.capacity = capacity - r.smallSize()
	return r
}

func (r *referenceS3FIFO) smallSize() int { return max(1, r.capacity/10) }

func (r *referenceS3FIFO) add(key int, hash uint64) (victim int, evicted bool) {
	inGhost := r.ghost.take(hash)
	if r.len() == r.capacity {
		if len(r.small) >= r.smallSize() {
			victim = r.evictSmall()
		} else {
			victim = r.evictMain()
		}
		evicted = true
	}
	if inGhost {
		r.main = append(r.main, key)
	} else {
		r.small = append(r.small, key)
	}
	r.freq[key], r.hash[key] = 0, hash
	return victim, evicted
}

func (r *referenceS3FIFO) evictSmall() (victim int) {
	for {
		tail := r.small[0]
		r.small = r.small[1:]
		if r.freq[tail] <= 1 {
			r.ghost.add(r.hash[tail])
			return tail
		}
		r.freq[tail] = 0
		mainIsFull := len(r.main) >= r.capacity-r.smallSize()
		r.main = append(r.main, tail)
		if mainIsFull {
			return r.evictMain()
		}
	}
}

func (r *referenceS3FIFO) evictMain() (victim int) {
	for {
		tail := r.main[0]
		r.main = r.main[1:]
		if r.freq[tail] == 0 {
			return tail
		}
		r.freq[tail]--
		r.main = append(r.main, tail)
	}
}

func (r *referenceS3FIFO) remove(key int) {
	same := func(k int) bool { return k == key }
	r.small = slices.DeleteFunc(slices.Clone(r.small), same)
	r.main = slices.DeleteFunc(slices.Clone(r.main), same)
}

func (r *referenceS3FIFO) use(key int)   { r.freq[key] = min(r.freq[key]+1, 3) }
func (r *referenceS3FIFO) touch(key int) { r.use(key) }
func (r *referenceS3FIFO) len() int      { return len(r.small) + len(r.main) }

func TestLRUModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		capacity := drawCapacity(t)
		compare(t, NewLRU[int](capacity), &referenceLRU{capacity: capacity})
	})
}

func TestS3FIFOModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		capacity := drawCapacity(t)
		compare(t, NewS3FIFO[int](capacity), newReferenceS3FIFO(capacity))
	})
}

func drawCapacity(t *rapid.T) int {
	return rapid.OneOf(rapid.IntRange(1, 20), rapid.IntRange(21, 60)).Draw(t, "capacity")
}

// compare runs random operations on p and want, which have to evict the same
// keys in the same order, and checks p after each.
func compare(t *rapid.T, p Policy[int], want reference) {
	capacity := p.Capacity()
	keys := rapid.IntRange(0, 2*capacity+1)
	kinds := rapid.IntRange(0, 15)
	// Keys may share a hash, and nodes that left may come back.
	keysPerHash := rapid.IntRange(1, 2).Draw(t, "keys per hash")
	reuseNodes := rapid.Bool().Draw(t, "reuse nodes")

	held, left := map[int]*Node[int]{}, map[int]*Node[int]{}
	drop := func(key int) {
		left[key] = held[key]
		delete(held, key)
	}
	for range rapid.SampledFrom([]int{10, 100, 1000}).Draw(t, "steps") {
		key, kind := keys.Draw(t, "key"), kinds.Draw(t, "kind")
		n := held[key]
		fresh := &Node[int]{Item: key, Hash: uint64(key / keysPerHash)}
		switch {
		case n == nil:
			if reuseNodes && left[key] != nil {
				fresh = left[key]
			}
			victim := p.Add(fresh)
			wantVictim, wantEvicted := want.add(key, fresh.Hash)
			require.Equal(t, wantEvicted, victim != nil)
			if victim != nil {
				require.Equal(t, wantVictim, victim.Item)
				require.Same(t, held[victim.Item], victim)
				drop(victim.Item)
			}
			held[key] = fresh
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
		require.NoError(t, p.Check())
	}
}
