package nearcache

import (
	"crypto/rand"
	"encoding/binary"
	"time"
)

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
