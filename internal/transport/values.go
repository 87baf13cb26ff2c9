package transport

import (
	"context"
	"crypto/sha1"
	"encoding/hex"
	"time"
)

// Change is what a part of an invalidation means for the values in Redis.
type Change struct {
	All     bool   // of every cache; nothing below is set
	Cache   string // its name
	Clear   bool   // all of it
	Keys    []string
	Regions []string
}

// CountChanges returns how many keys, regions and clears there are.
func CountChanges(changes []Change) int {
	n := 0
	for _, c := range changes {
		n += len(c.Keys) + len(c.Regions)
		if c.All || c.Clear {
			n++
		}
	}
	return n
}

// Values is one instance's way to the values that all instances share in Redis. Its
// methods make one attempt each, and may be called from any number of goroutines.
//
// A value is valid if nothing has cleared it since its load began. Keys that are
// removed take their values with them, in the same step as the message goes out; for
// clears there is a count in each cache that grows with every one of them, and all
// counts belong to an epoch, which ends when Redis loses them, or may have.
type Values interface {
	// Read reads the values of keys, and then, in the same exchange, what they are to be
	// judged by: who answers, the cache's clears, and those of the regions. It reads at
	// most one byte more than most of each value, which shows that the value is larger.
	Read(ctx context.Context, cache string, keys, regions []string, most int) (Reading, error)

	// Claim claims loads. Life is the longest that a value of the cache lives, and
	// history the one that this instance follows.
	Claim(ctx context.Context, cache, history string, life time.Duration, claims []Claim) (Claimed, error)

	// Put stores the values of loads that are still claimed, ends their claims, and
	// reports of each whether it was stored. Without bytes it only ends the claim.
	Put(ctx context.Context, cache string, puts []Put) ([]bool, error)

	// Keep extends claims of any caches, or releases them, and reports of each whether it
	// was there. It makes none: what an invalidation has taken away stays away, however
	// often and however late this runs.
	Keep(ctx context.Context, keeps []Keep) ([]bool, error)

	// Redial closes the connections, for the next attempts to dial anew.
	Redial()
}

// Reading is what Read has found.
type Reading struct {
	Values []Value // of each key

	Master  bool   // the server is one, by its own account
	History string // its id; empty: it does not tell

	Epoch   string // empty: there are no counts
	Count   uint64 // of the cache's clears
	Cleared uint64 // what the count was after the last clear of the whole cache
	Regions []uint64
}

// Value is a value in Redis.
type Value struct {
	Found bool
	Bytes []byte        // the first of them, see Read; empty also if what is there is no value
	Life  time.Duration // how long it has to live
}

// IDAt and IDLength say where in a value's bytes its id is, that no other value has.
const (
	IDAt     = 1
	IDLength = 16
)

// Claim is one of a load.
type Claim struct {
	Key   string
	Token string        // what its token is made of, see Claimed.Token
	Seen  string        // the id of the value that is to be replaced; empty: there was none
	Own   string        // the token of a claim of the key that this instance has, or had; empty: none
	Any   bool          // whatever value there is, and though the last load has left nothing
	Life  time.Duration // of the claim
}

// Claimed is what Claim has come to.
type Claimed struct {
	Epoch  string // for the values to be labelled with
	Count  uint64
	States []ClaimState // of each claim
	Stamp  string       // of the execution; empty: it is known that there was only one
}

// Token returns the token of a claim that was taken, which is to be the id of the
// value. It is another each time that the claim is executed: one that was executed
// twice, as by a client that follows redirects, may come back after an invalidation
// has taken it away.
func (c *Claimed) Token(of Claim) string {
	if c.Stamp == "" {
		return of.Token
	}
	sum := sha1.Sum([]byte(of.Token + c.Stamp))
	return hex.EncodeToString(sum[:])[:IDLength]
}

// ClaimState is what a claim has come to.
type ClaimState byte

const (
	ClaimTaken   ClaimState = 't'
	ClaimBusy    ClaimState = 'b' // somebody else's
	ClaimOwn     ClaimState = 'o' // this instance has it already, for another load
	ClaimChanged ClaimState = 'c' // there is another value than the one that was seen
	ClaimBypass  ClaimState = 'v' // a load has just ended and left nothing: nobody need wait for the next
)

// Put is the end of a claim.
type Put struct {
	Key   string
	Token string
	Bytes []byte        // the value; nil: there is none
	Life  time.Duration // of the value

	// Without bytes:
	Bypass bool // nor will there be one soon, so others need not wait: they load, and claim nothing
	Forget bool // and what value there is is older than what is known now
}

// VainFor is for how long a claim that has ended in vain is remembered: a little
// longer than those who wait for it pause.
const VainFor = 100 * time.Millisecond

// Keep extends a claim while its load is under way, or releases it.
type Keep struct {
	Cache string
	Key   string
	Token string
	Life  time.Duration // from when it is executed; 0: the claim is released
}
