package nearcache

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache/internal/messagetest"
)

// buffer is memory that a framework lends to a request's handler, and uses again for the
// next request.
type buffer struct{ bytes []byte }

// lend returns a string in the buffer.
func (b *buffer) lend(text string) string {
	from := len(b.bytes)
	if b.bytes == nil {
		b.bytes = make([]byte, 0, 1<<10) // it never moves
	}
	b.bytes = append(b.bytes, text...)
	return unsafe.String(&b.bytes[from], len(text))
}

// reuse has every string that was lent say something else.
func (b *buffer) reuse() {
	for i := range b.bytes {
		b.bytes[i] = '#'
	}
	b.bytes = b.bytes[len(b.bytes):]
}

// pathKey is a key with a MarshalText behind which lies a string.
type pathKey struct{ Path string }

func (k pathKey) MarshalText() ([]byte, error) { return []byte(k.Path), nil }

func (k *pathKey) UnmarshalText(text []byte) error {
	k.Path = string(text)
	return nil
}

// Keys and names of regions may lie in memory that the caller uses again as soon as a
// method has returned, whatever is kept or queued of it.
func TestBorrowedKeys(t *testing.T) {
	t.Run("string", func(t *testing.T) { testBorrowedKeys(t, func(s string) string { return s }) })
	t.Run("a string type", func(t *testing.T) { testBorrowedKeys(t, func(s string) namedString { return namedString(s) }) })
	t.Run("a type with MarshalText", func(t *testing.T) { testBorrowedKeys(t, func(s string) pathKey { return pathKey{s} }) })
}

func testBorrowedKeys[K comparable](t *testing.T, key func(string) K) {
	type cache = *Cache[K, string]
	a, b := key("aaaa"), key("bbbb")
	errFails := errors.New("fails")

	// Each call leaves the items of a and b in memory, unless it removes them.
	calls := map[string]struct {
		call    func(ctx context.Context, c cache, buf *buffer) error
		removes bool // and queues the removal of a and b
		one     bool // of a alone
	}{
		"Get": {one: true, call: func(ctx context.Context, c cache, buf *buffer) error {
			_, err := c.Get(ctx, key(buf.lend("aaaa")))
			return err
		}},
		"Get with a deadline": {one: true, call: func(ctx context.Context, c cache, buf *buffer) error {
			ctx, cancel := context.WithTimeout(ctx, time.Hour)
			defer cancel()
			_, err := c.Get(ctx, key(buf.lend("aaaa")))
			return err
		}},
		"GetMany": {call: func(ctx context.Context, c cache, buf *buffer) error {
			_, err := c.GetMany(ctx, key(buf.lend("aaaa")), key(buf.lend("bbbb")))
			return err
		}},
		"Refresh": {one: true, call: func(ctx context.Context, c cache, buf *buffer) error {
			_, err := c.Refresh(ctx, key(buf.lend("aaaa")))
			return err
		}},
		"Set": {removes: true, one: true, call: func(ctx context.Context, c cache, buf *buffer) error {
			return c.Set(ctx, key(buf.lend("aaaa")), "item of aaaa")
		}},
		"Update": {removes: true, one: true, call: func(ctx context.Context, c cache, buf *buffer) error {
			_, err := c.Update(ctx, key(buf.lend("aaaa")), func(context.Context) (string, error) { return "item of aaaa", nil })
			return err
		}},
		"Update that fails": {removes: true, one: true, call: func(ctx context.Context, c cache, buf *buffer) error {
			_, err := c.Update(ctx, key(buf.lend("aaaa")), func(context.Context) (string, error) { return "", errFails })
			_, _ = c.Get(ctx, a)
			if errors.Is(err, errFails) {
				err = ErrUnconfirmed // which Update leaves out then
			}
			return err
		}},
		"Remove": {removes: true, call: func(ctx context.Context, c cache, buf *buffer) error {
			err := c.Remove(ctx, key(buf.lend("aaaa")), key(buf.lend("bbbb")))
			_, _ = c.GetMany(ctx, a, b)
			return err
		}},
		"Invalidator.Remove": {removes: true, call: func(ctx context.Context, c cache, buf *buffer) error {
			i, err := NewInvalidator[K](c.backplane, buf.lend("p"))
			if err != nil {
				return err
			}
			err = i.Remove(ctx, key(buf.lend("aaaa")), key(buf.lend("bbbb")))
			_, _ = c.GetMany(ctx, a, b)
			return err
		}},
	}
	for name, test := range calls {
		t.Run(name, func(t *testing.T) {
			withFakeRedis(t, func(t *testing.T, bp *Backplane, redis *fakeRedis) {
				var buf buffer
				c, err := New(bp, Options[K, string]{Name: "p", Load: func(_ context.Context, k K) (string, error) {
					return "item of " + keyText(k), nil
				}})
				require.NoError(t, err)
				redis.refuse(errRefused)
				err = test.call(t.Context(), c, &buf)
				if test.removes {
					require.ErrorIs(t, err, ErrUnconfirmed)
				} else {
					require.NoError(t, err)
				}
				buf.reuse()

				want := map[K]string{a: "item of aaaa", b: "item of bbbb"}
				keys := []string{"aaaa", "bbbb"}
				if test.one {
					delete(want, b)
					keys = keys[:1]
				}
				require.Equal(t, want, maps.Collect(c.All()))
				for k := range want {
					_, held := c.Peek(k)
					require.True(t, held)
				}
				require.NoError(t, c.local.check(defaultCapacity))
				for i := range c.local.shards {
					require.Empty(t, c.local.shards[i].flights)
					require.Empty(t, c.local.shards[i].writes)
				}
				redis.refuse(nil)
				if test.removes {
					require.NoError(t, bp.Flush(t.Context()))
					require.Equal(t, keys, slices.Compact(slices.Sorted(slices.Values(redis.keys()))))
					require.Equal(t, "p", redis.accepted[0].Cache)
				}
			})
		})
	}

	// 1. a handler asks for a key, and leaves before the load ends   2. its buffer has
	// another request   3. the load asks the source.
	t.Run("a load that outlives its caller", func(t *testing.T) {
		for _, many := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				var buf buffer
				resume := make(chan struct{})
				c, err := New(Local(), Options[K, string]{Name: "p", Load: func(_ context.Context, k K) (string, error) {
					<-resume
					return "item of " + keyText(k), nil
				}})
				require.NoError(t, err)
				go func() { _, _ = c.GetMany(context.Background(), a, b) }() // it keeps the loads alive
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				if many {
					_, err = c.GetMany(ctx, key(buf.lend("aaaa")), key(buf.lend("bbbb")), key(buf.lend("cccc")))
					buf.reuse()
					var failed *KeysError[K]
					require.ErrorAs(t, err, &failed)
					require.Equal(t, []K{a, b, key("cccc")}, failed.Keys)
				} else {
					_, err = c.Get(ctx, key(buf.lend("aaaa")))
					buf.reuse()
				}
				require.ErrorIs(t, err, context.DeadlineExceeded)
				close(resume)
				synctest.Wait()
				for _, k := range []K{a, b} {
					v, held := c.Peek(k)
					require.True(t, held)
					require.Equal(t, "item of "+keyText(k), v)
				}
				require.NoError(t, c.local.check(defaultCapacity))
			})
		}
	})
	t.Run("a load that its first caller leaves", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var buf buffer
			resume := make(chan struct{})
			c, err := New(Local(), Options[K, string]{Name: "p", Load: func(_ context.Context, k K) (string, error) {
				<-resume
				return "item of " + keyText(k), nil
			}})
			require.NoError(t, err)
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			left := make(chan error)
			go func() {
				_, err := c.Get(ctx, key(buf.lend("aaaa")))
				left <- err
			}()
			synctest.Wait()
			second := make(chan string)
			go func() {
				v, _ := c.Get(context.Background(), a)
				second <- v
			}()
			synctest.Wait()
			require.ErrorIs(t, <-left, context.DeadlineExceeded)
			buf.reuse()
			close(resume)
			require.Equal(t, "item of aaaa", <-second)
			require.EqualValues(t, 1, c.Stats().Loads)
			require.NoError(t, c.Remove(t.Context(), a))
			require.Zero(t, c.Len())
		})
	})
	t.Run("the map and the errors of GetMany", func(t *testing.T) {
		var buf buffer
		c, err := New(Local(), Options[K, string]{Name: "p", ErrorTTL: time.Hour, Load: func(_ context.Context, k K) (string, error) {
			if k == b {
				return "", errFails
			}
			return "item of " + keyText(k), nil
		}})
		require.NoError(t, err)
		for range 2 { // loaded, and held
			got, err := c.GetMany(t.Context(), key(buf.lend("aaaa")), key(buf.lend("bbbb")))
			buf.reuse()
			require.Equal(t, map[K]string{a: "item of aaaa"}, got)
			var failed *KeysError[K]
			require.ErrorAs(t, err, &failed)
			require.Equal(t, []K{b}, failed.Keys)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err = c.GetMany(ctx, key(buf.lend("cccc")))
		buf.reuse()
		require.ErrorContains(t, err, "cccc")
	})
}

// keyText is the text of a key in testBorrowedKeys.
func keyText(k any) string {
	switch k := k.(type) {
	case pathKey:
		return strings.Clone(k.Path)
	case namedString:
		return strings.Clone(string(k))
	}
	return strings.Clone(k.(string))
}

// The same of regions: those that Regions returns, and those that are cleared.
func TestBorrowedRegions(t *testing.T) {
	withFakeRedis(t, func(t *testing.T, bp *Backplane, redis *fakeRedis) {
		var buf buffer
		resume := make(chan struct{}, 1)
		resume <- struct{}{}
		c, err := New(bp, Options[string, string]{
			Name: "p", Load: func(context.Context, string) (string, error) {
				<-resume
				return "v", nil
			},
			Regions: func(key, _ string) []string { return []string{buf.lend("books"), buf.lend("music")} },
		})
		require.NoError(t, err)
		_, err = c.Get(t.Context(), "a")
		require.NoError(t, err)
		buf.reuse()
		require.NoError(t, c.Set(t.Context(), "b", "v"))
		buf.reuse()
		require.NoError(t, c.local.check(defaultCapacity))

		loaded := make(chan struct{})
		go func() { // the log of clears is kept for it
			defer close(loaded)
			_, _ = c.Get(t.Context(), "c")
		}()
		synctest.Wait()
		redis.refuse(errRefused)
		require.ErrorIs(t, c.ClearRegion(t.Context(), buf.lend("books")), ErrUnconfirmed)
		i, err := NewInvalidator[string](bp, "other")
		require.NoError(t, err)
		require.ErrorIs(t, i.ClearRegion(t.Context(), buf.lend("games")), ErrUnconfirmed)
		buf.reuse()
		require.Zero(t, c.Len())
		resume <- struct{}{}
		<-loaded
		require.Zero(t, c.Len(), "the load was overtaken by the clear")

		redis.refuse(nil)
		require.NoError(t, bp.Flush(t.Context()))
		var cleared []string
		for _, o := range redis.accepted {
			if o.Op == messagetest.ClearRegions {
				cleared = append(cleared, o.Cache+" "+o.Values[0])
			}
		}
		require.ElementsMatch(t, []string{"p books", "other games"}, cleared)
	})
}
