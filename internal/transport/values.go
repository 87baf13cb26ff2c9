package transport

import (
	"context"
	"crypto/sha1"
	"encoding/hex"
	"time"
)

// Change is what a part of an invalidation changes of the values in Redis.
type Change struct {
	All     bool   // clears every cache; nothing below is set
	Cache   string // its name
	Clear   bool   // clears the whole cache; nothing below is set
	Keys    []string
	Regions []string
}

// CountChanges returns the number of keys, regions and clears.
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

// Values is one instance's access to the values that all instances share in Redis. Its
// methods make one attempt each, and are safe for concurrent use.
//
// A value is valid if nothing has cleared it since its load began. An invalidation of keys
// deletes their values, in the same step that publishes its message. For clears, each
// cache has a count that grows with every clear. All counts belong to an epoch, which ends
// when Redis loses them, or may have lost them.
type Values interface {
	// Read reads the values of keys. Then, in the same exchange, it reads what shows whether
	// they are valid: the server's role and history, the cache's clears, and those of the
	// regions. Of each value it reads at most one byte more than most, which shows that the
	// value is larger.
	Read(ctx context.Context, cache string, keys, regions []string, most int) (Reading, error)

	// Claim claims loads. life is the longest time to live of the cache's values, and
	// history is the one that this instance follows.
	Claim(ctx context.Context, cache, history string, life time.Duration, claims []Claim) (Claimed, error)

	// Put stores the values of loads that are still claimed, and ends their claims. It
	// reports for each whether it was stored. A Put without bytes only ends the claim.
	Put(ctx context.Context, cache string, puts []Put) ([]bool, error)

	// Keep extends claims of any caches, or releases them. It reports for each whether it
	// existed. It creates none: a claim that an invalidation has deleted stays deleted,
	// however often and however late Keep is executed.
	Keep(ctx context.Context, keeps []Keep) ([]bool, error)

	// Redial closes the connections. The next attempts dial again.
	Redial()
}

// Reading is what Read has found.
type Reading struct {
	Values []Value // one for each key

	Master  bool   // the server says that it is a master
	History string // its history id; empty: it does not show it

	Epoch   string   // empty: there are no counts
	Count   uint64   // of the cache's clears
	Cleared uint64   // the count after the last clear of the whole cache
	Regions []uint64 // the count after the last clear of each region
}

// Value is a value in Redis.
type Value struct {
	Found bool
	Bytes []byte        // the first ones, see Read; also empty if the key holds no value
	Life  time.Duration // the rest of its time to live
}

// IDAt and IDLength say where in a value's bytes its unique id is.
const (
	IDAt     = 1
	IDLength = 16
)

// Claim asks for the right to load one key.
type Claim struct {
	Key   string
	Token string        // its token is computed from this, see Claimed.Token
	Seen  string        // the id of the value to be replaced; empty: there was none
	Own   string        // the token of a claim of the key that this instance has, or had; empty: none
	Any   bool          // take it whatever value there is, and even if the last load has stored nothing
	Life  time.Duration // of the claim
}

// Claimed is the result of Claim.
type Claimed struct {
	Epoch  string       // the label of the values to be stored, with Count
	Count  uint64       // of the cache's clears
	States []ClaimState // one for each claim
	Stamp  string       // of the execution; empty: there was certainly only one
}

// Token returns the token of a claim that was taken. It becomes the id of the value. Each
// execution of a claim has another token: if a claim is executed twice, as by a client
// that follows redirects, the second execution may come after an invalidation has deleted
// the first one's claim.
func (c *Claimed) Token(of Claim) string {
	if c.Stamp == "" {
		return of.Token
	}
	sum := sha1.Sum([]byte(of.Token + c.Stamp))
	return hex.EncodeToString(sum[:])[:IDLength]
}

// ClaimState is the outcome of a claim.
type ClaimState byte

const (
	ClaimTaken   ClaimState = 't'
	ClaimBusy    ClaimState = 'b' // another instance has it
	ClaimOwn     ClaimState = 'o' // this instance has it already, for another load
	ClaimChanged ClaimState = 'c' // there is another value than the one that was seen
	ClaimBypass  ClaimState = 'v' // a load has just ended and stored nothing: load without a claim
)

// Put is the end of a claim.
type Put struct {
	Key   string
	Token string
	Bytes []byte        // the value; nil: nothing is stored
	Life  time.Duration // of the value

	// Without bytes:
	Bypass bool // there will be no value soon, so others should not wait: they load without a claim
	Forget bool // the stored value, if any, is older than what is known now, so delete it
}

// BypassFor is how long Redis remembers that a claim ended without a value (Put.Bypass): a
// little longer than the pauses of the loads that wait for it.
const BypassFor = 100 * time.Millisecond

// Keep extends a claim while its load is under way, or releases it.
type Keep struct {
	Cache string
	Key   string
	Token string
	Life  time.Duration // counted from its execution; 0: the claim is released
}
