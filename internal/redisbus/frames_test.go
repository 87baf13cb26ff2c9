package redisbus

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache/internal/transport"
)

// Replies pass or are refused, however they are cut.
func TestReplyFrames(t *testing.T) {
	bounds := replyBounds{bytes: 1000, elements: 20}
	tests := []struct {
		name, replies, refused string
	}{
		{"simple", "+OK\r\n-ERR no\r\n:17\r\n", ""},
		{"strings", "$0\r\n\r\n$3\r\n*9\n\r\n$-1\r\n", ""},
		{"arrays", "*0\r\n*-1\r\n*3\r\n:1\r\n*2\r\n$1\r\na\r\n*0\r\n+x\r\n:5\r\n", ""},
		{"each reply has its own bounds", strings.Repeat("$900\r\n"+strings.Repeat("a", 900)+"\r\n*15\r\n"+strings.Repeat(":1\r\n", 15), 5), ""},
		{"deep enough", strings.Repeat("*1\r\n", mostReplyDepth) + ":1\r\n", ""},
		{"too deep", strings.Repeat("*1\r\n", mostReplyDepth+1), "arrays in arrays"},
		{"a long string", "+OK\r\n$1001\r\n", "more bytes"},
		{"long strings", "*2\r\n$600\r\n" + strings.Repeat("a", 600) + "\r\n$600\r\n", "more bytes"},
		{"long lines", "*2\r\n+" + strings.Repeat("a", 600) + "\r\n+" + strings.Repeat("a", 600) + "\r\n", "more bytes"},
		{"a length that overflows with the line's end", "$9223372036854775800\r\n", "more bytes"},
		{"a length that overflows", "$92233720368547758000\r\n", "a length that is none"},
		{"a length with no end to it", "$" + strings.Repeat("0", 30) + "\r\n", "a length that is none"},
		{"a negative length", "$-2\r\n", "a length that is none"},
		{"an array of a negative length", "*-2\r\n", "a length that is none"},
		{"no length", "$\r\n", "a length that is none"},
		{"no line", "\r\n", "a type"},
		{"a length that is not ended well", "$3\nabc", "a length that is none"},
		{"a streamed string", "$?\r\n", "a length that is none"},
		{"a large array", "*21\r\n", "more elements"},
		{"large arrays", "*15\r\n*15\r\n", "more elements"},
		{"a line without end", "+" + strings.Repeat("a", mostReplyLine), "a line without end"},
		{"not Redis", "HTTP/1.1 400 Bad Request\r\n", "a type"},
	}
	for _, kind := range "_,#!=(%~|>" {
		tests = append(tests, struct{ name, replies, refused string }{"RESP3 " + string(kind), string(kind) + "1\r\n", "a type"})
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			for _, step := range []int{1, 2, 7, len(test.replies)} {
				f := replyFrames{bounds: bounds}
				var err error
				for rest := test.replies; rest != "" && err == nil; rest = rest[min(step, len(rest)):] {
					err = f.follow([]byte(rest[:min(step, len(rest))]))
				}
				if test.refused == "" {
					require.NoError(t, err)
					require.Zero(t, f.depth+f.line+f.string+f.bytes+f.elements, "it is between two replies")
				} else {
					require.ErrorIs(t, err, errBadReply)
					require.ErrorContains(t, err, test.refused)
					require.Error(t, f.follow([]byte("+OK\r\n")), "nothing comes after it")
				}
			}
		})
	}
}

// What replies may make an instance allocate, whatever they are: the largest message, or
// value, that they may be, and what a connection takes.
const repliesCost = 2 * (maxBodyBytes + 1<<20)

// pretender is a server that answers well until there is a connection, if it is to, and
// then says what it is given, and hangs up.
type pretender struct {
	says    []byte
	greeter bool
	own     string // the instance's channel
}

func (p *pretender) dial(context.Context, string, string) (net.Conn, error) {
	client, server := net.Pipe()
	go func() {
		defer func() { _ = server.Close() }()
		b := make([]byte, 64<<10)
		for {
			n, err := server.Read(b)
			if err != nil {
				return
			}
			said := bytes.ToLower(b[:n])
			reply := strings.Repeat("*2\r\n$4\r\nmode\r\n$10\r\nstandalone\r\n", bytes.Count(said, []byte("\r\nhello\r\n")))
			subscribes := bytes.Contains(said, []byte("\r\nsubscribe\r\n"))
			if subscribes {
				for i, channel := range []string{"nearcache", p.own} {
					reply += fmt.Sprintf("*3\r\n$9\r\nsubscribe\r\n$%d\r\n%s\r\n:%d\r\n", len(channel), channel, i+1)
				}
			}
			if p.greeter && reply != "" {
				if _, err := server.Write([]byte(reply)); err != nil {
					return
				}
				if !subscribes {
					continue
				}
			}
			_, _ = server.Write(p.says)
			return
		}
	}()
	return client, nil
}

// useAll has every client of the library meet the server.
func (p *pretender) useAll(t testing.TB) {
	server := newServer(t, Config{Redis: &redis.UniversalOptions{
		Addrs: []string{"pretender:1"}, Dialer: p.dial, PoolSize: 1,
	}})
	defer server.Close()
	guarded := func(call func() error) (err error) { // as the library calls it
		defer server.panics.Caught("test", &err)
		return call()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	var sub transport.Subscription
	err := guarded(func() (err error) {
		sub, err = server.Subscribe(ctx, testIdentity)
		return err
	})
	if err == nil {
		for err == nil {
			err = guarded(func() error {
				_, _, err := sub.Receive()
				return err
			})
		}
		_ = guarded(func() error { return sub.Probe(ctx, "nonce") })
		sub.Close()
	}
	values := server.Values()
	for _, call := range []func() error{
		func() error { return server.Publish(ctx, testMessage) },
		func() error {
			_, err := values.Read(ctx, "c", []string{"k", "l"}, []string{"r"}, 1<<20)
			return err
		},
		func() error {
			_, err := values.Claim(ctx, "c", "h", time.Second, []transport.Claim{{Key: "k", Token: "t", Life: time.Second}})
			return err
		},
		func() error {
			_, err := values.Put(ctx, "c", []transport.Put{{Key: "k", Token: "t"}})
			return err
		},
		func() error {
			_, err := values.Keep(ctx, []transport.Keep{{Cache: "c", Key: "k", Token: "t"}})
			return err
		},
	} {
		_ = guarded(call)
	}
	require.NoError(t, ctx.Err(), "nothing hangs")
}

// FuzzReplies answers every client of the library with anything: that ends connections,
// and not the process, and its memory is bounded.
func FuzzReplies(f *testing.F) {
	for _, says := range []string{
		"", "+OK\r\n", "$9223372036854775800\r\n", "$1073741824\r\n", "$34000000\r\n", "*100000000\r\n", strings.Repeat("*1\r\n", 1000),
		"*1\r\n$7\r\nmessage\r\n", "*3\r\n$7\r\nmessage\r\n:1\r\n:2\r\n", "*3\r\n$7\r\nmessage\r\n$9\r\nnearcache\r\n$2\r\nhi\r\n",
		"*3\r\n:1\r\n$5\r\nepoch\r\n:2\r\n", "%1\r\n+a\r\n+b\r\n", "|1\r\n+a\r\n+b\r\n", ">1\r\n+a\r\n", "-NOSCRIPT no\r\n-READONLY no\r\n",
		":100\r\n$5\r\nvalue\r\n:-1\r\n$-1\r\n*4\r\n$-1\r\n$-1\r\n$-1\r\n$-1\r\n$11\r\nrole:master\r\n",
		"*4\r\n$16\r\n0123456789abcdef\r\n$1\r\n0\r\n$1\r\nt\r\n$5\r\n1.2.3\r\n", "-MOVED 1 a:1\r\n", "HTTP/1.1 400 Bad Request\r\n\r\n",
	} {
		f.Add([]byte(says), true)
		f.Add([]byte(says), false)
	}
	f.Fuzz(func(t *testing.T, says []byte, greeter bool) {
		p := &pretender{says: says, greeter: greeter, own: fmt.Sprintf("{nearcache}:%x", testIdentity.ID)}
		require.LessOrEqual(t, allocated(func() { p.useAll(t) }), uint64(repliesCost))
	})
}

// allocated returns how many bytes do allocates.
func allocated(do func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	do()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}
