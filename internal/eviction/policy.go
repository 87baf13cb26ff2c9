// Package eviction decides which item leaves a full cache: [S3FIFO] by default,
// exact [LRU] for those who ask for it.
//
// A policy orders nodes and nothing else: it stores no keys, reads no clock and
// calls nobody back. The caller keeps the items by key, allocates one [Node] for
// each with its own data inside, and hands it to [Policy.Add] when it keeps an
// item, to [Policy.Remove] when it drops one. Whatever Add returns has left the
// policy and must leave the caller's memory too. A hit is [Node.Use] under
// S3FIFO and [Policy.Touch] under LRU.
//
// Guarantees:
//   - A policy never holds more nodes than its capacity.
//   - Add returns at most one victim, and never the node that was added.
//   - A node that has left holds no pointer to another node, so a reader that
//     still has it keeps nothing else alive.
//   - No operation allocates, except that S3FIFO's memory of evicted items grows
//     as it fills.
//   - Every operation takes constant time, on average over many: a single Add to
//     an S3FIFO may have to count down every node that was used, up to three
//     times over.
//
// What you cannot assume:
//   - No method of a policy is safe for concurrent use. The caller holds its
//     lock. Only Use is for readers that hold none.
//   - Uses are a hint. Readers that race lose some of them.
//   - A policy cannot tell its own nodes from those of another policy. It panics
//     on a node that is added twice or removed twice; the rest is found by Check.
package eviction

import "sync/atomic"

// Policy decides which node leaves when a full cache takes another one in.
type Policy[T any] interface {
	// Add takes in n, which is in no policy, with its uses back at zero. It
	// returns the node that had to leave for it, nil while there is room.
	Add(n *Node[T]) (victim *Node[T])

	// Remove lets go of n, which is in this policy.
	Remove(n *Node[T])

	// Touch counts a hit on n, which is in this policy.
	Touch(n *Node[T])

	// Len returns the number of nodes in the policy.
	Len() int

	// Capacity returns the number of nodes from which on Add has a victim.
	Capacity() int

	// Check returns an error that names the first broken invariant, nil if all
	// hold. It takes time proportional to Len and is meant for tests.
	Check() error
}

// maxUses is where a node's use counter saturates: two bits.
const maxUses = 3

// Node is one cached item and its place in a policy. It is the only allocation
// that an item costs. The zero Node is ready for use; it must not be copied
// after Add.
type Node[T any] struct {
	// Item is the caller's data. It comes first and the counter follows close
	// behind, so that a hit touches few cache lines. Policies never look at it.
	Item T

	// Hash is the hash of the item's key. The caller sets it before Add and never
	// changes it. Keys that share a hash are told apart everywhere but in
	// S3FIFO's memory of evicted items, where it costs precision only.
	Hash uint64

	// uses counts hits, 0..maxUses. Readers write it without a lock; everything
	// below belongs to the policy, under the caller's lock.
	uses atomic.Uint32

	queue      queueID
	prev, next *Node[T] // both nil exactly when queue is inNone
}

// Use counts one hit. Any number of goroutines may call it at any time, also on
// a node that has left its policy.
//
// A saturated counter is read and not written, so the cache line of a popular
// item stays shared between the processors that read it. Of hits that race with
// each other or with the policy some are lost. We accept this because a retry
// loop would have readers contend for exactly the items that need no more hits,
// and the policy needs no more than an order of magnitude.
func (n *Node[T]) Use() {
	// CompareAndSwap and not Add, which could pass maxUses, and not Store, which
	// could bring back a count that the policy has cleared in between.
	if uses := n.uses.Load(); uses < maxUses {
		n.uses.CompareAndSwap(uses, uses+1)
	}
}
