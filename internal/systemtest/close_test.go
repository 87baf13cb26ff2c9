package systemtest

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/nearcache/nearcache"
)

func TestCloseDeliversTheQueue(t *testing.T) {
	t.Parallel()
	onEachRedis(t, func(t *testing.T, addr string) {
		src, raw, path := newSource(), rawClient(t, addr), startProxy(t, addr)
		a := joinWith(t, src.load, nearcache.BackplaneOptions{
			RedisConnectionString: path.addr, CloseTimeout: patience,
		})
		b := join(t, src.load, addr)
		b.get(t, "/1", "/2", "/other")
		path.cut()
		removeEach(t, a, []string{"/1", "/2"})

		path.resume()
		require.NoError(t, within(t, "Close returns", a.bp.Close))
		barrier(t, raw, b)
		assert.False(t, b.held("/1"))
		assert.False(t, b.held("/2"))
		assert.True(t, b.held("/other"))
	})
}

func TestCloseWithoutRedis(t *testing.T) {
	t.Parallel()
	onEachRedis(t, func(t *testing.T, addr string) {
		ctx := context.Background()
		src, path := newSource(), startProxy(t, addr)
		in := joinWith(t, src.load, nearcache.BackplaneOptions{
			RedisConnectionString: path.addr, CloseTimeout: 20 * time.Millisecond,
		})
		in.get(t, "/1")
		path.cut()
		removeEach(t, in, []string{"/secret-key", "/2"})
		require.ErrorIs(t, in.numbers.Clear(ctx), nearcache.ErrUnconfirmed)

		err := within(t, "Close returns", in.bp.Close)
		assert.ErrorIs(t, err, nearcache.ErrUnconfirmed)
		assert.ErrorContains(t, err, "2 key(s)")
		assert.ErrorContains(t, err, "items")
		assert.ErrorContains(t, err, "a clear of numbers")
		assert.NotContains(t, err.Error(), "secret-key")
		assert.Equal(t, err, in.bp.Close(), "closing again returns the same")
	})
}

func TestAfterClose(t *testing.T) {
	t.Parallel()
	onEachRedis(t, func(t *testing.T, addr string) {
		ctx := context.Background()
		src := newSource()
		in := join(t, src.load, addr)
		in.get(t, "/1")
		require.NoError(t, in.bp.Close())
		require.NoError(t, in.bp.Close())
		assert.Equal(t, nearcache.StateClosed, in.bp.State())

		for want := 1; want < 4; want++ {
			v, err := in.items.Get(ctx, "/1")
			require.NoError(t, err)
			assert.Equal(t, want, v, "every Get loads")
			assert.False(t, in.held("/1"))
			src.write("/1")
		}
		for _, write := range writes {
			if write.name == "Update" {
				continue // below: its write must not run
			}
			assert.ErrorIs(t, write.run(ctx, in), nearcache.ErrClosed, write.name)
		}
		_, err := in.items.Update(ctx, "/1", func(context.Context) (int, error) {
			t.Error("Update's write runs after Close")
			return 0, nil
		})
		assert.ErrorIs(t, err, nearcache.ErrClosed)
		_, err = nearcache.New(in.bp, nearcache.Options[string, int]{Name: "late", Load: src.load})
		assert.ErrorIs(t, err, nearcache.ErrClosed)
		assert.NoError(t, in.bp.Flush(ctx), "there is nothing to wait for")
	})
}

// TestCloseLeavesNoGoroutine runs alone, so every goroutine that is new is the
// backplane's or go-redis's.
func TestCloseLeavesNoGoroutine(t *testing.T) {
	tests := []struct {
		name   string
		before func(t *testing.T, in *instance, path *proxy) // Close
	}{
		{"live", func(t *testing.T, in *instance, _ *proxy) {
			require.NoError(t, in.items.Remove(context.Background(), "/1"))
		}},
		{"never used", func(*testing.T, *instance, *proxy) {}},
		{"with a sweep to come", func(t *testing.T, in *instance, _ *proxy) {
			in.get(t, manyKeys(1_000)...)
			require.NoError(t, in.items.Clear(context.Background()))
		}},
		{"without Redis", func(t *testing.T, in *instance, path *proxy) {
			path.cut()
			removeEach(t, in, []string{"/1"})
			eventually(t, "the loss is noticed", func() bool { return in.bp.State() == nearcache.StateConnecting })
		}},
		{"with a silent Redis", func(t *testing.T, in *instance, path *proxy) {
			path.hold()
			short, cancel := context.WithTimeout(context.Background(), time.Millisecond)
			defer cancel()
			require.ErrorIs(t, in.items.Remove(short, "/1"), nearcache.ErrUnconfirmed)
		}},
		{"while it connects to a silent Redis", func(t *testing.T, in *instance, path *proxy) {
			path.cut()
			eventually(t, "the loss is noticed", func() bool { return in.bp.State() == nearcache.StateConnecting })
			path.hold()
			eventually(t, "it connects", func() bool { return path.held() > 0 })
		}},
		{"while it reads the position of a silent Redis", func(t *testing.T, in *instance, path *proxy) {
			path.cut()
			eventually(t, "the loss is noticed", func() bool { return in.bp.State() == nearcache.StateConnecting })
			path.holdAfter(1)
			eventually(t, "it asks", func() bool { return path.held() > 0 })
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			path := startProxy(t, startRedis(t).addr)
			old := goleak.IgnoreCurrent()
			in, err := newInstance(context.Background(), newSource().load, nearcache.BackplaneOptions{
				RedisConnectionString: path.addr + ",asyncTimeout=600000",
				Logger:                discard,
				CloseTimeout:          20 * time.Millisecond,
			})
			require.NoError(t, err)
			test.before(t, in, path)
			_ = within(t, "Close returns", in.bp.Close)
			path.cut() // its goroutines are not meant
			goleak.VerifyNone(t, old)
		})
	}
}
