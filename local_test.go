package nearcache

import (
	"context"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// check returns an error if an invariant of the local layer is broken.
func (l *local[K, V]) check(capacity int) error {
	for i := range l.shards {
		l.shards[i].mu.Lock()
		defer l.shards[i].mu.Unlock()
	}
	l.clears.mu.Lock()
	defer l.clears.mu.Unlock()

	held, members := 0, map[*region]int{}
	for i := range l.shards {
		sh := &l.shards[i]
		table := sh.table.Load()
		n, expiring := 0, int64(0)
		for e := range table.all() {
			n++
			if e.Item.expires.Load() != never {
				expiring++
			}
			if table.find(l.hash(e.Item.key), e.Item.key) != e {
				return fmt.Errorf("the entry of %v is not where it is looked for", e.Item.key)
			}
			if e.Item.scope.generation != sh.generation {
				return fmt.Errorf("the entry of %v is of another generation than its shard", e.Item.key)
			}
			for _, r := range e.Item.scope.regions {
				members[r]++
			}
		}
		if expiring != sh.expiring.Load() {
			return fmt.Errorf("%d entries expire, and %d are counted", expiring, sh.expiring.Load())
		}
		if sh.generation == l.current.Load() {
			held += n
		}
		if err := table.check(sh.policy.Len(), l.hash); err != nil {
			return err
		}
	}
	if held > capacity {
		return fmt.Errorf("%d entries, capacity %d", held, capacity)
	}
	for i := range l.shards {
		sh := &l.shards[i]
		flights := int64(0)
		if err := sh.policy.Check(); err != nil {
			return err
		}
		for key, newest := range sh.flights {
			for f := newest; f != nil; f = f.older {
				flights++
				if f.key != key || f.waiters < 0 {
					return fmt.Errorf("flight of %v under %v has %d waiters", f.key, key, f.waiters)
				}
				if _, limited := f.ctx.values.Deadline(); !limited && f.older != nil &&
					f.start.clears <= f.older.start.clears && f.start.generation == f.older.start.generation {
					return fmt.Errorf("flight of %v was not joined, and nothing was cleared", key)
				}
			}
		}
		if n := sh.underWay.Load(); l.regional && flights > n {
			return fmt.Errorf("%d flights, and only %d loads and writes under way", flights, n)
		}
	}
	named := map[*region]bool{}
	for i := range l.shards {
		for name, r := range l.shards[i].regions {
			named[r] = true
			if r.name != name || r.scope.cleared.Load() || r.members != members[r] || r.members == 0 {
				return fmt.Errorf("region %q is %+v, with %d members", name, r, members[r])
			}
		}
	}
	for r, n := range members {
		if r.members != n {
			return fmt.Errorf("region %q counts %d members and has %d", r.name, r.members, n)
		}
		if !named[r] && !r.scope.cleared.Load() {
			return fmt.Errorf("region %q has members, and a clear does not find it", r.name)
		}
	}
	t := &l.clears
	if t.base+uint64(len(t.names)) != t.count.Load() {
		return fmt.Errorf("the log of %d clears from %d does not end at %d", len(t.names), t.base, t.count.Load())
	}
	if len(t.names) > maxClearLog || t.bytes > maxClearLogBytes {
		return fmt.Errorf("%d clears are remembered", len(t.names))
	}
	return nil
}

// held returns the number of entries in memory, dead or alive.
func (c *Cache[K, V]) held() (n int) {
	for i := range c.local.tables {
		for range c.local.tables[i].Load().all() {
			n++
		}
	}
	return n
}

// testValue is a version of an item at the model's source.
type testValue struct {
	version int
	regions []string
}

// model is what the cache must look like, in the plainest form there is: the
// source, and for each key the number of the last step that invalidated it.
type model struct {
	source      map[int]testValue // no entry: not found
	invalidated map[int]int
	regions     map[string]int // the step that last cleared it
	anyRegion   int
	all         int
	step        int
}

// stale reports whether a copy of v that was begun at step may not be kept.
func (m *model) stale(key int, v testValue, notFound bool, step int) bool {
	if m.invalidated[key] > step || m.all > step || notFound && m.anyRegion > step {
		return true
	}
	return slices.ContainsFunc(v.regions, func(r string) bool { return m.regions[r] > step })
}

// staleFor reports whether a copy of v that was begun at step may not be had by a Get
// that came later.
func (m *model) staleFor(key int, v testValue, notFound bool, step, came int) bool {
	// What was invalidated after the Get came does not matter, but the model has only the
	// last of each kind: it is strict where it can be.
	within := func(at int) bool { return step < at && at <= came }
	return within(m.invalidated[key]) || within(m.all) || notFound && within(m.anyRegion) ||
		slices.ContainsFunc(v.regions, func(r string) bool { return within(m.regions[r]) })
}

// Random operations against a plain reference, every invariant checked after each
// step. Loads and updates are held up on channels, so that any operation can come
// between their beginning and their end.
func TestLocalAgainstModel(t *testing.T) {
	for _, eviction := range []Eviction{DefaultEviction, LRU} {
		t.Run(fmt.Sprint("eviction ", eviction), func(t *testing.T) {
			rapid.Check(t, func(rt *rapid.T) {
				// rapid stops a failing run by a panic, which it must see itself.
				var stopped any
				synctest.Test(t, func(t *testing.T) {
					defer func() { stopped = recover() }()
					runModel(t, rt, eviction)
				})
				if stopped != nil {
					panic(stopped)
				}
			})
		})
	}
}

type heldLoad struct {
	key    int
	began  int
	value  testValue
	found  bool
	finish chan struct{}
}

func runModel(t *testing.T, rt *rapid.T, eviction Eviction) {
	const keys = 6
	capacity := rapid.SampledFrom([]int{1, 2, 4, 100}).Draw(rt, "capacity")
	m := &model{source: map[int]testValue{}, invalidated: map[int]int{}, regions: map[string]int{}}
	versions := 0
	write := func(key int) testValue {
		versions++
		v := testValue{version: versions, regions: rapid.SampledFrom([][]string{
			nil, {"a"}, {"b"}, {"a", "b"}, {"c", "c"},
		}).Draw(rt, "regions")}
		m.source[key] = v
		return v
	}

	var mu sync.Mutex
	var loading, done []*heldLoad
	cache, err := New(Local(), Options[int, testValue]{
		Name:     "model",
		Capacity: capacity,
		Eviction: eviction,
		TTL:      time.Minute,
		Load: func(_ context.Context, key int) (testValue, error) {
			h := &heldLoad{key: key, began: m.step, finish: make(chan struct{})}
			h.value, h.found = m.source[key]
			mu.Lock() // at the end several begin at once
			loading = append(loading, h)
			mu.Unlock()
			<-h.finish
			if !h.found {
				return testValue{}, ErrNotFound
			}
			return h.value, nil
		},
		NotFoundTTL: 2 * time.Minute,
		Regions:     func(_ int, v testValue) []string { return v.regions },
	})
	if err != nil {
		rt.Fatal(err)
	}
	defer cache.Close()

	// kept is the copy that the cache may hold: when it was begun, when it expires.
	type copied struct {
		value    testValue
		found    bool
		began    int
		earliest time.Time // it may be gone from here on
		latest   time.Time // it must be gone
	}
	kept := map[int]copied{}
	newest := map[int]int{} // when the newest load began that was kept, or may have been
	keep := func(key int, value testValue, found bool, began int, at time.Time) {
		if m.stale(key, value, !found, began) {
			return
		}
		ttl := time.Minute
		earliest := at.Add(ttl - ttl/10)
		if !found {
			ttl = 2 * time.Minute
			earliest = at.Add(ttl)
		}
		kept[key] = copied{value: value, found: found, began: began, earliest: earliest, latest: at.Add(ttl)}
	}
	type flying struct {
		*heldLoad
		at    time.Time
		reply chan error
	}
	var flights []*flying
	type updating struct {
		key       int
		began     int
		at        time.Time
		value     testValue
		finish    chan error
		done      chan error
		overtaken bool
	}
	var updates []*updating
	invalidate := func(key int) {
		m.invalidated[key] = m.step
		delete(kept, key)
		for _, u := range updates {
			if u.key == key {
				u.overtaken = true
			}
		}
	}

	var joined []func() (done bool) // Gets that wait for the loads of others
	var put []int                   // versions that a Set or an Update may keep
	var seen []*heldLoad
	release := func() {
		for _, f := range flights {
			close(f.finish)
			done = append(done, f.heldLoad)
		}
		defer func() { // and those that begin only now
			for again := true; again; {
				again = false
				synctest.Wait()
				for _, h := range loading {
					if !slices.Contains(done, h) {
						close(h.finish)
						done, again = append(done, h), true
					}
				}
			}
		}()
		for _, u := range updates {
			u.finish <- nil
		}
		flights, updates = nil, nil
		synctest.Wait()
	}
	defer release()

	adopt := func() { // the loads that those began who had waited for another
		for _, h := range loading {
			if !slices.Contains(seen, h) {
				seen = append(seen, h)
				if !slices.ContainsFunc(flights, func(f *flying) bool { return f.heldLoad == h }) {
					flights = append(flights, &flying{heldLoad: h, at: time.Now()})
				}
			}
		}
	}
	for range rapid.IntRange(1, 60).Draw(rt, "steps") {
		synctest.Wait()
		adopt()
		joined = slices.DeleteFunc(joined, func(answered func() bool) bool { return answered() })
		m.step++
		key := rapid.IntRange(0, keys-1).Draw(rt, "key")
		switch op := rapid.SampledFrom([]string{
			"get", "get", "get", "land", "land", "change", "remove", "region", "clear",
			"set", "update", "updated", "wait", "sweep",
		}).Draw(rt, "op"); op {
		case "get":
			before := len(loading)
			reply := make(chan error, 1)
			var got testValue
			go func() {
				v, err := cache.Get(t.Context(), key)
				got = v
				reply <- err
			}()
			synctest.Wait()
			if len(loading) > before {
				flights = append(flights, &flying{heldLoad: loading[len(loading)-1], at: time.Now(), reply: reply})
				break
			}
			select {
			case err := <-reply:
				c, ok := kept[key]
				if !ok || !time.Now().Before(c.latest) {
					rt.Fatalf("key %d was served from memory (%v, %v) and may not be held", key, got, err)
				}
				if m.stale(key, c.value, !c.found, c.began) || c.found != (err == nil) || got.version != c.value.version {
					rt.Fatalf("key %d was served as %v, %v; want %+v", key, got, err, c)
				}
			default: // waits: only for a load of the same key that at most clears of regions have overtaken
				i := slices.IndexFunc(flights, func(f *flying) bool {
					return f.key == key && m.invalidated[key] <= f.began && m.all <= f.began
				})
				if i < 0 {
					rt.Fatalf("key %d joined a load that began before an invalidation", key)
				}
				began := m.step
				joined = append(joined, func() (done bool) {
					select {
					case err := <-reply:
						if err == nil && slices.Contains(put, got.version) {
							return true // a write has put it here meanwhile
						}
						for _, h := range loading { // which of them it was does not matter if one may be had
							if h.key == key && h.found == (err == nil) && h.value.version == got.version &&
								!m.staleFor(key, h.value, !h.found, h.began, began) {
								return true
							}
						}
						rt.Fatalf("a Get of key %d at step %d has %v, %v", key, began, got, err)
					default:
					}
					return false
				})
			}
		case "land":
			if len(flights) == 0 {
				break
			}
			i := rapid.IntRange(0, len(flights)-1).Draw(rt, "flight")
			f := flights[i]
			flights = slices.Delete(flights, i, i+1)
			done = append(done, f.heldLoad)
			close(f.finish)
			synctest.Wait()
			if f.reply != nil {
				if err := <-f.reply; (err == nil) != f.found {
					rt.Fatalf("the load of %d ended with %v", f.key, err)
				}
			}
			if newest[f.key] > f.began { // what began later was kept, or may have been
				began := cache.local.lease.now() - int64(time.Since(f.at))
				e, _ := cache.local.peek(f.key)
				if e != nil && e.Item.started.Load() == began && e.Item.value.version == f.value.version {
					keep(f.key, f.value, f.found, f.began, f.at)
				}
				break
			}
			tooLate := time.Since(f.at) >= 54*time.Second
			if !m.stale(f.key, f.value, !f.found, f.began) {
				newest[f.key] = f.began
			}
			keep(f.key, f.value, f.found, f.began, f.at)
			e, _ := cache.local.peek(f.key)
			if _, may := kept[f.key]; may && capacity > keys && !tooLate && e == nil {
				rt.Fatalf("the load of %d was not overtaken and is not kept", f.key)
			}
			if tooLate && e == nil {
				delete(kept, f.key)
			}
		case "change":
			if rapid.Bool().Draw(rt, "delete") {
				delete(m.source, key)
			} else {
				write(key)
			}
		case "remove":
			if err := cache.Remove(t.Context(), key); err != nil {
				rt.Fatal(err)
			}
			invalidate(key)
		case "region":
			region := rapid.SampledFrom([]string{"a", "b", "c", "unheard of"}).Draw(rt, "region")
			if err := cache.ClearRegion(t.Context(), region); err != nil {
				rt.Fatal(err)
			}
			m.regions[region], m.anyRegion = m.step, m.step
			for key, c := range kept {
				if m.stale(key, c.value, !c.found, c.began) {
					delete(kept, key)
				}
			}
		case "clear":
			if err := cache.Clear(t.Context()); err != nil {
				rt.Fatal(err)
			}
			m.all = m.step
			clear(kept)
			if n := cache.Len(); n != 0 {
				rt.Fatalf("Len is %d after Clear", n)
			}
			for key := range keys { // at once: nothing has been swept yet
				if _, held := cache.Peek(key); held {
					rt.Fatalf("key %d is held after Clear", key)
				}
			}
		case "set":
			v := write(key)
			put = append(put, v.version)
			if err := cache.Set(t.Context(), key, v); err != nil {
				rt.Fatal(err)
			}
			invalidate(key)
			keep(key, v, true, m.step, time.Now())
			if got, ok := cache.Peek(key); !ok || got.version != v.version {
				rt.Fatalf("after Set, Peek returns %v, %v", got, ok)
			}
		case "update":
			u := &updating{key: key, began: m.step, at: time.Now(), value: write(key),
				finish: make(chan error), done: make(chan error, 1)}
			go func() {
				_, err := cache.Update(t.Context(), key, func(context.Context) (testValue, error) {
					return u.value, <-u.finish
				})
				u.done <- err
			}()
			synctest.Wait()
			put = append(put, u.value.version)
			invalidate(key)
			updates = append(updates, u)
		case "updated":
			if len(updates) == 0 {
				break
			}
			i := rapid.IntRange(0, len(updates)-1).Draw(rt, "update")
			u := updates[i]
			updates = slices.Delete(updates, i, i+1)
			var fails error
			if rapid.Bool().Draw(rt, "fails") {
				fails = errRefused
			}
			u.finish <- fails
			if err := <-u.done; err != fails {
				rt.Fatalf("Update returned %v", err)
			}
			overtaken := u.overtaken || m.stale(u.key, u.value, false, u.began)
			invalidate(u.key)
			if fails == nil && !overtaken && time.Since(u.at) < 54*time.Second {
				keep(u.key, u.value, true, m.step, u.at)
				if _, ok := cache.Peek(u.key); !ok {
					rt.Fatalf("the update of %d was not overtaken and is not kept", u.key)
				}
			} else if _, ok := cache.Peek(u.key); ok && (fails != nil || overtaken) {
				rt.Fatalf("the update of %d was overtaken, or failed, and is kept", u.key)
			} else if ok {
				keep(u.key, u.value, true, m.step, u.at)
			}
		case "wait":
			time.Sleep(time.Duration(rapid.IntRange(1, 70).Draw(rt, "seconds")) * time.Second)
			synctest.Wait()
			for key, c := range kept {
				if _, held := cache.Peek(key); !held && !time.Now().Before(c.earliest) {
					delete(kept, key)
				}
			}
		case "sweep":
			cache.local.sweep(func() bool { return false })
			if n, held := cache.Len(), cache.held(); n != held {
				rt.Fatalf("Len is %d after a sweep, %d are held", n, held)
			}
		}
		synctest.Wait()
		if err := cache.local.check(capacity); err != nil {
			rt.Fatal(err)
		}
		for key := range keys {
			v, ok := cache.Peek(key)
			c, may := kept[key]
			if ok && (!may || c.value.version != v.version || !time.Now().Before(c.latest)) {
				rt.Fatalf("key %d is held as %v; want %+v, %v", key, v, c, may)
			}
			if !ok && may && c.found && capacity > keys && time.Now().Before(c.earliest) {
				rt.Fatalf("key %d is gone and nothing invalidated it", key)
			}
		}
	}

	release()
	if err := cache.local.check(capacity); err != nil {
		rt.Fatal(err)
	}
}

func TestRegionsTrackedAreBounded(t *testing.T) {
	cache, err := New(Local(), Options[int, int]{
		Name:    "p",
		Load:    func(_ context.Context, key int) (int, error) { return key, nil },
		Regions: func(key, _ int) []string { return []string{fmt.Sprint("region ", key)} },
	})
	require.NoError(t, err)
	defer cache.Close()
	ctx := t.Context()
	for key := range 10 {
		_, err := cache.Get(ctx, key)
		require.NoError(t, err)
	}
	for i := range 1_000_000 {
		require.NoError(t, cache.ClearRegion(ctx, fmt.Sprint("unheard of ", i)))
	}
	require.Equal(t, 10, cache.Stats().Regions)
	require.Equal(t, 10, cache.Len())

	// With a load under way the names cleared since are remembered, up to a bound.
	sh := &cache.local.shards[0]
	s := cache.local.beginWork(sh)
	for i := range 10 * maxClearLog {
		cache.local.clearRegions([]string{fmt.Sprint(i)})
	}
	require.LessOrEqual(t, cache.Stats().Regions, 10+maxClearLog)
	require.True(t, cache.local.clears.overtook(s.clears, namesOf([]string{"untouched"})), "too long ago to know: not kept")
	cache.local.endWork(sh)
	require.Equal(t, 10, cache.Stats().Regions)
}

// The last names are known exactly, whatever came before them.
func TestRegionLogIsExactUpToItsBound(t *testing.T) {
	var underWay atomic.Int64
	log := clearLog{underWay: func() bool { return underWay.Load() > 0 }}
	since := make([]uint64, 0, 3*maxClearLog)
	for i := range 3 * maxClearLog {
		log.begin(&underWay)
		since = append(since, log.count.Load())
		log.record([]string{fmt.Sprint(i)})
	}
	for i, s := range since {
		require.Equal(t, i < 2*maxClearLog, log.overtook(s, namesOf([]string{"untouched"})), "begun before clear %d", i)
		require.True(t, log.overtook(s, namesOf([]string{fmt.Sprint(i)})), "region %d was cleared after its load began", i)
	}
	require.False(t, log.overtook(log.count.Load(), namesOf([]string{"0"})), "cleared before its load began")
}

func TestSweepReclaimsInTheBackground(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cache, err := New(Local(), Options[int, int]{
			Name:    "p",
			Load:    func(_ context.Context, key int) (int, error) { return key, nil },
			Regions: func(key, _ int) []string { return []string{fmt.Sprint(key % 2)} },
			TTL:     time.Hour,
		})
		require.NoError(t, err)
		defer cache.Close()
		fill := func() {
			for key := range 1000 {
				_, err := cache.Get(t.Context(), key)
				require.NoError(t, err)
			}
		}
		fill()
		require.NoError(t, cache.ClearRegion(t.Context(), "0"))
		require.Equal(t, 500, cache.Len(), "at once")
		synctest.Wait()
		require.Equal(t, 500, cache.held(), "the memory too")

		require.NoError(t, cache.Clear(t.Context()))
		require.Zero(t, cache.Len())
		synctest.Wait()
		require.Zero(t, cache.held())
		require.EqualValues(t, 1000, cache.Stats().Evictions.Cleared)

		fill()
		time.Sleep(time.Hour + 2*sweepInterval)
		synctest.Wait()
		require.Zero(t, cache.held(), "expired")
		for i := range cache.local.tables {
			require.LessOrEqual(t, len(cache.local.tables[i].Load().buckets), 8, "nor does the table stay large")
		}
		require.EqualValues(t, 1000, cache.Stats().Evictions.Expired)
		require.False(t, cache.local.sweeper.armed.Load(), "an empty cache needs no timer")
	})
}

func TestKeepsWithinCapacity(t *testing.T) {
	for _, eviction := range []Eviction{DefaultEviction, LRU} {
		for _, capacity := range []int{1, 2, 3, 10, 1000, 5000} {
			t.Run(fmt.Sprintf("eviction %d, capacity %d", eviction, capacity), func(t *testing.T) {
				cache, err := New(Local(), Options[int, int]{
					Name: "p", Capacity: capacity, Eviction: eviction,
					Load: func(_ context.Context, key int) (int, error) { return key, nil },
				})
				require.NoError(t, err)
				defer cache.Close()
				for key := range 3 * capacity {
					_, err := cache.Get(t.Context(), key)
					require.NoError(t, err)
					if capacity < 100 {
						require.NoError(t, cache.local.check(capacity))
					}
				}
				require.NoError(t, cache.local.check(capacity))
				require.Equal(t, capacity, cache.Len())
				require.EqualValues(t, 2*capacity, cache.Stats().Evictions.Capacity)
			})
		}
	}
}

// Clears of other regions keep nobody from joining for long: each load that ends
// is kept unless its own regions were cleared.
func TestUnrelatedClearsDoNotKeepALoadFromBeingKept(t *testing.T) {
	for _, regional := range []bool{true, false} {
		t.Run(fmt.Sprint("with regions ", regional), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o := Options[int, int]{
					Name: "p",
					Load: func(context.Context, int) (int, error) { time.Sleep(50 * time.Millisecond); return 0, nil },
				}
				if regional {
					o.Regions = func(int, int) []string { return []string{"own"} }
				}
				cache, err := New(Local(), o)
				require.NoError(t, err)
				defer cache.Close()
				for i := range 100 {
					go func() { _, _ = cache.Get(context.Background(), 1) }()
					time.Sleep(time.Millisecond)
					if i%20 == 0 {
						require.NoError(t, cache.ClearRegion(t.Context(), "unrelated"))
					}
				}
				synctest.Wait()
				require.NoError(t, cache.local.check(defaultCapacity))
				s := cache.Stats()
				require.Equal(t, 1, s.Entries)
				require.Greater(t, s.Hits, uint64(40), "kept as soon as the first load ended")
				if !regional {
					require.EqualValues(t, 1, s.Loads, "without regions a region clear concerns no load")
				}
			})
		})
	}
}

// 1. a loader asks for its own key, with a deadline of its own   2. that ends. The
// caller that the loader was called for still waits, so the load goes on.
func TestLeavingOnesOwnLoadDoesNotCancelIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var cache *Cache[int, string]
		cache, err := New(Local(), Options[int, string]{
			Name: "p",
			Load: func(ctx context.Context, key int) (string, error) {
				short, cancel := context.WithTimeout(ctx, time.Second)
				defer cancel()
				_, err := cache.Get(short, key)
				if err != context.DeadlineExceeded {
					return "", fmt.Errorf("the inner Get returned %w", err)
				}
				return "value", ctx.Err()
			},
		})
		require.NoError(t, err)
		defer cache.Close()
		v, err := cache.Get(t.Context(), 1)
		require.NoError(t, err)
		require.Equal(t, "value", v)
	})
}

// 1. a load is checked against clears   2. a clear, and a whole sweep   3. the load
// is stored: it is born dead, and no sweep would come for it.
func TestClearBetweenCheckAndStoreLeavesNothing(t *testing.T) {
	cache, err := New(Local(), Options[int, int]{
		Name: "p", TTL: NoExpiry,
		Load: func(_ context.Context, key int) (int, error) { return key, nil },
	})
	require.NoError(t, err)
	defer cache.Close()
	for range 300 {
		stop := make(chan struct{})
		loaded := make(chan struct{})
		go func() {
			defer close(loaded)
			for key := 0; ; key = (key + 1) % 64 {
				select {
				case <-stop:
					return
				default:
					_, _ = cache.Get(context.Background(), key)
				}
			}
		}()
		for range 20 {
			cache.local.current.Store(newGeneration()) // a clear whose sweep runs at once
			cache.local.sweep(func() bool { return false })
		}
		close(stop)
		<-loaded
		require.NoError(t, cache.local.check(64))
		require.Equal(t, cache.held(), cache.Len())
	}
}

// What is not here needs no sweep.
func TestClearOfARegionWithoutMembersIsFree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cache, err := New(Local(), Options[int, int]{
			Name:    "p",
			Load:    func(_ context.Context, key int) (int, error) { return key, nil },
			Regions: func(int, int) []string { return []string{"a"} },
		})
		require.NoError(t, err)
		defer cache.Close()
		_, err = cache.Get(t.Context(), 1)
		require.NoError(t, err)
		require.NoError(t, cache.ClearRegion(t.Context(), "b"))
		require.Equal(t, cache.local.dirty.Load(), cache.local.swept.Load())
		require.NoError(t, cache.Close())
		require.Zero(t, cache.Stats().Regions)
	})
}

// A capacity that means "no bound" costs nothing until it is used.
func TestHugeCapacity(t *testing.T) {
	for _, capacity := range []int{1 << 20, math.MaxInt32, math.MaxInt} {
		cache, err := New(Local(), Options[int, int]{
			Name: "p", Capacity: capacity,
			Load: func(_ context.Context, key int) (int, error) { return key, nil },
		})
		require.NoError(t, err)
		require.LessOrEqual(t, len(cache.local.shards), mostShards)
		for key := range 100 {
			_, err := cache.Get(t.Context(), key)
			require.NoError(t, err)
		}
		require.Equal(t, 100, cache.Len())
		require.NoError(t, cache.local.check(capacity))
		require.NoError(t, cache.Close())
	}
}

// A region lives on in an item that takes the place of its last other one.
func TestRegionOutlivesItsLastVictim(t *testing.T) {
	regions := func(int, string) []string { return []string{"region"} }
	c, err := New(Local(), Options[int, string]{
		Name: "p", Capacity: 1, Regions: regions, Load: func(context.Context, int) (string, error) { return "loaded", nil },
	})
	require.NoError(t, err)
	defer c.Close()
	for key := range 3 {
		require.NoError(t, c.Set(t.Context(), key, "set"))
		require.NoError(t, c.local.check(1))
		require.NoError(t, c.Set(t.Context(), key, "set again"))
		require.NoError(t, c.local.check(1))
	}
	require.NoError(t, c.ClearRegion(t.Context(), "region"))
	_, held := c.Peek(2)
	require.False(t, held)
}

// What is written after a clear of its region is kept, though the item that the clear
// took was not swept yet.
func TestWriteAfterAClearOfItsRegion(t *testing.T) {
	c, err := New(Local(), Options[int, *int]{
		Name: "p", Regions: func(int, *int) []string { return []string{"region"} },
		Load: func(context.Context, int) (*int, error) { return nil, ErrNotFound },
	})
	require.NoError(t, err)
	defer c.Close()
	for range 100 {
		require.NoError(t, c.Set(t.Context(), 1, new(int)))
		require.NoError(t, c.ClearRegion(t.Context(), "region"))
		require.NoError(t, c.Set(t.Context(), 1, new(int)))
		_, held := c.Peek(1)
		require.True(t, held)
	}
}
