package fakebus

import (
	"fmt"
	"hash/fnv"
	"maps"
	"strings"
	"time"

	"github.com/nearcache/nearcache/internal/transport"
)

// data is the data of a Redis server: of the master, or of a replica.
type data struct {
	position string // empty: there is none
	values   map[item]entry
	tokens   map[item]entry
	clears   *clears // nil: there are none, and no value is valid
}

// item names a value, and the token of the load that replaces it.
type item struct{ cache, key string }

// entry is a string that expires.
type entry struct {
	text    string
	expires int64 // the last millisecond in which it exists, as Redis counts

	// Of a token: the epoch and the count at its claim.
	epoch string
	count int64
}

// clears is the hash of clears.
type clears struct {
	epoch, history string
	fields         map[string]int64 // the other fields, with their names in Redis
}

func newData() *data { return &data{values: map[item]entry{}, tokens: map[item]entry{}} }

// clone returns a copy that changes on its own.
func (d *data) clone() *data {
	c := *d
	c.values, c.tokens = maps.Clone(d.values), maps.Clone(d.tokens)
	if d.clears != nil {
		c.clears = &clears{d.clears.epoch, d.clears.history, maps.Clone(d.clears.fields)}
	}
	return &c
}

// lookUp returns an entry that has not expired, and how many milliseconds it has left.
func lookUp(entries map[item]entry, of item) (e entry, life int64, found bool) {
	e, found = entries[of]
	if life = e.expires - time.Now().UnixMilli(); !found || life < 0 {
		delete(entries, of)
		return entry{}, 0, false
	}
	return e, life, true
}

func set(entries map[item]entry, of item, e entry, life time.Duration) {
	e.expires = time.Now().UnixMilli() + milliseconds(life)
	entries[of] = e
}

func milliseconds(d time.Duration) int64 { return max(d.Milliseconds(), 1) }

// change is the part of the publish script that changes the shared level. limit is the
// least number of fields of the hash at which it is tidied.
func (d *data) change(changes []transport.Change, limit int) {
	if d.clears == nil {
		return
	}
	cleared := false
	for _, c := range changes {
		for _, key := range c.Keys {
			delete(d.values, item{c.Cache, key})
			delete(d.tokens, item{c.Cache, key})
		}
		cleared = cleared || c.All || c.Clear || len(c.Regions) > 0
	}
	if !cleared {
		return
	}
	for _, c := range changes {
		for _, region := range c.Regions {
			d.clears.advance(c.Cache, regionField(c.Cache, region))
		}
		switch {
		case c.All:
			d.clears = nil
			return
		case c.Clear:
			d.clears.advance(c.Cache, "c:"+c.Cache)
		}
	}
	if !d.clears.tidy(int64(limit)) {
		d.clears = nil
	}
}

func regionField(cache, region string) string { return "r:" + cache + ":" + region }

// advance counts a clear, unless the cache has no values.
func (c *clears) advance(cache, field string) {
	if c.fields["l:"+cache] == 0 {
		return
	}
	count := max(c.fields["n:"+cache]+1, time.Now().UnixMicro())
	c.fields["n:"+cache], c.fields[field] = count, count
}

// tidy removes regions without a value, if there are many fields. It reports whether few
// enough are left.
func (c *clears) tidy(least int64) bool {
	const named = 2 // fields that are not in the map
	limit, found := c.fields["limit"]
	if !found {
		limit = least
	}
	if int64(len(c.fields)+named) <= limit {
		return true
	}
	now := time.Now().UnixMicro()
	for field, count := range c.fields {
		of, isRegion := strings.CutPrefix(field, "r:")
		cache, _, _ := strings.Cut(of, ":")
		if isRegion && count+c.fields["l:"+cache]*1000 < now {
			delete(c.fields, field)
			c.fields["c:"+cache] = max(c.fields["c:"+cache], count)
		}
	}
	left := int64(len(c.fields) + named)
	c.fields["limit"] = max(least, 2*left)
	return left <= 64*least
}

// probe is the part of the probe script that concerns the shared level: clears of another
// history are void.
func (d *data) probe(history string) {
	if history != "" && d.clears != nil && d.clears.history != history {
		d.clears = nil
	}
}

// read is the part of Read that reads values.
func (d *data) read(cache string, keys []string) []transport.Value {
	values := make([]transport.Value, len(keys))
	for i, key := range keys {
		e, life, found := lookUp(d.values, item{cache, key})
		values[i] = transport.Value{Found: found, Life: time.Duration(life) * time.Millisecond}
		if found {
			values[i].Bytes = []byte(e.text)
		}
	}
	return values
}

// judge is the part of Read that reads what shows whether values are valid.
func (d *data) judge(r *transport.Reading, cache string, regions []string) {
	counts := map[string]int64{}
	if d.clears != nil {
		r.Epoch, counts = d.clears.epoch, d.clears.fields
	}
	r.Count, r.Cleared = uint64(counts["n:"+cache]), uint64(counts["c:"+cache])
	for _, region := range regions {
		r.Regions = append(r.Regions, uint64(counts[regionField(cache, region)]))
	}
}

// claim is the claim script.
func (d *data) claim(
	cache, history, epoch string, life time.Duration, claims []transport.Claim,
) (claimed transport.Claimed) {
	if d.clears == nil {
		d.clears = &clears{epoch: epoch, history: history, fields: map[string]int64{}}
	}
	fields := d.clears.fields
	fields["l:"+cache] = max(fields["l:"+cache], milliseconds(life))
	for _, c := range claims {
		claimed.States = append(claimed.States, d.claimOne(item{cache, c.Key}, c))
	}
	claimed.Epoch, claimed.Count = d.clears.epoch, uint64(fields["n:"+cache])
	return claimed
}

func (d *data) claimOne(of item, c transport.Claim) transport.ClaimState {
	held, _, claimed := lookUp(d.tokens, of)
	switch {
	case held.text == bypassed && !c.Any:
		return transport.ClaimBypass
	case claimed && held.text != bypassed && held.epoch == d.clears.epoch && held.count >= d.clears.fields["c:"+of.cache]:
		if held.text == c.Own {
			return transport.ClaimOwn
		}
		return transport.ClaimBusy
	}
	value, _, _ := lookUp(d.values, of)
	if id := idOf(value.text); !c.Any && id != "" && id != c.Seen {
		return transport.ClaimChanged
	}
	set(d.tokens, of, entry{text: c.Token, epoch: d.clears.epoch, count: d.clears.fields["n:"+of.cache]}, c.Life)
	return transport.ClaimTaken
}

func idOf(value string) string {
	const end = transport.IDAt + transport.IDLength
	return value[min(transport.IDAt, len(value)):min(end, len(value))]
}

// put is the put script.
func (d *data) put(cache string, puts []put) []bool {
	stored := make([]bool, len(puts))
	for i, p := range puts {
		of := item{cache, p.key}
		if held, _, found := lookUp(d.tokens, of); !found || held.text != p.token {
			continue
		}
		delete(d.tokens, of)
		switch stored[i] = p.text != ""; {
		case stored[i]:
			set(d.values, of, entry{text: p.text}, p.life)
		case p.bypass || p.forget:
			set(d.tokens, of, entry{text: bypassed}, transport.BypassFor)
			if p.forget {
				delete(d.values, of)
			}
		}
	}
	return stored
}

// keep is the keep script.
func (d *data) keep(keeps []transport.Keep) []bool {
	kept := make([]bool, len(keeps))
	for i, k := range keeps {
		of := item{k.Cache, k.Key}
		held, _, found := lookUp(d.tokens, of)
		if kept[i] = found && held.text == k.Token; !kept[i] {
			continue
		}
		if k.Life > 0 {
			set(d.tokens, of, held, k.Life)
		} else {
			delete(d.tokens, of)
		}
	}
	return kept
}

// put is a transport.Put, with the bytes as they were when it was sent.
type put struct {
	key, token, text string
	life             time.Duration
	bypass, forget   bool
}

// bypassed is stored instead of a token after a load that has stored nothing.
const bypassed = "!"

// hash returns a hash of strings.
func hash(of ...string) uint64 {
	h := fnv.New64a()
	for _, s := range of {
		fmt.Fprintf(h, "%d:%s", len(s), s)
	}
	return h.Sum64()
}

// epochAt returns an epoch's name. It comes from no stream, since claims come in any order.
func epochAt(seed uint64, instance int) string {
	return sha1hex(fmt.Sprint("epoch", seed, instance, time.Now().UnixNano()))[:16]
}
