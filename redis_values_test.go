package nearcache

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache/internal/transport"
)

// A claim that runs twice, as a client that follows redirects has it, makes two
// tokens and two epochs.
//
//  1. a load claims its key   2. an invalidation takes the token away   3. the script
//     runs again   4. the load ends: that token is not its own.
func TestClaimScriptRunTwice(t *testing.T) {
	server, err := newRedisServer(BackplaneOptions{RedisConnectionString: "unix://" + redisOnSocket(t), Channel: "nearcache"})
	require.NoError(t, err)
	t.Cleanup(server.Close)
	values, ctx := server.Values(), t.Context()
	claims := []transport.Claim{{Key: "k", Token: "the same both times", Life: time.Hour}}
	claim := func() transport.Claimed {
		got, err := values.Claim(ctx, "c", "history", time.Hour, claims)
		require.NoError(t, err)
		require.Equal(t, []transport.ClaimState{transport.ClaimTaken}, got.States)
		return got
	}
	first := claim()
	require.NoError(t, server.Publish(ctx, "body", []transport.Change{{Cache: "c", Keys: []string{"k"}}}))
	second := claim()
	require.Equal(t, first.Epoch, second.Epoch)
	require.NotEqual(t, first.Token(claims[0]), second.Token(claims[0]))
	for i, token := range []string{first.Token(claims[0]), second.Token(claims[0])} {
		stored, err := values.Put(ctx, "c", []transport.Put{{Key: "k", Token: token, Bytes: []byte("value"), Life: time.Hour}})
		require.NoError(t, err)
		require.Equal(t, []bool{i == 1}, stored)
	}
	require.NoError(t, server.Publish(ctx, "body", []transport.Change{{All: true}}))
	claims[0].Any = true
	require.NotEqual(t, first.Epoch, claim().Epoch)
}
