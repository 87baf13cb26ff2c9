package eviction

import "fmt"

// LRU evicts the node whose last hit, or Add, is the longest ago. It is exact,
// and pays for it: every hit has to be told by Touch, under the caller's lock.
// Node.Use means nothing to it.
type LRU[T any] struct {
	capacity int
	nodes    queue[T] // the latest hit first
}

var _ Policy[any] = (*LRU[any])(nil)

// NewLRU returns an empty LRU for capacity nodes. The caller guarantees that
// capacity is at least 1.
func NewLRU[T any](capacity int) *LRU[T] {
	p := &LRU[T]{capacity: capacity}
	p.nodes.init(inLRU)
	return p
}

// Add implements [Policy].
func (p *LRU[T]) Add(n *Node[T]) (victim *Node[T]) {
	mustBeOutside(n)
	n.uses.Store(0)
	if p.nodes.size >= p.capacity {
		victim = p.nodes.back()
		p.nodes.remove(victim)
	}
	p.nodes.pushFront(n)
	return victim
}

// Remove implements [Policy].
func (p *LRU[T]) Remove(n *Node[T]) {
	p.mustHold(n)
	p.nodes.remove(n)
}

// Touch implements [Policy]: n becomes the last to be evicted.
func (p *LRU[T]) Touch(n *Node[T]) {
	p.mustHold(n)
	p.nodes.remove(n)
	p.nodes.pushFront(n)
}

// Len implements [Policy].
func (p *LRU[T]) Len() int { return p.nodes.size }

// Capacity implements [Policy].
func (p *LRU[T]) Capacity() int { return p.capacity }

// Check implements [Policy].
func (p *LRU[T]) Check() error {
	if err := p.nodes.check(); err != nil {
		return err
	}
	if p.Len() > p.capacity {
		return fmt.Errorf("eviction: %d nodes exceed the capacity of %d", p.Len(), p.capacity)
	}
	return nil
}

func (p *LRU[T]) mustHold(n *Node[T]) {
	if n.queue != inLRU {
		panic("eviction: the node is not in this LRU")
	}
}
