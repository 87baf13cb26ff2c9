package nearcache

import (
	"context"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// patience is for how long the tests here wait for what must not hang. The clock is the
// real one: synctest does not notice who waits for a mutex.
const patience = time.Minute

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
	soon, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
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

// once returns what calls f, but not from within itself, and counts the calls.
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
						return err == nil && v == "loaded" && c.loader.refreshes.Load() == 0 && len(c.loader.places) == 0
					}, patience, time.Millisecond)
					e, _ := c.local.peek("k")
					require.NotNil(t, e)
					require.Eventually(t, func() bool { // a refresh can begin
						if c.local.claim(e) {
							return true
						}
						e, _ = c.local.peek("k")
						return e != nil && c.local.claim(e)
					}, patience, time.Millisecond)
				})
			}
		}
	}
}
