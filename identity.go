package nearcache

import (
	"crypto/rand"
	"crypto/sha1"
	"encoding/binary"
	"encoding/hex"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nearcache/nearcache/internal/backoff"
	"github.com/nearcache/nearcache/internal/transport"
)

// identity is who an instance is to others, in one subscription after another, and how
// it knows its own messages when they come back.
//
// An id alone does not show that a message is one's own:
//
//  1. the snapshot of a machine is resumed twice, so two processes have one id   2. one
//     of them publishes   3. the other takes the message for its own, whose work it
//     has done, and goes on serving what it holds.
//
// What a process alone knows is which nonces it has sent, and the script makes a
// message's position of its nonce.
type identity struct {
	draw     func() [16]byte // makes nonces
	identify func() instanceID

	mu     sync.Mutex // guards everything below
	id     instanceID // of the newest subscription, or of none yet
	listen bool       // there is a subscription, by which messages come back
	nonces []string   // of messages under id that have not come back, the oldest first
}

// maxOwn is how many messages may be on their way back. Of more than that, the oldest
// are applied when they come, which does no harm.
const maxOwn = 128

// newIdentity returns an identity that nobody else has.
func newIdentity() *identity {
	return &identity{draw: drawNonce, identify: func() instanceID { return drawNonce() }, id: drawNonce()}
}

// simulatedIdentity returns one that is the same in every run. Instances with one seed
// have the same ids, but not the same nonces, as random differs.
func simulatedIdentity(seed instanceID, random backoff.Random) *identity {
	var nonces, ids atomic.Uint64
	digest := func(numbers ...uint64) (id [16]byte) {
		b := slices.Clone(seed[:])
		for _, n := range numbers {
			b = binary.BigEndian.AppendUint64(b, n)
		}
		sum := sha1.Sum(b)
		copy(id[:], sum[:])
		return id
	}
	identify := func() instanceID { return digest(ids.Add(1)) }
	return &identity{
		draw:     func() [16]byte { return digest(nonces.Add(1), uint64(random(math.MaxInt64))) },
		identify: identify, id: identify(),
	}
}

// drawNonce returns 16 bytes that nobody can guess and no other call returns.
//
// A machine that is resumed twice from one snapshot has the state of its random numbers
// twice, and some kernels go on from there. So the time is a part of them.
func drawNonce() (nonce [16]byte) {
	_, _ = rand.Read(nonce[:]) // never fails
	now := uint64(time.Now().UnixNano())
	binary.BigEndian.PutUint64(nonce[:], binary.BigEndian.Uint64(nonce[:])^now)
	return nonce
}

// become is called when there is a subscription under id. Messages that were published
// before are applied when they come over it.
func (i *identity) become(id instanceID) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.id, i.listen, i.nonces = id, true, nil
}

// message returns what is to be published: an attempt, which may be executed more than
// once. The local part is done.
func (i *identity) message(body string, changes []transport.Change) transport.Message {
	drawn := i.draw()
	nonce := string(drawn[:])
	i.mu.Lock()
	id := i.id
	if i.listen {
		if len(i.nonces) == maxOwn {
			i.nonces = slices.Delete(i.nonces, 0, 1)
		}
		i.nonces = append(i.nonces, nonce) // now: it may come back before the answer does
	}
	i.mu.Unlock()
	return transport.Message{
		Head: string(appendHead(nil, kindInvalidation, id)), Nonce: nonce, Body: body, Changes: changes,
	}
}

// sent reports whether e is a message of this process, the first time that it is asked.
// A second execution of the script is applied like a message of others.
func (i *identity) sent(e envelope) bool {
	if len(e.own) != positionLength {
		return false
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if e.publisher != i.id {
		return false
	}
	for n, nonce := range i.nonces {
		if madeOf(e.own, e.previous, nonce) {
			i.nonces = slices.Delete(i.nonces, n, n+1)
			return true
		}
	}
	return false
}

// madeOf reports whether the publish script makes position of the one before and a nonce.
func madeOf(position, previous, nonce string) bool {
	var digits [positionLength]byte
	sum := sha1.Sum([]byte(previous + nonce))
	hex.Encode(digits[:], sum[:])
	return position == string(digits[:])
}
