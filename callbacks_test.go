package nearcache

import (
	"context"
	"errors"
	"log/slog"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache/internal/fakebus"
	"github.com/nearcache/nearcache/internal/raceflag"
)

// patience is for how long the tests here wait for what must not hang. The clock is the
// real one: synctest does not notice who waits for a mutex.
const patience = 30 * time.Second

// returns fails the test, and shows all goroutines, if f does not return.
func returns(t *testing.T, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(patience):
		stacks := make([]byte, 1<<20)
		stacks = stacks[:runtime.Stack(stacks, true)]
		t.Fatalf("%s hangs:\n%s", what, stacks)
	}
}

// everything calls every method of a cache and its backplane, but for Close, on its own
// keys and on what the caller is busy with. Waits for Redis end soon.
func everything[K comparable](c *Cache[K, string], own, busy K) {
	soon, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	c.Peek(busy)
	for range c.All() {
	}
	for range c.Keys() {
	}
	c.Len()
	c.Stats()
	c.backplane.Stats()
	c.backplane.State()
	_, _ = c.Get(soon, own)
	_, _ = c.Refresh(soon, own)
	_, _ = c.GetMany(soon, own)
	_ = c.Set(soon, own, "own")
	_, _ = c.Update(soon, own, func(context.Context) (string, error) { return "own", nil })
	_ = c.Remove(soon, own, busy)
	_ = c.ClearRegion(soon, "r")
	_ = c.backplane.Flush(soon)
	_ = c.Clear(soon)
	_ = c.backplane.ClearAll(soon)
	_, _ = c.Get(soon, own)
}

// unnested returns what calls f, but not from within itself, and counts the calls.
func unnested(calls *atomic.Int64, f func()) func() {
	var inside atomic.Bool
	return func() {
		if inside.CompareAndSwap(false, true) {
			defer inside.Store(false)
			calls.Add(1)
			f()
		}
	}
}

// nosy is a context each of whose methods does something.
type nosy struct {
	context.Context
	method string
	do     func()
}

func (n *nosy) in(method string) {
	if n.method == method {
		n.do()
	}
}

func (n *nosy) Deadline() (time.Time, bool) { n.in("Deadline"); return n.Context.Deadline() }
func (n *nosy) Done() <-chan struct{}       { n.in("Done"); return n.Context.Done() }
func (n *nosy) Err() error                  { n.in("Err"); return n.Context.Err() }
func (n *nosy) Value(key any) any           { n.in("Value"); return n.Context.Value(key) }

// A context may be of a type of its own. Whatever its methods call of the cache, no lock
// is held.
func TestContextThatUsesTheCache(t *testing.T) {
	for _, method := range []string{"Deadline", "Done", "Err", "Value"} {
		for name, o := range map[string]Options[string, string]{
			"plain":        {},
			"places":       {MaxConcurrentLoads: 2},
			"stale":        {TTL: time.Nanosecond, StaleIfError: time.Hour, SoftTimeout: time.Millisecond},
			"refreshed":    {RefreshAfter: time.Nanosecond},
			"with regions": {Regions: func(string, string) []string { return []string{"r"} }},
		} {
			for _, many := range []bool{false, true} {
				t.Run(method+", "+name+map[bool]string{true: ", many"}[many], func(t *testing.T) {
					t.Parallel()
					o := o
					var loading atomic.Int64
					o.Name = "p"
					o.Load = func(ctx context.Context, key string) (string, error) {
						defer loading.Add(-1)
						if loading.Add(1); key == "busy" {
							select {
							case <-ctx.Done():
							case <-time.After(10 * time.Millisecond):
							}
						}
						return "loaded", nil
					}
					if many {
						o.LoadMany = func(ctx context.Context, keys []string) (map[string]string, error) {
							values := map[string]string{}
							for _, key := range keys {
								values[key], _ = o.Load(ctx, key)
							}
							return values, nil
						}
					}
					c, err := New(Local(), o)
					require.NoError(t, err)
					defer c.Close()
					var calls atomic.Int64
					for _, limit := range []time.Duration{time.Hour, 5 * time.Millisecond} {
						for _, call := range []func(context.Context){
							func(ctx context.Context) { _, _ = c.Get(ctx, "busy") },
							func(ctx context.Context) { _, _ = c.GetMany(ctx, "busy", "other") },
							func(ctx context.Context) { _, _ = c.Refresh(ctx, "busy") },
						} {
							limited, cancel := context.WithTimeout(t.Context(), limit)
							ctx := &nosy{limited, method, unnested(&calls, func() { everything(c, "own", "busy") })}
							returns(t, "a call", func() {
								ended := make(chan struct{})
								go func() {
									defer close(ended)
									_, _ = c.Get(limited, "busy") // for others to join
								}()
								call(ctx)
								call(ctx)
								<-ended
							})
							cancel()
						}
					}
					assert.NotZero(t, calls.Load())
					returns(t, "Close", func() { _ = c.Close() })
					require.NoError(t, c.local.check(defaultCapacity))
				})
			}
		}
	}
}

// A context that panics, or ends its goroutine, leaves nothing behind that others would
// wait for.
func TestContextThatDies(t *testing.T) {
	deaths := map[string]func(){"panics": func() { panic("the context's") }, "Goexit": runtime.Goexit}
	for death, die := range deaths {
		for _, method := range []string{"Deadline", "Done", "Err", "Value"} {
			for call, do := range map[string]func(context.Context, *Cache[string, string]){
				"Get":     func(ctx context.Context, c *Cache[string, string]) { _, _ = c.Get(ctx, "k") },
				"GetMany": func(ctx context.Context, c *Cache[string, string]) { _, _ = c.GetMany(ctx, "k", "l") },
				"Refresh": func(ctx context.Context, c *Cache[string, string]) { _, _ = c.Refresh(ctx, "k") },
				"a hit that is due": func(ctx context.Context, c *Cache[string, string]) {
					_ = c.Set(context.Background(), "k", "v")
					_, _ = c.Get(ctx, "k")
				},
			} {
				t.Run(strings.Join([]string{method, death, call}, ", "), func(t *testing.T) {
					c, err := New(Local(), Options[string, string]{
						Name: "p", RefreshAfter: time.Nanosecond, MaxConcurrentLoads: 1,
						Load: func(context.Context, string) (string, error) { return "loaded", nil },
					})
					require.NoError(t, err)
					defer c.Close()
					for range 2 * refreshesAtOnce {
						ctx, cancel := context.WithCancel(t.Context())
						returns(t, call, func() {
							defer func() { _ = recover() }()
							do(&nosy{ctx, method, die}, c)
						})
						cancel()
					}
					require.Eventually(t, func() bool {
						ctx, cancel := context.WithTimeout(t.Context(), patience)
						defer cancel()
						v, err := c.Refresh(ctx, "k")
						return err == nil && v == "loaded" && c.loader.refreshes.Load() == 0 && len(c.loader.slots) == 0
					}, patience, time.Millisecond)
					e, _ := c.local.peek("k")
					require.NotNil(t, e)
					require.Eventually(t, func() bool { // a refresh can begin
						if c.local.markRefreshing(e) {
							return true
						}
						e, _ = c.local.peek("k")
						return e != nil && c.local.markRefreshing(e)
					}, patience, time.Millisecond)
				})
			}
		}
	}
}

// hook is called with the name of each callback, also by methods of keys.
var hook atomic.Pointer[func(callback string)]

func call(callback string) {
	if h := hook.Load(); h != nil {
		(*h)(callback)
	}
}

type hookedKey struct{ name string }

func (k hookedKey) MarshalText() ([]byte, error) { call("MarshalText"); return []byte(k.name), nil }

func (k *hookedKey) UnmarshalText(text []byte) error {
	call("UnmarshalText")
	k.name = string(text)
	return nil
}

func (k hookedKey) String() string { call("String"); return k.name }

type hookedError struct{}

func (hookedError) Error() string   { call("Error"); return "broken" }
func (hookedError) Is(error) bool   { call("Is"); return false }
func (hookedError) Unwrap() []error { call("Unwrap"); return nil }

type hookedCodec struct{}

func (hookedCodec) Marshal(v string) ([]byte, error) { call("Marshal"); return []byte(v), nil }
func (hookedCodec) Unmarshal(data []byte) (string, error) {
	call("Unmarshal")
	return string(data), nil
}

// hookedCache makes a cache all of whose callbacks call the hook.
func hookedCache(t *testing.T, bp *Backplane, together bool) *Cache[hookedKey, string] {
	t.Helper()
	load := func(key hookedKey) (string, error) {
		call("Load")
		switch key.name {
		case "missing":
			return "", ErrNotFound
		case "broken":
			return "", hookedError{}
		}
		return "loaded", nil
	}
	o := Options[hookedKey, string]{
		Name:            "p",
		Load:            func(_ context.Context, key hookedKey) (string, error) { return load(key) },
		IsNotFound:      func(err error) bool { call("NotFound"); return errors.Is(err, ErrNotFound) },
		NotFoundTTL:     time.Hour,
		NotFoundRegions: func(hookedKey) []string { call("NotFoundRegions"); return []string{"r"} },
		ErrorTTL:        time.Hour,
		Expiry:          func(hookedKey, string) time.Duration { call("Expiry"); return time.Hour },
		RefreshAfter:    time.Nanosecond,
		Regions:         func(hookedKey, string) []string { call("Regions"); return []string{"r"} },
		MaxWeight:       1 << 20,
		Weigh:           func(hookedKey, string) uint32 { call("Weigh"); return 1 },
		WeighNotFound:   func(hookedKey, error) uint32 { call("WeighNotFound"); return 1 },
		Shared:          &SharedOptions[string]{Codec: hookedCodec{}},

		MaxConcurrentLoads: 4,
	}
	if together {
		o.LoadMany = func(_ context.Context, keys []hookedKey) (map[hookedKey]string, error) {
			call("LoadMany")
			values := map[hookedKey]string{}
			for _, key := range keys {
				value, err := load(key)
				if err == nil {
					values[key] = value
				} else if !errors.Is(err, ErrNotFound) {
					return values, err
				}
			}
			return values, nil
		}
	}
	c, err := New(bp, o)
	require.NoError(t, err)
	return c
}

var hookedCallbacks = []string{
	"Load", "LoadMany", "NotFound", "NotFoundRegions", "Expiry", "Regions", "Weigh", "WeighNotFound", "Marshal", "Unmarshal",
	"MarshalText", "UnmarshalText", "String", "Error", "Is", "Unwrap",
}

// hookedCalls are what can have callbacks called, of a, and of b, another instance.
var hookedCalls = []struct {
	name string
	do   func(ctx context.Context, a, b *Cache[hookedKey, string])
}{
	{"Get", func(ctx context.Context, a, _ *Cache[hookedKey, string]) { _, _ = a.Get(ctx, hookedKey{"k"}) }},
	{"Get of what is missing", func(ctx context.Context, a, _ *Cache[hookedKey, string]) { _, _ = a.Get(ctx, hookedKey{"missing"}) }},
	{"Get of what is broken", func(ctx context.Context, a, _ *Cache[hookedKey, string]) { _, _ = a.Get(ctx, hookedKey{"broken"}) }},
	{"GetMany", func(ctx context.Context, a, _ *Cache[hookedKey, string]) {
		_, err := a.GetMany(ctx, hookedKey{"k"}, hookedKey{"l"}, hookedKey{"missing"}, hookedKey{"broken"})
		if err != nil {
			_ = err.Error()
		}
	}},
	{"Refresh", func(ctx context.Context, a, _ *Cache[hookedKey, string]) { _, _ = a.Refresh(ctx, hookedKey{"k"}) }},
	{"Set", func(ctx context.Context, a, _ *Cache[hookedKey, string]) { _ = a.Set(ctx, hookedKey{"k"}, "set") }},
	{"a hit that is due", func(ctx context.Context, a, _ *Cache[hookedKey, string]) {
		_, _ = a.GetMany(ctx, hookedKey{"k"}, hookedKey{"l"})
		_, _ = a.GetMany(ctx, hookedKey{"k"}, hookedKey{"l"})
	}},
	{"Update", func(ctx context.Context, a, _ *Cache[hookedKey, string]) {
		_, _ = a.Update(ctx, hookedKey{"k"}, func(context.Context) (string, error) { return "updated", nil })
	}},
	{"Remove", func(ctx context.Context, a, _ *Cache[hookedKey, string]) {
		_ = a.Remove(ctx, hookedKey{"k"}, hookedKey{"l"})
	}},
	{"a message", func(ctx context.Context, _, b *Cache[hookedKey, string]) { _ = b.Remove(ctx, hookedKey{"k"}) }},
	{"a value in Redis", func(ctx context.Context, a, b *Cache[hookedKey, string]) {
		_, _ = b.GetMany(ctx, hookedKey{"k"}, hookedKey{"l"}, hookedKey{"missing"})
		_ = b.ClearRegion(ctx, "another")
		_, _ = a.Get(ctx, hookedKey{"missing"})
		_, _ = a.GetMany(ctx, hookedKey{"k"}, hookedKey{"l"})
	}},
}

// A callback may call whatever it likes of its cache, or panic, or end its goroutine:
// nothing hangs, and the cache is as good as before.
func TestCallbacks(t *testing.T) {
	defer hook.Store(nil)
	for _, together := range []bool{false, true} {
		for _, shared := range []bool{false, true} {
			if raceflag.Enabled && together != shared {
				continue // half of it takes two minutes
			}
			for what, do := range map[string]func(*Cache[hookedKey, string]){
				"calls everything": func(c *Cache[hookedKey, string]) { everything(c, hookedKey{"own"}, hookedKey{"k"}) },
				"panics":           func(*Cache[hookedKey, string]) { panic("the callback's") },
				"Goexit":           func(*Cache[hookedKey, string]) { runtime.Goexit() },
			} {
				for _, callback := range hookedCallbacks {
					name := callback + " " + what
					if together {
						name += ", LoadMany"
					}
					if shared {
						name += ", shared"
					}
					t.Run(name, func(t *testing.T) { testCallback(t, callback, together, shared, do) })
				}
			}
		}
	}
}

func testCallback(t *testing.T, callback string, together, shared bool, do func(*Cache[hookedKey, string])) {
	hook.Store(nil)
	backplanes := []*Backplane{Local(), Local()}
	if shared {
		bus := fakebus.New(fakebus.Options{Instances: 2, MinLatency: 10 * time.Microsecond, MaxLatency: 100 * time.Microsecond})
		defer bus.Close()
		backplanes = []*Backplane{joinSimulated(t, bus, 0), joinSimulated(t, bus, 1)}
	}
	a, b := hookedCache(t, backplanes[0], together), hookedCache(t, backplanes[1], together)
	defer returns(t, "Close", func() {
		hook.Store(nil)
		for _, bp := range backplanes {
			assert.NoError(t, bp.Close())
		}
	})
	for _, call := range hookedCalls {
		_ = a.Clear(t.Context())
		var calls atomic.Int64
		h := unnested(&calls, func() { do(a) })
		f := func(called string) {
			if called == callback {
				h()
			}
		}
		contexts := []context.Context{t.Context(), context.Background()} // with the latter, callers run loads themselves
		if shared {
			contexts = contexts[:1] // which they do not do then
		}
		for _, ctx := range contexts {
			returns(t, call.name, func() {
				defer func() { _ = recover() }()
				hook.Store(&f)
				call.do(ctx, a, b)
			})
			hook.Store(nil)
			_ = a.Remove(t.Context(), hookedKey{"k"}, hookedKey{"l"}, hookedKey{"missing"}, hookedKey{"broken"})
		}
		returns(t, "what follows "+call.name, func() {
			for _, key := range []string{"k", "l"} {
				v, err := a.Get(t.Context(), hookedKey{key})
				assert.NoError(t, err, call.name)
				assert.NotEmpty(t, v, call.name)
			}
			values, err := a.GetMany(t.Context(), hookedKey{"k"}, hookedKey{"l"}, hookedKey{"missing"})
			assert.NoError(t, err, call.name)
			assert.Len(t, values, 2, call.name)
		})
	}
	require.Eventually(t, func() bool {
		return a.loader.refreshes.Load() == 0 && len(a.loader.slots) == 0 && a.backplane.writers.Load() == 0
	}, patience, time.Millisecond)
	require.NoError(t, a.local.check(defaultCapacity))
}

// Of the keys of one LoadMany, only those fail whose callback ends the goroutine.
func TestGoexitInACallbackOfOneKey(t *testing.T) {
	c, err := New(Local(), Options[int, int]{
		Name: "p",
		LoadMany: func(_ context.Context, keys []int) (map[int]int, error) {
			values := map[int]int{}
			for _, key := range keys {
				values[key] = key
			}
			return values, nil
		},
		Expiry: func(key, _ int) time.Duration {
			if key%2 == 0 {
				runtime.Goexit()
			}
			return time.Hour
		},
	})
	require.NoError(t, err)
	defer c.Close()
	returns(t, "GetMany", func() {
		values, err := c.GetMany(t.Context(), 1, 2, 3, 4, 5)
		assert.ErrorIs(t, err, errGoexit)
		assert.Equal(t, map[int]int{1: 1, 3: 3, 5: 5}, values)
	})
}

// A wait for a load that takes longer than LoadTimeout ends, whatever WeighNotFound does.
func TestGoexitInWeighNotFoundAfterLoadTimeout(t *testing.T) {
	for _, many := range []bool{false, true} {
		hang := make(chan struct{})
		o := Options[int, int]{
			Name: "p", LoadTimeout: time.Millisecond, ErrorTTL: time.Hour, MaxWeight: 10,
			Weigh:         func(int, int) uint32 { return 1 },
			WeighNotFound: func(int, error) uint32 { runtime.Goexit(); return 1 },
			Load:          func(context.Context, int) (int, error) { <-hang; return 1, nil },
		}
		if many {
			o.LoadMany = func(context.Context, []int) (map[int]int, error) { <-hang; return nil, nil }
		}
		c, err := New(Local(), o)
		require.NoError(t, err)
		returns(t, "GetMany", func() {
			_, err := c.GetMany(t.Context(), 1, 2, 3)
			assert.ErrorIs(t, err, context.DeadlineExceeded)
		})
		close(hang)
		require.NoError(t, c.Close())
	}
}

// handlerFunc is a slog.Handler.
type handlerFunc func(line string)

func (handlerFunc) Enabled(context.Context, slog.Level) bool { return true }

func (h handlerFunc) Handle(_ context.Context, r slog.Record) error { h(r.Message); return nil }

func (h handlerFunc) WithAttrs([]slog.Attr) slog.Handler { return h }
func (h handlerFunc) WithGroup(string) slog.Handler      { return h }

// failingTextCodec encodes nothing.
type failingTextCodec struct{ hookedCodec }

func (failingTextCodec) Marshal(string) ([]byte, error) { return nil, errors.New("cannot be encoded") }

// A log handler may use the cache, even so that the same line is due again, and may panic
// or end its goroutine.
func TestLogHandlers(t *testing.T) {
	slow := func(key string) (string, error) {
		switch {
		case strings.HasPrefix(key, "missing"):
			return "", ErrNotFound
		case strings.HasPrefix(key, "broken"):
			return "", errors.New("broken")
		case strings.HasPrefix(key, "other"):
			return "", &markedNotFound{cache: "others", err: ErrNotFound}
		}
		return "loaded", nil
	}
	for line, key := range map[string]string{
		"nearcache: a load took longer than its result may be kept, which counts from the load's start": "slow missing broken",
		"nearcache: a loader's error wraps the not-found of another item, and counts as a failure; " +
			"return ErrNotFound if the loaded item does not exist either": "other",
		"nearcache: a value cannot be encoded for the shared level; such items are loaded by each instance":     "kept",
		"nearcache: the shared level is not used, since Redis does not tell its history (grant the user +info)": "kept",
	} {
		for what, do := range map[string]func(*Cache[string, string]){
			"calls everything": func(c *Cache[string, string]) {
				everything(c, "own", "k")
				for _, k := range strings.Fields(key) {
					_, _ = c.Get(context.Background(), k+" again")
				}
			},
			"panics":  func(*Cache[string, string]) { panic("the handler's") },
			"Goexit":  func(*Cache[string, string]) { runtime.Goexit() },
			"nothing": func(*Cache[string, string]) {},
		} {
			t.Run(what+" "+line, func(t *testing.T) {
				bus := fakebus.New(fakebus.Options{Instances: 1})
				defer bus.Close()
				var made atomic.Pointer[Cache[string, string]]
				var lines atomic.Int64
				bp := joinSimulatedWith(t, bus, 0, BackplaneOptions{Logger: slog.New(handlerFunc(func(said string) {
					if said == line {
						lines.Add(1)
						do(made.Load())
					}
				}))})
				ttl := time.Nanosecond
				if key == "kept" {
					ttl = time.Hour
				}
				if strings.Contains(line, "history") {
					unknown := ""
					bp.lease.followed.Store(&unknown)
				}
				c, err := New(bp, Options[string, string]{
					Name: "p", NotFoundTTL: time.Nanosecond, ErrorTTL: time.Nanosecond, TTL: time.Hour,
					Expiry: func(string, string) time.Duration { return ttl },
					Shared: &SharedOptions[string]{Codec: failingTextCodec{}},
					Load: func(_ context.Context, key string) (string, error) {
						time.Sleep(time.Millisecond)
						return slow(key)
					},
				})
				require.NoError(t, err)
				made.Store(c)
				for _, k := range strings.Fields(key) {
					returns(t, "Get", func() { _, _ = c.Get(t.Context(), k) })
				}
				require.Eventually(t, func() bool { return lines.Load() > 0 }, patience, time.Millisecond)
				returns(t, "Close", func() { assert.NoError(t, bp.Close()) })
				require.LessOrEqual(t, lines.Load(), int64(3))
			})
		}
	}
}

// Close can be called from callbacks. It waits for none of them but those of Update.
func TestCloseFromCallbacks(t *testing.T) {
	defer hook.Store(nil)
	for _, callback := range hookedCallbacks {
		if callback == "UnmarshalText" {
			continue // the subscriber's goroutine, see TestCloseFromWhatItWaitsFor
		}
		for _, call := range hookedCalls {
			if call.name == "Update" || call.name == "a message" {
				continue
			}
			t.Run(callback+", "+call.name, func(t *testing.T) {
				hook.Store(nil)
				bus := fakebus.New(fakebus.Options{Instances: 2, MinLatency: 10 * time.Microsecond, MaxLatency: 100 * time.Microsecond})
				defer bus.Close()
				backplanes := []*Backplane{joinSimulated(t, bus, 0), joinSimulated(t, bus, 1)}
				a, b := hookedCache(t, backplanes[0], true), hookedCache(t, backplanes[1], true)
				backplanes[0].closeTimeout = time.Hour
				var calls atomic.Int64
				h := unnested(&calls, func() { _ = a.backplane.Close() })
				f := func(called string) {
					if called == callback {
						h()
					}
				}
				hook.Store(&f)
				returns(t, call.name, func() { call.do(context.Background(), a, b) })
				returns(t, "Close", func() {
					for _, bp := range backplanes {
						_ = bp.Close()
					}
				})
			})
		}
	}
}

// Close ends also if it is called from what it waits for: from the goroutine of the
// subscriber, from a handler of its own last line, from Update's write, from OnEvent.
func TestCloseFromWhatItWaitsFor(t *testing.T) {
	defer hook.Store(nil)
	var onLog, onEvent atomic.Pointer[func()]
	do := func(at *atomic.Pointer[func()]) {
		if f := at.Load(); f != nil {
			(*f)()
		}
	}
	for name, begin := range map[string]func(a, b *Cache[hookedKey, string], closes func()){
		"UnmarshalText": func(_, b *Cache[hookedKey, string], closes func()) {
			f := func(called string) {
				if called == "UnmarshalText" {
					hook.Store(nil)
					closes()
				}
			}
			text, _ := b.keys.wire(hookedKey{"k"})
			hook.Store(&f)
			_ = b.backplane.publish(context.Background(), invalidation{cache: "p", keys: []string{text}}, nothing)
		},
		"a log handler": func(a, _ *Cache[hookedKey, string], closes func()) {
			onLog.Store(&closes)
			_ = a.backplane.Close()
		},
		"Update's write": func(a, _ *Cache[hookedKey, string], closes func()) {
			_, _ = a.Update(context.Background(), hookedKey{"k"}, func(context.Context) (string, error) {
				closes()
				return "", nil
			})
		},
		"OnEvent": func(a, _ *Cache[hookedKey, string], closes func()) {
			onEvent.Store(&closes)
			a.backplane.note(Event{Kind: EventCollapsed})
		},
	} {
		t.Run(name, func(t *testing.T) {
			hook.Store(nil)
			onLog.Store(nil)
			onEvent.Store(nil)
			bus := fakebus.New(fakebus.Options{Instances: 2, MinLatency: 10 * time.Microsecond, MaxLatency: 100 * time.Microsecond})
			defer bus.Close()
			bp := joinSimulatedWith(t, bus, 0, BackplaneOptions{
				Logger:       slog.New(handlerFunc(func(string) { do(&onLog) })),
				OnEvent:      func(Event) { do(&onEvent) },
				CloseTimeout: 50 * time.Millisecond,
			})
			other := joinSimulated(t, bus, 1)
			a, b := hookedCache(t, bp, false), hookedCache(t, other, false)
			closed := make(chan struct{}, 64)
			returns(t, name, func() {
				begin(a, b, func() {
					_ = bp.Close()
					closed <- struct{}{}
				})
				<-closed
			})
			returns(t, "Close", func() {
				_ = bp.Close()
				_ = other.Close()
			})
		})
	}
}

// OnEvent and UnmarshalText may end the goroutine that they are called in: others follow.
func TestGoexitInOurGoroutines(t *testing.T) {
	defer hook.Store(nil)
	bus := fakebus.New(fakebus.Options{Instances: 2, MinLatency: 10 * time.Microsecond, MaxLatency: 100 * time.Microsecond})
	defer bus.Close()
	var events atomic.Int64
	backplanes := []*Backplane{joinSimulatedWith(t, bus, 0, BackplaneOptions{
		Logger: slog.New(slog.DiscardHandler), OnEvent: func(Event) { events.Add(1); runtime.Goexit() },
	}), joinSimulated(t, bus, 1)}
	a, b := hookedCache(t, backplanes[0], false), hookedCache(t, backplanes[1], false)

	require.NoError(t, a.Set(t.Context(), hookedKey{"k"}, "old"))
	// The message of the Set must not reach b after the hook is set: then b's goroutine would end.
	require.Eventually(t, func() bool { return backplanes[1].Stats().Applied == 1 }, patience, time.Millisecond)
	text, err := b.keys.wire(hookedKey{"k"})
	require.NoError(t, err)
	f := func(called string) {
		if called == "UnmarshalText" {
			hook.Store(nil)
			runtime.Goexit()
		}
	}
	hook.Store(&f)
	require.NoError(t, b.backplane.publish(t.Context(), invalidation{cache: "p", keys: []string{text}}, nothing))
	require.Eventually(t, func() bool { _, held := a.Peek(hookedKey{"k"}); return !held }, patience, time.Millisecond)
	require.Eventually(t, func() bool { return backplanes[0].Stats().Subscribed == 2 }, patience, time.Millisecond, "another subscription")
	require.NoError(t, a.Set(t.Context(), hookedKey{"k"}, "new"))
	require.NoError(t, b.Remove(t.Context(), hookedKey{"k"}))
	require.Eventually(t, func() bool { _, held := a.Peek(hookedKey{"k"}); return !held }, patience, time.Millisecond)
	for _, bp := range backplanes {
		returns(t, "Close", func() { assert.NoError(t, bp.Close()) })
	}
	require.GreaterOrEqual(t, events.Load(), int64(2))
}
