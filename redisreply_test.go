package nearcache

import (
	"context"
	"fmt"
	"io"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache/internal/transport"
)

// The same error, as Redis 7 answers and as Redis 6.2 does, in and out of scripts.
func TestCode(t *testing.T) {
	for text, want := range map[string]string{
		"READONLY You can't write against a read only replica.":                                                             "READONLY",
		"READONLY You can't write against a read only replica. script: e5, on @user_script:12.":                             "READONLY",
		"ERR Error running script (call to f_e5): @user_script:12: @user_script: 12: -READONLY You can't write against …. ": "READONLY",
		"ERR Error running script (call to f_e5): @user_script:3: @user_script: 3: -OOM command not allowed when used …. ":  "OOM",
		"ERR Error running script (call to f_e5): @user_script:3: @user_script: 3: -NOREPLICAS Not enough good replicas ":   "NOREPLICAS",
		"ERR Error running script (call to f_e5): @user_script:3: @user_script: 3: -MISCONF Redis is configured to save …":  "MISCONF",
		"ERR Error running script (call to f_e5): @user_script:2: WRONGTYPE Operation against a key holding the wrong …":    "WRONGTYPE",
		"ERR Error running script (call to f_e5): @user_script:2: @user_script: 2: -NOPERM this user has no permissions …":  "NOPERM",
		"@user_script: 12: -READONLY You can't write against a read only replica.":                                          "READONLY",
		"ERR Error running script (call to f_e5): @user_script:9: @user_script: 9: The user executing the script can't …":   "",
		"ERR WRONGTYPE of some other server":    "WRONGTYPE",
		"ERR max number of clients reached":     "",
		"ERR unknown command 'evalsha'":         "",
		"NOAUTH Authentication required.":       "NOAUTH",
		"MOVED 12064 127.0.0.1:7001":            "MOVED",
		"":                                      "",
		"Error running script (call to f_e5): ": "",
	} {
		require.Equal(t, want, code(answer(text)), text)
		require.Equal(t, want, code(fmt.Errorf("SUBSCRIBE: %w", answer(text))), text)
	}
	require.Empty(t, code(io.EOF))
	require.Empty(t, code(nil))
}

func TestRefusedBefore70(t *testing.T) {
	in := "ERR Error running script (call to f_e5): @user_script:12: @user_script: 12: -"
	for text, want := range map[string]bool{
		in + "READONLY You can't write against a read only replica. ": false,
		in + "OOM command not allowed when used memory > 'maxmemory'": false,
		in + "NOREPLICAS Not enough good replicas to write.":          false,
		in + "MISCONF Redis is configured to save RDB snapshots":      false,
		in + "NOPERM this user has no permissions":                    true,
		"MOVED 12064 127.0.0.1:7001":                                  true,
		"TRYAGAIN Multiple keys request during rehashing of slot":     false,
	} {
		require.Equal(t, want, refused(answer(text)), text)
	}
	require.True(t, refused(fmt.Errorf("no: %w", errSentinel)))
}

// A group with more than one script may change is split, from when it is known that
// something is shared, and nothing of it is lost.
func TestPublisherSplits(t *testing.T) {
	withPublisher(t, func(t *testing.T, p *publisher, redis *fakeRedis) {
		shared, most, tooMany := false, 0, 0
		p.send = func(ctx context.Context, body string, changes []transport.Change) error {
			n := transport.CountChanges(changes)
			if shared && n > transport.MostChanges {
				tooMany++
				return transport.ErrTooManyChanges
			}
			most = max(most, n)
			return redis.send(ctx, body, changes)
		}
		inv := invalidation{cache: "c", regions: []string{"r1", "r2"}}
		for i := range 3000 {
			inv.keys = append(inv.keys, fmt.Sprint("key/", i))
		}
		require.NoError(t, p.publish(t.Context(), inv, nothing))
		require.Greater(t, most, 2000, "nothing is shared")

		shared, most = true, 0
		for range 2 {
			require.NoError(t, p.publish(t.Context(), inv, nothing))
			require.NoError(t, p.publish(t.Context(), invalidation{all: true}, nothing))
		}
		require.Equal(t, 1, tooMany)
		require.Equal(t, transport.MostChanges, most)
		accepted := map[string]int{}
		for _, op := range redis.accepted {
			for _, v := range op.Values {
				accepted[v]++
			}
		}
		require.Len(t, accepted, 3002)
		for v, times := range accepted {
			require.Equal(t, 3, times, v)
		}
	})
}

// Bodies hold no more entries than they may, of any kind and of many caches.
func TestBodiesAreBounded(t *testing.T) {
	for _, most := range []int{1, 2, 10, 36, 37, 38, 1000} {
		var b batch
		for c := range 50 {
			cache := fmt.Sprint("cache", c)
			if c%3 == 0 {
				b.add(invalidation{cache: cache, clear: true})
				continue
			}
			for i := range 37 {
				key, region := fmt.Sprint(cache, "/", i), fmt.Sprint(cache, "-", i)
				b.add(invalidation{cache: cache, keys: []string{key}, regions: []string{region}})
			}
		}
		left := b.entries()
		for _, p := range b.parts(maxMessageBytes, most) {
			n := transport.CountChanges(p.changes)
			require.LessOrEqual(t, n, most)
			require.Positive(t, n)
			left -= n
			require.Equal(t, p.whole, left == 0)
		}
		require.Zero(t, left, "of bodies with %d at most", most)
	}
}

// The error of a pipeline is that of the connection, of a needed command, or of none:
// go-redis leaves an answer to a connection's first exchange out of the commands.
func TestPipelineError(t *testing.T) {
	command := func(err error) redis.Cmder {
		c := redis.NewStringCmd(t.Context(), "GET", "k")
		c.SetErr(err)
		return c
	}
	denied, wrongType := answer("WRONGPASS no"), answer("WRONGTYPE no")
	fine := command(nil)
	require.NoError(t, pipelineError([]redis.Cmder{fine}, nil, fine))
	require.Equal(t, denied, pipelineError([]redis.Cmder{fine}, denied, fine), "of none of the commands")
	require.Equal(t, denied, pipelineError([]redis.Cmder{fine, command(denied)}, denied, command(denied)))
	require.NoError(t, pipelineError([]redis.Cmder{command(wrongType), fine}, wrongType, fine), "it is not needed")
	require.NoError(t, pipelineError([]redis.Cmder{command(redis.Nil), fine}, redis.Nil, fine))
	require.Equal(t, io.EOF, pipelineError([]redis.Cmder{command(wrongType), command(io.EOF)}, wrongType, command(io.EOF)))
	require.Equal(t, io.EOF, pipelineError([]redis.Cmder{command(io.EOF), command(denied)}, io.EOF, command(denied)))
}
