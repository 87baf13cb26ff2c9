package redisbus

import (
	"context"
	"net"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache/internal/redistest"
	"github.com/nearcache/nearcache/internal/transport"
)

// A claim that runs twice, as a client that follows redirects has it, makes two
// tokens and two epochs.
//
//  1. a load claims its key   2. an invalidation takes the token away   3. the script
//     runs again   4. the load ends: that token is not its own.
func TestClaimScriptRunTwice(t *testing.T) {
	server := newServer(t, Config{ConnectionString: "unix://" + redistest.StartOnSocket(t)})
	values, ctx := server.Values(), t.Context()
	claims := []transport.Claim{{Key: "k", Token: "the same both times", Life: time.Hour}}
	claim := func() transport.Claimed {
		got, err := values.Claim(ctx, "c", "history", time.Hour, claims)
		require.NoError(t, err)
		require.Equal(t, []transport.ClaimState{transport.ClaimTaken}, got.States)
		return got
	}
	first := claim()
	require.NoError(t, server.Publish(ctx, changing(transport.Change{Cache: "c", Keys: []string{"k"}})))
	second := claim()
	require.Equal(t, first.Epoch, second.Epoch)
	require.NotEqual(t, first.Token(claims[0]), second.Token(claims[0]))
	for i, token := range []string{first.Token(claims[0]), second.Token(claims[0])} {
		stored, err := values.Put(ctx, "c", []transport.Put{{Key: "k", Token: token, Bytes: []byte("value"), Life: time.Hour}})
		require.NoError(t, err)
		require.Equal(t, []bool{i == 1}, stored)
	}
	require.NoError(t, server.Publish(ctx, changing(transport.Change{All: true})))
	claims[0].Any = true
	require.NotEqual(t, first.Epoch, claim().Epoch)
}

// An extension extends the claim that it is meant for, and makes none: not when it is
// executed twice, nor when it comes late.
//
//  1. a load's claim is to be extended   2. an invalidation takes it away   3. the
//     extension is executed   4. the load ends, and stores nothing.
func TestKeepScript(t *testing.T) {
	server := newServer(t, Config{ConnectionString: "unix://" + redistest.StartOnSocket(t)})
	values, ctx := server.Values(), t.Context()
	client := redis.NewClient(server.options)
	defer client.Close()
	claim := func(key string) string {
		claims := []transport.Claim{{Key: key, Token: "a nonce", Life: time.Minute}}
		got, err := values.Claim(ctx, "c", "history", time.Hour, claims)
		require.NoError(t, err)
		require.Equal(t, []transport.ClaimState{transport.ClaimTaken}, got.States)
		return got.Token(claims[0])
	}
	left := func(key string) time.Duration { return client.PTTL(ctx, server.tokenKey("c", key)).Val() }
	keep := func(keeps ...transport.Keep) []bool {
		for i := range keeps {
			keeps[i].Cache = "c"
		}
		kept, err := values.Keep(ctx, keeps)
		require.NoError(t, err)
		return kept
	}
	first, other := claim("k"), claim("other")
	before := client.Get(ctx, server.tokenKey("c", "k")).Val()
	for range 2 {
		require.Equal(t, []bool{true, false}, keep(
			transport.Keep{Key: "k", Token: first, Life: time.Hour}, transport.Keep{Key: "other", Token: first, Life: time.Hour}))
	}
	require.Greater(t, left("k"), time.Minute)
	require.LessOrEqual(t, left("other"), time.Minute)
	require.Equal(t, before, client.Get(ctx, server.tokenKey("c", "k")).Val())

	require.NoError(t, server.Publish(ctx, changing(transport.Change{Cache: "c", Keys: []string{"k"}})))
	require.Equal(t, []bool{false}, keep(transport.Keep{Key: "k", Token: first, Life: time.Hour}))
	require.Negative(t, left("k"), "nothing is there")
	second := claim("k")
	require.Equal(t, []bool{false}, keep(transport.Keep{Key: "k", Token: first, Life: time.Hour}))
	require.LessOrEqual(t, left("k"), time.Minute, "that is another load's")
	for i, token := range []string{first, second} {
		stored, err := values.Put(ctx, "c", []transport.Put{{Key: "k", Token: token, Bytes: []byte("value"), Life: time.Hour}})
		require.NoError(t, err)
		require.Equal(t, []bool{i == 1}, stored)
	}

	require.NoError(t, client.Del(ctx, server.tokenKey("c", "k")).Err())
	require.NoError(t, client.LPush(ctx, server.tokenKey("c", "k"), "no string").Err())
	require.Equal(t, []bool{false, true}, keep(transport.Keep{Key: "k", Token: second}, transport.Keep{Key: "other", Token: other}),
		"what is released goes, whatever else is there")
	require.Negative(t, left("other"))
}

// changing returns a message with changes.
func changing(changes ...transport.Change) transport.Message {
	m := testMessage
	m.Changes = changes
	return m
}

// Whatever happens in the middle of a read counts against what it has read: a value is
// asked for after how long it has to live, then the clears that it is judged by, and last
// whether the server is a master, and with which history.
func TestOrderOfARead(t *testing.T) {
	memory, server, _ := onMiniredis(t)
	var mu sync.Mutex // guards sent
	var sent strings.Builder
	server.options.Dialer = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, network, memory.Addr())
		return &recordedConn{conn, func(b []byte) {
			mu.Lock()
			defer mu.Unlock()
			sent.Write(b)
		}}, err
	}
	_, _ = server.Values().Read(t.Context(), "c", []string{"k1", "k2"}, []string{"r"}, 100) // miniredis has no such INFO
	mu.Lock()
	defer mu.Unlock()
	commands := regexp.MustCompile(`(?i)\r\n(pttl|getrange|hmget|info)\r\n`).FindAllStringSubmatch(sent.String(), -1)
	var order []string
	for _, c := range commands {
		order = append(order, strings.ToLower(c[1]))
	}
	require.Equal(t, []string{"pttl", "getrange", "pttl", "getrange", "hmget", "info"}, order)
}

// recordedConn shows what is written to it.
type recordedConn struct {
	net.Conn
	record func([]byte)
}

func (c *recordedConn) Write(b []byte) (int, error) {
	c.record(b)
	return c.Conn.Write(b)
}
