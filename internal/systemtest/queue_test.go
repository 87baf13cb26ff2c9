package systemtest

import (
	"context"
	"errors"
	"strconv"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache"
)

// removeEach removes keys one by one and checks that each is queued at once. It
// uses no assertion for each, since there are very many.
func removeEach(t *testing.T, in *instance, keys []string) {
	t.Helper()
	confirmed := within(t, "all Removes return", func() (n int) {
		for _, key := range keys {
			if !errors.Is(in.items.Remove(context.Background(), key), nearcache.ErrUnconfirmed) {
				n++
			}
		}
		return n
	})
	require.Zero(t, confirmed, "of %d Removes, so many were not ErrUnconfirmed", len(keys))
}

func manyKeys(n int) []string {
	keys := make([]string, n)
	for i := range keys {
		keys[i] = "/" + strconv.Itoa(i)
	}
	return keys
}

// TestQueue removes items while the writer's path to Redis is cut. The others
// stay connected, so all that they learn comes through the queue.
func TestQueue(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name     string
		keys     int
		collapse bool // the queue outgrows its bound and becomes a clear
	}{
		{"of some keys", 1_000, false},
		{"of a hundred thousand keys", 100_000, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			onEachRedis(t, func(t *testing.T, addr string) {
				ctx := context.Background()
				src, raw, path := newSource(), rawClient(t, addr), startProxy(t, addr)
				a, b := join(t, src.load, path.addr), join(t, src.load, addr)
				require.NoError(t, a.items.Remove(ctx, "/x"))
				keys := manyKeys(test.keys)
				var sample []string // b holds one key in so many
				for i := 0; i < len(keys); i += len(keys) / 1_000 {
					sample = append(sample, keys[i])
				}
				b.get(t, sample...)
				b.get(t, "/other")

				path.cut()
				removeEach(t, a, keys)
				removeEach(t, a, keys[:10]) // again: one entry each
				// Not at once: what is removed during an attempt is queued beside it.
				queued := len(keys)
				if test.collapse {
					queued = 1
				}
				eventually(t, "the queue has one entry for each key, or one for all", func() bool {
					return a.bp.Stats().Queued == queued
				})
				stats := a.bp.Stats()
				assert.Equal(t, test.collapse, stats.Collapsed > 0)
				assert.Positive(t, stats.QueueAge)
				for _, key := range sample {
					require.True(t, b.held(key), "nothing can have arrived")
				}

				path.resume()
				require.NoError(t, within(t, "Flush returns", func() error { return a.bp.Flush(ctx) }))
				live(t, a)
				barrier(t, raw, a, b)
				for _, key := range sample {
					require.False(t, b.held(key), "the Remove of %s is lost", key)
				}
				assert.Equal(t, !test.collapse, b.held("/other"))
				assert.EqualValues(t, 1, b.bp.Stats().Subscribed)
				assert.Zero(t, b.bp.Stats().Clears.Gaps())
				stats = a.bp.Stats()
				assert.Zero(t, stats.Queued)
				assert.Zero(t, stats.QueueAge)
			})
		})
	}
}

// TestQueueAcrossRestart is the same with Redis itself away for everybody.
func TestQueueAcrossRestart(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	src, server := newSource(), startRedis(t)
	raw := server.client()
	a, b := join(t, src.load, server.addr), join(t, src.load, server.addr)
	require.NoError(t, a.items.Remove(ctx, "/x"))
	keys := manyKeys(100_000)
	b.get(t, keys[:1_000]...)

	server.kill()
	eventually(t, "the loss is noticed", func() bool { return b.bp.State() == nearcache.StateConnecting })
	src.write(keys...)
	removeEach(t, a, keys)
	eventually(t, "the queue has one entry for all", func() bool { return a.bp.Stats().Queued == 1 })
	assert.Positive(t, a.bp.Stats().Collapsed)

	server.restart()
	require.NoError(t, within(t, "Flush returns", func() error { return a.bp.Flush(ctx) }))
	live(t, a, b)
	barrier(t, raw, a, b)
	for _, key := range keys[:1_000] {
		v, err := b.items.Get(ctx, key)
		require.NoError(t, err)
		require.Equal(t, 2, v, "item %s", key)
	}
}
