package proof

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nearcache/nearcache/internal/messagetest"
)

// history is the source of a simulated fleet, and the checker of what the
// fleet's caches say. What it checks of every read, as it happens:
//
//  1. A read that starts at t returns nothing older than an invalidation that was
//     accepted before t − MaxStaleness.
//  2. On the instance that made it, an invalidation is effective at once.
//  3. A read returns what the source said at some time before the read ended.
//
// And of every message that Redis accepts: that it holds every invalidation which
// its instance queued before it was sent and which was not accepted before.
type history struct {
	journal *journal

	mu       sync.Mutex // guards everything below
	caches   []*cache
	pending  [][]*announcement // by instance: queued and not yet accepted
	accepted int
	several  int // messages of more than two operations that were
	large    int // messages of more than a thousand keys that were
	reads    int
}

// cache is one cache of every instance, and its source.
type cache struct {
	name         string
	maxStaleness time.Duration
	keys         []key
}

type key struct {
	versions []version // by version number; number 0 was there from the start
	writers  int       // under way; -1: one that tolerates no other

	// What reads must not be older than, from which time on, both ascending.
	everywhere []requirement
	locally    [][]requirement          // by instance
	regions    map[string][]requirement // for versions in that region
}

// version is what a key was at the source for a while.
type version struct{ deleted bool }

// item is a version of an item as caches hold it.
type item struct {
	version int
	by      string        // load, update or set
	began   time.Duration // when that did
}

// requirement is that reads from a time on return at least a version.
type requirement struct {
	from    time.Duration
	version int
	by      *announcement
}

// invalidation is what one write has every instance evict: everything, a whole cache, or
// keys or regions of one cache.
type invalidation struct {
	all     bool
	cache   string
	clear   bool
	keys    []string
	regions []string
}

func (i invalidation) String() string {
	switch {
	case i.all:
		return "clear all"
	case i.clear:
		return "clear " + i.cache
	case len(i.regions) > 0:
		return fmt.Sprintf("clear regions %s %.200s", i.cache, strings.Join(i.regions, ","))
	default:
		return fmt.Sprintf("remove %s %.200s", i.cache, strings.Join(i.keys, ","))
	}
}

// announcement is an invalidation that an instance has queued.
type announcement struct {
	invalidation
	instance int
	queued   time.Duration
	versions [][]int // by cache and key: what it says is the least that may be seen
}

func (a *announcement) String() string {
	return fmt.Sprintf("%v by i%d, queued at %v", a.invalidation, a.instance, a.queued)
}

func newHistory(journal *journal, instances, keys int, maxStaleness ...time.Duration) *history {
	h := &history{journal: journal, pending: make([][]*announcement, instances)}
	for i, limit := range maxStaleness {
		c := &cache{name: string(rune('a' + i)), maxStaleness: limit, keys: make([]key, keys)}
		for k := range c.keys {
			c.keys[k] = key{
				versions: []version{{deleted: k == keys-1}},
				locally:  make([][]requirement, instances),
				regions:  map[string][]requirement{},
			}
		}
		h.caches = append(h.caches, c)
	}
	return h
}

var regionNames = []string{"red", "green", "blue"}

// regionsOf returns the regions of a version, which change from one to the next.
func regionsOf(key, version int) []string {
	n := mix(uint64(key)<<32 + uint64(version))
	switch n % 4 {
	case 0:
		return nil
	case 1:
		return regionNames[n>>8%3:][:1]
	default:
		return []string{regionNames[n>>8%3], regionNames[(n>>8+1)%3]}
	}
}

// mix makes one number of another, and hardly ever the same of two.
func mix(n uint64) uint64 {
	n += 0x9e3779b97f4a7c15
	n = (n ^ n>>30) * 0xbf58476d1ce4e5b9
	n = (n ^ n>>27) * 0x94d049bb133111eb
	return n ^ n>>31
}

// claim reports whether a writer may write keys now; release ends it. A Set must
// not race with other writers of its key.
func (h *history) claim(cache int, alone bool, keys ...int) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := h.caches[cache].keys
	for _, k := range keys {
		if all[k].writers < 0 || alone && all[k].writers > 0 {
			return false
		}
	}
	for _, k := range keys {
		all[k].writers++
		if alone {
			all[k].writers = -1
		}
	}
	return true
}

func (h *history) release(cache int, keys ...int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, k := range keys {
		key := &h.caches[cache].keys[k]
		key.writers = max(key.writers-1, 0)
	}
}

// write makes a new version at the source.
func (h *history) write(cache, key int, deleted bool) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	k := &h.caches[cache].keys[key]
	k.versions = append(k.versions, version{deleted: deleted})
	return len(k.versions) - 1
}

// source returns what the source says now.
func (h *history) source(cache, key int) (version int, deleted bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	k := &h.caches[cache].keys[key]
	version = len(k.versions) - 1
	return version, k.versions[version].deleted
}

// queue notes an invalidation that is about to be queued: no read may return less
// than what the source says now. But a write that keeps a value announces no more than
// its version, since the source may have taken another since.
func (h *history) queue(instance int, inv invalidation, kept ...int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	a := &announcement{invalidation: inv, instance: instance, queued: h.journal.now()}
	for _, c := range h.caches {
		versions := make([]int, len(c.keys))
		for k := range c.keys {
			versions[k] = len(c.keys[k].versions) - 1
			if kept != nil {
				versions[k] = kept[0]
			}
		}
		a.versions = append(a.versions, versions)
	}
	h.pending[instance] = append(h.pending[instance], a)
	h.require(a, a.queued, func(k *key) *[]requirement { return &k.locally[instance] })
}

// require makes what a announces a requirement, on one instance or everywhere. A
// clear of regions is one everywhere only, which keeps things simple.
func (h *history) require(a *announcement, from time.Duration, list func(*key) *[]requirement) {
	for i, c := range h.caches {
		if !a.all && a.cache != c.name {
			continue
		}
		for n := range c.keys {
			k := &c.keys[n]
			r := requirement{from: from, version: a.versions[i][n], by: a}
			if a.all || a.clear || slices.Contains(a.keys, fmt.Sprint(n)) {
				appendRequirement(list(k), r)
			}
			if a.queued != from {
				for _, region := range a.regions {
					l := k.regions[region]
					appendRequirement(&l, r)
					k.regions[region] = l
				}
			}
		}
	}
}

func appendRequirement(list *[]requirement, r requirement) {
	if n := len(*list); n == 0 || (*list)[n-1].version < r.version {
		*list = append(*list, r)
	}
}

// before returns the strongest of the requirements from before a time.
func before(list []requirement, at time.Duration) requirement {
	for i := len(list) - 1; i >= 0; i-- {
		if list[i].from < at {
			return list[i]
		}
	}
	return requirement{}
}

// accept notes that Redis has accepted a message. It announces all that was queued
// before it was sent; of what was queued at the same instant, what is in it.
func (h *history) accept(instance int, body string, sent time.Duration) {
	ops, err := messagetest.DecodeBody(body)
	if err != nil {
		h.journal.fail("i%d published an undecodable body %q: %v", instance, body, err)
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	now := h.journal.now()
	h.accepted++
	if len(ops) > 2 {
		h.several++
	}
	if slices.ContainsFunc(ops, func(o messagetest.Operation) bool { return len(o.Values) > 1000 }) {
		h.large++
	}
	left := h.pending[instance][:0:0]
	for _, a := range h.pending[instance] {
		in := a.in(ops)
		switch {
		case a.queued < sent && !in:
			h.journal.fail("%v, was dropped: the message that was sent at %v holds %v", a, sent, operations(ops))
		case a.queued < sent, a.queued == sent && in:
			h.require(a, now, func(k *key) *[]requirement { return &k.everywhere })
		default:
			left = append(left, a)
		}
	}
	h.pending[instance] = left
	h.journal.log("bus", "accepts %s of i%d, sent at %v", operations(ops), instance, sent)
}

// in reports whether ops hold all of a.
func (a *announcement) in(ops []messagetest.Operation) bool {
	missing := map[string]bool{}
	for _, value := range append(slices.Clone(a.keys), a.regions...) {
		missing[value] = true
	}
	op := byte(messagetest.RemoveKeys) // a has keys or regions, or neither
	if len(a.regions) > 0 {
		op = messagetest.ClearRegions
	}
	for _, o := range ops {
		switch {
		case o.Op == messagetest.ClearAll, o.Op == messagetest.ClearCache && o.Cache == a.cache && !a.all:
			return true
		case o.Op == op && o.Cache == a.cache:
			for _, value := range o.Values {
				delete(missing, value)
			}
		}
	}
	return !a.all && !a.clear && len(missing) == 0
}

// operations is what a message holds, in an order that does not depend on maps.
type operations []messagetest.Operation

func (ops operations) String() string {
	var parts []string
	for _, o := range ops {
		what := map[byte]string{
			messagetest.RemoveKeys: "remove", messagetest.ClearRegions: "clear regions",
			messagetest.ClearCache: "clear", messagetest.ClearAll: "clear all",
		}[o.Op]
		values := slices.Sorted(slices.Values(o.Values))
		parts = append(parts, strings.TrimSpace(fmt.Sprintf("%s %s %.200s", what, o.Cache, strings.Join(values, ","))))
	}
	slices.Sort(parts)
	return "[" + strings.Join(parts, "; ") + "]"
}

// read checks one read that has just ended: a value, or that there is none.
func (h *history) read(instance, cache, key int, began time.Duration, value *item, found bool) {
	h.readWithin(h.caches[cache].maxStaleness, instance, cache, key, began, value, found)
}

// readWithin checks one read, for a staleness of less than MaxStaleness.
func (h *history) readWithin(
	staleness time.Duration, instance, cache, key int, began time.Duration, value *item, found bool,
) {
	if value == nil {
		value = &item{}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.reads++
	c := h.caches[cache]
	k := &c.keys[key]
	limit := began - staleness
	needed := []requirement{before(k.everywhere, limit), before(k.locally[instance], began)}
	if found {
		for _, region := range regionsOf(key, value.version) {
			needed = append(needed, before(k.regions[region], limit))
		}
	} else { // a member of every region
		for _, region := range regionNames {
			needed = append(needed, before(k.regions[region], limit))
		}
	}
	least := requirement{}
	for _, r := range needed {
		if r.version > least.version {
			least = r
		}
	}
	legal := found && value.version >= least.version && !k.versions[value.version].deleted
	if !found {
		legal = slices.ContainsFunc(k.versions[least.version:], func(v version) bool { return v.deleted })
	}
	if legal {
		return
	}
	what := fmt.Sprintf("version %d", value.version)
	if !found {
		what = "not found"
	}
	var versions []string
	for n := max(0, value.version-1); n < len(k.versions); n++ {
		v := fmt.Sprintf("%d%v", n, regionsOf(key, n))
		if k.versions[n].deleted {
			v = fmt.Sprintf("%d deleted", n)
		}
		versions = append(versions, v)
	}
	h.journal.fail("a read of %s/%d on i%d that began at %v returned %s (%s at %v), but needed version %d:\n"+
		"\t%v,\n\teffective from %v, and %v tolerated\n\tversions: %s",
		c.name, key, instance, began, what, value.by, value.began, least.version,
		least.by, least.from, staleness, strings.Join(versions, ", "))
}
