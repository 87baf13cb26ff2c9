package eviction

import (
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// policies are what every test of the common contract runs on.
var policies = []struct {
	name string
	make func(capacity int) Policy[int]
}{
	{name: "S3FIFO", make: func(capacity int) Policy[int] { return NewS3FIFO[int](capacity) }},
	{name: "LRU", make: func(capacity int) Policy[int] { return NewLRU[int](capacity) }},
}

// newNode returns a node for key whose hash is the key itself.
func newNode(key int) *Node[int] { return &Node[int]{Item: key, Hash: uint64(key)} }

// addKeys adds a node for each key, checks the policy after each, and returns
// the nodes by key and the keys of the victims.
func addKeys(t *testing.T, p Policy[int], keys ...int) (nodes map[int]*Node[int], victims []int) {
	t.Helper()
	nodes = map[int]*Node[int]{}
	for _, key := range keys {
		nodes[key] = newNode(key)
		if victim := p.Add(nodes[key]); victim != nil {
			victims = append(victims, victim.Item)
		}
		require.NoError(t, p.Check())
	}
	return nodes, victims
}

func use(n *Node[int], times int) {
	for range times {
		n.Use()
	}
}

func TestUseSaturatesAtThree(t *testing.T) {
	n := newNode(1)
	var counts []uint32
	for range 5 {
		n.Use()
		counts = append(counts, n.uses.Load())
	}
	assert.Equal(t, []uint32{1, 2, 3, 3, 3}, counts)
}

// TestRacingUsesStopAtThree lets readers meet on nodes that are near the limit.
func TestRacingUsesStopAtThree(t *testing.T) {
	nodes := make([]Node[int], 100_000)
	var running sync.WaitGroup
	for range 4 {
		running.Go(func() {
			for i := range nodes {
				nodes[i].Use()
				nodes[i].Use()
			}
		})
	}
	running.Wait()
	for i := range nodes {
		require.LessOrEqual(t, nodes[i].uses.Load(), uint32(maxUses))
	}
}

func TestPolicyContract(t *testing.T) {
	for _, policy := range policies {
		t.Run(policy.name, func(t *testing.T) {
			t.Run("no victim while there is room, one per Add from then on", func(t *testing.T) {
				for capacity := 1; capacity <= 25; capacity++ {
					p := policy.make(capacity)
					require.Equal(t, capacity, p.Capacity())
					for key := range 3 * capacity {
						n := newNode(key)
						victim := p.Add(n)
						require.Equal(t, key >= capacity, victim != nil)
						require.NotSame(t, n, victim)
						require.Equal(t, min(key+1, capacity), p.Len())
						require.NoError(t, p.Check())
					}
				}
			})

			t.Run("a cache of one keeps the latest, however popular the one before", func(t *testing.T) {
				p := policy.make(1)
				first, second := newNode(1), newNode(2)
				require.Nil(t, p.Add(first))
				use(first, 3)
				p.Touch(first)
				assert.Same(t, first, p.Add(second))
				assert.Equal(t, 1, p.Len())
				assert.NoError(t, p.Check())
			})

			t.Run("a node that left points to no other node", func(t *testing.T) {
				p := policy.make(3)
				nodes, _ := addKeys(t, p, 1, 2, 3)
				p.Remove(nodes[1])
				p.Add(newNode(4))
				victim := p.Add(newNode(5))
				require.NotNil(t, victim)
				for _, n := range []*Node[int]{nodes[1], victim} {
					assert.Equal(t, inNone, n.queue)
					assert.Nil(t, n.prev)
					assert.Nil(t, n.next)
				}
			})

			t.Run("a node that left can come back, and starts anew", func(t *testing.T) {
				p := policy.make(2)
				n := newNode(1)
				p.Add(n)
				use(n, 3)
				p.Remove(n)
				require.Zero(t, p.Len())
				p.Add(n)
				assert.Equal(t, 1, p.Len())
				assert.Zero(t, n.uses.Load())
				assert.NoError(t, p.Check())
			})

			t.Run("misuse panics and leaves the policy as it was", func(t *testing.T) {
				p := policy.make(2)
				inside, outside := newNode(1), newNode(2)
				p.Add(inside)
				p.Add(newNode(3))
				const already = "eviction: the node is in a policy already"
				notInside := "eviction: the node is not in this " + policy.name
				assert.PanicsWithValue(t, already, func() { p.Add(inside) })
				assert.PanicsWithValue(t, notInside, func() { p.Remove(outside) })
				assert.Equal(t, 2, p.Len())
				assert.NoError(t, p.Check())
			})

			t.Run("nothing but the node is allocated", func(t *testing.T) {
				p := policy.make(1000)
				key := 0
				add := func() { p.Add(newNode(key)); key++ }
				for range 3000 { // until S3FIFO's ghost is full as well
					add()
				}
				assert.Equal(t, 1.0, testing.AllocsPerRun(1000, add))
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
		{name: "a node skipped", damage: func(n *Node[int]) { unlink(n) }},
		{name: "a node too many", damage: func(n *Node[int]) { other := newNode(9); other.queue = n.queue; link(n, other, n.next) }},
		{name: "a node of another queue", damage: func(n *Node[int]) { n.queue++ }},
		{name: "a node marked as outside", damage: func(n *Node[int]) { n.queue = inNone }},
		{name: "too many uses", damage: func(n *Node[int]) { n.uses.Store(maxUses + 1) }},
	}
	for _, policy := range policies {
		for _, d := range damages {
			t.Run(policy.name+" with "+d.name, func(t *testing.T) {
				p := policy.make(5)
				nodes, _ := addKeys(t, p, 1, 2, 3)
				d.damage(nodes[2])
				assert.Error(t, p.Check())
			})
		}
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
			p := policy.make(keys / 2)
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
					if victim := p.Add(n); victim != nil {
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
