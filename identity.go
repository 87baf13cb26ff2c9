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

// identity is an instance's id, which changes with each subscription. It also recognises
// the instance's own messages when they come back.
//
// The id alone does not show that a message is this instance's own:
//
//  1. the snapshot of a machine is resumed twice, so two processes have one id   2. one
//     of them publishes a message   3. the other one takes it for its own, whose local
//     part it has done already, and keeps serving the old item.
//
// Only the process itself knows which nonces it has sent. The publish script computes a
// message's position from its nonce, so the position shows whose message it is.
type identity struct {
	draw     func() [16]byte   // returns nonces
	identify func() instanceID // returns ids

	mu     sync.Mutex // guards everything below
	id     instanceID // of the newest subscription, or of none yet
	listen bool       // there is a subscription, so messages come back
	nonces []string   // of messages under id that have not come back, oldest first
}

// maxOwn bounds how many messages that have not come back are remembered. If there are
// more, the oldest are applied when they come, which does no harm.
const maxOwn = 128

// newIdentity returns an identity that no other instance has.
func newIdentity() *identity {
	return &identity{draw: drawNonce, identify: func() instanceID { return drawNonce() }, id: drawNonce()}
}

// simulatedIdentity returns an identity that is the same in every run. Instances with one
// seed have the same ids, but different nonces, since their random differs.
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

// drawNonce returns 16 bytes that cannot be guessed and that no other call returns.
//
// A machine that is resumed twice from one snapshot has the same random state twice, and
// some kernels then return the same random numbers. So the time is mixed in.
func drawNonce() (nonce [16]byte) {
	_, _ = rand.Read(nonce[:]) // never fails
	now := uint64(time.Now().UnixNano())
	binary.BigEndian.PutUint64(nonce[:], binary.BigEndian.Uint64(nonce[:])^now)
	return nonce
}

// become is called when there is a subscription under id. Messages that were published
// before it, and come back over it, are applied like those of others.
func (i *identity) become(id instanceID) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.id, i.listen, i.nonces = id, true, nil
}

// message returns the message of one attempt to publish body. Redis may execute it more
// than once. The local part has to be done before.
func (i *identity) message(body string, changes []transport.Change) transport.Message {
	drawn := i.draw()
	nonce := string(drawn[:])
	i.mu.Lock()
	id := i.id
	if i.listen {
		if len(i.nonces) == maxOwn {
			i.nonces = slices.Delete(i.nonces, 0, 1)
		}
		i.nonces = append(i.nonces, nonce) // before sending: the message may come back before the answer
	}
	i.mu.Unlock()
	return transport.Message{
		Head: head(kindInvalidation, id), Nonce: nonce, Body: body, Changes: changes,
	}
}

// sent reports whether e is a message of this process. It is true once for each message:
// if the script was executed twice, the second message is applied like those of others.
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

// madeOf reports whether the publish script computes position from the previous one and
// nonce.
func madeOf(position, previous, nonce string) bool {
	var digits [positionLength]byte
	sum := sha1.Sum([]byte(previous + nonce))
	hex.Encode(digits[:], sum[:])
	return position == string(digits[:])
}
