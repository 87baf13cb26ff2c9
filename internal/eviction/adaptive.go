package eviction

import "math"

// Adaptive evicts by three first-in-first-out queues. The share of one of them adapts to
// the accesses. A hit only sets a mark, by Node.Use, and moves nothing, so hits need no
// lock.
//
//   - small has the new nodes. When a node is the oldest of small and was used, it moves to
//     main, and its mark is cleared. If it was not used, it is evicted. Items that are asked
//     for once, as by a scan, pass through small and never reach main.
//   - main evicts its oldest node if that was not used. If it was used, its mark is cleared,
//     and it becomes the newest node.
//   - ghost has the hashes of the items that were evicted last, and the queue that each
//     left. It has as many hashes as there are nodes. If an item returns while its hash is
//     there, it is added to main, and shows which queue was too short for it.
//
// These are the queues of S3-FIFO: Yang, Zhang, Qiu, Yue and Rashmi, "FIFO Queues
// are All You Need for Cache Eviction", SOSP 2023. S3-FIFO requires two uses in small,
// counts up to three in main, and remembers only small's items. Its small has a tenth of
// the cache. That is too little where items are asked for several times within a short
// while, and then no more. Here small begins with a tenth. Its share grows when an item
// returns that small has evicted, and shrinks when one returns that main has evicted. That
// is the rule of Megiddo and Modha, "ARC", FAST 2003, which Bansal and Modha, "CAR", FAST
// 2004, applied to queues like these.
//
// All of these fail on a loop over more items than the cache can hold: every item returns,
// and each evicts another item that is about to return. Two rules let a cache keep a part
// of the loop:
//
//   - While there is room, nodes that small has no room for move to main, used or not. As
//     nothing is known yet, the first items are as good as any.
//   - Adaptive measures its trust in returning items. It grows when they are used in main,
//     and shrinks when items return that main has evicted. Without trust, seven in eight
//     returning items are added to small like new ones. Qureshi, Jaleel, Patt, Steely and
//     Emer, "Adaptive Insertion Policies for High Performance Caching", ISCA 2007, detect
//     thrashing in this way. They use separate sets of either kind, which would be too few
//     here.
//
// Nodes are evicted from main while main exceeds its share of a limit, and otherwise from
// small, whatever they weigh. So an item that is heavier than small's whole share is the
// next to leave, unless it was used by then. If it returns while the ghost remembers it,
// it is kept.
//
// The measurements that led here, and what was tried and rejected, are in
// docs/eviction.md.
type Adaptive[T any] struct {
	limits Limits // normal

	// share is small's part of the limits, from minShare to maxShare. smallShare are the
	// limits that result, and mainShare is the rest. Both are normal, and both limits of
	// smallShare are at least 1. A queue may exceed its share while the other one does not
	// use its own.
	share                 float64
	smallShare, mainShare Limits

	_ [8]byte

	// The fields from small to the ghost's counts, which nearly every change writes, are in
	// one cache line, since it often comes from another processor.
	small queue[T]

	// evicting is set if Evict has returned a node since the last Add: the policy is full,
	// even if there is room just now. left is the queue that the last such node was in.
	evicting bool
	left     queueID

	ghost ghost

	// trust is the trust in returning items, from -mostTrust to mostTrust. They are not
	// trusted while it is negative. returns counts those that came during such times.
	trust, returns int

	main queue[T]

	_ [24]byte // policies share no cache line
}

const (
	firstShare = 0.1
	minShare   = 0.01
	maxShare   = 0.8

	// minGhost is how many hashes are remembered if there are fewer nodes. A smaller ghost
	// would say too little about returning items.
	minGhost = 64

	// trustShare bounds trust to a fifth of the number of nodes.
	trustShare = 5

	// oneInReturns makes one in eight returning items go into main without trust, so that
	// they can regain it.
	oneInReturns = 8
)

var _ Policy[any] = (*Adaptive[any])(nil)

// NewAdaptive returns an empty Adaptive with those limits. It allocates nothing in advance.
func NewAdaptive[T any](limits Limits) *Adaptive[T] {
	p := &Adaptive[T]{limits: limits.normal(), trust: math.MaxInt}
	p.small.id, p.main.id = inSmall, inMain
	p.setShare(firstShare)
	return p
}

// setShare sets small's share, within minShare and maxShare.
func (p *Adaptive[T]) setShare(share float64) {
	p.share = min(max(share, minShare), maxShare)
	p.smallShare, p.mainShare = p.limits, p.limits
	if p.limits.Entries != math.MaxInt {
		p.smallShare.Entries = max(1, int(p.share*float64(p.limits.Entries)))
		p.mainShare.Entries -= p.smallShare.Entries
	}
	if p.limits.Weight != math.MaxInt64 {
		p.smallShare.Weight = max(1, int64(p.share*float64(p.limits.Weight)))
		p.mainShare.Weight -= p.smallShare.Weight
	}
}

// Evict implements [Policy].
func (p *Adaptive[T]) Evict(hash uint64, weight uint32) (victim *Node[T]) {
	if p.limits.haveRoom(p.Len(), p.Weight(), weight) {
		return nil
	}
	mustHoldSome(p.Len())
	p.evicting = true
	p.ghost.renew(hash) // or the victims could make the ghost forget it before Add
	for p.small.size > 0 && p.mainShare.hold(p.main.size, p.main.weight) {
		oldest := p.small.oldest
		if !oldest.used() {
			p.evict(&p.small, oldest)
			return oldest
		}
		p.small.cut(oldest)
		p.main.pushFront(oldest)
	}
	return p.evictMain()
}

// evictMain evicts from main, which is not empty.
func (p *Adaptive[T]) evictMain() *Node[T] {
	oldest := p.main.oldest
	// Without readers, one round clears every mark. Readers may set marks meanwhile, and
	// must not delay the goroutine that has the lock. So after one round the oldest node
	// leaves, marked or not.
	for range p.main.size {
		if !oldest.used() {
			break
		}
		if oldest.returned() {
			p.gainTrust()
		}
		oldest.clear()
		oldest = p.main.behind(oldest)
	}
	p.main.rotate(oldest)
	p.evict(&p.main, oldest)
	return oldest
}

func (p *Adaptive[T]) evict(from *queue[T], n *Node[T]) {
	from.remove(n)
	p.left = from.id
}

// Remember implements [Policy].
func (p *Adaptive[T]) Remember(hash uint64) {
	p.ghost.add(hash, p.left == inMain, max(minGhost, p.Len()+1))
}

// Add implements [Policy].
func (p *Adaptive[T]) Add(n *Node[T], hash uint64, weight uint32) {
	mustBeOutside(n)
	n.weight = weight
	evicting := p.evicting
	p.evicting = false
	switch origin := p.ghost.take(hash); {
	case origin != unknown && p.mayReturn(origin):
		p.main.pushFront(n)
		n.markReturned()
		return
	case !evicting:
		p.fillMain(weight)
	}
	p.small.pushFront(n)
}

// mayReturn reports whether a returning item may go into main. It adapts share and trust
// to the return.
func (p *Adaptive[T]) mayReturn(origin origin) bool {
	// If the ghost has few of a queue's items, few of them can return. So each of these
	// counts for more, by the ratio of the two numbers.
	step := 1 / float64(max(1, p.Len()))
	ratio := float64(p.ghost.fromMain+1) / float64(p.ghost.fromSmall+1)
	if origin == fromSmall {
		p.setShare(p.share + step*max(1, ratio))
	} else {
		p.setShare(p.share - step*max(1, 1/ratio))
		p.loseTrust()
	}
	if p.trust >= 0 {
		return true
	}
	p.returns++
	return p.returns%oneInReturns == 0
}

func (p *Adaptive[T]) mostTrust() int { return max(2, p.Len()/trustShare) }

func (p *Adaptive[T]) gainTrust() { p.trust = min(p.trust, p.mostTrust()-1) + 1 }

func (p *Adaptive[T]) loseTrust() {
	p.trust = max(min(p.trust, p.mostTrust())-1, -p.mostTrust())
}

// fillMain moves nodes from small to main, until small's share has room for a node of that
// weight, or main's share is full.
func (p *Adaptive[T]) fillMain(weight uint32) {
	for p.small.size > 0 && !p.smallShare.haveRoom(p.small.size, p.small.weight, weight) {
		oldest := p.small.oldest
		if !p.mainShare.haveRoom(p.main.size, p.main.weight, oldest.weight) {
			return
		}
		p.small.cut(oldest)
		p.main.pushFront(oldest)
	}
}

// Replace implements [Policy].
func (p *Adaptive[T]) Replace(old, n *Node[T]) {
	mustBeOutside(n)
	p.queueOf(old).replace(old, n)
	n.Use()
}

// Remove implements [Policy]. It does not change the ghost: that an item was dropped does
// not show how often it will be asked for.
func (p *Adaptive[T]) Remove(n *Node[T]) {
	p.queueOf(n).remove(n)
}

// Touch implements [Policy] by Node.Use.
func (p *Adaptive[T]) Touch(n *Node[T]) { n.Use() }

// Len implements [Policy].
func (p *Adaptive[T]) Len() int { return p.small.size + p.main.size }

// Weight implements [Policy].
func (p *Adaptive[T]) Weight() int64 { return p.small.weight + p.main.weight }

// Check implements [Policy].
func (p *Adaptive[T]) Check() error {
	if err := p.small.check(); err != nil {
		return err
	}
	if err := p.main.check(); err != nil {
		return err
	}
	if err := p.limits.check(p.Len(), p.Weight()); err != nil {
		return err
	}
	return p.ghost.check()
}

func (p *Adaptive[T]) queueOf(n *Node[T]) *queue[T] {
	switch n.queue() {
	case inSmall:
		return &p.small
	case inMain:
		return &p.main
	default:
		panic("eviction: the node is not in this Adaptive")
	}
}
