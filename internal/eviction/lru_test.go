package eviction

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestLRU(t *testing.T) {
	tests := []struct {
		name    string
		act     func(p *LRU[int], nodes map[int]*Node[int])
		victims []int // of a full LRU that held 1, 2, 3, added in this order
	}{
		{
			name:    "evicts in order of Add when nothing is hit",
			act:     func(*LRU[int], map[int]*Node[int]) {},
			victims: []int{1, 2, 3},
		},
		{
			name:    "a touched node is the last to go",
			act:     func(p *LRU[int], nodes map[int]*Node[int]) { p.Touch(nodes[1]) },
			victims: []int{2, 3, 1},
		},
		{
			name:    "a removed node makes room",
			act:     func(p *LRU[int], nodes map[int]*Node[int]) { p.Remove(nodes[2]) },
			victims: []int{1, 3},
		},
		{
			name:    "Use means nothing",
			act:     func(_ *LRU[int], nodes map[int]*Node[int]) { nodes[1].Use() },
			victims: []int{1, 2, 3},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			p := NewLRU[int](Limits{Entries: 3})
			nodes, _ := addKeys(t, p, 1, 2, 3)
			test.act(p, nodes)
			_, victims := addKeys(t, p, 101, 102, 103)
			assert.Equal(t, test.victims, victims)
		})
	}
}

func TestLRUTouchIsForItsOwnNodes(t *testing.T) {
	p := NewLRU[int](Limits{Entries: 3})
	assert.PanicsWithValue(t, "eviction: the node is not in this LRU", func() { p.Touch(newNode(1)) })
}
