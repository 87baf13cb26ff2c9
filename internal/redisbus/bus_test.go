package redisbus

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	mathrand "math/rand/v2"
	"net"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache/internal/backoff"
	"github.com/nearcache/nearcache/internal/barrier"
	"github.com/nearcache/nearcache/internal/messagetest"
	"github.com/nearcache/nearcache/internal/transport"
)

var errClosed = errors.New("the server is closed")

const maxBodyBytes = 32 << 20

// newServer returns a server that is closed when the test ends. What c says nothing of is
// as in the library.
func newServer(t testing.TB, c Config) *Server {
	t.Helper()
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	c.Channel = "nearcache"
	c.Nonce = func() (nonce [16]byte) {
		_, _ = rand.Read(nonce[:]) // never fails
		return nonce
	}
	c.Backoff = func() *backoff.Backoff {
		return &backoff.Backoff{Random: mathrand.Int64N, Base: time.Millisecond, Max: time.Second}
	}
	c.MaxBodyBytes, c.ErrClosed = maxBodyBytes, errClosed
	server, err := New(c)
	require.NoError(t, err)
	t.Cleanup(server.Close)
	return server
}

// onMiniredis returns a server in memory, and nearcache's connection to it.
func onMiniredis(t *testing.T) (*miniredis.Miniredis, *Server, *redis.Client) {
	t.Helper()
	memory := miniredis.RunT(t)
	server := newServer(t, Config{ConnectionString: memory.Addr()})
	client := redis.NewClient(&redis.Options{Addr: memory.Addr()})
	t.Cleanup(func() { _ = client.Close() })
	return memory, server, client
}

// Who speaks in the tests of the bus alone, and what is said.
var (
	testPublisher = [16]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}
	testIdentity  = transport.Identity{ID: testPublisher, Echo: messagetest.Head(messagetest.KindEcho, testPublisher)}
	testMessage   = transport.Message{
		Head: messagetest.Head(messagetest.KindInvalidation, testPublisher), Nonce: "nonce", Body: messagetest.Body(),
	}
)

// A script that runs twice, because its answer was lost on the way, makes two
// positions: no instance may take the second message for the first.
func TestPublishScriptRunTwice(t *testing.T) {
	memory, server, client := onMiniredis(t)
	sub, err := server.Subscribe(t.Context(), testIdentity)
	require.NoError(t, err)
	defer sub.Close()
	run := func(previous string) {
		nonce := "the same both times"
		own, err := publishScript.Run(t.Context(), client, []string{server.positionKey, server.clearsKey}, server.channel, nonce, testMessage.Head, "body", "1unknown").Text()
		require.NoError(t, err)
		payload, onOwn, err := sub.Receive()
		require.NoError(t, err)
		require.False(t, onOwn)
		require.Equal(t, messagetest.Message(testPublisher, previous, own, "body"), payload)
		stored, err := memory.Get(server.positionKey)
		require.NoError(t, err)
		require.Equal(t, own, stored)
	}
	run("")
	first, err := memory.Get(server.positionKey)
	require.NoError(t, err)
	run(first)
	second, err := memory.Get(server.positionKey)
	require.NoError(t, err)
	require.NotEqual(t, first, second)
	run(second)
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
		stored, err := memory.Get(server.positionKey)
		require.NoError(t, err)
		require.Equal(t, messagetest.Echo(testPublisher, stored, "", "nonce"), payload, "miniredis knows no history")
		require.Len(t, stored, 40, "hexadecimal digits of a SHA-1")
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

// What is secret is not in what is logged of a panic.
func TestPanicsKeepSecrets(t *testing.T) {
	var log bytes.Buffer
	server := newServer(t, Config{
		ConnectionString: "127.0.0.1:1,password=hunter2", Logger: slog.New(slog.NewTextHandler(&log, nil)),
	})
	err := func() (err error) {
		defer server.panics.Caught("test", &err)
		panic("password hunter2 is wrong")
	}()
	require.ErrorIs(t, err, barrier.ErrPanic)
	require.NotContains(t, err.Error()+log.String(), "hunter2")
	require.Contains(t, log.String(), "*****")
}
