package eviction

import "fmt"

// queueID names the queue that a node is in.
type queueID uint32

const (
	inSmall queueID = iota // the zero Node's: to enter it changes no state
	inMain
	inLRU
	inNone // is in no state, see Node.queue
)

// queue is a doubly linked list through the nodes themselves. The caller makes sure that a
// node is in one queue at a time.
//
// It fits in one cache line, which often comes from another processor. A ring that is
// closed by a sentinel node would take two.
type queue[T any] struct {
	newest, oldest *Node[T] // nil: it is empty
	size           int
	weight         int64 // the sum of the nodes' weights
	id             queueID
}

// pushFront adds n as the newest node, and clears its marks. n.weight has to be set.
func (q *queue[T]) pushFront(n *Node[T]) {
	n.enter(q.id)
	q.link(nil, n, q.newest)
	q.size++
	q.weight += int64(n.weight)
}

// replace replaces old by n, which gets old's weight and marks.
func (q *queue[T]) replace(old, n *Node[T]) {
	n.weight = old.weight
	n.state.Store(old.state.Load()&(1<<noteShift-1) | n.Note()<<noteShift)
	q.link(old.newer(), n, old.older())
	old.prev, old.next = nil, nil
}

// remove removes n and clears its links. A reader may use n for long, and must not keep
// n's former neighbours in memory.
func (q *queue[T]) remove(n *Node[T]) {
	q.cut(n)
	n.prev, n.next = nil, nil
}

// cut removes n without clearing its links, for the caller to add it elsewhere.
func (q *queue[T]) cut(n *Node[T]) {
	q.join(n.newer(), n.older())
	q.size--
	q.weight -= int64(n.weight)
}

// moveToFront makes n, which is in this queue, the newest node.
func (q *queue[T]) moveToFront(n *Node[T]) {
	if n != q.newest {
		q.join(n.newer(), n.older())
		q.link(nil, n, q.newest)
	}
}

// behind returns the next newer node after n, and the oldest one after the newest.
func (q *queue[T]) behind(n *Node[T]) *Node[T] {
	if n == q.newest {
		return q.oldest
	}
	return n.prev
}

// rotate makes n the oldest node, as if every older one had been moved to the front, oldest
// first. It takes constant time.
func (q *queue[T]) rotate(n *Node[T]) {
	older := n.older()
	if older == nil {
		return
	}
	q.join(q.oldest, q.newest) // a ring, which is opened behind n
	q.join(n, nil)
	q.join(nil, older)
}

// check returns an error if the links, the sums or a node's own state are wrong.
func (q *queue[T]) check() error {
	count, weight := 0, int64(0)
	var newer *Node[T]
	for n := q.newest; n != nil; n = n.older() {
		if n.prev == nil || n.next == nil || n.newer() != newer {
			return fmt.Errorf("eviction: queue %d is broken after %d nodes", q.id, count)
		}
		count++
		weight += int64(n.weight)
		if n.queue() != q.id {
			return fmt.Errorf("eviction: queue %d has a node that is marked as in %d", q.id, n.queue())
		}
		newer = n
	}
	if newer != q.oldest {
		return fmt.Errorf("eviction: queue %d ends after %d nodes with another one than its oldest", q.id, count)
	}
	if count != q.size {
		return fmt.Errorf("eviction: queue %d has %d nodes and a size of %d", q.id, count, q.size)
	}
	if weight != q.weight {
		return fmt.Errorf("eviction: queue %d has nodes of weight %d and a weight of %d", q.id, weight, q.weight)
	}
	return nil
}

// link inserts n between two neighbours. Nil means an end.
func (q *queue[T]) link(newer, n, older *Node[T]) {
	q.join(newer, n)
	q.join(n, older)
}

// join makes two nodes neighbours. If one is nil, the other one becomes an end.
func (q *queue[T]) join(newer, older *Node[T]) {
	switch {
	case newer != nil && older != nil:
		newer.next, older.prev = older, newer
	case newer != nil:
		newer.next, q.oldest = newer, newer
	case older != nil:
		older.prev, q.newest = older, older
	default:
		q.newest, q.oldest = nil, nil
	}
}

// mustBeOutside panics if n is in a policy. A node in two policies would corrupt both
// silently, and the check costs next to nothing.
func mustBeOutside[T any](n *Node[T]) {
	if n.queue() != inNone {
		panic("eviction: the node is in a policy already")
	}
}

// mustHoldSome panics if there is no node to evict, because the next node alone exceeds a
// limit.
func mustHoldSome(nodes int) {
	if nodes == 0 {
		panic("eviction: the weight exceeds the limit")
	}
}
