package nearcache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync/atomic"
	"testing"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache/internal/transport"
)

// onMiniredis returns a server in memory, and nearcache's connection to it.
func onMiniredis(t *testing.T) (*miniredis.Miniredis, *redisServer, *redis.Client) {
	t.Helper()
	memory := miniredis.RunT(t)
	server, err := newRedisServer(BackplaneOptions{RedisConnectionString: memory.Addr(), Channel: "nearcache"})
	require.NoError(t, err)
	t.Cleanup(server.Close)
	client := redis.NewClient(&redis.Options{Addr: memory.Addr()})
	t.Cleanup(func() { _ = client.Close() })
	return memory, server, client
}

// Who speaks in the tests of the bus alone, and what is said.
var (
	testIdentity = transport.Identity{ID: testPublisher, Echo: string(appendHead(nil, kindEcho, testPublisher))}
	testMessage  = transport.Message{
		Head: string(appendHead(nil, kindInvalidation, testPublisher)), Nonce: "nonce", Body: greeting,
	}
)

// A script that runs twice, because its answer was lost on the way, makes two
// positions: no instance may take the second message for the first.
func TestPublishScriptRunTwice(t *testing.T) {
	memory, server, client := onMiniredis(t)
	sub, err := server.Subscribe(t.Context(), testIdentity)
	require.NoError(t, err)
	defer sub.Close()
	run := func() string {
		nonce := "the same both times"
		own, err := publishScript.Run(t.Context(), client, []string{server.positionKey, server.clearsKey}, server.channel, nonce, testMessage.Head, "body", "1unknown").Text()
		require.NoError(t, err)
		payload, onOwn, err := sub.Receive()
		require.NoError(t, err)
		require.False(t, onOwn)
		e, err := decodeEnvelope(payload)
		require.NoError(t, err)
		require.Equal(t, own, e.own)
		stored, err := memory.Get(server.positionKey)
		require.NoError(t, err)
		require.Equal(t, own, stored)
		return e.previous
	}
	require.Empty(t, run())
	first, err := memory.Get(server.positionKey)
	require.NoError(t, err)
	require.Equal(t, first, run())
	second, err := memory.Get(server.positionKey)
	require.NoError(t, err)
	require.NotEqual(t, first, second)
	require.Equal(t, second, run())
}

// A probe finds the position, makes one if there is none or it is not one of
// nearcache's, and leaves it written.
func TestProbeScript(t *testing.T) {
	memory, server, _ := onMiniredis(t)
	sub, err := server.Subscribe(t.Context(), testIdentity)
	require.NoError(t, err)
	defer sub.Close()
	probe := func() (position string) {
		require.NoError(t, sub.Probe(t.Context(), "nonce"))
		payload, own, err := sub.Receive()
		require.NoError(t, err)
		require.True(t, own)
		e, err := decodeEnvelope(payload)
		require.NoError(t, err)
		require.EqualValues(t, kindEcho, e.kind)
		history, nonce, err := decodeEcho(e.body)
		require.NoError(t, err)
		require.Equal(t, "nonce", nonce)
		require.Empty(t, history, "miniredis knows none")
		stored, err := memory.Get(server.positionKey)
		require.NoError(t, err)
		require.Equal(t, stored, e.own)
		require.Len(t, stored, positionLength)
		return stored
	}
	position := probe()
	require.Equal(t, position, probe())
	memory.Del(server.positionKey)
	require.NotEqual(t, position, probe())
	require.NoError(t, memory.Set(server.positionKey, "something else"))
	require.NotEqual(t, position, probe())
}

//  1. the publisher dials, and its address is resolved   2. the address comes to lead
//     to another server, and the connection is given up   3. the dial ends, at the
//     old server, which would take the message.
func TestDialThatWasOvertaken(t *testing.T) {
	old, server, _ := onMiniredis(t)
	fresh := miniredis.RunT(t)
	var address atomic.Value
	address.Store(old.Addr())
	dialing, goOn := make(chan struct{}, 1), make(chan struct{})
	server.options.Dialer = func(context.Context, string, string) (net.Conn, error) {
		to := address.Load().(string)
		if to == old.Addr() {
			dialing <- struct{}{}
			<-goOn
		}
		return net.Dial("tcp", to)
	}
	published := make(chan error, 1)
	go func() { published <- server.Publish(context.Background(), testMessage) }()
	<-dialing
	address.Store(fresh.Addr())
	server.Redial()
	close(goOn)
	require.ErrorIs(t, <-published, errGivenUp)
	require.NoError(t, server.Publish(t.Context(), testMessage))
	require.False(t, old.Exists(server.positionKey))
	require.True(t, fresh.Exists(server.positionKey))
}

// Only a connection that turned out to be dead makes a second attempt worth while
// at once: after a timeout the caller has waited long enough.
func TestConnectionLost(t *testing.T) {
	for err, want := range map[error]bool{
		io.EOF:        true,
		net.ErrClosed: true,
		fmt.Errorf("write: %w", io.ErrUnexpectedEOF): true,
		os.ErrDeadlineExceeded:                       false,
		context.DeadlineExceeded:                     false,
		answer("OOM command not allowed"):            false,
	} {
		require.Equal(t, want, connectionLost(err), "%v", err)
	}
}

func TestRefused(t *testing.T) {
	for err, want := range map[error]bool{
		answer("WRONGPASS invalid username-password pair"):                true,
		answer("ERR DB index is out of range"):                            true,
		fmt.Errorf("SUBSCRIBE: %w", answer("NOPERM no permission")):       true,
		answer("LOADING Redis is loading the dataset in memory"):          false,
		answer("READONLY You can't write against a read only replica."):   false,
		answer("OOM command not allowed when used memory > 'maxmemory'."): false,
		answer("NOREPLICAS Not enough good replicas to write."):           false,
		answer("MISCONF Redis is configured to save RDB snapshots"):       false,
		answer("ERR max number of clients reached"):                       false,
		&net.OpError{Op: "dial", Err: errors.New("connection refused")}:   false,
		context.DeadlineExceeded:                                          false,
	} {
		require.Equal(t, want, refused(err), "%v", err)
	}
}
