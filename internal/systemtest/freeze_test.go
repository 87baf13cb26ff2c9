//go:build unix

package systemtest

import (
	"context"
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache"
)

// freeze stops the server's process: its connections stay, and nothing answers.
func (s *redisProcess) freeze() {
	s.t.Helper()
	require.NoError(s.t, s.Signal(syscall.SIGSTOP))
}

func (s *redisProcess) thaw() {
	s.t.Helper()
	require.NoError(s.t, s.Signal(syscall.SIGCONT))
}

// TestFrozenRedis writes with a deadline to a Redis that does not answer.
func TestFrozenRedis(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	src, server := newSource(), startRedis(t)
	raw := server.client()
	const patient = ",asyncTimeout=600000" // it is the writer's context that ends the wait
	a, b := join(t, src.load, server.addr+patient), join(t, src.load, server.addr+patient)
	a.get(t, "/1")
	b.get(t, "/1", "/other")

	server.freeze()
	src.write("/1")
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	err := within(t, "Remove returns", func() error { return a.items.Remove(short, "/1") })
	assert.ErrorIs(t, err, nearcache.ErrUnconfirmed)
	assert.ErrorIs(t, err, context.DeadlineExceeded)
	assert.False(t, a.held("/1"), "the local part is done")
	assert.True(t, b.held("/1"), "nothing can have arrived")
	assert.Equal(t, 1, a.bp.Stats().Queued)

	server.thaw()
	require.NoError(t, within(t, "Flush returns", func() error { return a.bp.Flush(ctx) }))
	barrier(t, raw, a, b)
	assert.False(t, b.held("/1"))
	assert.True(t, b.held("/other"), "nothing was missed")
	assert.Zero(t, b.bp.Stats().Clears.Gaps())
}

// TestCloseWithFrozenRedis closes a backplane whose Redis does not answer, with
// a command timeout that is far away: CloseTimeout is what counts, and whoever
// waits for a confirmation is told.
func TestCloseWithFrozenRedis(t *testing.T) {
	t.Parallel()
	src, server := newSource(), startRedis(t)
	in := joinWith(t, src.load, nearcache.BackplaneOptions{
		RedisConnectionString: server.addr + ",asyncTimeout=600000",
		CloseTimeout:          20 * time.Millisecond,
	})
	require.NoError(t, in.items.Remove(context.Background(), "/1"))

	server.freeze()
	removed := make(chan error, 1)
	go func() { removed <- in.items.Remove(context.Background(), "/1") }()
	eventually(t, "the write is queued", func() bool { return in.bp.Stats().Queued == 1 })
	err := within(t, "Close returns", in.bp.Close)
	assert.ErrorIs(t, err, nearcache.ErrUnconfirmed)
	assert.ErrorIs(t, receive(t, "Remove returns", removed), nearcache.ErrUnconfirmed)
}

// TestCloseManySharedWithFrozenRedis does it with a hundred shared caches that have loads
// under way: one Timeout for each of them would take minutes.
func TestCloseManySharedWithFrozenRedis(t *testing.T) {
	t.Parallel()
	const caches, timeout = 100, 2 * time.Second
	server := startRedis(t)
	bp, err := nearcache.Connect(t.Context(), nearcache.BackplaneOptions{
		RedisConnectionString: server.addr + ",asyncTimeout=600000", CloseTimeout: timeout, Logger: discard,
	})
	require.NoError(t, err)
	held := newHeldLoads()
	var all []*nearcache.Cache[string, int]
	for i := range caches {
		c, err := nearcache.New(bp, nearcache.Options[string, int]{
			Name: fmt.Sprint("items-", i), Load: held.load, Shared: &nearcache.SharedOptions[int]{Timeout: timeout},
		})
		require.NoError(t, err)
		all = append(all, c)
		go func() { _, _ = c.Get(context.Background(), "a") }()
	}
	var loads []chan<- int
	for range caches {
		loads = append(loads, receive(t, "a load begins", held.asked))
	}
	server.freeze()
	defer server.thaw()
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, all[0].Remove(gone, "b"), nearcache.ErrUnconfirmed)
	began := time.Now()
	assert.ErrorIs(t, within(t, "Close returns", bp.Close), nearcache.ErrUnconfirmed)
	assert.Less(t, time.Since(began), caches*timeout/10)
	for _, load := range loads {
		load <- 1
	}
}

// TestSharedConnections counts the connections of the shared level: few, as many as were
// asked for, and given back when they are not used.
func TestSharedConnections(t *testing.T) {
	t.Parallel()
	const others = 3 // the backplane's: two, and one once it has published
	server := startRedis(t)
	raw := server.client()
	for size, want := range map[int]int{0: 8, 3: 3, 20: 20} {
		t.Run(fmt.Sprint("PoolSize ", size), func(t *testing.T) {
			name := fmt.Sprint("pool", size)
			bp, err := nearcache.Connect(t.Context(), nearcache.BackplaneOptions{
				Redis: &redis.UniversalOptions{
					Addrs: []string{server.addr}, ClientName: name, PoolSize: size, ConnMaxIdleTime: 500 * time.Millisecond,
				},
				Channel: name, Logger: discard,
			})
			require.NoError(t, err)
			t.Cleanup(func() { _ = bp.Close() })
			items, err := nearcache.New(bp, nearcache.Options[string, int]{
				Name: "items", Load: newCountedLoads().load, Shared: &nearcache.SharedOptions[int]{Timeout: patience},
			})
			require.NoError(t, err)
			require.Equal(t, 2, connections(t, raw, name), "there are none before they are used")
			require.NoError(t, items.Remove(t.Context(), "nothing"))
			server.freeze() // so that all ask at once
			done := make(chan error, 64)
			for i := range 64 {
				go func() {
					_, err := items.Get(context.Background(), fmt.Sprint(i))
					done <- err
				}()
			}
			time.AfterFunc(time.Second, server.thaw)
			for range 64 {
				require.NoError(t, receive(t, "a Get returns", done))
			}
			require.Equal(t, others+want, connections(t, raw, name))
			require.Zero(t, items.Stats().Shared.Errors)
			eventually(t, "they are given back", func() bool { return connections(t, raw, name) == others })
			_, err = items.Get(t.Context(), "another")
			require.NoError(t, err)
			require.Zero(t, items.Stats().Shared.Errors)
		})
	}
}
