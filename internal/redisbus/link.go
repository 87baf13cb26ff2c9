package redisbus

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// redisLink is one TCP connection to Redis, dialled here and given to a client of its own.
// A client's pool would replace a lost connection silently, which a subscription must not
// do. It would also dial again and again in the background, and log every failure.
type redisLink struct {
	raw     *wire
	client  *redis.Client
	conn    *redis.Conn // client's one connection, for commands
	unwatch func() bool
	loaded  map[*redis.Script]bool // scripts that were run over it; nil: see eval; for one command at a time
	dropped bool                   // by linkPool.drop; the pool's mutex guards it
}

// dial makes one connection, with a client of its own. The connection is closed when
// lifetime ends, because go-redis heeds a context's deadline, but not its cancellation.
//
// Unless prepare is nil, go-redis calls it when it has authenticated, which it does before
// the first command. With nil, see open.
func (s *Server) dial(
	ctx, lifetime context.Context, prepare func(context.Context, *redis.Conn) error,
) (*redisLink, error) {
	conn, err := s.dialRaw(ctx)
	if err != nil {
		return nil, s.scrubbed(inTime(ctx, err))
	}
	raw := &wire{Conn: conn, secure: s.options.TLSConfig != nil, replies: replyFrames{bounds: ordinaryReplies}}
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
	o.OnConnect = prepare
	client := redis.NewClient(&o)
	return &redisLink{
		raw: raw, client: client, conn: client.Conn(),
		unwatch: context.AfterFunc(lifetime, func() { _ = raw.Close() }),
	}, nil
}

// open makes one connection that is ready for commands: whatever Redis can refuse to a new
// connection it has granted. So no request waits for that. Nor does a request meet an error
// of go-redis's first exchange, which go-redis does not report for all of its commands.
func (s *Server) open(ctx, lifetime context.Context) (link *redisLink, err error) {
	err = s.panics.Apart("dial", func() (err error) {
		link, err = s.openHere(ctx, lifetime)
		return err
	})
	return link, err
}

// openHere is open in the caller's goroutine.
func (s *Server) openHere(ctx, lifetime context.Context) (*redisLink, error) {
	ctx, cancel := context.WithTimeout(ctx, s.connectTimeout)
	defer cancel()
	link, err := s.dial(ctx, lifetime, nil)
	if err != nil {
		return nil, err
	}
	ready := false
	defer func() { // also after a panic in a hook of Options.Redis
		if !ready {
			link.close()
		}
	}()
	stop := context.AfterFunc(ctx, func() { _ = link.raw.Close() })
	err = s.prepare(ctx, link.conn)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return nil, s.explain(link.raw.explain(inTime(ctx, err)))
	}
	link.raw.deafen()
	ready = true
	return link, nil
}

// prepare does on a new connection what go-redis was not told to do. It asks what kind of
// server it is, which needs no right. It selects the database, and sets the client's name.
// If the server refuses the name, the connection is used without it.
func (s *Server) prepare(ctx context.Context, conn *redis.Conn) error {
	greeting := []any{"HELLO", 2}
	if s.clientName != "" {
		greeting = append(greeting, "SETNAME", s.clientName)
	}
	var hello *redis.Cmd
	var selected *redis.StatusCmd
	_, err := conn.Pipelined(ctx, func(p redis.Pipeliner) error {
		hello = p.Do(ctx, greeting...)
		if s.database > 0 {
			selected = p.Select(ctx, s.database)
		}
		return nil
	})
	switch {
	case err != nil && (!answered(err) || hello.Err() == nil && (selected == nil || selected.Err() == nil)):
		return err // go-redis's own first exchange failed, or there was no answer
	case code(hello.Err()) == "NOAUTH":
		return hello.Err()
	case serverMode(hello) == "sentinel":
		return errSentinel
	case selected != nil && selected.Err() != nil:
		return fmt.Errorf("SELECT %d: %w", s.database, selected.Err())
	}
	if hello.Err() != nil && s.clientName != "" {
		if err := conn.ClientSetName(ctx, s.clientName).Err(); err != nil && !answered(err) {
			return err
		} else if err != nil {
			if s.nameRefused.CompareAndSwap(false, true) {
				s.panics.Logger.Info("nearcache: Redis does not take the client's name, and goes on without it",
					"name", s.clientName, "err", s.scrubbed(err))
			}
		}
	}
	if s.onConnect != nil {
		return s.onConnect(ctx, conn)
	}
	return nil
}

// serverMode returns the kind of server that the answer to HELLO names; empty: it names
// none.
func serverMode(hello *redis.Cmd) string {
	fields, _ := hello.Slice()
	for i := 0; i+1 < len(fields); i += 2 {
		if fields[i] == "mode" {
			mode, _ := fields[i+1].(string)
			return mode
		}
	}
	return ""
}

// eval runs a script by its hash, or by its text if Redis does not know the hash. If loaded
// is set, the first run over the connection sends the text: a request with little time
// cannot afford the round trip in which Redis says that it does not know the hash.
func (l *redisLink) eval(ctx context.Context, script *redis.Script, keys []string, args ...any) *redis.Cmd {
	if l.loaded == nil || l.loaded[script] {
		if reply := script.EvalSha(ctx, l.conn, keys, args...); code(reply.Err()) != "NOSCRIPT" {
			return reply
		}
	}
	reply := script.Eval(ctx, l.conn, keys, args...)
	if l.loaded != nil {
		l.loaded[script] = reply.Err() == nil
	}
	return reply
}

func (s *Server) dialRaw(ctx context.Context) (net.Conn, error) {
	network, address := s.options.Network, s.options.Addr
	if network == "" {
		network = "tcp"
		if strings.HasPrefix(address, "/") {
			network = "unix"
		}
	}
	if s.options.Dialer != nil { // the user's, which does TLS too
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
		return nil, handshakeError(address, err)
	}
	return secure, nil
}

// errNoTLS is why a handshake fails at a port that speaks plain text.
var errNoTLS = errors.New("the port does not speak TLS: set ssl=False, or give the port that does")

// handshakeError says why a TLS handshake failed.
func handshakeError(address string, err error) error {
	var plain tls.RecordHeaderError
	var certificate *tls.CertificateVerificationError
	var unknown x509.UnknownAuthorityError
	var alert tls.AlertError
	hint := ""
	switch {
	case errors.As(err, &plain):
		return fmt.Errorf("TLS handshake with %s: %w: it answered %q", address, errNoTLS, plain.RecordHeader[:])
	case errors.As(err, &unknown):
		hint = " (name a private authority in Redis.TLSConfig, or by SSL_CERT_FILE in the environment)"
	case errors.As(err, &certificate), errors.As(err, &alert), errors.Is(err, context.Canceled):
	default:
		hint = " (does the port speak TLS?)"
	}
	return fmt.Errorf("TLS handshake with %s%s: %w", address, hint, err)
}

func (l *redisLink) close() {
	l.unwatch()
	_ = l.raw.Close() // first, because it ends what waits on the connection
	_ = l.client.Close()
}

// keptLink keeps a connection from one command to the next, for one command at a time.
type keptLink struct {
	server *Server

	mu       sync.Mutex // guards everything below
	link     *redisLink // nil: dial first
	drops    int        // how often drop was called
	stopDial context.CancelFunc
}

// run runs command over the connection, which it dials first if there is none. The
// connection lasts until lifetime ends. If one that was kept turns out to be dead, run
// replaces it and runs the command again: the connection was only too old.
func (k *keptLink) run(ctx, lifetime context.Context, command func(context.Context, *redisLink) error) error {
	for {
		link, reused, err := k.get(ctx, lifetime)
		if err != nil {
			return err
		}
		stop := context.AfterFunc(ctx, func() { _ = link.raw.Close() })
		err = k.call(ctx, link, command)
		if stop() && err == nil {
			return nil
		}
		// Also after an answer such as READONLY: by now the address may lead to another
		// server.
		kept := k.discard(link)
		if err == nil || !reused || !kept || !connectionLost(err) || ctx.Err() != nil {
			if !kept && errors.Is(err, net.ErrClosed) && lifetime.Err() == nil {
				err = errGivenUp
			}
			return k.server.explain(inTime(ctx, err))
		}
	}
}

// call runs command, and closes the connection if command panics.
func (k *keptLink) call(ctx context.Context, link *redisLink, command func(context.Context, *redisLink) error) error {
	returned := false
	defer func() {
		if !returned {
			k.discard(link)
		}
	}()
	err := command(ctx, link)
	returned = true
	return err
}

// get returns the connection that is kept, or a new one.
func (k *keptLink) get(ctx, lifetime context.Context) (link *redisLink, reused bool, err error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	k.mu.Lock()
	link, drops := k.link, k.drops
	k.stopDial = stop
	k.mu.Unlock()
	if link != nil {
		return link, true, nil
	}
	link, err = k.server.open(ctx, lifetime)
	k.mu.Lock()
	// 1. the address is resolved   2. the lease is lost, or Redis has a new history:
	// drop   3. the dial ends, at a server that the address may no longer lead to.
	dropped := k.drops != drops
	if !dropped {
		k.link = link
	}
	k.mu.Unlock()
	switch {
	case dropped && err == nil:
		link.close()
		fallthrough
	case dropped:
		return nil, false, errGivenUp
	}
	return link, false, err
}

// discard closes link. It reports whether link was still the one that is kept. If not, drop
// has closed it already.
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

// drop closes the connection, also one that is being dialled. A command that waits for it
// fails and is not run again: it has waited long enough for the connection to be given up.
func (k *keptLink) drop() {
	k.mu.Lock()
	link, stopDial := k.link, k.stopDial
	k.drops++
	k.mu.Unlock()
	if stopDial != nil {
		stopDial()
	}
	if link != nil {
		k.discard(link)
	}
}
