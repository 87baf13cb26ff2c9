//go:build !race

package eviction

import "container/list"

// plainS3FIFO is S3-FIFO as it is in the paper, Algorithm 1, to compare hit ratios
// with: small has a tenth of the capacity, nodes move on when they were used more
// than once, and the ghost has as many items as main.
type plainS3FIFO struct {
	smallShare, mainShare int
	small, main, ghost    list.List // the newest first, of *plainItem or ghosts' keys
	held                  map[uint64]*plainItem
	ghosts                map[uint64]*list.Element
}

type plainItem struct {
	key  uint64
	uses int
}

func newPlainS3FIFO(capacity int) *plainS3FIFO {
	smallShare := max(1, capacity/10)
	return &plainS3FIFO{
		smallShare: smallShare,
		mainShare:  capacity - smallShare,
		held:       map[uint64]*plainItem{},
		ghosts:     map[uint64]*list.Element{},
	}
}

// access reports whether key is held, and holds it from here on.
func (p *plainS3FIFO) access(key uint64) (hit bool) {
	if item := p.held[key]; item != nil {
		item.uses = min(item.uses+1, 3)
		return true
	}
	target := &p.small
	if ghost := p.ghosts[key]; ghost != nil {
		p.ghost.Remove(ghost)
		delete(p.ghosts, key)
		target = &p.main
	}
	if p.small.Len()+p.main.Len() >= p.smallShare+p.mainShare {
		p.evict()
	}
	p.held[key] = &plainItem{key: key}
	target.PushFront(p.held[key])
	return false
}

func (p *plainS3FIFO) evict() {
	for p.main.Len() <= p.mainShare {
		oldest := p.small.Remove(p.small.Back()).(*plainItem)
		if oldest.uses <= 1 {
			p.remember(oldest.key)
			delete(p.held, oldest.key)
			return
		}
		oldest.uses = 0
		p.main.PushFront(oldest)
	}
	for {
		oldest := p.main.Remove(p.main.Back()).(*plainItem)
		if oldest.uses == 0 {
			delete(p.held, oldest.key)
			return
		}
		oldest.uses--
		p.main.PushFront(oldest)
	}
}

func (p *plainS3FIFO) remember(key uint64) {
	if p.mainShare == 0 {
		return
	}
	if p.ghost.Len() >= p.mainShare {
		delete(p.ghosts, p.ghost.Remove(p.ghost.Back()).(uint64))
	}
	p.ghosts[key] = p.ghost.PushFront(key)
}
