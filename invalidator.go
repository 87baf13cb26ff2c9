package nearcache

// Invalidator evicts items of a cache that lives in other processes: for a job or
// an admin tool that changes what a service has cached. It has neither loader nor
// memory. Its methods may be called from any number of goroutines.
//
// Call it after the source was changed, as one calls Cache.Remove.
type Invalidator[K comparable] struct {
	announcer[K]
}

// NewInvalidator makes an invalidator of the caches with that name, on the
// backplane's channel. There may be any number of one name; nothing has to be
// closed. If the same backplane has a cache of that name it is invalidated too, as
// if by its own methods, and at once.
//
// K is the key type of those caches, or one with the same form in messages, see
// [New]: a key that a cache's own type cannot read clears that cache.
//
// The error wraps ErrInvalidOptions, if the name or K is none that a cache can have or bp
// is nil, or ErrClosed if bp is closed.
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

// elsewhere is the memory of an Invalidator: that of the cache here of the same name, if
// there is one.
type elsewhere[K comparable] struct{ backplane *Backplane }

func (elsewhere[K]) closedHere() bool { return false }

//  1. the cache here loads version 1   2. version 2 is written, and its key removed
//  3. the message comes back as one of this instance's own, and is passed over as
//     work that was done before it was queued: so it has to be done now.
func (e elsewhere[K]) applyLocal(inv invalidation, _ []K) { e.backplane.applyHere(inv) }
