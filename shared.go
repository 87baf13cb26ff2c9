package nearcache

import (
	"context"
	"slices"
	"sync/atomic"
	"time"

	"github.com/nearcache/nearcache/internal/backoff"
	"github.com/nearcache/nearcache/internal/loglimit"
	"github.com/nearcache/nearcache/internal/transport"
)

// shared is the shared level: it keeps values in Redis, between memory and the source.
// What one instance has loaded, the others read there. A write stores no value there.
// When Redis accepts the message of a change, the same script deletes the item's value.
// The next load stores the new value.
//
// A load first claims its key, by a token in Redis. The life of the token is extended
// while the load runs, see claims. A load that finds its key claimed waits for the
// value of the load that has the claim. An invalidation deletes the token as well as
// the value. So a value whose load began before the invalidation is not stored.
//
// A value's label says how often the cache had been cleared when the value's load was
// claimed. Only Redis knows how often it has been cleared by now. So each read of a value
// asks for that number too.
//
// An answer counts only if it comes from the server that this instance follows. That is a
// master with the history that the last echo showed.
//
//  1. a value is removed   2. a replica takes over that never heard of the removal, and
//     still has the value   3. an instance that has not probed since reads that value under
//     its lease.
//
// The probe that renews the lease makes all values of another history void.
//
// Redis never delays a load for long. A request that fails, or takes longer than Timeout,
// is given up. After several failures in a row, Redis is not asked for a while.
type shared[K comparable, V any] struct {
	redis     *valueGuard
	backplane *Backplane
	local     *local[K, V]
	cache     string
	keys      keyCodec[K]
	options   SharedOptions[V]
	keeper    *keeper[K, V]
	regions   func(K, V) []string // Options.Regions; may be nil
	exact     bool                // Options.Expiry is set, and decides how long each item lives
	notFounds time.Duration       // Options.NotFoundTTL

	notFoundRegions func(K) []string // Options.NotFoundRegions; may be nil

	longestClaim time.Duration // how long a load's claim is extended at most
	kind         uint64        // of the values, see fingerprintOf
	refused      loglimit.Once // the codec has refused to encode a value
	checked      atomic.Bool   // the first value to be stored was checked, see checkStored
	stats        *sharedCounters
}

const (
	// The bounds of the pause between two looks for a value that another instance is
	// loading. The pause grows with the wait, since a load that has taken long is likely
	// to take longer.
	leastPause = time.Millisecond
	mostPause  = 50 * time.Millisecond

	// mostTogether bounds the keys of one script, and mostBytesTogether bounds the bytes of
	// their values. Redis does nothing else while a script runs.
	mostTogether      = 256
	mostBytesTogether = 1 << 20

	// mostBytesRead bounds the bytes of the values that are read in one exchange, even if
	// each has MaxValueBytes.
	mostBytesRead = 256 << 20
)

func newShared[K comparable, V any](c *Cache[K, V]) *shared[K, V] {
	o := c.options
	longest := o.LoadTimeout
	if longest == 0 {
		longest = mostLives * o.Shared.LoadWait
	}
	return &shared[K, V]{
		redis:     newValueGuard(c.backplane, o.Name, o.Shared.Timeout, o.Shared.MaxValueBytes+mostLabel, &c.stats.shared),
		backplane: c.backplane, local: c.local, cache: o.Name, keys: c.keys,
		options: *o.Shared, keeper: c.keeper, regions: o.Regions, notFoundRegions: o.NotFoundRegions,
		exact: o.Expiry != nil, notFounds: o.NotFoundTTL, longestClaim: longest, kind: fingerprintOf(o.Shared.Codec),
		stats: &c.stats.shared,
	}
}

// sharedLookup is the state of one flight's lookup at the shared level.
type sharedLookup[K comparable, V any] struct {
	flight *flight[K, V]
	wire   string

	seenID           string // the id of the value that was found and could not be used
	toRead           bool   // the value is to be read next
	claimedElsewhere bool   // another load of the key is under way, whose value is waited for
	bypass           bool   // a load of the key has just ended without a value, so this one makes no claim
	found            bool   // the flight has its value

	// The claim of the flight; without one, token is empty. The label of the value will have
	// epoch and count.
	token string
	epoch string
	count uint64
}

// lookup returns the shared lookup of a flight that has begun, or nil if the flight may
// not use the shared level.
func (s *shared[K, V]) lookup(f *flight[K, V]) *sharedLookup[K, V] {
	if lookups := s.lookups([]*flight[K, V]{f}); len(lookups) > 0 {
		return lookups[0]
	}
	return nil
}

// resolve looks for the value of a flight, and waits while another instance is loading
// it. When it returns, sl has the value, a claim for the flight's own load, or neither.
func (s *shared[K, V]) resolve(ctx context.Context, sl *sharedLookup[K, V]) {
	lookups := []*sharedLookup[K, V]{sl}
	began := time.Now()
	for waiting := s.readAndClaim(ctx, lookups); waiting; {
		waiting = s.retry(ctx, lookups, began)
	}
}

// lookOnce looks for a value, and claims nothing. It reports whether sl is still of
// use. That is so if Redis has answered. It is also so if ctx has ended, since ctx is a
// caller's and its end says nothing about Redis.
func (s *shared[K, V]) lookOnce(ctx context.Context, sl *sharedLookup[K, V]) (proceed bool) {
	if !sl.toRead {
		return true
	}
	history := s.redis.history(1)
	if history == "" {
		return false
	}
	if s.read(ctx, history, []*sharedLookup[K, V]{sl}) {
		return true
	}
	sl.toRead = true
	return ctx.Err() != nil
}

// lookups returns the shared lookups of those flights that may use the shared level. The
// other flights load from the source. All flights have to have begun.
//
//  1. this instance invalidates a key   2. a Get begins, and reads the old value in Redis
//  3. Redis accepts the message, and deletes the value. This instance does not apply its
//     own message again, so the old value would stay in its memory.
//
// So this instance's loads skip Redis from just before the local part of an
// invalidation until Redis has accepted its message. A load that began earlier is
// overtaken by the local part.
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

// wire returns a key's form in Redis. It turns a panic of MarshalText into an error, since
// no caller is there to see it.
func (s *shared[K, V]) wire(key K) (wire string, err error) {
	defer recovered("MarshalText", &err)
	return s.keys.wire(key)
}

// readAndClaim reads values, and claims the loads of those that it does not find. It
// reports whether another instance is loading some of them.
func (s *shared[K, V]) readAndClaim(ctx context.Context, lookups []*sharedLookup[K, V]) (waiting bool) {
	history := s.redis.history(len(lookups))
	if history == "" {
		return false
	}
	for part := range slices.Chunk(lookups, s.keysPerRead()) {
		// A value may be stored between the two steps. Then it is read once more. The
		// number of rounds is bounded, and the last answer counts.
		for range 3 {
			if !s.read(ctx, history, part) || !s.claim(ctx, history, part) {
				for _, sl := range lookups { // while Redis fails, no load waits for a value there
					sl.claimedElsewhere = false
				}
				return false
			}
			if !slices.ContainsFunc(part, func(sl *sharedLookup[K, V]) bool { return sl.toRead }) {
				break
			}
		}
	}
	return slices.ContainsFunc(lookups, func(sl *sharedLookup[K, V]) bool { return sl.claimedElsewhere })
}

// keysPerRead returns how many values are read in one exchange.
func (s *shared[K, V]) keysPerRead() int {
	return max(1, min(mostTogether, mostBytesRead/max(1, s.options.MaxValueBytes)))
}

// retry pauses, and looks again for the values that other instances are loading. It
// reports whether to go on waiting. It reports false once ctx has ended. It also does so once
// any claim that was there when the wait began must have ended. Otherwise a load could
// wait for one hung load after another.
func (s *shared[K, V]) retry(ctx context.Context, lookups []*sharedLookup[K, V], began time.Time) (waiting bool) {
	var sought []*sharedLookup[K, V]
	for _, sl := range lookups {
		if sl.claimedElsewhere {
			sl.claimedElsewhere = false
			sought = append(sought, sl)
		}
	}
	if waited := time.Since(began); waited >= s.longestClaim+s.options.LoadWait || !s.pause(ctx, waited) {
		return false
	}
	waiting = s.readAndClaim(ctx, sought)
	for _, sl := range sought {
		if sl.found {
			s.stats.waited.Add(1)
		}
	}
	return waiting
}

// pause waits for about an eighth of waited, the time that was waited so far, within
// bounds. It reports whether ctx is still alive.
func (s *shared[K, V]) pause(ctx context.Context, waited time.Duration) bool {
	d := min(max(waited/8, leastPause), mostPause)
	return backoff.Wait(ctx, backoff.Less(s.backplane.random, d+d/4, 5), nil)
}

// read reads the values of those lookups that have toRead set. It gives each usable
// value to its flight. It reports whether Redis answered.
func (s *shared[K, V]) read(ctx context.Context, history string, lookups []*sharedLookup[K, V]) bool {
	var sought []*sharedLookup[K, V]
	var wires []string
	for _, sl := range lookups {
		if sl.toRead {
			sl.toRead = false
			sought, wires = append(sought, sl), append(wires, sl.wire)
		}
	}
	if len(sought) == 0 {
		return true
	}
	reading, err := s.redis.read(ctx, history, wires, nil)
	if err != nil {
		return false
	}
	var doubtful []candidate[K, V] // a region was cleared since their loads were claimed
	until := time.Now().Add(s.options.Timeout)
	for i, sl := range sought {
		c := candidate[K, V]{lookup: sl}
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
	for _, sl := range sought {
		if sl.found {
			s.stats.hits.Add(1)
		} else {
			s.stats.misses.Add(1)
		}
	}
	return true
}

// claim claims the loads of those lookups that have neither a value nor a claim. It
// reports whether Redis answered.
func (s *shared[K, V]) claim(ctx context.Context, history string, lookups []*sharedLookup[K, V]) bool {
	var sought []*sharedLookup[K, V]
	var claims []transport.Claim
	own := s.backplane.claims
	for _, sl := range lookups {
		if sl.found || sl.token != "" || sl.claimedElsewhere || sl.bypass {
			continue
		}
		sought = append(sought, sl)
		claims = append(claims, transport.Claim{
			Key: sl.wire, Token: tokenNonce(), Seen: sl.seenID, Any: sl.flight.skipShared, Life: s.options.LoadWait,
			Own: own.token(claimed{s.stats, sl.wire}),
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
	for i, sl := range sought {
		switch answer.States[i] {
		case transport.ClaimTaken:
			sl.token, sl.epoch, sl.count = answer.Token(claims[i]), answer.Epoch, answer.Count
			own.hold(&heldClaim{
				claimed: claimed{s.stats, sl.wire}, cache: s.cache, token: sl.token, epoch: answer.Epoch, count: answer.Count,
				load: ctx, began: began, life: s.options.LoadWait, most: s.longestClaim, timeout: s.options.Timeout,
			})
		case transport.ClaimOwn:
			// 1. a load of this instance hangs, and its claim is kept   2. another load of
			// the key begins on this instance, since callers may not join the first. The
			// second must not wait for the first. So it shares the claim.
			if h := own.share(claims[i].Own); h != nil {
				sl.token, sl.epoch, sl.count = h.token, h.epoch, h.count
				continue
			}
			sl.claimedElsewhere = !sl.flight.skipShared // this instance's claim has just ended, and is about to end in Redis
		case transport.ClaimBusy:
			sl.claimedElsewhere = !sl.flight.skipShared // such a flight takes no other load's value
		case transport.ClaimChanged:
			sl.toRead = true
		case transport.ClaimBypass:
			sl.bypass = true
		}
	}
	return true
}

// tokenNonce returns the random bytes from which Redis makes a token.
func tokenNonce() string {
	nonce := drawNonce()
	return string(nonce[:])
}

// longestLife is how long a value of this cache can stay in Redis after its claim.
func (s *shared[K, V]) longestLife() time.Duration { return s.options.TTL + s.options.LoadWait }

// endClaims ends the claims of lookups whose flights are done. It stores those of their
// values that are to be kept.
func (s *shared[K, V]) endClaims(lookups []*sharedLookup[K, V]) {
	var puts []transport.Put
	check := nothing
	defer func() { check() }() // runs last: no caller waits for it
	defer func() {             // also if a codec ends the goroutine: the other claims are released
		for _, sl := range lookups {
			if sl.token != "" {
				puts = append(puts, transport.Put{Key: sl.wire, Token: sl.token})
				sl.token = ""
			}
		}
		s.storeInParts(puts)
	}()
	size := 0
	for _, sl := range lookups {
		if sl.token == "" {
			continue
		}
		p := s.put(sl)
		if o := &sl.flight.outcome; p.Bytes != nil && o.err == nil && len(p.Bytes) <= mostChecked && !s.checked.Swap(true) {
			check = func() { s.checkStored(o.value, p.Bytes) }
		}
		sl.token = ""
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
		return // the tokens expire
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

// put returns the request that ends the claim of a flight that is done.
func (s *shared[K, V]) put(sl *sharedLookup[K, V]) transport.Put {
	p := transport.Put{Key: sl.wire, Token: sl.token}
	f := sl.flight
	o := &f.outcome
	p.Bypass = f.ran && f.state.Load()&flightAbandoned == 0
	if p.Forget = o.known; !o.known || o.life <= 0 {
		return p
	}
	life := s.backplane.jittered(s.options.TTL)
	if o.err != nil || s.exact {
		life = min(life, o.life)
	}
	life -= time.Duration(s.local.lease.now() - f.start.at) // an item's life counts from its load's start
	if life <= 0 {
		return p
	}
	l := label{id: sl.token, notFound: o.err != nil, epoch: sl.epoch, count: sl.count, kind: s.kind, loaded: time.Now(), life: life}
	bytes, err := encodeValue(&s.options, l, o.value)
	switch {
	case err != nil:
		s.stats.unencodable.Add(1)
		if s.refused.Allow() {
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

// close releases the claims of loads that are under way.
func (s *shared[K, V]) close() {
	s.backplane.claims.release(context.Background(), s.stats)
	s.backplane.sharedOutage.works(s.redis) // a closed cache no longer counts as failing; the log does not say so
}
