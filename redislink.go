package nearcache

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// Each redisLink is one TCP connection, dialled here and handed to a client of its
// own: a client's pool would mend a lost connection silently (the subscription
// must not), dial again and again in the background, and log every failure on its
// own.

// redisLink is one connection to Redis.
type redisLink struct {
	raw     net.Conn
	client  *redis.Client
	conn    *redis.Conn // client's one connection, for commands
	unwatch func() bool
}

// dial makes one connection; a client of its own will speak over it. The
// connection is closed when lifetime ends, since go-redis looks at a context's
// deadline only: a read would not hear of its cancellation.
func (s *redisServer) dial(ctx, lifetime context.Context) (*redisLink, error) {
	raw, err := s.dialRaw(ctx)
	if err != nil {
		return nil, err
	}
	o := *s.options
	unused := make(chan net.Conn, 1)
	unused <- raw
	o.Dialer = func(context.Context, string, string) (net.Conn, error) {
		select {
		case c := <-unused:
			return c, nil
		default:
			return nil, net.ErrClosed // one link is one connection
		}
	}
	client := redis.NewClient(&o)
	return &redisLink{
		raw: raw, client: client, conn: client.Conn(),
		unwatch: context.AfterFunc(lifetime, func() { _ = raw.Close() }),
	}, nil
}

func (s *redisServer) dialRaw(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, s.connectTimeout)
	defer cancel()
	network, address := s.options.Network, s.options.Addr
	if network == "" {
		network = "tcp"
		if strings.HasPrefix(address, "/") {
			network = "unix"
		}
	}
	if s.options.Dialer != nil { // of the caller, who sees to TLS too
		return s.options.Dialer(ctx, network, address)
	}
	d := net.Dialer{KeepAlive: -1}
	if s.keepAlive > 0 {
		d.KeepAliveConfig = net.KeepAliveConfig{
			Enable: true, Idle: s.keepAlive, Interval: max(s.keepAlive/keepAliveProbes, time.Second), Count: keepAliveProbes,
		}
	}
	raw, err := d.DialContext(ctx, network, address)
	if err != nil || s.options.TLSConfig == nil {
		return raw, err
	}
	config := s.options.TLSConfig
	if config.ServerName == "" && !config.InsecureSkipVerify {
		config = config.Clone()
		config.ServerName, _, _ = net.SplitHostPort(address)
	}
	secure := tls.Client(raw, config)
	if err := secure.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, fmt.Errorf("TLS handshake with %s (does the port speak TLS?): %w", address, err)
	}
	return secure, nil
}

func (l *redisLink) close() {
	l.unwatch()
	_ = l.raw.Close() // first: it ends whatever waits on the connection
	_ = l.client.Close()
}

// keptLink is a connection that is kept from one command to the next, for one
// command at a time.
type keptLink struct {
	server *redisServer

	mu    sync.Mutex // guards everything below
	link  *redisLink // nil: dial first
	drops int        // how often drop was called
}

// errGivenUp is why a command was not run: its connection was dropped.
var errGivenUp = errors.New("the connection was given up, since Redis was not heard of any more")

// run runs command over the connection, which is dialled first if there is none
// and lasts until lifetime ends. If one that was kept turns out to be dead it is
// replaced and the command run again, since nothing was wrong but its age.
func (k *keptLink) run(ctx, lifetime context.Context, command func(context.Context, *redis.Conn) error) error {
	for {
		link, reused, err := k.get(ctx, lifetime)
		if err != nil {
			return err
		}
		stop := context.AfterFunc(ctx, func() { _ = link.raw.Close() })
		err = command(ctx, link.conn)
		if stop() && err == nil {
			return nil
		}
		// Also after an answer such as READONLY: the address may lead to another
		// server by now.
		kept := k.discard(link)
		if err == nil || !reused || !kept || !connectionLost(err) || ctx.Err() != nil {
			return k.server.explain(err)
		}
	}
}

// get returns the connection that is kept, or a new one.
func (k *keptLink) get(ctx, lifetime context.Context) (link *redisLink, reused bool, err error) {
	k.mu.Lock()
	link, drops := k.link, k.drops
	k.mu.Unlock()
	if link != nil {
		return link, true, nil
	}
	if link, err = k.server.dial(ctx, lifetime); err != nil {
		return nil, false, err
	}
	k.mu.Lock()
	// 1. the address is resolved   2. the lease is lost, or Redis has a new history:
	// drop   3. the dial ends, at a server that may be none any more.
	dropped := k.drops != drops
	if !dropped {
		k.link = link
	}
	k.mu.Unlock()
	if dropped {
		link.close()
		return nil, false, errGivenUp
	}
	return link, false, nil
}

// discard closes link, and forgets it if it is the one that is kept. It reports
// whether it was: if not, drop has closed it.
func (k *keptLink) discard(link *redisLink) (kept bool) {
	k.mu.Lock()
	kept = k.link == link
	if kept {
		k.link = nil
	}
	k.mu.Unlock()
	link.close()
	return kept
}

// drop closes the connection, also one that is being dialled. A command that waits for it fails, and is not run
// again: who waited long enough for a connection to be given up is told so.
func (k *keptLink) drop() {
	k.mu.Lock()
	link := k.link
	k.drops++
	k.mu.Unlock()
	if link != nil {
		k.discard(link)
	}
}

// connectionLost reports whether err says that the connection was dead, rather
// than that Redis answered with an error or was too slow to answer.
func connectionLost(err error) bool {
	var answered redis.Error
	var slow net.Error
	return !errors.As(err, &answered) && !(errors.As(err, &slow) && slow.Timeout())
}
