package eviction

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// keysFrom returns count keys in a row.
func keysFrom(first, count int) []int {
	keys := make([]int, count)
	for i := range keys {
		keys[i] = first + i
	}
	return keys
}

// fullOfTwenty returns a full S3FIFO of twenty, so that small's share is two, with
// the keys 1..18 in main, 1 the oldest, and 19 and 20 in small, 19 the oldest.
// None has any uses.
func fullOfTwenty(t *testing.T) (*S3FIFO[int], map[int]*Node[int]) {
	t.Helper()
	p := NewS3FIFO[int](20)
	nodes, _ := addKeys(t, p, keysFrom(1, 20)...)
	for key := 1; key <= 18; key++ {
		n := nodes[key]
		p.small.remove(n)
		p.main.pushFront(n)
	}
	require.NoError(t, p.Check())
	return p, nodes
}

func TestS3FIFOShares(t *testing.T) {
	tests := []struct{ capacity, small, main int }{
		{capacity: 1, small: 1, main: 0},
		{capacity: 2, small: 1, main: 1},
		{capacity: 19, small: 1, main: 18},
		{capacity: 20, small: 2, main: 18},
		{capacity: 1000, small: 100, main: 900},
	}
	for _, test := range tests {
		p := NewS3FIFO[int](test.capacity)
		assert.Equal(t, test.small, p.smallShare, "small of %d", test.capacity)
		assert.Equal(t, test.main, p.mainShare, "main of %d", test.capacity)
		assert.Equal(t, test.main, p.ghost.capacity, "ghost of %d", test.capacity)
	}
}

func TestS3FIFOSmall(t *testing.T) {
	tests := []struct {
		name   string
		uses   int
		victim int
		queue  queueID
	}{
		{name: "an unused node is evicted", uses: 0, victim: 19, queue: inNone},
		{name: "a node used once is evicted", uses: 1, victim: 19, queue: inNone},
		{name: "a node used twice moves to main, where the oldest makes room", uses: 2, victim: 1, queue: inMain},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			p, nodes := fullOfTwenty(t)
			use(nodes[19], test.uses)
			_, victims := addKeys(t, p, 21)
			assert.Equal(t, []int{test.victim}, victims)
			assert.Equal(t, test.queue, nodes[19].queue)
			if test.queue == inMain {
				assert.Zero(t, nodes[19].uses.Load(), "the move clears the count")
				assert.Same(t, nodes[19], p.main.root.next, "it is main's newest")
			}
		})
	}

	t.Run("a move to a main with room makes no victim of main", func(t *testing.T) {
		p := NewS3FIFO[int](20)
		nodes, _ := addKeys(t, p, keysFrom(1, 20)...)
		use(nodes[1], 2)
		use(nodes[2], 3)
		_, victims := addKeys(t, p, 21)
		assert.Equal(t, []int{3}, victims)
		assert.Equal(t, inMain, nodes[1].queue)
		assert.Equal(t, inMain, nodes[2].queue)
	})
}

func TestS3FIFOMain(t *testing.T) {
	t.Run("a used node goes round once for each use", func(t *testing.T) {
		p, nodes := fullOfTwenty(t)
		use(nodes[1], 3)
		use(nodes[2], 1)
		var left []uint32
		victims := []int{}
		for range 18 + 17 + 1 { // two rounds of main, and one
			use(p.small.back(), 2) // so that main has to make room
			_, v := addKeys(t, p, 100+len(victims))
			victims = append(victims, v...)
			left = append(left, nodes[1].uses.Load())
		}
		assert.Equal(t, append(keysFrom(3, 16), 19, 2), victims[:18], "2 is spared once")
		assert.Equal(t, uint32(2), left[0])
		assert.Equal(t, uint32(1), left[17])
		assert.NotContains(t, victims, 1)
	})

	t.Run("makes room when small is below its share", func(t *testing.T) {
		p, nodes := fullOfTwenty(t)
		p.Remove(nodes[20])
		p.Remove(nodes[19])
		addKeys(t, p, 21)
		p.main.pushFront(newNode(22)) // what a ghost hit does
		_, victims := addKeys(t, p, 23)
		assert.Equal(t, []int{1}, victims)
	})

	// Readers that keep using every node in main are played by counts that no
	// round can bring to zero.
	t.Run("a victim is found though readers never stop", func(t *testing.T) {
		const endless = 1 << 20
		p, nodes := fullOfTwenty(t)
		for key := 1; key <= 18; key++ {
			nodes[key].uses.Store(endless)
		}
		p.Remove(nodes[19])
		p.main.pushFront(newNode(22))
		p.main.root.next.uses.Store(endless)
		victim := p.Add(newNode(23))
		assert.Equal(t, 1, victim.Item)
		assert.Equal(t, uint32(endless-3), victim.uses.Load(), "three rounds, as if left alone")
	})
}

func TestS3FIFOGhost(t *testing.T) {
	t.Run("an item that comes back goes into main", func(t *testing.T) {
		p, _ := fullOfTwenty(t)
		_, victims := addKeys(t, p, 21)
		require.Equal(t, []int{19}, victims)
		back, _ := addKeys(t, p, 19)
		assert.Equal(t, inMain, back[19].queue)
	})

	t.Run("it does so once", func(t *testing.T) {
		p, _ := fullOfTwenty(t)
		addKeys(t, p, 21)
		back, _ := addKeys(t, p, 19)
		p.Remove(back[19])
		again, _ := addKeys(t, p, 19)
		assert.Equal(t, inSmall, again[19].queue)
	})

	t.Run("an item that is back too late goes into small", func(t *testing.T) {
		p, _ := fullOfTwenty(t)
		addKeys(t, p, keysFrom(21, 1+18)...) // 19 and as many as the ghost holds
		back, _ := addKeys(t, p, 19)
		assert.Equal(t, inSmall, back[19].queue)
	})

	t.Run("the last one in time goes into main", func(t *testing.T) {
		p, _ := fullOfTwenty(t)
		addKeys(t, p, keysFrom(21, 18)...)
		back, _ := addKeys(t, p, 19)
		assert.Equal(t, inMain, back[19].queue)
	})

	t.Run("an item evicted from main is not remembered", func(t *testing.T) {
		p, nodes := fullOfTwenty(t)
		use(nodes[19], 2)
		_, victims := addKeys(t, p, 21)
		require.Equal(t, []int{1}, victims)
		back, _ := addKeys(t, p, 1)
		assert.Equal(t, inSmall, back[1].queue)
	})

	t.Run("a removed item is not remembered", func(t *testing.T) {
		p, nodes := fullOfTwenty(t)
		p.Remove(nodes[19])
		back, _ := addKeys(t, p, 19)
		assert.Equal(t, inSmall, back[19].queue)
	})

	t.Run("a ghost of one finds its item, though its return evicts another", func(t *testing.T) {
		p := NewS3FIFO[int](2)
		addKeys(t, p, 1, 2, 3) // 1 is in the ghost
		back, _ := addKeys(t, p, 1)
		assert.Equal(t, inMain, back[1].queue)
	})
}

func TestS3FIFOScanLeavesTheHotItemsAlone(t *testing.T) {
	hits := func(p Policy[int]) (count int) {
		hot, _ := addKeys(t, p, keysFrom(0, 50)...)
		for range 3 {
			for _, n := range hot {
				p.Touch(n)
			}
		}
		addKeys(t, p, keysFrom(1000, 1000)...)
		for _, n := range hot {
			if n.queue != inNone {
				count++
			}
		}
		return count
	}
	assert.Equal(t, 50, hits(NewS3FIFO[int](100)))
	assert.Equal(t, 0, hits(NewLRU[int](100)), "the scan is long enough to matter")
}

func TestS3FIFOCostsLittleWhileItHoldsLittle(t *testing.T) {
	p := NewS3FIFO[int](1_000_000_000)
	addKeys(t, p, keysFrom(0, 10)...)
	assert.Zero(t, cap(p.ghost.ring))
	assert.Zero(t, cap(p.ghost.slots))
}
