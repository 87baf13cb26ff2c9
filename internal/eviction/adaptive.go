package eviction

import "math"

// Adaptive evicts by three first-in-first-out queues, one of which grows and
// shrinks with what the cache is asked for. A hit only sets a mark, by Node.Use,
// and moves nothing, so hits need no lock.
//
//   - small takes in new nodes. A node that was used by the time it is the oldest
//     moves on to main without its mark; any other is evicted. Items that are
//     asked for once, as by a scan, pass through small and never reach main.
//   - main evicts its oldest node if that was not used. If it was, the node goes
//     round once more without its mark.
//   - ghost has the hashes of as many items as nodes are held, those that were
//     evicted last, and which queue they left. An item that is back while its hash
//     is there goes into main, and tells which queue was too short for it.
//
// These are the queues of S3-FIFO: Yang, Zhang, Qiu, Yue and Rashmi, "FIFO Queues
// are All You Need for Cache Eviction", SOSP 2023. It asks for two uses in small,
// counts up to three in main, and remembers small's items only. And small has a
// tenth of the cache, which is too little where items are asked for several times
// within a short while and then no more. Here small begins with a tenth and takes
// what its items' returns argue for, less what the returns of main's argue for:
// the rule of Megiddo and Modha, "ARC", FAST 2003, which Bansal and Modha, "CAR",
// FAST 2004, brought to queues like these.
//
// Loops over more items than the cache holds defeat all of these: every item
// returns, and each return drives out another item that is about to. Two rules
// let a cache hold on to a part of the loop:
//
//   - While there is room, main is filled with what small cannot hold, used or
//     not. With nothing known, the items that came first are as good as any.
//   - Returning items have main's trust. They gain it when they are used in main,
//     and lose it when items that had to leave main return. Without it, seven in
//     eight returning items go into small like new ones. That is the way of
//     Qureshi, Jaleel, Patt, Steely and Emer, "Adaptive Insertion Policies for
//     High Performance Caching", ISCA 2007, to find out about thrashing; their
//     separate sets of either kind would be too few here.
//
// Room is made from main while main exceeds its share of a limit, and from small
// else, whatever the nodes weigh. So an item that is heavier than small's whole
// share is the next to go when it has not been used by then; it is kept when it
// was, or when it comes back while the ghost remembers it.
//
// The measurements that led here, and what was tried and rejected, are in
// docs/eviction.md.
type Adaptive[T any] struct {
	limits Limits // normal

	// share is small's part of the limits, minShare..maxShare. That is smallShare,
	// and mainShare is the rest. Both are normal, and both limits of smallShare are
	// at least 1. Either queue may exceed its share while the other does not need
	// its own.
	share                 float64
	smallShare, mainShare Limits

	_ [8]byte

	// What nearly every change changes is in one cache line, from small to the ghost's
	// counts: another processor had it before.
	small queue[T]

	// evicting says that Evict has returned a node since the last Add: the policy
	// is full, though there may be room now. The last of them was in the queue left.
	evicting bool
	left     queueID

	ghost ghost

	// trust is what returning items have. It keeps within mostTrust above zero and
	// below; returning items are not trusted while it is below. Returns counts those
	// that came while they were not.
	trust, returns int

	main queue[T]

	_ [24]byte // policies share no cache line
}

const (
	firstShare = 0.1
	minShare   = 0.01
	maxShare   = 0.8

	// minGhost is how many hashes are remembered by a cache of fewer nodes. So few
	// say too little about what returns.
	minGhost = 64

	// trustShare is the part of the nodes held that trust is limited to.
	trustShare = 5

	// oneInReturns is the part of the returning items that go into main without
	// trust, to regain it.
	oneInReturns = 8
)

var _ Policy[any] = (*Adaptive[any])(nil)

// NewAdaptive returns an empty Adaptive with those limits. No memory is set aside for
// nodes to come.
func NewAdaptive[T any](limits Limits) *Adaptive[T] {
	p := &Adaptive[T]{limits: limits.normal(), trust: math.MaxInt}
	p.small.id, p.main.id = inSmall, inMain
	p.setShare(firstShare)
	return p
}

// setShare sets small's share, as near to it as is allowed.
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
	p.ghost.renew(hash) // or the victims of one Add could push it out before Add asks
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
	// Left alone, one round clears every mark. Readers may set more meanwhile, and
	// must not hold up the goroutine that has the lock: after as many steps the
	// oldest node leaves, marked or not.
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

// mayReturn reports whether an item that is back may go into main, and learns
// from its return.
func (p *Adaptive[T]) mayReturn(origin origin) bool {
	// A queue that has few of its items remembered sees few of them return: each
	// then counts for as many of the other's.
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

// fillMain moves nodes from small to main until small has room for a node of
// that weight within its share, or main has its own.
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

// Remove implements [Policy]. The ghost forgets and learns nothing by it: that
// an item was dropped does not say how often it will be asked for.
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
