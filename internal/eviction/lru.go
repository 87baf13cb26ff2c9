package eviction

// LRU evicts the node whose last hit, or Add, was longest ago. It is exact, so every hit
// has to call Touch, under the caller's lock. It ignores Node.Use.
type LRU[T any] struct {
	limits Limits   // normal
	nodes  queue[T] // the latest hit first
}

var _ Policy[any] = (*LRU[any])(nil)

// NewLRU returns an empty LRU with those limits.
func NewLRU[T any](limits Limits) *LRU[T] {
	return &LRU[T]{limits: limits.normal(), nodes: queue[T]{id: inLRU}}
}

// Evict implements [Policy]. It ignores the hash.
func (p *LRU[T]) Evict(_ uint64, weight uint32) (victim *Node[T]) {
	if p.limits.haveRoom(p.nodes.size, p.nodes.weight, weight) {
		return nil
	}
	mustHoldSome(p.Len())
	victim = p.nodes.oldest
	p.nodes.remove(victim)
	return victim
}

// Remember implements [Policy]. It does nothing.
func (p *LRU[T]) Remember(uint64) {}

// Add implements [Policy]. It ignores the hash.
func (p *LRU[T]) Add(n *Node[T], _ uint64, weight uint32) {
	mustBeOutside(n)
	n.weight = weight
	p.nodes.pushFront(n)
}

// Replace implements [Policy].
func (p *LRU[T]) Replace(old, n *Node[T]) {
	p.mustHold(old)
	mustBeOutside(n)
	p.nodes.replace(old, n)
	p.nodes.moveToFront(n)
}

// Remove implements [Policy].
func (p *LRU[T]) Remove(n *Node[T]) {
	p.mustHold(n)
	p.nodes.remove(n)
}

// Touch implements [Policy]: n becomes the last to be evicted.
func (p *LRU[T]) Touch(n *Node[T]) {
	p.mustHold(n)
	p.nodes.moveToFront(n)
}

// Len implements [Policy].
func (p *LRU[T]) Len() int { return p.nodes.size }

// Weight implements [Policy].
func (p *LRU[T]) Weight() int64 { return p.nodes.weight }

// Check implements [Policy].
func (p *LRU[T]) Check() error {
	if err := p.nodes.check(); err != nil {
		return err
	}
	return p.limits.check(p.Len(), p.Weight())
}

func (p *LRU[T]) mustHold(n *Node[T]) {
	if n.queue() != inLRU {
		panic("eviction: the node is not in this LRU")
	}
}
