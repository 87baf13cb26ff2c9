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

func keysOf(nodes []*Node[int]) (keys []int) {
	for _, n := range nodes {
		keys = append(keys, n.Item)
	}
	return keys
}

// fullOfTwenty returns a full Adaptive of twenty, so that small's share is two,
// with the keys 1..18 in main, 1 the oldest, and 19 and 20 in small, 19 the
// oldest. None was used.
func fullOfTwenty(t *testing.T) (*Adaptive[int], map[int]*Node[int]) {
	t.Helper()
	p := NewAdaptive[int](Limits{Entries: 20})
	nodes, victims := addKeys(t, p, keysFrom(1, 20)...)
	require.Empty(t, victims)
	return p, nodes
}

func TestAdaptiveShares(t *testing.T) {
	tests := []struct {
		limit       int
		share       float64
		small, main int
	}{
		{limit: 1, share: 0.1, small: 1, main: 0},
		{limit: 2, share: 0.1, small: 1, main: 1},
		{limit: 19, share: 0.1, small: 1, main: 18},
		{limit: 20, share: 0.1, small: 2, main: 18},
		{limit: 1000, share: 0.1, small: 100, main: 900},
		{limit: 1000, share: 0, small: 10, main: 990},
		{limit: 1000, share: 1, small: 800, main: 200},
		{limit: math.MaxInt/2 + 1, share: 0.5, small: math.MaxInt/4 + 1, main: math.MaxInt/4 + 1},
	}
	for _, test := range tests {
		byEntries := NewAdaptive[int](Limits{Entries: test.limit})
		byEntries.setShare(test.share)
		assert.Equal(t, Limits{Entries: test.small, Weight: math.MaxInt64}, byEntries.smallShare, "%g of %d entries", test.share, test.limit)
		assert.Equal(t, Limits{Entries: test.main, Weight: math.MaxInt64}, byEntries.mainShare, "%g of %d entries", test.share, test.limit)
		byWeight := NewAdaptive[int](Limits{Weight: int64(test.limit)})
		byWeight.setShare(test.share)
		assert.Equal(t, Limits{Entries: math.MaxInt, Weight: int64(test.small)}, byWeight.smallShare, "%g of a weight of %d", test.share, test.limit)
		assert.Equal(t, Limits{Entries: math.MaxInt, Weight: int64(test.main)}, byWeight.mainShare, "%g of a weight of %d", test.share, test.limit)
	}
}

func TestAdaptiveFillsMainWhileThereIsRoom(t *testing.T) {
	t.Run("with what small cannot hold", func(t *testing.T) {
		_, nodes := fullOfTwenty(t)
		for key, n := range nodes {
			want := inMain
			if key > 18 {
				want = inSmall
			}
			assert.Equal(t, want, n.queue(), "key %d", key)
		}
	})

	t.Run("after a Remove too, without the mark of a use", func(t *testing.T) {
		p, nodes := fullOfTwenty(t)
		p.Remove(nodes[5])
		nodes[19].Use()
		addKeys(t, p, 21)
		assert.Equal(t, inMain, nodes[19].queue())
		assert.False(t, nodes[19].used())
		assert.Equal(t, inSmall, nodes[20].queue())
	})

	t.Run("not beyond its share", func(t *testing.T) {
		p, nodes := fullOfTwenty(t)
		p.Remove(nodes[19])
		p.Remove(nodes[20])
		added, _ := addKeys(t, p, 21, 22)
		assert.Equal(t, inSmall, added[21].queue())
		assert.Equal(t, 18, p.main.size)
	})

	t.Run("not when the room was made", func(t *testing.T) {
		p, nodes := fullOfTwenty(t)
		p.setShare(0) // main has room for one more
		_, victims := addKeys(t, p, 21)
		assert.Equal(t, []int{19}, victims)
		assert.Equal(t, inSmall, nodes[20].queue())
	})
}

func TestAdaptiveSmall(t *testing.T) {
	t.Run("an unused node is evicted", func(t *testing.T) {
		p, nodes := fullOfTwenty(t)
		_, victims := addKeys(t, p, 21)
		assert.Equal(t, []int{19}, victims)
		assert.Equal(t, inNone, nodes[19].queue())
	})

	t.Run("a used node moves to main, where the oldest makes room", func(t *testing.T) {
		p, nodes := fullOfTwenty(t)
		nodes[19].Use()
		_, victims := addKeys(t, p, 21)
		assert.Equal(t, []int{1}, victims)
		assert.Equal(t, inMain, nodes[19].queue())
		assert.False(t, nodes[19].used(), "the move clears the mark")
		assert.Same(t, nodes[19], p.main.newest, "it is main's newest")
	})

	t.Run("a move to a main with room makes no victim of main", func(t *testing.T) {
		p, nodes := fullOfTwenty(t)
		p.setShare(0) // main has room for one more
		nodes[19].Use()
		_, victims := addKeys(t, p, 21)
		assert.Equal(t, []int{20}, victims)
		assert.Equal(t, inMain, nodes[19].queue())
	})
}

func TestAdaptiveMain(t *testing.T) {
	t.Run("a used node goes round once more", func(t *testing.T) {
		p, nodes := fullOfTwenty(t)
		nodes[1].Use()
		nodes[3].Use()
		var victims []int
		for key := range 18 {
			p.small.oldest.Use() // so that main has to make room
			_, v := addKeys(t, p, 100+key)
			victims = append(victims, v...)
		}
		assert.Equal(t, append([]int{2}, append(keysFrom(4, 15), 19, 1)...), victims)
		assert.False(t, nodes[1].used())
	})

	// The reader is so fast that every node is used whenever it is looked at, most
	// of the time.
	t.Run("a victim is found though readers never stop", func(t *testing.T) {
		p, nodes := fullOfTwenty(t)
		var stop atomic.Bool
		var running sync.WaitGroup
		defer running.Wait()
		defer stop.Store(true)
		running.Go(func() {
			for !stop.Load() {
				for _, n := range nodes {
					n.Use()
				}
			}
		})
		for range 18 {
			require.NotNil(t, p.evictMain())
			require.NoError(t, p.Check())
		}
	})
}

func TestAdaptiveReturns(t *testing.T) {
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
		assert.NotSame(t, again[19], p.main.newest)
	})

	t.Run("an item that is back too late goes into small", func(t *testing.T) {
		p, _ := fullOfTwenty(t)
		addKeys(t, p, keysFrom(21, 200)...)
		back, _ := addKeys(t, p, 19)
		assert.Equal(t, inSmall, back[19].queue())
	})

	t.Run("a removed item is not remembered", func(t *testing.T) {
		p, nodes := fullOfTwenty(t)
		p.Remove(nodes[20])
		back, _ := addKeys(t, p, 20)
		assert.Equal(t, inSmall, back[20].queue())
	})

	t.Run("a queue whose items return grows", func(t *testing.T) {
		p, nodes := fullOfTwenty(t)
		addKeys(t, p, 21)
		before := p.share
		addKeys(t, p, 19) // from small
		assert.InDelta(t, before+1.0/19, p.share, 0.02)

		nodes[20].Use()
		_, victims := addKeys(t, p, 22)
		require.Equal(t, []int{1}, victims)
		grown := p.share
		addKeys(t, p, 1) // from main
		assert.Less(t, p.share, grown)
	})

	t.Run("of two queues the one with fewer items remembered grows faster", func(t *testing.T) {
		p, nodes := fullOfTwenty(t)
		nodes[19].Use()
		addKeys(t, p, 21) // 1 leaves main
		addKeys(t, p, keysFrom(22, 10)...)
		p.setShare(0.5)
		p.mayReturn(fromMain)
		assert.InDelta(t, 0.5-float64(p.ghost.fromSmall+1)/2/20, p.share, 0.001)
		p.setShare(0.5)
		p.mayReturn(fromSmall)
		assert.InDelta(t, 0.5+1.0/20, p.share, 0.001)
	})

	t.Run("no share grows beyond its bounds", func(t *testing.T) {
		p, _ := fullOfTwenty(t)
		for range 100 {
			p.mayReturn(fromSmall)
		}
		assert.Equal(t, maxShare, p.share)
		for range 100 {
			p.mayReturn(fromMain)
		}
		assert.Equal(t, minShare, p.share)
	})
}

func TestAdaptiveTrust(t *testing.T) {
	t.Run("is lost when items return that had to leave main", func(t *testing.T) {
		p, _ := fullOfTwenty(t)
		var may []bool
		for range 4 + 1 + 2*oneInReturns {
			may = append(may, p.mayReturn(fromMain))
		}
		want := make([]bool, len(may))
		for i := range want {
			want[i] = i < 4 || (i-4+1)%oneInReturns == 0
		}
		assert.Equal(t, want, may)
		assert.Equal(t, -4, p.trust, "it has a lower bound")
	})

	t.Run("is regained when returned items are used in main", func(t *testing.T) {
		p, nodes := fullOfTwenty(t)
		p.trust = -1
		for key := 1; key <= 17; key++ {
			nodes[key].markReturned()
			nodes[key].Use()
		}
		p.evictMain()
		assert.Equal(t, 4, p.trust, "it has an upper bound")
		assert.False(t, nodes[1].returned(), "a node counts once")
	})

	t.Run("does not come from other uses", func(t *testing.T) {
		p, nodes := fullOfTwenty(t)
		p.trust = -1
		for key := 1; key <= 17; key++ {
			nodes[key].Use()
		}
		p.evictMain()
		assert.Equal(t, -1, p.trust)
	})

	t.Run("an item without it goes into small", func(t *testing.T) {
		p, _ := fullOfTwenty(t)
		p.trust = -1
		addKeys(t, p, 21)
		back, _ := addKeys(t, p, 19)
		assert.Equal(t, inSmall, back[19].queue())
	})
}

func TestAdaptiveWeights(t *testing.T) {
	// full returns an Adaptive whose limit is a weight of 100, so that small's share
	// is 10, with the keys 1..90 in main and 91..100 in small, each of weight 1.
	full := func(t *testing.T) (*Adaptive[int], map[int]*Node[int]) {
		p := NewAdaptive[int](Limits{Weight: 100})
		nodes, _ := addKeys(t, p, keysFrom(1, 100)...)
		require.Equal(t, int64(90), p.main.weight)
		return p, nodes
	}

	t.Run("a heavy item takes small's place, and main's when that is not enough", func(t *testing.T) {
		p, _ := full(t)
		assert.Equal(t, append(keysFrom(91, 10), keysFrom(1, 40)...), keysOf(add(p, newNode(101), 50)))
		assert.NoError(t, p.Check())
	})

	t.Run("it is the next to go when it is not used", func(t *testing.T) {
		p, _ := full(t)
		add(p, newNode(101), 50)
		assert.Equal(t, []int{101}, keysOf(add(p, newNode(102), 1)))
	})

	t.Run("it stays when it is used", func(t *testing.T) {
		p, _ := full(t)
		heavy := newNode(101)
		add(p, heavy, 50)
		heavy.Use()
		assert.Equal(t, []int{41}, keysOf(add(p, newNode(102), 1)))
		assert.Equal(t, inMain, heavy.queue())
	})

	t.Run("it stays when it comes back", func(t *testing.T) {
		p, _ := full(t)
		heavy := newNode(101)
		add(p, heavy, 50)
		addKeys(t, p, keysFrom(102, 50)...)
		require.Equal(t, inNone, heavy.queue())
		require.Len(t, add(p, heavy, 50), 50, "each of them remembered after it")
		assert.Equal(t, inMain, heavy.queue())
		assert.NoError(t, p.Check())
	})

	t.Run("light items that left for a heavy one are remembered", func(t *testing.T) {
		p, _ := full(t)
		victims := keysOf(add(p, newNode(101), 100))
		require.Len(t, victims, 100)
		remembered := 0
		for _, key := range victims {
			if p.ghost.take(uint64(key)) != unknown {
				remembered++
			}
		}
		assert.Greater(t, remembered, 80)
	})

	t.Run("of items that are all too heavy for small, one is there", func(t *testing.T) {
		p := NewAdaptive[int](Limits{Weight: 100})
		for key := range 30 {
			add(p, newNode(key), 15)
			require.NoError(t, p.Check())
		}
		assert.Equal(t, 6, p.Len())
		assert.Equal(t, 1, p.small.size)
	})
}

func TestAdaptiveScanLeavesTheHotItemsAlone(t *testing.T) {
	hits := func(p Policy[int]) (count int) {
		hot, _ := addKeys(t, p, keysFrom(0, 50)...)
		for _, n := range hot {
			p.Touch(n)
		}
		addKeys(t, p, keysFrom(1000, 1000)...)
		for _, n := range hot {
			if n.queue() != inNone {
				count++
			}
		}
		return count
	}
	assert.Equal(t, 50, hits(NewAdaptive[int](Limits{Entries: 100})))
	assert.Equal(t, 0, hits(NewLRU[int](Limits{Entries: 100})), "the scan is long enough to matter")
}

func TestAdaptiveCostsLittleWhileItHoldsLittle(t *testing.T) {
	p := NewAdaptive[int](Limits{Entries: 1_000_000_000, Weight: 1_000_000_000_000})
	addKeys(t, p, keysFrom(0, 10)...)
	assert.Zero(t, cap(p.ghost.sets))
}
