// Package eviction decides which item leaves a full cache: [Adaptive] by default, or
// exact [LRU].
//
// A policy orders nodes and nothing else: it stores no keys and reads no clock. The caller
// keeps the items by key, and allocates one [Node] for each, with its own data inside. To
// add an item, the caller makes room first:
//
//	for v := p.Evict(hash, weight); v != nil; v = p.Evict(hash, weight) {
//		p.Remember(hashOf(v)) // v has left the policy; the caller has to forget it too
//	}
//	p.Add(n, hash, weight)
//
// To drop an item, the caller calls [Policy.Remove]. At a hit it calls [Node.Use] under
// Adaptive, and [Policy.Touch] under LRU.
//
// Guarantees:
//   - If the caller makes room as above, a policy never has more nodes than
//     [Limits.Entries], nor more weight than [Limits.Weight].
//   - Evict returns no node while there is room, and one node at a time, so no more nodes
//     leave than necessary. If all nodes weigh the same, that is one for each Add.
//   - A node that has left has no pointer to another node, so a reader that still uses it
//     keeps no other node in memory.
//   - No operation allocates, except that Adaptive's memory of evicted items grows
//     as it fills.
//   - Every operation takes constant time on average. A single Evict from an Adaptive may
//     have to clear the mark of every node that was used.
//
// What you cannot assume:
//   - No method of a policy is safe for concurrent use: the caller needs a lock. Only Use
//     needs none.
//   - Uses are a hint. One that races with the policy may be lost.
//   - Weights decide how much has to leave, not which nodes. A heavy node is kept or
//     evicted for the same reasons as a light one. A node of weight 0 is evicted like any
//     other, although that makes no room.
//   - A policy cannot tell its own nodes from those of another policy. It panics on a node
//     that is added or removed twice. Check finds the rest.
package eviction

import (
	"fmt"
	"math"
	"sync/atomic"
)

// Policy decides which node leaves when another one is added to a full cache.
type Policy[T any] interface {
	// Evict makes room for a node of that weight, whose item's key has that hash. If a node
	// has to leave, Evict removes it from the policy and returns it. If there is room, it
	// returns nil. weight must not exceed Limits.Weight, if that is set.
	Evict(hash uint64, weight uint32) (victim *Node[T])

	// Remember notes the hash of the item that Evict has just returned, so that the policy
	// recognises the item if it is added again. Nodes do not store hashes.
	Remember(hash uint64)

	// Add adds n, which must be in no policy, and forgets its uses. The caller has made
	// room by Evict. Two keys with one hash are confused only in Adaptive's memory of
	// evicted items, which makes that a little less precise.
	Add(n *Node[T], hash uint64, weight uint32)

	// Replace replaces old, which is in this policy, by n, which must be in none. n gets
	// old's weight and place in the order, and then a hit as by Touch. It is for an item
	// that is written again, and needs no room.
	Replace(old, n *Node[T])

	// Remove removes n, which must be in this policy.
	Remove(n *Node[T])

	// Touch counts a hit on n, which must be in this policy.
	Touch(n *Node[T])

	// Len returns the number of nodes in the policy.
	Len() int

	// Weight returns the sum of the weights of the nodes in the policy.
	Weight() int64

	// Check returns an error that names the first broken invariant, nil if all
	// hold. It takes time proportional to Len and is meant for tests.
	Check() error
}

// Limits bounds a policy. At least one of the limits is set, and none is negative.
type Limits struct {
	Entries int   // the number of nodes; 0 for no limit
	Weight  int64 // the sum of their weights; 0 for no limit
}

// normal returns the limits, with the largest number instead of 0.
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

// Node is one cached item and its place in a policy. It is the only allocation for an
// item, and takes 24 bytes more than the Item alone. The zero Node is ready to use. It
// must not be copied after Add.
type Node[T any] struct {
	// state has, from the highest bit to the lowest, the caller's note, the queueID and the
	// marks. Readers set usedBit and the note without a lock. The rest is set under the
	// caller's lock, also by atomic operations. These may lose a racing reader's mark.
	state atomic.Uint32

	weight uint32 // from Add

	// Item is the caller's data. What a hit needs should come first, close to the mark, so
	// that a hit touches few cache lines. Policies do not use it.
	Item T

	// The newer and the older neighbour; at an end, the node itself. Both are nil if and
	// only if the node is in no queue, whatever state says. The caller's lock guards them,
	// and weight.
	prev, next *Node[T]
}

const (
	usedBit     = 1 << iota // there was a hit
	returnedBit             // it returned, so Adaptive added it to main; no hit was found since
	queueShift  = iota
	noteShift   = 8
	queueMask   = 1<<noteShift - 1<<queueShift
)

// Use counts one hit. Any number of goroutines may call it at any time, also on
// a node that has left its policy.
//
// It sets a mark, unless it is set already. So the cache line of a popular item stays
// shared between the processors that read it. A mark that is set while the policy moves
// the node may be lost. We accept this because a mark only decides whether the node stays
// for another round.
func (n *Node[T]) Use() {
	if n.state.Load()&usedBit == 0 {
		n.state.Or(usedBit)
	}
}

// Note returns the caller's note: 24 bits that are zero at first. They take no memory of
// their own, and stay with the node when it changes queues.
func (n *Node[T]) Note() uint32 { return n.state.Load() >> noteShift }

// SwapNote replaces the note old by new, and reports whether the note was old. Like Use,
// it is safe for concurrent use.
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

// Weight returns the weight that the node was last added with, or 0. It may be called
// only under the caller's lock.
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

// enter sets the node's queue and clears its marks.
func (n *Node[T]) enter(queue queueID) {
	const mask = 1<<noteShift - 1
	if bits := uint32(queue) << queueShift; n.state.Load()&mask != bits { // an atomic write waits for all earlier writes
		n.state.And(^uint32(mask)) // a racing reader's note is not lost
		n.state.Or(bits)
	}
}

func (n *Node[T]) used() bool     { return n.state.Load()&usedBit != 0 }
func (n *Node[T]) returned() bool { return n.state.Load()&returnedBit != 0 }
func (n *Node[T]) markReturned()  { n.state.Or(returnedBit) }

// clear clears the marks.
func (n *Node[T]) clear() { n.state.And(^uint32(usedBit | returnedBit)) }
