package main

import (
	"io"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache"
	"github.com/nearcache/nearcache/nearcachetest"
)

func TestTheProgramEndsWell(t *testing.T) {
	t.Parallel()
	for name, redis := range map[string]string{
		"with a Redis that it may stop": "",
		"with one that it may not":      givenRedis(t),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var out strings.Builder
			require.NoError(t, run(t.Context(), redis, &out), out.String())
			require.True(t, strings.HasSuffix(out.String(), "OK\n"), out.String())
		})
	}
}

// givenRedis is the one in the environment, if any.
func givenRedis(t *testing.T) string {
	if redis := os.Getenv("REDIS_CONNECTION_STRING"); redis != "" {
		return redis
	}
	return miniredis.RunT(t).Addr()
}

func TestTheProgramFindsInstancesThatDoNotHearEachOther(t *testing.T) {
	t.Parallel()
	redis := miniredis.RunT(t)
	directory := NewDirectory()
	a, err := start(t.Context(), redis.Addr(), "one", directory)
	require.NoError(t, err)
	defer a.backplane.Close()
	b, err := start(t.Context(), redis.Addr(), "another", directory)
	require.NoError(t, err)
	defer b.backplane.Close()
	require.ErrorContains(t, together(t.Context(), directory, a, b, io.Discard), "after a change")
}

func TestKeysSurviveTheirText(t *testing.T) {
	texts := map[string]Who{}
	for _, who := range []Who{
		alice, {}, {"a/b", "c"}, {"a", "b/c"}, {"a%2Fb", "c"}, {"", "/"}, {"/", ""}, {"ä \x00", "\xff"},
	} {
		text, err := who.MarshalText()
		require.NoError(t, err)
		var back Who
		require.NoError(t, back.UnmarshalText(text))
		assert.Equal(t, who, back)
		assert.NotContains(t, texts, string(text), "%v has the text of %v", who, texts[string(text)])
		texts[string(text)] = who
	}
	assert.Error(t, new(Who).UnmarshalText([]byte("acme")))
	assert.Error(t, new(Who).UnmarshalText([]byte("acme/%")))
}

// The same as the program shows, in simulated time: so it is exact, and takes none.
func TestRevocationWhileRedisIsStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fleet := nearcachetest.Fleet(t, 2)
		directory := NewDirectory()
		a, err := NewGuard(fleet.Backplane(0), directory)
		require.NoError(t, err)
		b, err := NewGuard(fleet.Backplane(1), directory)
		require.NoError(t, err)
		rights := func(g *Guard) Rights {
			rights, err := g.Rights(t.Context(), alice)
			require.NoError(t, err)
			return rights
		}

		require.True(t, rights(b).Read)
		fleet.StopRedis()
		require.ErrorIs(t, a.Revoke(t.Context(), alice), nearcache.ErrUnconfirmed)
		assert.False(t, rights(a).Read, "where it was revoked it is effective at once")
		assert.True(t, rights(b).Read, "b has a lease, and holds a copy")
		time.Sleep(maxStaleness)
		assert.False(t, rights(b).Read, "b asks the directory")

		fleet.StartRedis()
		fleet.Settle()
		assert.False(t, rights(b).Read)
	})
}

func TestIdleUsersLeaveMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		guard, err := NewGuard(nearcachetest.Fleet(t, 1).Backplane(0), NewDirectory())
		require.NoError(t, err)
		for minute := range 7 {
			_, err = guard.rights.Get(t.Context(), alice)
			require.NoError(t, err)
			if minute < 4 {
				_, err = guard.rights.Get(t.Context(), bob)
				require.NoError(t, err)
			}
			time.Sleep(time.Minute)
		}
		_, held := guard.rights.Peek(alice)
		assert.True(t, held)
		_, held = guard.rights.Peek(bob)
		assert.False(t, held)
	})
}
