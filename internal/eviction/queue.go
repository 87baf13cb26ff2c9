package eviction

import "fmt"

// queueID names the queue that a node is in.
type queueID uint32

const (
	inNone queueID = iota
	inLRU
	inSmall
	inMain
)

// queue is a doubly linked list through the nodes themselves. The caller sees to
// it that a node is in one queue at a time.
type queue[T any] struct {
	id     queueID
	size   int
	weight int64 // the sum of the nodes' weights

	// root closes the list to a ring and is no item: root.next is the newest node,
	// root.prev the oldest. It spares every operation the cases of an empty list
	// and of a node at the end.
	root Node[T]
}

func (q *queue[T]) init(id queueID) {
	q.id = id
	q.root.prev, q.root.next = &q.root, &q.root
}

// pushFront makes n, which has its weight, the newest node, without uses.
func (q *queue[T]) pushFront(n *Node[T]) {
	n.enter(q.id)
	link(&q.root, n, q.root.next)
	q.size++
	q.weight += int64(n.weight)
}

// replace puts n in old's place, with its weight and its marks.
func (q *queue[T]) replace(old, n *Node[T]) {
	n.weight = old.weight
	n.state.Store(old.state.Load()&(1<<noteShift-1) | n.Note()<<noteShift)
	link(old.prev, n, old.next)
	old.prev, old.next = nil, nil
}

// remove takes n out. It clears n's place: a reader may hold n for long, and must
// not keep the nodes alive that were its neighbours once.
func (q *queue[T]) remove(n *Node[T]) {
	q.cut(n)
	n.prev, n.next = nil, nil
}

// cut takes n out and leaves it as it is, for the caller to push it elsewhere.
func (q *queue[T]) cut(n *Node[T]) {
	unlink(n)
	q.size--
	q.weight -= int64(n.weight)
}

// moveToFront makes n, which is in this queue, the newest node.
func (q *queue[T]) moveToFront(n *Node[T]) {
	unlink(n)
	link(&q.root, n, q.root.next)
}

// back returns the oldest node of a queue that is not empty.
func (q *queue[T]) back() *Node[T] { return q.root.prev }

// newer returns the node that is next in line behind n, and after the newest the
// oldest again.
func (q *queue[T]) newer(n *Node[T]) *Node[T] {
	if n.prev == &q.root {
		return q.back()
	}
	return n.prev
}

// rotate makes n the oldest node, as if every older one had been pushed to the
// front again, oldest first. The ring stays as it is but for its root, which
// moves, so that the cost is the same for any number of nodes.
func (q *queue[T]) rotate(n *Node[T]) {
	if q.back() == n {
		return
	}
	unlink(&q.root)
	link(n, &q.root, n.next)
}

// check returns an error if the links, the sums or a node's own state are not
// what they have to be.
func (q *queue[T]) check() error {
	count, weight := 0, int64(0)
	for n := &q.root; ; n = n.next {
		if n.next == nil || n.next.prev != n {
			return fmt.Errorf("eviction: queue %d is broken after %d nodes", q.id, count)
		}
		if n.next == &q.root {
			break
		}
		count++
		weight += int64(n.next.weight)
		if n.next.queue() != q.id {
			return fmt.Errorf("eviction: queue %d has a node that is marked as in %d", q.id, n.next.queue())
		}
	}
	if count != q.size {
		return fmt.Errorf("eviction: queue %d has %d nodes and a size of %d", q.id, count, q.size)
	}
	if weight != q.weight {
		return fmt.Errorf("eviction: queue %d has nodes of weight %d and a weight of %d", q.id, weight, q.weight)
	}
	return nil
}

// link puts n between prev and next.
func link[T any](prev, n, next *Node[T]) {
	n.prev, n.next = prev, next
	prev.next, next.prev = n, n
}

// unlink closes the gap that n leaves. N's own links are as before.
func unlink[T any](n *Node[T]) {
	n.prev.next, n.next.prev = n.next, n.prev
}

// mustBeOutside panics if n is in a policy. A node in two places would corrupt
// both of them silently, and the test costs next to nothing.
func mustBeOutside[T any](n *Node[T]) {
	if n.queue() != inNone {
		panic("eviction: the node is in a policy already")
	}
}

// mustHoldSome panics if there is no node to evict, since it is the next node
// alone that exceeds a limit.
func mustHoldSome(nodes int) {
	if nodes == 0 {
		panic("eviction: the weight exceeds the limit")
	}
}
