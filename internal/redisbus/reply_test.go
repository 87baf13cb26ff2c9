package redisbus

import (
	"fmt"
	"io"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
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
