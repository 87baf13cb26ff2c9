package eviction

import (
	"math"
	"sync"
	"sync/atomic"
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
	p := NewS3FIFO(Limits{Entries: 20}, hashOfKey)
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
	tests := []struct{ limit, main int }{
		{limit: 1, main: 0},
		{limit: 2, main: 1},
		{limit: 19, main: 18},
		{limit: 20, main: 18},
		{limit: 1000, main: 900},
		{limit: math.MaxInt, main: math.MaxInt - math.MaxInt/10},
	}
	for _, test := range tests {
		byEntries := NewS3FIFO(Limits{Entries: test.limit}, hashOfKey)
		assert.Equal(t, Limits{Entries: test.main, Weight: math.MaxInt64}, byEntries.mainShare, "of %d entries", test.limit)
		byWeight := NewS3FIFO(Limits{Weight: int64(test.limit)}, hashOfKey)
		assert.Equal(t, Limits{Entries: math.MaxInt, Weight: int64(test.main)}, byWeight.mainShare, "of a weight of %d", test.limit)
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
			assert.Equal(t, test.queue, nodes[19].queue())
			if test.queue == inMain {
				assert.Zero(t, nodes[19].uses(), "the move clears the count")
				assert.Same(t, nodes[19], p.main.root.next, "it is main's newest")
			}
		})
	}

	t.Run("a move to a main with room makes no victim of main", func(t *testing.T) {
		p := NewS3FIFO(Limits{Entries: 20}, hashOfKey)
		nodes, _ := addKeys(t, p, keysFrom(1, 20)...)
		use(nodes[1], 2)
		use(nodes[2], 3)
		_, victims := addKeys(t, p, 21)
		assert.Equal(t, []int{3}, victims)
		assert.Equal(t, inMain, nodes[1].queue())
		assert.Equal(t, inMain, nodes[2].queue())
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
			left = append(left, nodes[1].uses())
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

	t.Run("a victim is found though readers never stop", func(t *testing.T) {
		p, nodes := fullOfTwenty(t)
		p.Remove(nodes[19])
		p.Remove(nodes[20])
		add(p, newNode(21), 1)
		p.main.pushFront(newNode(22)) // what a ghost hit does
		var busy []*Node[int]
		for n := p.main.back(); len(busy) < p.main.size; n = p.main.newer(n) {
			busy = append(busy, n)
		}
		var stop atomic.Bool
		var running sync.WaitGroup
		defer running.Wait()
		defer stop.Store(true)
		running.Go(func() {
			for !stop.Load() {
				for _, n := range busy {
					n.Use()
				}
			}
		})
		for left := p.main.size; left > 0; left-- {
			require.NotNil(t, p.evictMain())
			require.NoError(t, p.Check())
		}
	})
}

func TestS3FIFOWeights(t *testing.T) {
	// full returns an S3FIFO whose limit is a weight of 100, so that small's share
	// is 10, with the keys 1..90 in main and 91..100 in small, each of weight 1.
	full := func(t *testing.T) (*S3FIFO[int], map[int]*Node[int]) {
		p := NewS3FIFO(Limits{Weight: 100}, hashOfKey)
		nodes, _ := addKeys(t, p, keysFrom(1, 100)...)
		for key := 1; key <= 90; key++ {
			p.small.cut(nodes[key])
			p.main.pushFront(nodes[key])
		}
		require.NoError(t, p.Check())
		return p, nodes
	}
	keys := func(nodes []*Node[int]) (keys []int) {
		for _, n := range nodes {
			keys = append(keys, n.Item)
		}
		return keys
	}

	t.Run("a heavy item takes small's place, and main's when that is not enough", func(t *testing.T) {
		p, _ := full(t)
		assert.Equal(t, append(keysFrom(91, 10), keysFrom(1, 40)...), keys(add(p, newNode(101), 50)))
		assert.NoError(t, p.Check())
	})

	t.Run("it is the next to go when it is not used", func(t *testing.T) {
		p, _ := full(t)
		add(p, newNode(101), 50)
		assert.Equal(t, []int{101}, keys(add(p, newNode(102), 1)))
	})

	t.Run("it stays when it is used", func(t *testing.T) {
		p, _ := full(t)
		heavy := newNode(101)
		add(p, heavy, 50)
		use(heavy, 2)
		assert.Equal(t, []int{41}, keys(add(p, newNode(102), 1)))
		assert.Equal(t, inMain, heavy.queue())
	})

	t.Run("it stays when it comes back", func(t *testing.T) {
		p, _ := full(t)
		heavy := newNode(101)
		add(p, heavy, 50)
		add(p, newNode(102), 1)
		require.Equal(t, inNone, heavy.queue())
		addKeys(t, p, keysFrom(103, 49)...)
		require.Len(t, add(p, heavy, 50), 50, "more than the ghost may remember from here on")
		assert.Equal(t, inMain, heavy.queue())
		assert.NoError(t, p.Check())
	})

	t.Run("light items that left for a heavy one are remembered", func(t *testing.T) {
		p, _ := full(t)
		victims := keys(add(p, newNode(101), 100))
		require.Len(t, victims, 100)
		nodes, _ := addKeys(t, p, victims[:10]...)
		inTime := 0
		for _, n := range nodes {
			if n.queue() == inMain {
				inTime++
			}
		}
		assert.Equal(t, 10, inTime)
	})
}

func TestS3FIFOGhost(t *testing.T) {
	t.Run("an item that comes back goes into main", func(t *testing.T) {
		p, _ := fullOfTwenty(t)
		_, victims := addKeys(t, p, 21)
		require.Equal(t, []int{19}, victims)
		back, _ := addKeys(t, p, 19)
		assert.Equal(t, inMain, back[19].queue())
	})

	t.Run("it does so once", func(t *testing.T) {
		p, _ := fullOfTwenty(t)
		addKeys(t, p, 21)
		back, _ := addKeys(t, p, 19)
		p.Remove(back[19])
		again, _ := addKeys(t, p, 19)
		assert.Equal(t, inSmall, again[19].queue())
	})

	t.Run("an item that is back too late goes into small", func(t *testing.T) {
		p, _ := fullOfTwenty(t)
		addKeys(t, p, keysFrom(21, 40)...) // 19 and more than the ghost holds
		back, _ := addKeys(t, p, 19)
		assert.Equal(t, inSmall, back[19].queue())
	})

	t.Run("one that is back in time goes into main", func(t *testing.T) {
		p, _ := fullOfTwenty(t)
		addKeys(t, p, keysFrom(21, 10)...)
		back, _ := addKeys(t, p, 19)
		assert.Equal(t, inMain, back[19].queue())
	})

	t.Run("an item evicted from main is not remembered", func(t *testing.T) {
		p, nodes := fullOfTwenty(t)
		use(nodes[19], 2)
		_, victims := addKeys(t, p, 21)
		require.Equal(t, []int{1}, victims)
		back, _ := addKeys(t, p, 1)
		assert.Equal(t, inSmall, back[1].queue())
	})

	t.Run("a removed item is not remembered", func(t *testing.T) {
		p, nodes := fullOfTwenty(t)
		p.Remove(nodes[19])
		back, _ := addKeys(t, p, 19)
		assert.Equal(t, inSmall, back[19].queue())
	})

	t.Run("a ghost of one finds its item, though its return evicts another", func(t *testing.T) {
		p := NewS3FIFO(Limits{Entries: 2}, hashOfKey)
		addKeys(t, p, 1, 2, 3) // 1 is in the ghost
		back, _ := addKeys(t, p, 1)
		assert.Equal(t, inMain, back[1].queue())
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
			if n.queue() != inNone {
				count++
			}
		}
		return count
	}
	assert.Equal(t, 50, hits(NewS3FIFO(Limits{Entries: 100}, hashOfKey)))
	assert.Equal(t, 0, hits(NewLRU[int](Limits{Entries: 100})), "the scan is long enough to matter")
}

func TestS3FIFOCostsLittleWhileItHoldsLittle(t *testing.T) {
	p := NewS3FIFO(Limits{Entries: 1_000_000_000, Weight: 1_000_000_000_000}, hashOfKey)
	addKeys(t, p, keysFrom(0, 10)...)
	assert.Zero(t, cap(p.ghost.sets))
}
