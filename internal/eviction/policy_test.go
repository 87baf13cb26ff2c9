package eviction

import (
	"math"
	"sync"
	"sync/atomic"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// policies are what every test of the common contract runs on.
var policies = []struct {
	name string
	make func(limits Limits) Policy[int]
}{
	{name: "Adaptive", make: func(limits Limits) Policy[int] { return NewAdaptive[int](limits) }},
	{name: "LRU", make: func(limits Limits) Policy[int] { return NewLRU[int](limits) }},
}

// hashOfKey is the hash of a node of these tests: its item is its key, and its
// hash too.
func hashOfKey(key *int) uint64 { return uint64(*key) }

func newNode(key int) *Node[int] { return &Node[int]{Item: key} }

// add makes room for n and adds it, as a cache does, and returns who left for it.
func add(p Policy[int], n *Node[int], weight uint32) (victims []*Node[int]) {
	hash := hashOfKey(&n.Item)
	for v := p.Evict(hash, weight); v != nil; v = p.Evict(hash, weight) {
		p.Remember(hashOfKey(&v.Item))
		victims = append(victims, v)
	}
	p.Add(n, hash, weight)
	return victims
}

// addKeys adds a node of weight 1 for each key, checks the policy after each, and
// returns the nodes by key and the keys of the victims.
func addKeys(t *testing.T, p Policy[int], keys ...int) (nodes map[int]*Node[int], victims []int) {
	t.Helper()
	nodes = map[int]*Node[int]{}
	for _, key := range keys {
		nodes[key] = newNode(key)
		for _, victim := range add(p, nodes[key], 1) {
			victims = append(victims, victim.Item)
		}
		require.NoError(t, p.Check())
	}
	return nodes, victims
}

func TestNodeTakes24BytesBesideItsItem(t *testing.T) {
	if unsafe.Sizeof(uintptr(0)) != 8 {
		t.Skip("the sizes are those of 64 bits")
	}
	assert.Equal(t, uintptr(24), unsafe.Sizeof(Node[struct{}]{}))
	assert.Equal(t, uintptr(64), unsafe.Sizeof(Node[[5]uint64]{}))
}

func TestAdaptivesShareNoCacheLine(t *testing.T) {
	if unsafe.Sizeof(uintptr(0)) != 8 {
		t.Skip("laid out for pointers of 64 bits; on others it costs time at most")
	}
	var p Adaptive[int]
	assert.Zero(t, unsafe.Sizeof(p)%64)
	assert.Zero(t, unsafe.Offsetof(p.small)%64)
}

func TestUseSetsAMarkAndNothingElse(t *testing.T) {
	q := queue[int]{id: inMain}
	n := newNode(1)
	q.pushFront(n)
	n.markReturned()
	require.False(t, n.used())
	for range 3 {
		n.Use()
		assert.True(t, n.used())
		assert.True(t, n.returned())
		assert.Equal(t, inMain, n.queue())
	}
	n.clear()
	assert.False(t, n.used())
	assert.False(t, n.returned())
	assert.Equal(t, inMain, n.queue())
}

func TestNoteIsTheCallers(t *testing.T) {
	for _, policy := range policies {
		p := policy.make(Limits{Entries: 4})
		nodes, _ := addKeys(t, p, 1)
		n := nodes[1]
		require.Zero(t, n.Note())
		require.False(t, n.SwapNote(1, 2))
		const all = 1<<24 - 1
		require.True(t, n.SwapNote(0, all))
		n.Use()
		p.Touch(n)
		require.EqualValues(t, all, n.Note())
		addKeys(t, p, 2, 3, 4, 5) // it was used, and stays
		require.NoError(t, p.Check())

		next := newNode(1)
		require.True(t, next.SwapNote(0, 7))
		if n.queue() != inNone {
			p.Replace(n, next)
			require.EqualValues(t, 7, next.Note(), "each node has its own")
			require.NoError(t, p.Check())
			p.Remove(next)
		}
		require.EqualValues(t, all, n.Note())
	}
}

// TestRacingUsesLeaveTheQueueAlone has readers use nodes while their owner moves
// these from queue to queue.
func TestRacingUsesLeaveTheQueueAlone(t *testing.T) {
	nodes := make([]Node[int], 100_000)
	var running sync.WaitGroup
	for range 4 {
		running.Go(func() {
			for i := range nodes {
				nodes[i].Use()
			}
		})
	}
	for i := range nodes {
		nodes[i].enter(inSmall)
		nodes[i].clear()
		nodes[i].enter(inMain)
		nodes[i].markReturned()
	}
	running.Wait()
	for i := range nodes {
		require.Equal(t, inMain, queueID(nodes[i].state.Load()&queueMask>>queueShift))
		require.True(t, nodes[i].returned())
	}
}

func TestPolicyContract(t *testing.T) {
	for _, policy := range policies {
		t.Run(policy.name, func(t *testing.T) {
			t.Run("no victim while there is room, one per Add from then on", func(t *testing.T) {
				for capacity := 1; capacity <= 25; capacity++ {
					p := policy.make(Limits{Entries: capacity})
					for key := range 3 * capacity {
						n := newNode(key)
						victims := add(p, n, 1)
						if key < capacity {
							require.Empty(t, victims)
						} else {
							require.Len(t, victims, 1)
							require.NotSame(t, n, victims[0])
						}
						require.Equal(t, min(key+1, capacity), p.Len())
						require.Equal(t, int64(min(key+1, capacity)), p.Weight())
						require.NoError(t, p.Check())
					}
				}
			})

			t.Run("a cache of one keeps the latest, however popular the one before", func(t *testing.T) {
				for _, limits := range []Limits{{Entries: 1}, {Weight: 1}, {Entries: 1, Weight: 1}} {
					p := policy.make(limits)
					first, second := newNode(1), newNode(2)
					require.Empty(t, add(p, first, 1))
					first.Use()
					p.Touch(first)
					assert.Equal(t, []*Node[int]{first}, add(p, second, 1))
					assert.Equal(t, 1, p.Len())
					assert.NoError(t, p.Check())
				}
			})

			t.Run("both limits hold, and no more leave than have to", func(t *testing.T) {
				tests := []struct {
					name    string
					limits  Limits
					weight  uint32 // of three nodes that are held, and nothing else
					added   uint32 // weight of the fourth
					victims int
				}{
					{name: "room by weight, not by entries", limits: Limits{Entries: 3, Weight: 100}, weight: 1, added: 1, victims: 1},
					{name: "room by entries, not by weight", limits: Limits{Entries: 9, Weight: 30}, weight: 10, added: 11, victims: 2},
					{name: "room by neither", limits: Limits{Entries: 3, Weight: 30}, weight: 10, added: 10, victims: 1},
					{name: "room by both", limits: Limits{Entries: 4, Weight: 40}, weight: 10, added: 10, victims: 0},
					{name: "all the weight", limits: Limits{Weight: 30}, weight: 10, added: 30, victims: 3},
					{name: "no weight at all", limits: Limits{Weight: 30}, weight: 10, added: 0, victims: 0},
					{name: "no weight but an entry", limits: Limits{Entries: 3, Weight: 30}, weight: 10, added: 0, victims: 1},
					{name: "a limit that no sum may reach", limits: Limits{Weight: math.MaxInt64}, weight: math.MaxUint32, added: math.MaxUint32, victims: 0},
					{name: "weights without a limit", limits: Limits{Entries: 4}, weight: math.MaxUint32, added: math.MaxUint32, victims: 0},
				}
				for _, test := range tests {
					t.Run(test.name, func(t *testing.T) {
						p := policy.make(test.limits)
						for key := range 3 {
							require.Empty(t, add(p, newNode(key), test.weight))
						}
						fourth := newNode(3)
						assert.Len(t, add(p, fourth, test.added), test.victims)
						assert.Equal(t, test.added, fourth.Weight())
						assert.Equal(t, 4-test.victims, p.Len())
						assert.Equal(t, int64(test.weight)*int64(3-test.victims)+int64(test.added), p.Weight())
						assert.NoError(t, p.Check())
					})
				}
			})

			t.Run("a node that left points to no other node", func(t *testing.T) {
				p := policy.make(Limits{Entries: 3})
				nodes, _ := addKeys(t, p, 1, 2, 3)
				p.Remove(nodes[1])
				addKeys(t, p, 4)
				victims := add(p, newNode(5), 1)
				require.Len(t, victims, 1)
				for _, n := range []*Node[int]{nodes[1], victims[0]} {
					assert.Equal(t, inNone, n.queue())
					assert.Nil(t, n.prev)
					assert.Nil(t, n.next)
				}
			})

			t.Run("a node that left can come back, and starts anew", func(t *testing.T) {
				p := policy.make(Limits{Weight: 10})
				n := newNode(1)
				add(p, n, 7)
				n.Use()
				p.Remove(n)
				require.Zero(t, p.Len())
				require.Zero(t, p.Weight())
				n.Use()
				add(p, n, 5)
				assert.Equal(t, 1, p.Len())
				assert.Equal(t, int64(5), p.Weight())
				assert.False(t, n.used())
				assert.NoError(t, p.Check())
			})

			t.Run("misuse panics and leaves the policy as it was", func(t *testing.T) {
				p := policy.make(Limits{Entries: 2})
				inside, outside := newNode(1), newNode(2)
				add(p, inside, 1)
				add(p, newNode(3), 1)
				const already = "eviction: the node is in a policy already"
				notInside := "eviction: the node is not in this " + policy.name
				const tooHeavy = "eviction: the weight exceeds the limit"
				assert.PanicsWithValue(t, tooHeavy, func() { policy.make(Limits{Weight: 5}).Evict(1, 6) })
				assert.PanicsWithValue(t, already, func() { p.Add(inside, 1, 2) })
				assert.PanicsWithValue(t, notInside, func() { p.Remove(outside) })
				assert.Equal(t, 2, p.Len())
				assert.Equal(t, int64(2), p.Weight())
				assert.NoError(t, p.Check())
			})

			t.Run("nothing is allocated", func(t *testing.T) {
				p := policy.make(Limits{Entries: 1000, Weight: 3000})
				key := 0
				fresh := newNode(0)
				step := func() {
					fresh.Item = key
					hash, weight := uint64(key), uint32(key%5)
					key++
					left := fresh
					for v := p.Evict(hash, weight); v != nil; v = p.Evict(hash, weight) {
						left = v
						p.Remember(hashOfKey(&v.Item))
					}
					p.Add(fresh, hash, weight)
					if fresh = left; fresh.queue() != inNone {
						fresh = newNode(0)
					}
				}
				for range 5000 { // until Adaptive's ghost is full as well
					step()
				}
				assert.Zero(t, testing.AllocsPerRun(1000, step))
			})
		})
	}
}

func TestCheckFindsDamage(t *testing.T) {
	damages := []struct {
		name   string
		damage func(n *Node[int])
	}{
		{name: "no neighbour", damage: func(n *Node[int]) { n.next = nil }},
		{name: "a neighbour that does not know it", damage: func(n *Node[int]) { n.prev = newNode(9) }},
		{name: "a node skipped", damage: func(n *Node[int]) { new(queue[int]).join(n.newer(), n.older()) }},
		{name: "a node too many", damage: func(n *Node[int]) {
			other := newNode(9)
			other.enter(n.queue())
			new(queue[int]).link(n, other, n.older())
		}},
		{name: "a node of another queue", damage: func(n *Node[int]) { n.enter(n.queue() + 1) }},
		{name: "a node marked as outside", damage: func(n *Node[int]) { n.prev, n.next = nil, nil }},
		{name: "a weight that changed", damage: func(n *Node[int]) { n.weight++ }},
	}
	for _, policy := range policies {
		for _, d := range damages {
			t.Run(policy.name+" with "+d.name, func(t *testing.T) {
				p := policy.make(Limits{Entries: 5})
				nodes, _ := addKeys(t, p, 1, 2, 3)
				d.damage(nodes[2])
				assert.Error(t, p.Check())
			})
		}
		t.Run(policy.name+" over a limit", func(t *testing.T) {
			for _, limits := range []Limits{{Entries: 1}, {Weight: 1}} {
				p := policy.make(limits)
				p.Add(newNode(1), 1, 1)
				require.NoError(t, p.Check())
				p.Add(newNode(2), 2, 1)
				assert.Error(t, p.Check())
			}
		})
	}
}

// TestUseIsSafeWithoutTheLock has readers use nodes, also such as have left,
// while their owner changes the policy. The race detector watches, and the
// owner checks every invariant as it goes.
func TestUseIsSafeWithoutTheLock(t *testing.T) {
	const (
		keys    = 64
		readers = 4
		steps   = 20_000
	)
	for _, policy := range policies {
		t.Run(policy.name, func(t *testing.T) {
			p := policy.make(Limits{Entries: keys / 2, Weight: keys})
			var published [keys]atomic.Pointer[Node[int]] // the latest node of a key, left or not
			var stop atomic.Bool
			var running sync.WaitGroup
			for reader := range readers {
				running.Go(func() {
					for i := reader; !stop.Load(); i++ {
						if n := published[i%keys].Load(); n != nil {
							n.Use()
						}
					}
				})
			}
			defer running.Wait()
			defer stop.Store(true)

			held := map[int]*Node[int]{}
			for step := range steps {
				key := step * 7 % keys
				n := newNode(key)
				old := held[key]
				switch {
				case old == nil:
					published[key].Store(n) // before Add, the harder case
					for _, victim := range add(p, n, uint32(step%5)) {
						delete(held, victim.Item)
					}
					held[key] = n
				case step%3 == 0:
					p.Remove(old)
					delete(held, key)
				default:
					p.Touch(old)
				}
				require.Equal(t, len(held), p.Len())
				require.NoError(t, p.Check())
			}
		})
	}
}
