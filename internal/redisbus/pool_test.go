package redisbus

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache/internal/barrier"
)

// pooledServer returns a server in memory, and its pool, whose dials call dial first.
func pooledServer(t *testing.T, size int, dial func() error) (*miniredis.Miniredis, *linkPool) {
	t.Helper()
	memory := miniredis.RunT(t)
	server := newServer(t, Config{
		Redis: &redis.UniversalOptions{Addrs: []string{memory.Addr()}, PoolSize: size, Dialer: func(_ context.Context, network, addr string) (net.Conn, error) {
			if err := dial(); err != nil {
				return nil, err
			}
			return net.Dial(network, addr)
		}},
	})
	return memory, &server.values.links
}

func ping(ctx context.Context, link *redisLink) error { return link.conn.Ping(ctx).Err() }

// A request leaves while its connection is being made: the next has it.
func TestPoolKeepsADialThatOutlivesItsRequest(t *testing.T) {
	goOn, dials := make(chan struct{}), atomic.Int64{}
	_, pool := pooledServer(t, 1, func() error { dials.Add(1); <-goOn; return nil })
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, pool.run(ctx, true, ping), context.DeadlineExceeded)
	close(goOn)
	require.NoError(t, pool.run(t.Context(), true, ping))
	require.EqualValues(t, 1, dials.Load())
}

// 1. a request has a connection dialled, at an address that was resolved   2. Redial
//  3. the dial ends, at the old server: another is made for the request.
func TestPoolDialThatWasOvertaken(t *testing.T) {
	dialing, goOn, dials := make(chan struct{}, 1), make(chan struct{}), atomic.Int64{}
	_, pool := pooledServer(t, 1, func() error {
		if dials.Add(1) == 1 {
			dialing <- struct{}{}
			<-goOn
		}
		return nil
	})
	done := make(chan error, 1)
	go func() { done <- pool.run(context.Background(), true, ping) }()
	<-dialing
	pool.drop(false)
	close(goOn)
	require.NoError(t, <-done)
	require.EqualValues(t, 2, dials.Load())
}

// A dial that fails is the error of those that wait, unless there are other connections,
// which they wait for then.
func TestPoolDialThatFails(t *testing.T) {
	broken := errors.New("no way")
	var fail atomic.Bool
	fail.Store(true)
	_, pool := pooledServer(t, 2, func() error {
		if fail.Load() {
			return broken
		}
		return nil
	})
	require.ErrorIs(t, pool.run(t.Context(), true, ping), broken)
	fail.Store(false)
	require.NoError(t, pool.run(t.Context(), true, ping))
	fail.Store(true)
	inUse, release, done := make(chan struct{}), make(chan struct{}), make(chan error, 2)
	go func() {
		done <- pool.run(context.Background(), true, func(context.Context, *redisLink) error {
			close(inUse)
			<-release
			return nil
		})
	}()
	<-inUse
	go func() { done <- pool.run(context.Background(), true, ping) }()
	require.Eventually(t, func() bool {
		pool.mu.Lock()
		defer pool.mu.Unlock()
		return len(pool.waiting) == 1 && pool.dialing == 0
	}, time.Minute, time.Millisecond)
	close(release)
	require.NoError(t, <-done)
	require.NoError(t, <-done)
}

// A panic in a dial, or in what runs over a connection, is an error, and no connection
// is lost for it.
func TestPoolPanics(t *testing.T) {
	var fail atomic.Bool
	fail.Store(true)
	_, pool := pooledServer(t, 1, func() error {
		if fail.Load() {
			panic("in a dialler")
		}
		return nil
	})
	require.ErrorIs(t, pool.run(t.Context(), true, ping), barrier.ErrPanic)
	fail.Store(false)
	require.Panics(t, func() { // which the barrier above takes
		_ = pool.run(t.Context(), true, func(context.Context, *redisLink) error { panic("in go-redis") })
	})
	require.NoError(t, pool.run(t.Context(), true, ping))
	require.EqualValues(t, 1, pool.server.panics.Count())
	require.Len(t, pool.open, 1)
}

// A dialler that ends its goroutine has failed, and others are dialled.
func TestPoolGoexit(t *testing.T) {
	var fail atomic.Bool
	fail.Store(true)
	_, pool := pooledServer(t, 1, func() error {
		if fail.Load() {
			runtime.Goexit()
		}
		return nil
	})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	require.ErrorContains(t, pool.run(ctx, true, ping), "runtime.Goexit")
	fail.Store(false)
	require.NoError(t, pool.run(ctx, true, ping))
}

// Everything at once: requests that leave, connections that die, Redial, and Close in
// the end. No connection is used twice at a time, nor more than there may be.
func TestPoolConcurrentUse(t *testing.T) {
	memory, pool := pooledServer(t, 3, func() error { return nil })
	memory.SetTime(time.Now())
	var using sync.Map
	var users sync.WaitGroup
	end := time.Now().Add(300 * time.Millisecond)
	var worked atomic.Int64
	for i := range 16 {
		users.Go(func() {
			for n := 0; time.Now().Before(end); n++ {
				ctx, cancel := context.WithTimeout(context.Background(), time.Duration(n%7+1)*100*time.Microsecond)
				if n%3 == 0 {
					ctx, cancel = context.WithTimeout(context.Background(), time.Minute)
				}
				err := pool.run(ctx, n%2 == 0, func(ctx context.Context, link *redisLink) error {
					if _, twice := using.LoadOrStore(link, i); twice {
						panic("a connection is used twice")
					}
					defer using.Delete(link)
					if n%50 == 0 {
						_ = link.raw.Close()
					}
					if n%31 == 0 {
						return io.EOF
					}
					return ping(ctx, link)
				})
				if err == nil {
					worked.Add(1)
				}
				cancel()
				if i == 0 && n%100 == 0 {
					pool.drop(false)
				}
				pool.mu.Lock()
				open, dialing := len(pool.open), pool.dialing
				pool.mu.Unlock()
				if open+dialing > 2*3 { // those that are dialled may belong to before a drop
					panic(fmt.Sprint("too many connections: ", open, dialing))
				}
			}
		})
	}
	users.Wait()
	require.Positive(t, worked.Load())
	require.NoError(t, pool.run(t.Context(), true, ping))
	pool.drop(true)
	require.ErrorIs(t, pool.run(t.Context(), true, ping), errClosed)
	require.Empty(t, pool.open)
	require.Zero(t, pool.dialing)
}
