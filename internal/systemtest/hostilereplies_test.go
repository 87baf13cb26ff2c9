package systemtest

import (
	"bytes"
	"context"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache"
)

// usurped is a way to Redis on which, once for each time that it is armed, the server's
// words are replaced by others, up to the connection's end.
type usurped struct {
	addr string

	mu    sync.Mutex // guards everything below
	armed string     // in which connection: in what it has sent last; empty: not
	says  string     // in place of the server
	dials int
}

func (u *usurped) dial(ctx context.Context, network, _ string) (net.Conn, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, network, u.addr)
	if err != nil {
		return nil, err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.dials++
	return &usurpedConn{Conn: c, path: u}, nil
}

// arm says where the server is to be replaced next.
func (u *usurped) arm(where, says string) (dials int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.armed, u.says = where, says
	return u.dials
}

// fired reports whether that has happened, and there is another connection since.
func (u *usurped) fired(dials int) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.armed == "" && u.dials > dials
}

type usurpedConn struct {
	net.Conn
	path *usurped

	mu   sync.Mutex // guards everything below
	sent []byte     // last
	says io.Reader  // nil: the server speaks
}

func (c *usurpedConn) Write(b []byte) (int, error) {
	c.mu.Lock()
	c.sent = bytes.Clone(b)
	c.mu.Unlock()
	return c.Conn.Write(b)
}

func (c *usurpedConn) Read(b []byte) (int, error) {
	var n int
	var err error
	c.mu.Lock()
	says := c.says
	c.mu.Unlock()
	if says == nil {
		if n, err = c.Conn.Read(b); err != nil {
			return n, err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.path.mu.Lock()
	if c.says == nil && c.path.armed != "" && bytes.Contains(c.sent, []byte(c.path.armed)) {
		c.says, c.path.armed = strings.NewReader(c.path.says), ""
	}
	c.path.mu.Unlock()
	if c.says != nil {
		return c.says.Read(b)
	}
	return n, err
}

// Whatever is said in place of Redis, to whichever connection, ends that connection and
// nothing else: there is another one, and all goes on. It costs no memory to speak of.
func TestHostileReplies(t *testing.T) {
	replies := map[string]string{
		"a length that overflows":   "$9223372036854775800\r\n",
		"a string of 1 GiB":         "$1073741824\r\n",
		"an array of 100 million":   "*100000000\r\n",
		"arrays in arrays":          strings.Repeat("*1\r\n", 8<<20),
		"attributes":                strings.Repeat("|0\r\n", 8<<20),
		"a map":                     "%100000000\r\n",
		"a push":                    ">100000000\r\n",
		"a verbatim string":         "=1073741824\r\n",
		"an error of 1 GiB":         "!1073741824\r\n",
		"a number":                  "(" + strings.Repeat("7", 1<<20) + "\r\n",
		"a line without end":        "+" + strings.Repeat("a", 64<<20),
		"a negative length":         "$-7\r\n",
		"a negative array":          "*-7\r\n",
		"a message without a name":  "*1\r\n$7\r\nmessage\r\n",
		"a message of other types":  "*3\r\n$7\r\nmessage\r\n:1\r\n*0\r\n",
		"no message":                "*3\r\n:1\r\n:2\r\n:3\r\n",
		"numbers in place of names": "*3\r\n$9\r\nsubscribe\r\n:2\r\n:3\r\n",
		"nothing":                   "",
		"another protocol":          "HTTP/1.1 400 Bad Request\r\n\r\n",
	}
	server := startRedis(t)
	path := &usurped{addr: server.addr}
	bp, err := nearcache.Connect(t.Context(), nearcache.BackplaneOptions{
		Redis:  &redis.UniversalOptions{Addrs: []string{server.addr}, Dialer: path.dial, PoolSize: 1},
		Logger: discard, MaxStaleness: 500 * time.Millisecond,
	})
	require.NoError(t, err)
	defer func() { _ = bp.Close() }()
	items, err := nearcache.New(bp, nearcache.Options[int, int]{
		Name: "items", Load: func(_ context.Context, n int) (int, error) { return n, nil },
		Shared: &nearcache.SharedOptions[int]{Timeout: patience},
	})
	require.NoError(t, err)
	live := func() bool { return bp.State() == nearcache.StateLive }
	n := 0
	get := func(t *testing.T) {
		n++
		v, err := items.Get(t.Context(), n)
		require.NoError(t, err)
		require.Equal(t, n, v)
	}
	connections := []struct {
		name, sent string
		use        func(t *testing.T)
	}{
		{"subscription", "\r\nsubscribe\r\n", nil},
		{"probe", "NRC\x01E", nil},
		{"publisher", "NRC\x01I", func(t *testing.T) {
			if err := items.Remove(t.Context(), n); err != nil {
				require.ErrorIs(t, err, nearcache.ErrUnconfirmed)
				require.NoError(t, bp.Flush(t.Context()))
			}
		}},
		{"values", "\r\ngetrange\r\n", get},
		{"claims", "{nearcache}:token:", get},
		{"greeting", "\r\nhello\r\n", func(*testing.T) { killConnections(t, server.client(), "normal", "") }},
	}
	for _, c := range connections {
		for name, says := range replies {
			t.Run(c.name+"/"+name, func(t *testing.T) {
				eventually(t, "it is live", live)
				get(t)
				cost := allocates(func() {
					dials := path.arm(c.sent, says)
					eventually(t, "the connection is replaced", func() bool {
						if c.use != nil {
							c.use(t)
						}
						return path.fired(dials)
					})
				})
				require.Less(t, cost, uint64(48<<20))
			})
		}
	}
	eventually(t, "it is live", live)
	hits := items.Stats().Shared.Stored
	eventually(t, "the shared level is used", func() bool { get(t); return items.Stats().Shared.Stored > hits+1 })
	require.NoError(t, items.Remove(t.Context(), n))
}
