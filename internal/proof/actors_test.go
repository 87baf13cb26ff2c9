package proof

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nearcache/nearcache"
)

// actor is one goroutine that reads or writes on one instance, one thing
// after another.
type actor struct {
	run  *schedule
	in   *instance
	name string
}

func (a *actor) log(format string, args ...any) { a.run.journal.log(a.name, format, args...) }

// read reads one item: with Get, with Peek, or with several Gets at about the same
// time.
func (a *actor) read(r *rand.Rand) {
	c, key := r.IntN(2), r.IntN(a.run.plan.keys)
	switch n := r.IntN(20); {
	case n < 1:
		a.all(c)
	case n < 2:
		a.peek(c, key)
	case n < 4:
		var readers sync.WaitGroup
		for i := range 2 + r.IntN(2) {
			after := between(r, 1, 10*time.Microsecond)
			b := &actor{run: a.run, in: a.in, name: fmt.Sprintf("%s.%d", a.name, i)}
			ctx, cancel := patient(r)
			readers.Go(func() {
				defer cancel()
				time.Sleep(after)
				b.get(ctx, c, key)
			})
		}
		readers.Wait()
	case n < 6:
		keys := []int{key}
		for range 1 + r.IntN(3) {
			keys = append(keys, r.IntN(a.run.plan.keys))
		}
		a.getMany(c, keys)
	case n < 7:
		ctx, cancel := patient(r)
		began := a.run.journal.now()
		value, err := a.in.caches[c].Refresh(ctx, key)
		a.judge("refreshes", ctx, c, key, began, value, err)
		cancel()
	case n < 10:
		ctx, cancel := context.WithTimeout(context.Background(), between(r, 1, 20*time.Millisecond))
		a.get(ctx, c, key)
		cancel()
	default:
		ctx, cancel := patient(r)
		a.get(ctx, c, key)
		cancel()
	}
}

// patient returns a context that does not end before a read. Half of them could, so
// that the load has a goroutine of its own.
func patient(r *rand.Rand) (context.Context, context.CancelFunc) {
	if r.IntN(2) == 0 {
		return context.Background(), func() {}
	}
	return context.WithCancel(context.Background())
}

func (a *actor) get(ctx context.Context, c, key int) {
	began := a.run.journal.now()
	value, err := a.in.caches[c].Get(ctx, key)
	a.judge("gets", ctx, c, key, began, value, err)
}

// judge judges what a read returned, that began then.
func (a *actor) judge(does string, ctx context.Context, c, key int, began time.Duration, value *item, err error) {
	found := err == nil
	said := fmt.Sprint(err)
	if a.run.tolerates(c, err) {
		said = "an error" // LoadTimeout's, or what the loader makes of it
	}
	a.log("%s %s/%d, begun at %v: %v, %s", does, a.run.history.caches[c].name, key, began, value, said)
	switch {
	case found || errors.Is(err, nearcache.ErrNotFound):
		a.run.history.read(a.in.number, c, key, began, value, found)
		if err == nearcache.ErrNotFound { // as it is: not the loader's
			atomic.AddUint64(&a.run.totals.notFounds, 1)
		}
	case a.run.tolerates(c, err), ctx.Err() != nil && errors.Is(err, ctx.Err()):
	default:
		a.run.journal.fail("%s: a read returns %v", a.name, err)
	}
	if found {
		a.countRead(began, value)
	}
}

// getMany judges each of the keys: those that are not in the map do not exist, if
// they are not in the error.
func (a *actor) getMany(c int, keys []int) {
	began := a.run.journal.now()
	got, err := a.in.caches[c].GetMany(context.Background(), keys...)
	failed := map[int]error{}
	for _, err := range allErrors(err) {
		var of *nearcache.KeysError[int]
		if !errors.As(err, &of) {
			a.run.journal.fail("%s: GetMany returns %v", a.name, err)
			return
		}
		for _, key := range of.Keys {
			failed[key] = of.Err
		}
	}
	for _, key := range keys {
		err := failed[key]
		if err == nil && got[key] == nil {
			err = fmt.Errorf("not in the map: %w", nearcache.ErrNotFound)
		}
		a.judge("gets with others", context.Background(), c, key, began, got[key], err)
		atomic.AddUint64(&a.run.totals.together, 1)
	}
}

// allErrors returns what errors.Join joined.
func allErrors(err error) []error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return joined.Unwrap()
	}
	if err == nil {
		return nil
	}
	return []error{err}
}

func (a *actor) peek(c, key int) {
	began := a.run.journal.now()
	value, held := a.in.caches[c].Peek(key)
	a.log("peeks at %s/%d: %v, %t", a.run.history.caches[c].name, key, value, held)
	if held {
		a.run.history.read(a.in.number, c, key, began, value, true)
		a.countRead(began, value)
	}
}

// all judges each item that All yields, and Keys. Nothing comes in between, in simulated
// time; TestReadsBeginWithTheLease has what may.
func (a *actor) all(c int) {
	began := a.run.journal.now()
	got := maps.Collect(a.in.caches[c].All())
	keys := slices.Sorted(a.in.caches[c].Keys())
	if !slices.Equal(keys, slices.Sorted(maps.Keys(got))) {
		a.run.journal.fail("%s: Keys yields %v, and All %v", a.name, keys, got)
	}
	a.log("lists %s: %d items", a.run.history.caches[c].name, len(got))
	for _, key := range keys {
		a.run.history.read(a.in.number, c, key, began, got[key], true)
		a.countRead(began, got[key])
	}
	atomic.AddUint64(&a.run.totals.listed, uint64(len(got)))
}

func (a *actor) countRead(began time.Duration, value *item) {
	t := &a.run.totals
	if value.by == "update" {
		atomic.AddUint64(&t.updates, 1)
	}
	if confirmed, warm := a.in.bus.warmSince(began); warm && value.began < confirmed {
		atomic.AddUint64(&t.warm, 1)
	}
}

// write changes the source and says so, in one of the ways there are.
func (a *actor) write(r *rand.Rand) {
	c, key := r.IntN(2), r.IntN(a.run.plan.keys)
	name := a.run.history.caches[c].name
	ctx, cancel := context.WithCancel(context.Background())
	if r.IntN(3) == 0 {
		cancel()
		ctx, cancel = context.WithTimeout(context.Background(), between(r, 1, 300*time.Millisecond))
	}
	defer cancel()
	switch n := r.IntN(106); {
	case n >= 101:
		a.burst(r)
	case n >= 100: // filler keys, more than a script deletes at once, and one that counts
		keys := make([]int, 1001+r.IntN(1000))
		for i := range keys {
			keys[i] = 1000 + i
		}
		keys[r.IntN(len(keys))] = key
		a.removeAll(ctx, r, c, []int{key}, keys)
	case n < 40:
		keys := []int{key}
		for range r.IntN(3) {
			keys = append(keys, r.IntN(a.run.plan.keys))
		}
		a.removeAll(ctx, r, c, keys, keys)
	case n < 65:
		a.update(ctx, r, c, key)
	case n < 73:
		a.set(ctx, r, c, key)
	case n < 90: // the second cache has no regions
		region := regionNames[r.IntN(len(regionNames))]
		a.invalidate(r, 0, []int{key}, invalidation{cache: "a", regions: []string{region}}, func() error {
			return a.in.caches[0].ClearRegion(ctx, region)
		})
	case n < 96:
		a.invalidate(r, c, []int{key}, invalidation{cache: name, clear: true}, func() error {
			return a.in.caches[c].Clear(ctx)
		})
	default:
		a.invalidate(r, c, []int{key}, invalidation{all: true}, func() error { return a.in.bp.ClearAll(ctx) })
	}
}

// removeAll removes keys, of which some are written at the source.
func (a *actor) removeAll(ctx context.Context, r *rand.Rand, c int, written, keys []int) {
	wires := make([]string, len(keys))
	for i, k := range keys {
		wires[i] = fmt.Sprint(k)
	}
	viaInvalidator := r.IntN(4) == 0
	a.invalidate(r, c, written, invalidation{cache: a.run.history.caches[c].name, keys: wires}, func() error {
		if viaInvalidator {
			return a.in.tells[c].Remove(ctx, keys...)
		}
		return a.in.caches[c].Remove(ctx, keys...)
	})
}

// burst makes several writes at about the same time, on both caches. While one is on its
// way the others gather, and go out as operations of one message.
func (a *actor) burst(r *rand.Rand) {
	ctx := context.Background()
	region := regionNames[r.IntN(len(regionNames))]
	var writers sync.WaitGroup
	for i, what := range []int{0, 0, 1, -1, 1} { // the cache of a Remove, or a region of the first
		key, after := r.IntN(a.run.plan.keys), between(r, 1, 10*time.Microsecond)
		mine := rand.New(rand.NewPCG(a.run.seed, r.Uint64()))
		b := &actor{run: a.run, in: a.in, name: fmt.Sprintf("%s.%d", a.name, i)}
		writers.Go(func() {
			time.Sleep(after)
			if what >= 0 {
				b.removeAll(ctx, mine, what, []int{key}, []int{key})
				return
			}
			b.invalidate(mine, 0, []int{key}, invalidation{cache: "a", regions: []string{region}}, func() error {
				return b.in.caches[0].ClearRegion(ctx, region)
			})
		})
	}
	writers.Wait()
}

// invalidate writes keys at the source, or leaves them as they are, and then calls
// tell.
func (a *actor) invalidate(r *rand.Rand, c int, keys []int, inv invalidation, tell func() error) {
	h := a.run.history
	if !h.claim(c, false, keys...) {
		return
	}
	defer h.release(c, keys...)
	for _, key := range keys {
		if r.IntN(10) > 0 {
			a.log("writes %s/%d: version %d", h.caches[c].name, key, h.write(c, key, r.IntN(4) == 0))
		}
		time.Sleep(between(r, 1, 2*time.Millisecond))
	}
	a.log("begins %v", inv)
	h.queue(a.in.number, inv)
	a.done(tell())
}

// done judges how a write ended.
func (a *actor) done(err error) {
	a.log("is done: %t", err == nil)
	if err != nil && !errors.Is(err, nearcache.ErrUnconfirmed) {
		a.run.journal.fail("%s: a write returns %v", a.name, err)
	}
}

// set writes an item and keeps it. It does nothing while another writer writes that item.
func (a *actor) set(ctx context.Context, r *rand.Rand, c, key int) {
	h := a.run.history
	if !h.claim(c, true, key) {
		return
	}
	defer h.release(c, key)
	version := h.write(c, key, false)
	time.Sleep(between(r, 1, 2*time.Millisecond))
	a.log("sets %s/%d: version %d", h.caches[c].name, key, version)
	h.queue(a.in.number, invalidation{cache: h.caches[c].name, keys: []string{fmt.Sprint(key)}}, version)
	a.done(a.in.caches[c].Set(ctx, key, &item{version: version, by: "set", began: a.run.journal.now()}))
}

var errWrite = errors.New("the source refuses")

// update updates an item, while others may do so too. The source takes the new version
// at some moment in between.
func (a *actor) update(ctx context.Context, r *rand.Rand, c, key int) {
	h := a.run.history
	if !h.claim(c, false, key) {
		return
	}
	defer h.release(c, key)
	took := between(r, 2, 10*time.Millisecond)
	if r.IntN(5) == 0 {
		took = between(r, 2, 2*a.run.plan.maxStaleness[0])
	}
	before := between(r, 1, took)
	fails, takes := r.IntN(8) == 0, r.IntN(2) == 0
	began := a.run.journal.now()
	inv := invalidation{cache: h.caches[c].name, keys: []string{fmt.Sprint(key)}}
	a.log("updates %s/%d", inv.cache, key)
	_, err := a.in.caches[c].Update(ctx, key, func(context.Context) (*item, error) {
		time.Sleep(before)
		version := 0
		if !fails || takes {
			version = h.write(c, key, false)
		}
		time.Sleep(took - before)
		if fails {
			a.log("fails to update %s/%d, version %d", inv.cache, key, version)
			h.queue(a.in.number, inv)
			return nil, errWrite
		}
		a.log("has updated %s/%d: version %d", inv.cache, key, version)
		h.queue(a.in.number, inv, version)
		return &item{version: version, by: "update", began: began}, nil
	})
	if fails != errors.Is(err, errWrite) {
		a.run.journal.fail("%s: Update returns %v", a.name, err)
	}
	if !fails {
		a.done(err)
	}
}
