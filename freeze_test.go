//go:build unix

package nearcache_test

import (
	"context"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache"
)

// freeze stops the server's process: its connections stay, and nothing answers.
func (s *redisProcess) freeze() {
	s.t.Helper()
	require.NoError(s.t, s.cmd.Process.Signal(syscall.SIGSTOP))
}

func (s *redisProcess) thaw() {
	s.t.Helper()
	require.NoError(s.t, s.cmd.Process.Signal(syscall.SIGCONT))
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
