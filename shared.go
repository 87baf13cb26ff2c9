package nearcache

import (
	"context"
	"slices"
	"sync/atomic"
	"time"

	"github.com/nearcache/nearcache/internal/backoff"
	"github.com/nearcache/nearcache/internal/transport"
)

// The shared level keeps values in Redis, between memory and the source: what one
// instance has loaded the others read there. It takes no writes. Whatever changes an
// item deletes its value, in the same step in which Redis accepts the message, and
// the next load stores another.
//
// A load claims its key first, by a token in Redis, which is extended while the load
// lives, see claims. Who finds it claimed waits for the value. An invalidation takes the
// token away, too: a value that was loaded before it is stored nowhere.
//
// A value's label says how often the cache had been cleared when its load was
// claimed. Redis alone knows how often that is now, so it is asked with each value.
//
// What Redis says counts only if the server is the one that this instance follows: a
// master, of the history that the last echo showed.
//
//  1. a value is removed   2. a replica takes over, which never heard of it and has the
//     value still   3. an instance that has not probed since reads it under its lease.
//
// The probe that renews the lease voids all values of another history.
//
// Redis is never in a load's way: what fails, or takes longer than Timeout, is left
// out, and after some failures for a while altogether.
type shared[K comparable, V any] struct {
	redis     *valueGuard
	backplane *Backplane
	local     *local[K, V]
	cache     string
	keys      keyCodec[K]
	options   SharedOptions[V]
	keeper    *keeper[K, V]
	regions   func(K, V) []string // may be nil
	exact     bool                // items have a life of their own, by Expiry
	notFounds time.Duration       // Options.NotFoundTTL

	notFoundRegions func(K) []string // may be nil

	claimed time.Duration // for how long the claim of a load is kept at most
	kind    uint64        // of the values, see fingerprintOf
	refused logOnce       // by the codec: for the log
	checked atomic.Bool   // the first value that was stored
	stats   *sharedCounters
}

const (
	// The pauses between looks for the value that another instance loads. They grow
	// with the wait, as what has taken long takes longer.
	leastPause = time.Millisecond
	mostPause  = 50 * time.Millisecond

	// mostTogether bounds how many keys one script is for, and how many bytes: Redis
	// does nothing else meanwhile.
	mostTogether      = 256
	mostBytesTogether = 1 << 20

	// mostBytesRead bounds the bytes of the values that are read in one exchange, however
	// large they are.
	mostBytesRead = 256 << 20
)

func newShared[K comparable, V any](c *Cache[K, V]) *shared[K, V] {
	o := c.options
	most := o.LoadTimeout
	if most == 0 {
		most = mostLives * o.Shared.LoadWait
	}
	return &shared[K, V]{
		redis:     newValueGuard(c.backplane, c.local.lease, o.Name, o.Shared.Timeout, o.Shared.MaxValueBytes+mostLabel, &c.stats.shared),
		backplane: c.backplane, local: c.local, cache: o.Name, keys: c.keys,
		options: *o.Shared, keeper: c.keeper, regions: o.Regions, notFoundRegions: o.NotFoundRegions,
		exact: o.Expiry != nil, notFounds: o.NotFoundTTL, claimed: most, kind: fingerprintOf(o.Shared.Codec),
		stats: &c.stats.shared,
	}
}

// lookup is a flight's business with the shared level.
type sharedLookup[K comparable, V any] struct {
	flight *flight[K, V]
	wire   string

	seenID           string // the id of the value that was seen, and was no good
	toRead           bool   // it is to be looked at
	claimedElsewhere bool   // somebody else's load is under way
	bypass           bool   // somebody else's load has left nothing: no claim is made
	found            bool   // the flight has its value

	// Of the claim, if there is a token: how the value will be labelled.
	token string
	epoch string
	count uint64
}

// lookup returns what a flight that has begun has to do with the shared level; nil:
// nothing.
func (s *shared[K, V]) lookup(f *flight[K, V]) *sharedLookup[K, V] {
	if lookups := s.lookups([]*flight[K, V]{f}); len(lookups) > 0 {
		return lookups[0]
	}
	return nil
}

// fetch answers an lookup's flight from the shared level, or returns with the claim of
// its load, if it could get one.
func (s *shared[K, V]) resolve(ctx context.Context, e *sharedLookup[K, V]) {
	lookups := []*sharedLookup[K, V]{e}
	began := time.Now()
	for busy := s.readAndClaim(ctx, lookups); busy; {
		busy = s.retry(ctx, lookups, began)
	}
}

// look looks for a value, and claims nothing. It reports whether that is to be gone on
// with: Redis has answered, or ctx has ended, which is a caller's and none of its
// business.
func (s *shared[K, V]) lookOnce(ctx context.Context, e *sharedLookup[K, V]) (goOn bool) {
	if !e.toRead {
		return true
	}
	history := s.redis.history(1)
	if history == "" {
		return false
	}
	if s.read(ctx, history, []*sharedLookup[K, V]{e}) {
		return true
	}
	e.toRead = true
	return ctx.Err() != nil
}

// lookups returns those of flights that have begun and may use the shared level. The
// others load.
//
//  1. this instance invalidates a key   2. a Get begins, and reads the old value in
//     Redis   3. Redis accepts the message, and deletes the value. The message comes
//     back as work that was done.
//
// So from before the local part until Redis has accepted the message no flight may. One
// that began before the local part is overtaken by that.
func (s *shared[K, V]) lookups(flights []*flight[K, V]) []*sharedLookup[K, V] {
	lookups := make([]*sharedLookup[K, V], 0, len(flights))
	for _, f := range flights {
		wire, err := s.wire(f.key)
		switch {
		case err != nil || !f.mayShare || s.local.closed.Load():
			s.stats.noLease.Add(1)
		case s.backplane.publisher.pending(s.cache, wire):
			s.stats.ownWrite.Add(1)
		default:
			lookups = append(lookups, &sharedLookup[K, V]{flight: f, wire: wire, toRead: !f.skipShared})
		}
	}
	return lookups
}

// wire returns a key's form in Redis. MarshalText may panic, and nobody is there to be
// told.
func (s *shared[K, V]) wire(key K) (wire string, err error) {
	defer recovered("MarshalText", &err)
	return s.keys.wire(key)
}

// seek looks for values, and claims the loads of those that it does not find. It
// reports whether there are any to wait for.
func (s *shared[K, V]) readAndClaim(ctx context.Context, lookups []*sharedLookup[K, V]) (busy bool) {
	history := s.redis.history(len(lookups))
	if history == "" {
		return false
	}
	for part := range slices.Chunk(lookups, s.together()) {
		// A value may come between the two steps, to be looked at once more. It does not go
		// on for ever: the last is taken as it is.
		for range 3 {
			if !s.read(ctx, history, part) || !s.claim(ctx, history, part) {
				for _, e := range lookups { // nobody waits for a value through a Redis that fails
					e.claimedElsewhere = false
				}
				return false
			}
			if !slices.ContainsFunc(part, func(e *sharedLookup[K, V]) bool { return e.toRead }) {
				break
			}
		}
	}
	return slices.ContainsFunc(lookups, func(e *sharedLookup[K, V]) bool { return e.claimedElsewhere })
}

// together returns how many values are read in one exchange.
func (s *shared[K, V]) together() int {
	return max(1, min(mostTogether, mostBytesRead/max(1, s.options.MaxValueBytes)))
}

// again waits a little and looks once more for the values that others load. It reports
// whether there are any to wait for still: not when ctx has ended, nor when the longest
// claim that was there at a time would have ended. So nobody waits for several loads that
// hang, one after the other.
func (s *shared[K, V]) retry(ctx context.Context, lookups []*sharedLookup[K, V], began time.Time) (busy bool) {
	var sought []*sharedLookup[K, V]
	for _, e := range lookups {
		if e.claimedElsewhere {
			e.claimedElsewhere = false
			sought = append(sought, e)
		}
	}
	if waited := time.Since(began); waited >= s.claimed+s.options.LoadWait || !s.pause(ctx, waited) {
		return false
	}
	busy = s.readAndClaim(ctx, sought)
	for _, e := range sought {
		if e.found {
			s.stats.waited.Add(1)
		}
	}
	return busy
}

// pause waits for an eighth of what was waited for so far, within bounds, and reports
// whether ctx is alive.
func (s *shared[K, V]) pause(ctx context.Context, waited time.Duration) bool {
	d := min(max(waited/8, leastPause), mostPause)
	return backoff.Wait(ctx, backoff.Less(s.backplane.random, d+d/4, 5), nil)
}

// read looks at the values of those lookups that are to be read, and answers the
// flights of those that are valid. It reports whether Redis answered.
func (s *shared[K, V]) read(ctx context.Context, history string, lookups []*sharedLookup[K, V]) bool {
	var sought []*sharedLookup[K, V]
	var wires []string
	for _, e := range lookups {
		if e.toRead {
			e.toRead = false
			sought, wires = append(sought, e), append(wires, e.wire)
		}
	}
	if len(sought) == 0 {
		return true
	}
	reading, err := s.redis.read(ctx, history, wires, nil)
	if err != nil {
		return false
	}
	var doubtful []candidate[K, V] // since something was cleared meanwhile
	until := time.Now().Add(s.options.Timeout)
	for i, e := range sought {
		c := candidate[K, V]{lookup: e}
		switch c.judge(ctx, s, &reading.Values[i], &reading, until) {
		case usable:
			s.answer(&c)
		case doubted:
			doubtful = append(doubtful, c)
		}
	}
	if len(doubtful) > 0 && !s.resolveDoubts(ctx, history, reading.Epoch, doubtful) {
		return false
	}
	for _, e := range sought {
		if e.found {
			s.stats.hits.Add(1)
		} else {
			s.stats.misses.Add(1)
		}
	}
	return true
}

// claim claims the loads of lookups that have found nothing. It reports whether Redis
// answered.
func (s *shared[K, V]) claim(ctx context.Context, history string, lookups []*sharedLookup[K, V]) bool {
	var sought []*sharedLookup[K, V]
	var claims []transport.Claim
	own := s.backplane.claims
	for _, e := range lookups {
		if e.found || e.token != "" || e.claimedElsewhere || e.bypass {
			continue
		}
		sought = append(sought, e)
		claims = append(claims, transport.Claim{
			Key: e.wire, Token: tokenNonce(), Seen: e.seenID, Any: e.flight.skipShared, Life: s.options.LoadWait,
			Own: own.token(claimed{s.stats, e.wire}),
		})
	}
	if len(sought) == 0 {
		return true
	}
	began := time.Now()
	answer, err := s.redis.claim(ctx, history, s.longestLife(), claims)
	if err != nil {
		return false
	}
	for i, e := range sought {
		switch answer.States[i] {
		case transport.ClaimTaken:
			e.token, e.epoch, e.count = answer.Token(claims[i]), answer.Epoch, answer.Count
			own.hold(&heldClaim{
				claimed: claimed{s.stats, e.wire}, cache: s.cache, token: e.token, epoch: answer.Epoch, count: answer.Count,
				load: ctx, began: began, life: s.options.LoadWait, most: s.claimed, timeout: s.options.Timeout,
			})
		case transport.ClaimOwn:
			// 1. a load here hangs, and its claim is kept   2. another one of its key begins
			// here, since its callers may not join that. It must not wait for it either.
			if h := own.share(claims[i].Own); h != nil {
				e.token, e.epoch, e.count = h.token, h.epoch, h.count
				continue
			}
			e.claimedElsewhere = !e.flight.skipShared // it has just ended, and is about to end in Redis
		case transport.ClaimBusy:
			e.claimedElsewhere = !e.flight.skipShared // which takes nobody else's
		case transport.ClaimChanged:
			e.toRead = true
		case transport.ClaimBypass:
			e.bypass = true
		}
	}
	return true
}

// tokenNonce returns what a token is made of.
func tokenNonce() string {
	nonce := drawNonce()
	return string(nonce[:])
}

// longestLife is how long a value of this cache can stand in Redis after its claim.
func (s *shared[K, V]) longestLife() time.Duration { return s.options.TTL + s.options.LoadWait }

// settle ends the claims of lookups whose flights have landed: it stores what was
// loaded, if it is to be kept at all.
func (s *shared[K, V]) endClaims(lookups []*sharedLookup[K, V]) {
	var puts []transport.Put
	check := nothing
	defer func() { check() }() // last: nobody waits for it
	defer func() {             // a codec can end the goroutine: the rest is let go
		for _, e := range lookups {
			if e.token != "" {
				puts = append(puts, transport.Put{Key: e.wire, Token: e.token})
				e.token = ""
			}
		}
		s.storeInParts(puts)
	}()
	size := 0
	for _, e := range lookups {
		if e.token == "" {
			continue
		}
		p := s.put(e)
		if o := &e.flight.outcome; p.Bytes != nil && o.err == nil && len(p.Bytes) <= mostChecked && !s.checked.Swap(true) {
			check = func() { s.checkStored(o.value, p.Bytes) }
		}
		e.token = ""
		if size += len(p.Bytes); len(puts) == mostTogether || len(puts) > 0 && size > mostBytesTogether {
			s.store(puts)
			puts, size = nil, len(p.Bytes)
		}
		puts = append(puts, p)
	}
}

func (s *shared[K, V]) storeInParts(puts []transport.Put) {
	for part := range slices.Chunk(puts, mostTogether) {
		s.store(part)
	}
}

func (s *shared[K, V]) store(puts []transport.Put) {
	if puts = s.backplane.claims.letGo(puts); len(puts) == 0 {
		return
	}
	stored, err := s.redis.put(puts)
	if err != nil {
		return // the tokens end by themselves
	}
	for i, p := range puts {
		switch {
		case p.Bytes == nil:
		case stored[i]:
			s.stats.stored.Add(1)
		default:
			s.stats.overtaken.Add(1)
		}
	}
}

// put returns what ends the claim of a flight that has landed.
func (s *shared[K, V]) put(e *sharedLookup[K, V]) transport.Put {
	p := transport.Put{Key: e.wire, Token: e.token}
	f := e.flight
	o := &f.outcome
	p.Bypass = f.ran && f.state.Load()&flightUnheard == 0
	if p.Forget = o.known; !o.known || o.life <= 0 {
		return p
	}
	life := s.backplane.jittered(s.options.TTL)
	if o.err != nil || s.exact {
		life = min(life, o.life)
	}
	life -= time.Duration(s.local.lease.now() - f.start.at) // it counts from the load's start
	if life <= 0 {
		return p
	}
	l := label{id: e.token, notFound: o.err != nil, epoch: e.epoch, count: e.count, kind: s.kind, loaded: time.Now(), life: life}
	bytes, err := encodeValue(&s.options, l, o.value)
	switch {
	case err != nil:
		s.stats.unencodable.Add(1)
		if s.refused.allow() {
			s.backplane.logger.Warn("nearcache: a value cannot be encoded for the shared level; such items are loaded by each instance",
				"cache", s.cache, "err", err)
		}
	case bytes == nil:
		s.stats.tooLarge.Add(1)
	default:
		p.Bytes, p.Life = bytes, life
	}
	return p
}

// close ends the claims of loads that are under way.
func (s *shared[K, V]) close() {
	s.backplane.claims.release(context.Background(), s.stats)
	s.backplane.sharedOutage.works(s.redis) // it does not fail any more, and nothing is said of that
}
