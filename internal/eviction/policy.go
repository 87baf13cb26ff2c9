// Package eviction decides which item leaves a full cache: [Adaptive] by default,
// exact [LRU] for those who ask for it.
//
// A policy orders nodes and nothing else: it stores no keys, reads no clock and
// publishes nothing. The caller keeps the items by key and allocates one [Node]
// for each with its own data inside. To keep an item it makes room first:
//
//	for v := p.Evict(hash, weight); v != nil; v = p.Evict(hash, weight) {
//		p.Remember(hashOf(v)) // v has left the policy and must leave the caller's memory too
//	}
//	p.Add(n, hash, weight)
//
// To drop one it calls [Policy.Remove]. A hit is [Node.Use] under Adaptive and
// [Policy.Touch] under LRU.
//
// Guarantees:
//   - Whoever makes room as above never has more nodes in a policy than
//     [Limits.Entries], nor more weight than [Limits.Weight].
//   - Evict returns no node while there is room, and one node at a time, so that
//     no more leave than have to. If all nodes weigh the same, that is one per Add.
//   - A node that has left holds no pointer to another node, so a reader that
//     still has it keeps nothing else alive.
//   - No operation allocates, except that Adaptive's memory of evicted items grows
//     as it fills.
//   - Every operation takes constant time, on average over many: a single Evict
//     from an Adaptive may have to clear the mark of every node that was used.
//
// What you cannot assume:
//   - No method of a policy is safe for concurrent use. The caller holds its
//     lock. Only Use is for readers that hold none.
//   - Uses are a hint. One that races with the policy may be lost.
//   - Weights decide how much has to leave, not what: a heavy node is kept or
//     evicted for the same reasons as a light one, and a node of weight 0 leaves
//     in its turn though that makes no room.
//   - A policy cannot tell its own nodes from those of another policy. It panics
//     on a node that is added twice or removed twice; the rest is found by Check.
package eviction

import (
	"fmt"
	"math"
	"sync/atomic"
)

// Policy decides which node leaves when a full cache takes another one in.
type Policy[T any] interface {
	// Evict takes the next victim out of the policy and returns it, if one has to
	// go before a node of that weight, whose item's key has that hash, can be
	// added; nil when there is room. The caller guarantees that weight is at most
	// Limits.Weight, if that is set.
	Evict(hash uint64, weight uint32) (victim *Node[T])

	// Remember tells the hash of the item that Evict has just returned, so that the
	// policy knows it if it comes back. The policy has no place for it meanwhile.
	Remember(hash uint64)

	// Add takes in n, which is in no policy, without its uses. The caller has made
	// room by Evict. Keys that share a hash are told apart everywhere but in
	// Adaptive's memory of evicted items, where it costs precision only.
	Add(n *Node[T], hash uint64, weight uint32)

	// Replace puts n, which is in no policy, in the place of old, which is in this
	// one: with its weight, and with a hit counted as by Touch. It is for an item
	// that is written anew, and makes room for nothing.
	Replace(old, n *Node[T])

	// Remove lets go of n, which is in this policy.
	Remove(n *Node[T])

	// Touch counts a hit on n, which is in this policy.
	Touch(n *Node[T])

	// Len returns the number of nodes in the policy.
	Len() int

	// Weight returns the sum of the weights of the nodes in the policy.
	Weight() int64

	// Check returns an error that names the first broken invariant, nil if all
	// hold. It takes time proportional to Len and is meant for tests.
	Check() error
}

// Limits is what a policy may hold. At least one of them is set, and none is
// negative.
type Limits struct {
	Entries int   // the number of nodes; 0 for no limit
	Weight  int64 // the sum of their weights; 0 for no limit
}

// normal returns the limits with the largest number in place of no limit.
func (l Limits) normal() Limits {
	if l.Entries == 0 {
		l.Entries = math.MaxInt
	}
	if l.Weight == 0 {
		l.Weight = math.MaxInt64
	}
	return l
}

// hold reports whether normal limits allow that many nodes of that weight.
func (l Limits) hold(entries int, weight int64) bool {
	return entries <= l.Entries && weight <= l.Weight
}

// haveRoom reports whether normal limits allow one more node, of weight more,
// beside that many nodes of that weight.
func (l Limits) haveRoom(entries int, weight int64, more uint32) bool {
	// The sum of the weights could overflow; this difference cannot.
	return entries < l.Entries && int64(more) <= l.Weight-weight
}

// check returns an error if normal limits do not allow that many nodes of that
// weight.
func (l Limits) check(entries int, weight int64) error {
	if !l.hold(entries, weight) {
		return fmt.Errorf("eviction: %d nodes of weight %d exceed the limits of %d and %d", entries, weight, l.Entries, l.Weight)
	}
	return nil
}

// Node is one cached item and its place in a policy. It is the only allocation
// that an item costs, and takes 24 bytes more than the Item alone. The zero Node
// is ready for use; it must not be copied after Add.
type Node[T any] struct {
	// state is the caller's note, below it the queueID, and below that the marks. Any
	// reader sets usedBit and the note, without a lock. All else is for the holder of
	// the caller's lock, by atomic operations too: that may lose a racing reader's mark.
	state atomic.Uint32

	weight uint32 // as Add was told

	// Item is the caller's data. What a hit needs of it is best at its beginning,
	// close behind the mark: then a hit touches few cache lines. Policies never look
	// at it.
	Item T

	// The newer and the older neighbour, or the node itself at an end. Both are nil
	// exactly when the node is in no queue, whatever state has. Like weight, they belong
	// to the policy, under the caller's lock.
	prev, next *Node[T]
}

const (
	usedBit     = 1 << iota // there was a hit
	returnedBit             // Adaptive added it to main, and has found no hit since
	queueShift  = iota
	noteShift   = 8
	queueMask   = 1<<noteShift - 1<<queueShift
)

// Use counts one hit. Any number of goroutines may call it at any time, also on
// a node that has left its policy.
//
// It sets a mark. A mark that is set is not set again, so the cache line of a
// popular item stays shared between the processors that read it. A mark that is
// set while the policy moves the node may be lost. We accept this because all
// that a mark decides is whether the node stays for another round.
func (n *Node[T]) Use() {
	if n.state.Load()&usedBit == 0 {
		n.state.Or(usedBit)
	}
}

// Note returns 24 bits that are the caller's, and zero at first. They cost an item
// nothing, and stay with the node from queue to queue.
func (n *Node[T]) Note() uint32 { return n.state.Load() >> noteShift }

// SwapNote makes the note new if it is old, and reports whether it was. Like Use, it
// may be called by any number of goroutines, at any time.
func (n *Node[T]) SwapNote(old, new uint32) bool {
	for {
		state := n.state.Load()
		if state>>noteShift != old {
			return false
		}
		if n.state.CompareAndSwap(state, state&(1<<noteShift-1)|new<<noteShift) {
			return true
		}
	}
}

// Weight returns the weight that the node was added with last, 0 before that. It
// is for whoever holds the caller's lock.
func (n *Node[T]) Weight() uint32 { return n.weight }

// queue returns the queue that the node is in.
func (n *Node[T]) queue() queueID {
	if n.prev == nil {
		return inNone
	}
	return queueID(n.state.Load() & queueMask >> queueShift)
}

// newer returns the newer neighbour, nil at the end.
func (n *Node[T]) newer() *Node[T] {
	if n.prev == n {
		return nil
	}
	return n.prev
}

// older returns the older neighbour, nil at the end.
func (n *Node[T]) older() *Node[T] {
	if n.next == n {
		return nil
	}
	return n.next
}

// enter marks the node as in a queue and clears its marks.
func (n *Node[T]) enter(queue queueID) {
	const mask = 1<<noteShift - 1
	if bits := uint32(queue) << queueShift; n.state.Load()&mask != bits { // else it would wait for all writes before
		n.state.And(^uint32(mask)) // a racing reader's note is not lost
		n.state.Or(bits)
	}
}

func (n *Node[T]) used() bool     { return n.state.Load()&usedBit != 0 }
func (n *Node[T]) returned() bool { return n.state.Load()&returnedBit != 0 }
func (n *Node[T]) markReturned()  { n.state.Or(returnedBit) }

// clear clears the marks.
func (n *Node[T]) clear() { n.state.And(^uint32(usedBit | returnedBit)) }
