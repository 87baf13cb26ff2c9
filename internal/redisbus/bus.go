// Package redisbus is a backplane's way to Redis. No other code of the library knows
// go-redis's clients.
//
// A Server is a transport.Bus. bus.go has what it does: it publishes, subscribes and probes.
// The scripts that Redis runs are in scripts.go, and values.go reads and stores the values
// of the shared level. Connections are in link.go (one, dialled and prepared), pool.go (a
// few for many requests), wire.go and frames.go (what is read from them, within bounds),
// and credentials.go. reply.go says what errors mean.
package redisbus

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/nearcache/nearcache/internal/backoff"
	"github.com/nearcache/nearcache/internal/barrier"
	"github.com/nearcache/nearcache/internal/connstring"
	"github.com/nearcache/nearcache/internal/transport"
)

const (
	defaultConnectTimeout = 5 * time.Second
	defaultCommandTimeout = 5 * time.Second
	keepAliveProbes       = 3
)

// Config is what a Server is made of.
type Config struct {
	// Redis says where Redis is and how to reach it. If it is nil, ConnectionString does.
	Redis            *redis.UniversalOptions
	ConnectionString string

	Channel                string // without the connection string's prefix
	AllowDisconnectedStart bool
	Logger                 *slog.Logger // nil: slog.Default()

	// What the rest of the library decides.
	Nonce        func() [16]byte         // returns bytes that cannot be guessed and never repeat
	Backoff      func() *backoff.Backoff // returns what spaces the attempts of one First
	MaxBodyBytes int                     // a message with a larger body is not understood
	ErrClosed    error                   // what requests fail with after Close
}

// Server is the Redis behind a backplane: how to reach it, and what the backplane's
// channel and keys are called there. It implements transport.Bus.
type Server struct {
	options        *redis.Options // of every client; dial makes the connections
	keepAlive      time.Duration  // between TCP's probes of an idle connection; negative: none
	connectTimeout time.Duration
	connectRetry   int // attempts after the first; negative: as many as the time allows
	commandTimeout time.Duration

	disconnectedStart bool
	ignored           []string // options of the connection string that have no meaning here

	channel     string // its name in Redis
	keyPrefix   string // of all keys
	positionKey string
	clearsKey   string // see scripts.go

	// What go-redis is not told, because prepare does it.
	credentials credentials
	database    int
	clientName  string
	onConnect   func(context.Context, *redis.Conn) error
	nameRefused atomic.Bool // the log says that Redis does not take the client's name

	publishing keptLink
	sharing    atomic.Bool // Redis has, or once had, values of the shared level
	values     values
	panics     *barrier.Panics

	nonce             func() [16]byte
	backoff           func() *backoff.Backoff
	subscribedReplies replyBounds
}

// New reads the options. It does not connect. Its error names no secret.
func New(c Config) (*Server, error) {
	s := &Server{
		connectTimeout:    defaultConnectTimeout,
		connectRetry:      -1,
		commandTimeout:    defaultCommandTimeout,
		keepAlive:         15 * time.Second,
		disconnectedStart: c.AllowDisconnectedStart,
		channel:           c.Channel,
		nonce:             c.Nonce,
		backoff:           c.Backoff,
		subscribedReplies: subscribedReplies(c.MaxBodyBytes),
	}
	var err error
	if c.Redis != nil {
		err = s.readOptions(c.Redis)
	} else {
		err = s.readConnectionString(c.ConnectionString)
	}
	if err != nil {
		return nil, err
	}
	s.keyPrefix = "{" + s.channel + "}:" // including the string's prefix, since each channel has its own chain
	s.positionKey = s.keyPrefix + "position"
	s.clearsKey = s.keyPrefix + "clears"
	if s.options.DB != 0 {
		// Keys belong to a database and channels do not. Two databases are two backplanes.
		s.channel = fmt.Sprintf("%s@%d", s.channel, s.options.DB)
	}
	s.panics = &barrier.Panics{Logger: c.Logger, Scrub: s.scrub}
	if s.panics.Logger == nil {
		s.panics.Logger = slog.Default()
	}
	s.takeOptions()
	s.credentials.errClosed, s.values.links.errClosed = c.ErrClosed, c.ErrClosed
	s.publishing.server = s
	s.values.server, s.values.links.server = s, s
	return s, nil
}

// Channel returns the channel's name in Redis.
func (s *Server) Channel() string { return s.channel }

// DisconnectedStart reports whether the backplane may start without Redis, as the options
// or the connection string say.
func (s *Server) DisconnectedStart() bool { return s.disconnectedStart }

// Ignored returns the options of the connection string that have no meaning here.
func (s *Server) Ignored() []string { return s.ignored }

// Panics returns what turns panics into errors, and knows what is secret in them. Its
// logger, which is the server's too, may be replaced before the server is used.
func (s *Server) Panics() *barrier.Panics { return s.panics }

// Format prints where Redis is. The server has options of the client, with a password,
// and fmt prints those of a struct, too, whose verb does not suit it.
func (s *Server) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "Redis at %s, channel %s", s.options.Addr, s.channel)
}

// takeOptions removes from the options what the library does itself, and sets the others
// for clients with one connection each.
func (s *Server) takeOptions() {
	o := s.options
	s.database, o.DB = o.DB, 0
	s.clientName, o.ClientName = o.ClientName, ""
	s.onConnect, o.OnConnect = o.OnConnect, nil
	s.credentials.panics = s.panics
	s.credentials.take(o)
	s.values.links = linkPool{
		size: o.PoolSize, idleTime: max(o.ConnMaxIdleTime, 0), open: map[*redisLink]struct{}{},
	}
	if o.PoolSize <= 0 {
		s.values.links.size = defaultPoolSize
	}
	if o.ConnMaxIdleTime == 0 {
		s.values.links.idleTime = defaultPoolIdleTime
	}

	o.Protocol = 2 // in RESP3, other pushes would arrive among the messages
	o.MaxRetries = -1
	o.ContextTimeoutEnabled = true
	o.DialerRetries = 1
	o.PoolSize = 1
	o.MinIdleConns, o.MaxIdleConns, o.MaxActiveConns, o.MaxConcurrentDials = 0, 0, 0, 0
	o.PipelinePoolSize = -1
	o.ReadTimeout = s.commandTimeout
	o.WriteTimeout = s.commandTimeout
	o.ConnMaxIdleTime = -1
	o.ConnMaxLifetime = -1
	o.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	o.DisableIdentity = true // else each connection would send two commands that fail where CLIENT is denied
	o.Limiter = nil
	o.PushNotificationProcessor = nil
	o.AutoPipelineOptions = nil
	// Client-side caching needs RESP3. With it, go-redis would log that for each connection.
	o.ClientSideCacheConfig, o.ClientSideCache, o.ClientSideCacheStrategy = nil, nil, 0
	o.ClientSideCacheRefreshOnInvalidate, o.ClientSideCacheCoalesceMisses = false, false
	o.ClientSideCacheInvalidationBatchWindow = 0
}

func (s *Server) readOptions(u *redis.UniversalOptions) error {
	if len(u.Addrs) > 1 || u.MasterName != "" || u.IsClusterMode {
		return errors.New("several addresses, Sentinel and Cluster are not supported yet; give one address in Redis.Addrs")
	}
	s.options = u.Simple()
	if u.DialTimeout > 0 {
		s.connectTimeout = u.DialTimeout
	}
	if u.ReadTimeout > 0 {
		s.commandTimeout = u.ReadTimeout
	}
	return nil
}

func (s *Server) readConnectionString(text string) error {
	c, err := connstring.Parse(text)
	if err != nil {
		return fmt.Errorf("RedisConnectionString: %w", err)
	}
	if len(c.Endpoints) > 1 || c.ServiceName != "" {
		return errors.New("RedisConnectionString: several endpoints and serviceName (Sentinel) " +
			"are not supported yet; name one endpoint")
	}
	endpoint := c.Endpoints[0]
	s.options = &redis.Options{
		Network:    endpoint.Network,
		Addr:       endpoint.Address(),
		Username:   c.User,
		Password:   string(c.Password),
		DB:         c.Database,
		ClientName: c.ClientName,
	}
	if c.TLS {
		name := c.TLSHost
		if name == "" && endpoint.Network == "unix" {
			return errors.New("RedisConnectionString: TLS over a unix socket needs sslHost, the name to verify")
		}
		if name == "" {
			name = endpoint.Host
		}
		s.options.TLSConfig = &tls.Config{ServerName: name, MinVersion: tls.VersionTLS12}
		if c.TLS13 {
			s.options.TLSConfig.MinVersion = tls.VersionTLS13
		}
	}
	if c.ConnectTimeout > 0 {
		s.connectTimeout = c.ConnectTimeout
	}
	if c.SyncTimeout > 0 {
		s.commandTimeout = c.SyncTimeout
	}
	if c.AsyncTimeout > 0 {
		s.commandTimeout = c.AsyncTimeout
	}
	s.connectRetry = c.ConnectRetry
	if c.KeepAlive != 0 {
		s.keepAlive = c.KeepAlive
	}
	s.channel = c.ChannelPrefix + s.channel
	s.disconnectedStart = s.disconnectedStart || !c.AbortConnect
	s.ignored = c.Ignored
	return nil
}

// Publish makes one attempt to run the publish script. Its connection outlives ctx: it is
// kept until it is dropped.
func (s *Server) Publish(ctx context.Context, m transport.Message) error {
	ctx, cancel := context.WithTimeout(ctx, s.connectTimeout+s.commandTimeout)
	defer cancel()
	tooMany := false
	err := s.publishing.run(ctx, context.Background(), func(ctx context.Context, link *redisLink) error {
		told, role := len(m.Changes) == 0, ""
		for {
			if told = told || s.sharing.Load(); told && transport.CountChanges(m.Changes) > transport.MostChanges {
				tooMany = true
				return nil
			}
			keys, args := []string{s.positionKey, s.clearsKey}, []any{s.channel, m.Nonce, m.Head, m.Body, "0" + role}
			if told {
				args[4] = "1" + role
				keys, args = s.appendChanges(keys, args, m.Changes)
			}
			own, err := link.eval(ctx, publishScript, keys, args...).Text()
			switch {
			case err != nil:
				return err
			case own == askRole:
				if role, err = roleOf(ctx, link.conn); err != nil {
					return err
				}
			case own == "":
				s.sharing.Store(true)
				told = true
			default:
				return nil
			}
		}
	})
	if err == nil && tooMany {
		return transport.ErrTooManyChanges
	}
	return err
}

// roleOf asks a server for its role, such as master or slave. If the server refuses to say,
// the role is unknownRole.
func roleOf(ctx context.Context, conn *redis.Conn) (role string, err error) {
	reply, err := conn.Do(ctx, "ROLE").Slice()
	var answered redis.Error
	switch {
	case errors.As(err, &answered):
		return unknownRole, nil
	case err != nil:
		return "", err
	case len(reply) > 0:
		role, _ = reply[0].(string)
	}
	return cmp.Or(role, unknownRole), nil
}

// Redial closes the connection that Publish keeps. The next Publish dials again.
func (s *Server) Redial() { s.publishing.drop() }

// Close closes everything except subscriptions.
func (s *Server) Close() {
	s.publishing.drop()
	s.values.links.drop(true)
	s.credentials.close()
}

// drawNonce returns a nonce that a position or an epoch is made of.
func (s *Server) drawNonce() []byte {
	nonce := s.nonce()
	return nonce[:]
}

// First makes attempts until one succeeds, Redis refuses, or the time or the retries run
// out.
func (s *Server) First(ctx context.Context, attempt func(context.Context) error) (err error) {
	ctx, cancel := context.WithTimeout(ctx, s.connectTimeout)
	defer cancel()
	pause := s.backoff()
	for {
		before := err
		if err = attempt(ctx); err == nil {
			return nil
		}
		if ctx.Err() != nil && before != nil {
			err = before // it says more than that the time ran out
		}
		if refused(err) || pause.Failures() == s.connectRetry || !pause.Wait(ctx, nil) {
			break
		}
	}
	switch {
	case ctx.Err() == nil || errors.Is(err, ctx.Err()):
	case errors.Is(err, net.ErrClosed): // the connection was closed because ctx ended
		err = fmt.Errorf("no answer: %w", ctx.Err())
	default:
		err = fmt.Errorf("%w: %w", ctx.Err(), err)
	}
	if refused(err) {
		return fmt.Errorf("nearcache: Redis at %s refuses: %w", s.options.Addr, err)
	}
	return fmt.Errorf("nearcache: cannot reach Redis at %s: %w "+
		"(to start without it, set abortConnect=false or AllowDisconnectedStart)", s.options.Addr, err)
}

// subscription is a subscription over a link of its own. Its probes have a second link,
// because a subscribed connection takes no other commands.
type subscription struct {
	server   *Server
	as       transport.Identity
	own      string // the channel for echoes
	link     *redisLink
	pubsub   *redis.PubSub
	lifetime context.Context
	end      context.CancelFunc

	probing keptLink
}

// Subscribe makes one attempt at a subscription. It returns once Redis has confirmed it.
func (s *Server) Subscribe(ctx context.Context, as transport.Identity) (sub transport.Subscription, err error) {
	err = s.panics.Apart("Subscribe", func() (err error) {
		sub, err = s.subscribeHere(ctx, as)
		return err
	})
	if err != nil {
		return nil, err
	}
	return sub, nil
}

// subscribeHere is Subscribe in the caller's goroutine.
func (s *Server) subscribeHere(ctx context.Context, as transport.Identity) (_ *subscription, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.connectTimeout)
	defer cancel()
	sub := &subscription{server: s, as: as, own: fmt.Sprintf("%s%x", s.keyPrefix, as.ID), probing: keptLink{server: s}}
	sub.lifetime, sub.end = context.WithCancel(context.Background())
	if sub.link, err = s.dial(ctx, sub.lifetime, s.prepare); err != nil {
		sub.end()
		return nil, err
	}
	sub.link.raw.replies.bounds = s.subscribedReplies
	sub.pubsub = sub.link.client.Subscribe(ctx)
	ready := false
	defer func() { // also after a panic in a hook of Options.Redis
		if !ready {
			sub.Close()
		}
	}()
	// go-redis heeds ctx's deadline, but not its cancellation.
	defer context.AfterFunc(ctx, sub.end)()
	if err := sub.confirm(ctx, s.channel, sub.own); err != nil {
		return nil, s.explain(fmt.Errorf("SUBSCRIBE %s %s: %w", s.channel, sub.own, sub.link.raw.explain(inTime(ctx, err))))
	}
	sub.link.raw.deafen()
	if _, _, err := sub.probing.get(ctx, sub.lifetime); err != nil { // now, so that the first probe need not wait for it
		return nil, err
	}
	ready = true
	return sub, nil
}

// confirm subscribes to channels and waits until Redis has confirmed each.
func (r *subscription) confirm(ctx context.Context, channels ...string) error {
	if err := r.pubsub.Subscribe(ctx, channels...); err != nil {
		return err
	}
	for _, channel := range channels {
		// If this fails the connection is not used again: after a timeout in the middle of
		// a message, the rest of it would be read as the next one.
		reply, err := r.pubsub.ReceiveTimeout(ctx, r.server.commandTimeout)
		if err != nil {
			return err
		}
		if c, ok := reply.(*redis.Subscription); !ok || c.Kind != "subscribe" || c.Channel != channel {
			return fmt.Errorf("unexpected reply %v", reply)
		}
	}
	return nil
}

// Probe makes one attempt to run the probe script.
func (r *subscription) Probe(ctx context.Context, probeNonce string) error {
	s := r.server
	return r.probing.run(ctx, r.lifetime, func(ctx context.Context, link *redisLink) error {
		keys := []string{s.positionKey, s.clearsKey}
		for role := ""; ; {
			reply, err := link.eval(ctx, probeScript, keys, r.own, probeNonce, r.as.Echo, s.drawNonce(), role).Result()
			if err != nil || reply != askRole {
				return err
			}
			if role, err = roleOf(ctx, link.conn); err != nil {
				return err
			}
		}
	})
}

// Receive waits without a deadline. A reply that is neither a message nor a pong is an
// error: it means that go-redis has changed the subscription on its own.
func (r *subscription) Receive() (payload string, own bool, err error) {
	for {
		reply, err := r.pubsub.Receive(context.Background())
		if err != nil {
			return "", false, r.server.explain(err)
		}
		switch reply := reply.(type) {
		case *redis.Message:
			return reply.Payload, reply.Channel == r.own, nil
		case *redis.Pong:
		default:
			return "", false, fmt.Errorf("unexpected %v on the subscription", reply)
		}
	}
}

// Close may be called while Probe or Receive waits. It ends both.
func (r *subscription) Close() {
	r.end()
	r.link.close()
	_ = r.pubsub.Close()
	r.probing.drop()
}
