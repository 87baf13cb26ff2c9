package nearcache

import (
	"context"
	"fmt"
	"maps"
	"math"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/nearcache/nearcache/internal/messagetest"
)

// What a message costs its receivers, as docs/guarantees.md states it: bytes that
// are allocated to apply a body, beyond the payload itself.
const (
	bodyCostPerByte = 32
	bodyCostLeast   = 64 << 10
	bodyCostMost    = 16 << 20
)

func bodyCost(body string) uint64 {
	return uint64(min(bodyCostLeast+bodyCostPerByte*len(body), bodyCostMost))
}

// allocated returns how many bytes do allocates.
func allocated(do func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	do()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// markedMember is a member that writes down what is evicted from it. A key that
// begins with "!" is none of its keys.
type markedMember struct {
	member
	keys, regions map[string]bool
	cleared       bool
	clears        int
}

func (m *markedMember) removeWire(key string) bool {
	if strings.HasPrefix(key, "!") {
		m.clearLocal()
		return false
	}
	if m.keys != nil {
		m.keys[key] = true
	}
	return true
}

func (m *markedMember) clearRegionsLocal(names []string) {
	for _, name := range names {
		if m.regions != nil {
			m.regions[name] = true
		}
	}
}

func (m *markedMember) clearLocal() {
	m.cleared = true
	m.clears++
}

func (m *markedMember) staleness() time.Duration { return Unbounded }
func (m *markedMember) stopServing()             {}
func (m *markedMember) closeLocal()              {}

// markedBackplane returns a backplane with two caches that write down what is
// evicted from them, if they are to.
func markedBackplane(tb testing.TB, write bool) (*Backplane, map[string]*markedMember) {
	bp := Local()
	tb.Cleanup(func() { _ = bp.Close() })
	members := map[string]*markedMember{}
	for _, name := range []string{"p", "q"} {
		m := &markedMember{}
		if write {
			m.keys, m.regions = map[string]bool{}, map[string]bool{}
		}
		members[name] = m
		require.NoError(tb, bp.register(name, m))
	}
	return bp, members
}

// hostileBodies are 4 MiB each, or more.
func hostileBodies() map[string]string {
	const size = 4 << 20
	repeat := func(unit string) string {
		return string([]byte{bodyVersion}) + strings.Repeat(unit, size/len(unit)+1)
	}
	list := func(op byte, cache string, count uint64, values string) string {
		b := append([]byte{bodyVersion, op}, byte(len(cache)))
		b = append(b, cache...)
		for ; count >= 0x80; count >>= 7 {
			b = append(b, byte(count)|0x80)
		}
		return string(append(b, byte(count))) + values
	}
	one := func(op byte, cache, value string) string {
		return messagetest.Body(messagetest.Operation{Op: op, Cache: cache, Values: []string{value}})[1:]
	}
	var distinct strings.Builder
	for i := range maxBodyEntries - 10 {
		distinct.WriteString(string(appendString(nil, fmt.Sprintf("%03x", i))))
	}
	return map[string]string{
		"clears of everything":             repeat("\x04"),
		"clears of a cache":                repeat("\x03\x01p"),
		"clears of two caches":             repeat("\x03\x01p\x03\x01q"),
		"clears of a cache unknown":        repeat("\x03\x01x"),
		"removes of a key":                 repeat(one(messagetest.RemoveKeys, "p", "1")),
		"removes of a key, unknown cache":  repeat(one(messagetest.RemoveKeys, "x", "1")),
		"removes of a key that is none":    repeat(one(messagetest.RemoveKeys, "p", "!")),
		"removes of nothing":               repeat("\x01\x01p\x00"),
		"clears of a region":               repeat(one(messagetest.ClearRegions, "p", "r")),
		"clears of a region, two caches":   repeat(one(messagetest.ClearRegions, "p", "r") + one(messagetest.ClearRegions, "q", "r")),
		"clears of a region without name":  repeat(one(messagetest.ClearRegions, "p", "")),
		"a list of regions without a name": list(messagetest.ClearRegions, "p", size, strings.Repeat("\x00", size)),
		"a list of as many as may be":      list(messagetest.ClearRegions, "p", maxBodyEntries-10, strings.Repeat("\x00", maxBodyEntries-10)),
		"a list of regions, no two alike":  list(messagetest.ClearRegions, "p", maxBodyEntries-10, distinct.String()),
		"a list of keys without bytes":     list(messagetest.RemoveKeys, "p", size, strings.Repeat("\x00", size)),
		"a count that lies":                list(messagetest.RemoveKeys, "p", 1<<62, strings.Repeat("\x00", size)),
		"a count that lies a little":       list(messagetest.ClearRegions, "p", size, strings.Repeat("\x01r", size/2)),
		"a name of a cache of megabytes":   string(appendString([]byte{bodyVersion, messagetest.ClearCache}, strings.Repeat("p", size))),
		"a key of megabytes":               string([]byte{bodyVersion}) + one(messagetest.RemoveKeys, "p", strings.Repeat("k", size)),
		"a region of megabytes":            string([]byte{bodyVersion}) + one(messagetest.ClearRegions, "p", strings.Repeat("r", size)),
		"many megabytes":                   strings.Repeat("\x01", maxBodyBytes+1),
	}
}

// A message of any content costs the subscriber a bounded multiple of its size.
func TestWhatABodyCosts(t *testing.T) {
	for name, body := range hostileBodies() {
		t.Run(name, func(t *testing.T) {
			for _, regional := range []bool{false, true} {
				bp := Local()
				defer bp.Close()
				for _, cache := range []string{"p", "q"} {
					o := Options[string, int]{Name: cache, Load: func(context.Context, string) (int, error) { return 1, nil }}
					if regional {
						o.Regions = func(string, int) []string { return []string{"r"} }
					}
					c, err := New(bp, o)
					require.NoError(t, err)
					_, err = c.Get(t.Context(), "1")
					require.NoError(t, err)
				}
				began := time.Now()
				got := allocated(func() { _ = bp.apply(body) })
				t.Logf("%d bytes: %d allocated, %.1f for each, %v", len(body), got, float64(got)/float64(len(body)), time.Since(began))
				require.LessOrEqual(t, got, bodyCost(body))
				for _, s := range bp.Stats().Caches {
					require.LessOrEqual(t, s.Invalidations.Clears, uint64(1), "a cache is cleared once")
				}
			}
		})
	}
}

// Whatever a publisher of this library can write is within the bounds.
func TestOwnBodiesAreWithinTheBounds(t *testing.T) {
	var b batch
	for cache := range 20 { // as many short entries as may be
		inv := invalidation{cache: fmt.Sprintf("%02d", cache)}
		for i := range maxBatchEntries {
			inv.keys = append(inv.keys, string([]byte{byte(i), byte(i >> 8)}))
		}
		b.add(inv)
	}
	most := 0
	for _, body := range b.bodies(maxMessageBytes, math.MaxInt) {
		r := readBody(body)
		for r.next() {
		}
		require.NoError(t, r.err())
		most = max(most, r.entries)
	}
	require.Greater(t, most, maxBodyEntries/4, "the bodies are full")
	t.Logf("%d entries at most", most)

	var large batch // one entry that is as large as may be
	large.add(invalidation{cache: strings.Repeat("c", 128), keys: []string{strings.Repeat("k", maxBatchBytes-entryOverhead)}})
	bodies := large.bodies(maxMessageBytes, math.MaxInt)
	require.Len(t, bodies, 1)
	require.Greater(t, len(bodies[0]), maxBatchBytes-entryOverhead)
	r := readBody(bodies[0])
	require.True(t, r.next())
	require.False(t, r.next())
	require.NoError(t, r.err())
}

// Every operation of a body is applied, on however many caches.
func TestBodiesAreAppliedWhole(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		value := rapid.SampledFrom([]string{"", "1", "2", "3", "!", "long enough to be another"})
		ops := rapid.SliceOfN(rapid.Custom(func(r *rapid.T) messagetest.Operation {
			o := messagetest.Operation{
				Op: rapid.SampledFrom([]byte{
					messagetest.RemoveKeys, messagetest.RemoveKeys,
					messagetest.ClearRegions, messagetest.ClearRegions, messagetest.ClearCache,
				}).Draw(r, "op"),
				Cache: rapid.SampledFrom([]string{"p", "q", "x"}).Draw(r, "cache"),
			}
			if o.Op != messagetest.ClearCache {
				o.Values = rapid.SliceOfN(value, 0, 4).Draw(r, "values")
			}
			return o
		}), 0, 12).Draw(r, "operations")
		bp, members := markedBackplane(t, true)
		body := messagetest.Body(ops...)
		checkApplied(r, body, bp.apply(body), members)
	})
}

// Beyond a bound a body is undecodable, and everything is cleared.
func TestBodiesBeyondTheBoundsClearEverything(t *testing.T) {
	for name, body := range map[string]string{
		"bytes":      string([]byte{bodyVersion}) + strings.Repeat("\x03\x01x", maxBodyBytes/3+1),
		"operations": string([]byte{bodyVersion}) + strings.Repeat("\x03\x01x", maxBodyEntries+1),
		"values":     string(append(append([]byte{bodyVersion}, "\x01\x01x"...), 0xff, 0xff, 0x3f)) + strings.Repeat("\x00", 1<<20),
	} {
		t.Run(name, func(t *testing.T) {
			s, r := newTestSubscriber(t)
			bp, _ := markedBackplane(t, true)
			require.ErrorIs(t, bp.apply(body), errUndecodable)
			r.applyTo = bp
			s.last = positionA
			s.handle(messagetest.Message(testPublisher, positionA, positionB, body), false)
			require.Equal(t, 1, r.clears)
			require.EqualValues(t, 1, s.clears[ClearCauseUndecodable].Load())
			require.Equal(t, positionB, s.last, "the chain goes on")
		})
	}
}

// A body that ends in nonsense has evicted a part of what it says, and the rest
// with everything else.
func TestABodyThatFailsClearsEverything(t *testing.T) {
	s, r := newTestSubscriber(t)
	bp, members := markedBackplane(t, true)
	r.applyTo = bp
	whole := messagetest.Body(
		messagetest.Operation{Op: messagetest.RemoveKeys, Cache: "p", Values: []string{"1", "2"}},
		messagetest.Operation{Op: messagetest.ClearRegions, Cache: "q", Values: []string{"r"}},
		messagetest.Operation{Op: messagetest.ClearCache, Cache: "q"},
	)
	for n := range len(whole) {
		s.last = positionA
		_, err := messagetest.DecodeBody(whole[:n])
		clears := r.clears
		s.handle(messagetest.Message(testPublisher, positionA, positionB, whole[:n]), false)
		if err != nil {
			require.Equal(t, clears+1, r.clears, "cut at %d", n)
		} else {
			require.Equal(t, clears, r.clears, "cut at %d", n)
		}
	}
	require.True(t, members["p"].keys["1"])
}

// Nothing that is kept of a message keeps its payload.
func TestPayloadsAreNotKept(t *testing.T) {
	bp := Local()
	defer bp.Close()
	hold := make(chan struct{})
	began := make(chan struct{})
	cache, err := New(bp, Options[string, int]{
		Name: "p",
		Load: func(context.Context, string) (int, error) {
			close(began)
			<-hold
			return 1, nil
		},
		Regions: func(string, int) []string { return []string{"r"} },
	})
	require.NoError(t, err)
	loaded := make(chan struct{})
	go func() {
		defer close(loaded)
		_, _ = cache.Get(context.Background(), "held")
	}()
	defer func() { close(hold); <-loaded }()
	<-began // the names of cleared regions are remembered from here on

	for name, text := range map[string]string{
		"an invalidation": messagetest.Message(testPublisher, positionA, positionB, messagetest.Body(
			messagetest.Operation{Op: messagetest.RemoveKeys, Cache: "p", Values: []string{"1", strings.Repeat("k", 1<<20)}},
			messagetest.Operation{Op: messagetest.ClearRegions, Cache: "p", Values: []string{"s", "t"}})),
		"one that is undecodable": messagetest.Message(testPublisher, positionA, positionB, "\x01\x09"),
		"one that does not fit":   messagetest.Message(testPublisher, positionC, positionB, "\x01"),
		"an echo":                 messagetest.Echo(instanceID{9}, positionB, positionC, newTestLeaseNonce()),
		"another kind":            head('X', testPublisher),
	} {
		t.Run(name, func(t *testing.T) {
			s, r := newTestSubscriber(t)
			r.applyTo = bp
			s.last, s.begun = positionA, true
			gone := make(chan struct{})
			func() {
				buffer := []byte(text)
				runtime.AddCleanup(&buffer[0], func(gone chan struct{}) { close(gone) }, gone)
				s.handle(unsafe.String(&buffer[0], len(buffer)), false)
			}()
			require.Eventually(t, func() bool {
				runtime.GC()
				select {
				case <-gone:
					return true
				default:
					return false
				}
			}, 10*time.Second, time.Millisecond)
			runtime.KeepAlive(s)
			runtime.KeepAlive(r)
		})
	}
	runtime.KeepAlive(cache)
}

func newTestLeaseNonce() string { return strings.Repeat("n", 16) }

// FuzzApply applies bodies that are made of one piece, again and again. What they
// evict is compared with what a simpler decoder makes of them, and what they cost
// with what is promised.
func FuzzApply(f *testing.F) {
	for _, body := range hostileBodies() {
		if len(body) > 1 {
			f.Add([]byte(body[1:min(len(body), 64)]), uint32(1))
			f.Add([]byte(body[1:min(len(body), 64)]), uint32(1<<14))
		}
	}
	f.Add([]byte(messagetest.Body(
		messagetest.Operation{Op: messagetest.RemoveKeys, Cache: "p", Values: []string{"1", "!"}},
		messagetest.Operation{Op: messagetest.ClearRegions, Cache: "q", Values: []string{"r"}},
	)[1:]), uint32(1<<16))
	f.Add([]byte("\x04\x09"), uint32(1))
	f.Fuzz(func(t *testing.T, piece []byte, times uint32) {
		body := string([]byte{bodyVersion}) + strings.Repeat(string(piece), int(min(times, uint32(1<<20/(len(piece)+1)))))
		bp, members := markedBackplane(t, true)
		quiet, _ := markedBackplane(t, false)
		if got := allocated(func() { _ = quiet.apply(body) }); got > bodyCost(body) {
			t.Fatalf("%d bytes cost %d", len(body), got)
		}
		checkApplied(t, body, bp.apply(body), members)
	})
}

// failer is a test or a part of one.
type failer interface {
	Fatalf(format string, args ...any)
}

// checkApplied compares what a body has evicted with what messagetest.DecodeBody makes of it.
func checkApplied(t failer, body string, err error, members map[string]*markedMember) {
	ops, undecodable := messagetest.DecodeBody(body)
	everything := slices.ContainsFunc(ops, func(o messagetest.Operation) bool { return o.Op == messagetest.ClearAll })
	entries := 0
	for _, o := range ops {
		entries += 1 + len(o.Values)
	}
	cleared := func() bool { return members["p"].cleared && members["q"].cleared }
	if undecodable != nil || entries > maxBodyEntries {
		// Either it says so, or it has cleared everything before it came there.
		if err == nil && !cleared() {
			t.Fatalf("%.80q was applied", body)
		}
		return
	}
	if err != nil {
		t.Fatalf("%.80q: %v", body, err)
	}
	for name, m := range members {
		keys, regions, clear := map[string]bool{}, map[string]bool{}, everything
		for _, o := range ops {
			if o.Cache != name || o.Op == messagetest.ClearAll {
				continue
			}
			clear = clear || o.Op == messagetest.ClearCache
			for _, v := range o.Values {
				if o.Op == messagetest.RemoveKeys {
					keys[v] = true
					clear = clear || strings.HasPrefix(v, "!")
				} else {
					regions[v] = true
				}
			}
		}
		switch {
		case m.cleared != clear:
			t.Fatalf("%.80q: %s cleared: %v", body, name, m.cleared)
		case clear && m.clears > 2: // one for itself, one for all
			t.Fatalf("%.80q: %s was cleared %d times", body, name, m.clears)
		case !clear && !maps.Equal(m.keys, keys):
			t.Fatalf("%.80q: %s has lost %v, not %v", body, name, m.keys, keys)
		case !clear && !maps.Equal(m.regions, regions):
			t.Fatalf("%.80q: %s was cleared of %v, not %v", body, name, m.regions, regions)
		}
	}
}
