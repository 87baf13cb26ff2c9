package nearcache

// Invalidator evicts items of a cache that lives in other processes. It is for a job or an
// admin tool that changes what a service has cached. It has neither loader nor memory. Its
// methods may be called from any number of goroutines.
//
// Like Cache.Remove, they are called after the source was changed.
type Invalidator[K comparable] struct {
	announcer[K]
}

// NewInvalidator makes an invalidator for the caches with that name, on the backplane's
// channel. There may be several for one name. None has to be closed. If the same backplane
// has a cache of that name, the invalidator's methods evict from it at once, as the cache's
// own would.
//
// K is the key type of those caches, or a type with the same form in messages, see [New]. A
// key that a cache's own type cannot read clears that cache.
//
// The error wraps ErrInvalidOptions if no cache can have that name or K, or if bp is nil.
// It wraps ErrClosed if bp is closed.
func NewInvalidator[K comparable](bp *Backplane, name string) (*Invalidator[K], error) {
	var wrong optionErrors
	wrong.checkName("name", name)
	if err := wrong.err(); err != nil {
		return nil, err
	}
	announces, err := newAnnouncer[K](bp, name)
	if err != nil {
		return nil, err
	}
	if bp.closing.Load() {
		return nil, announces.refusal()
	}
	announces.memory = elsewhere[K]{bp}
	return &Invalidator[K]{announces}, nil
}

// elsewhere is the memory of an Invalidator: that of the cache with the same name on this
// backplane, if there is one.
type elsewhere[K comparable] struct{ backplane *Backplane }

func (elsewhere[K]) closedHere() bool { return false }

// applyLocal evicts from that cache, since the message will not.
//
//  1. the cache here loads version 1   2. version 2 is written, and the invalidator removes
//     its key   3. the message comes back. This instance does not apply its own messages
//     again: their local part is done before they are queued.
func (e elsewhere[K]) applyLocal(inv invalidation, _ []K) { e.backplane.applyHere(inv) }
