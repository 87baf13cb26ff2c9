package nearcache

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/nearcache/nearcache/internal/connstring"
)

// This file is the only one that knows go-redis. Each redisLink is one TCP
// connection, dialled here and handed to a client of its own: a client's pool
// would mend a lost connection silently (the subscription must not), dial again
// and again in the background, and log every failure on its own.

const (
	defaultConnectTimeout = 5 * time.Second
	defaultCommandTimeout = 5 * time.Second
	keepAliveProbes       = 3
)

// publishScript publishes an invalidation as the next link of the channel's
// chain. The position is computed here, inside Redis, so that a script that runs
// twice because its reply was lost makes two positions. It is written before the
// message goes out, so that a server that takes no writes (out of memory, a
// replica, a demoted master) sends no message either.
//
// KEYS: position. ARGV: channel, nonce, head of the envelope, body.
var publishScript = redis.NewScript(`
local before = redis.call('GET', KEYS[1])
local previous = before
if not previous or #previous ~= 40 then previous = '' end
local own = redis.sha1hex(previous .. ARGV[2])
redis.call('SET', KEYS[1], own)
local sent = redis.pcall('PUBLISH', ARGV[1],
  ARGV[3] .. string.char(#previous) .. previous .. string.char(#own) .. own .. ARGV[4])
if type(sent) == 'table' and sent['err'] then
  if before then redis.call('SET', KEYS[1], before) else redis.call('DEL', KEYS[1]) end
  return sent
end
return own
`)

// positionScript returns the channel's position and makes one if there is none.
// It writes in any case, and so fails wherever publishing would.
//
// KEYS: position. ARGV: nonce.
var positionScript = redis.NewScript(`
local position = redis.call('GET', KEYS[1])
if not position or #position ~= 40 then position = redis.sha1hex(ARGV[1]) end
redis.call('SET', KEYS[1], position)
return position
`)

// redisServer is the Redis behind a backplane: how to reach it, and the names
// that the backplane has there.
type redisServer struct {
	options        *redis.Options // of every client; the connection is dialled by dial
	keepAlive      time.Duration  // between probes of an idle connection; negative: none
	connectTimeout time.Duration
	connectRetry   int // attempts after the first; negative: as many as there is time for
	commandTimeout time.Duration

	disconnectedStart bool
	ignored           []string // options of the connection string without a meaning here

	self        instanceID
	head        []byte // of the envelope of every message of this instance
	channel     string // as it is named in Redis
	positionKey string

	publishing *redisLink // used by the publisher's goroutine alone; nil: dial first
}

// newRedisServer reads the options. It does not connect.
func newRedisServer(o BackplaneOptions) (*redisServer, error) {
	s := &redisServer{
		connectTimeout:    defaultConnectTimeout,
		connectRetry:      -1,
		commandTimeout:    defaultCommandTimeout,
		keepAlive:         15 * time.Second,
		disconnectedStart: o.AllowDisconnectedStart,
		channel:           o.Channel,
	}
	var err error
	if o.Redis != nil {
		err = s.readOptions(o.Redis)
	} else {
		err = s.readConnectionString(o.RedisConnectionString)
	}
	if err != nil {
		return nil, err
	}
	s.positionKey = "{" + s.channel + "}:position" // with the prefix: each channel has its own chain
	if s.options.DB != 0 {
		// Pub/Sub knows no databases and keys do: two databases are two backplanes.
		s.channel = fmt.Sprintf("%s@%d", s.channel, s.options.DB)
	}

	s.options.Protocol = 2 // in RESP3, messages would arrive among other pushes
	s.options.MaxRetries = -1
	s.options.ContextTimeoutEnabled = true
	s.options.DialerRetries = 1
	s.options.PoolSize = 1
	s.options.MinIdleConns = 0
	s.options.PipelinePoolSize = -1
	s.options.ReadTimeout = s.commandTimeout
	s.options.WriteTimeout = s.commandTimeout
	s.options.ConnMaxIdleTime = -1
	s.options.ConnMaxLifetime = -1
	s.options.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	_, _ = rand.Read(s.self[:]) // never fails
	s.head = appendHead(nil, kindInvalidation, s.self)
	return s, nil
}

func (s *redisServer) readOptions(u *redis.UniversalOptions) error {
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

func (s *redisServer) readConnectionString(text string) error {
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

// publish runs the publish script once, over a connection that it keeps until
// lifetime ends. If that turns out to be dead it is replaced and the script tried
// again, since nothing was wrong but its age.
func (s *redisServer) publish(lifetime context.Context, body string) error {
	ctx, cancel := context.WithTimeout(lifetime, s.connectTimeout+s.commandTimeout)
	defer cancel()
	for {
		reused := s.publishing != nil
		if !reused {
			link, err := s.dial(ctx, lifetime)
			if err != nil {
				return err
			}
			s.publishing = link
		}
		err := publishScript.Run(ctx, s.publishing.conn, []string{s.positionKey},
			s.channel, nonce(), s.head, body).Err()
		if err == nil {
			return nil
		}
		// Also after an answer such as READONLY: the address may lead to another
		// server by now.
		s.publishing.close()
		s.publishing = nil
		if !reused || !connectionLost(err) || ctx.Err() != nil {
			return s.explain(err)
		}
	}
}

// connectionLost reports whether err says that the connection was dead, rather
// than that Redis answered with an error or was too slow to answer.
func connectionLost(err error) bool {
	var answered redis.Error
	var slow net.Error
	return !errors.As(err, &answered) && !(errors.As(err, &slow) && slow.Timeout())
}

// explain says what Redis was asked for when it answered with an error.
func (s *redisServer) explain(err error) error {
	switch {
	case redis.HasErrorPrefix(err, "WRONGTYPE"):
		return fmt.Errorf("the key %s is not nearcache's, delete it: %w", s.positionKey, err)
	case redis.HasErrorPrefix(err, "OOM"), redis.HasErrorPrefix(err, "READONLY"),
		redis.HasErrorPrefix(err, "NOREPLICAS"), redis.HasErrorPrefix(err, "MISCONF"):
		return fmt.Errorf("publishing writes the key %s, and Redis takes no writes: %w", s.positionKey, err)
	}
	return err
}

// nonce makes the position of a message unlike any other.
func nonce() []byte {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails
	return b
}

func (s *redisServer) close() {
	if s.publishing != nil {
		s.publishing.close()
	}
}

// redisSubscription is a subscription over a link of its own.
type redisSubscription struct {
	link   *redisLink
	pubsub *redis.PubSub
	seen   string
}

// firstSubscription is what Connect waits for: several attempts, as long as they
// make sense.
func (s *redisServer) firstSubscription(ctx context.Context) (sub subscription, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.connectTimeout)
	defer cancel()
	var pause backoff
	for {
		sub, err = s.subscribe(ctx)
		if err == nil {
			return sub, nil
		}
		if refused(err) || pause.failures == s.connectRetry || !pause.wait(ctx, nil) {
			break
		}
	}
	switch {
	case ctx.Err() == nil || errors.Is(err, ctx.Err()):
	case errors.Is(err, net.ErrClosed): // by us, because ctx ended
		err = fmt.Errorf("no answer: %w", ctx.Err())
	default:
		err = fmt.Errorf("%w: %w", ctx.Err(), err)
	}
	if refused(err) {
		return nil, fmt.Errorf("nearcache: Redis at %s refuses: %w", s.options.Addr, err)
	}
	return nil, fmt.Errorf("nearcache: cannot reach Redis at %s: %w "+
		"(to start without it, set abortConnect=false or AllowDisconnectedStart)", s.options.Addr, err)
}

// refused reports whether trying again would end the same way: Redis answered
// with an error, other than one that passes, or its certificate does not verify.
func refused(err error) bool {
	for _, passing := range []string{
		"LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "OOM", "BUSY", "max number of clients", "NOREPLICAS", "MISCONF",
	} {
		if redis.HasErrorPrefix(err, passing) {
			return false
		}
	}
	var answered redis.Error
	var certificate *tls.CertificateVerificationError
	return errors.As(err, &answered) || errors.As(err, &certificate)
}

// subscribe makes one attempt at a subscription, confirmed and with its position.
func (s *redisServer) subscribe(ctx context.Context) (_ subscription, err error) {
	link, err := s.dial(ctx, ctx)
	if err != nil {
		return nil, err
	}
	defer link.unwatch() // from here on it is for run to close it
	sub := &redisSubscription{link: link, pubsub: link.client.Subscribe(ctx)}
	defer func() {
		if err != nil {
			sub.close()
		}
	}()
	if err := sub.pubsub.Subscribe(ctx, s.channel); err != nil {
		return nil, err
	}
	// Never used again: a timeout in the middle of a message would leave the rest
	// of it to be read as the next one.
	reply, err := sub.pubsub.ReceiveTimeout(ctx, s.commandTimeout)
	if err != nil {
		return nil, fmt.Errorf("SUBSCRIBE %s: %w", s.channel, err)
	}
	if r, ok := reply.(*redis.Subscription); !ok || r.Kind != "subscribe" || r.Channel != s.channel {
		return nil, fmt.Errorf("SUBSCRIBE %s: unexpected reply %v", s.channel, reply)
	}
	sub.seen, err = s.position(ctx)
	return sub, err
}

// position reads the channel's position, over a connection of its own because
// one that is subscribed can do nothing else.
func (s *redisServer) position(ctx context.Context) (string, error) {
	link, err := s.dial(ctx, ctx)
	if err != nil {
		return "", err
	}
	defer link.close()
	position, err := positionScript.Run(ctx, link.conn, []string{s.positionKey}, nonce()).Text()
	return position, s.explain(err)
}

func (r *redisSubscription) position() string { return r.seen }

// receive waits without a deadline. Any reply other than a message means that
// go-redis has changed the subscription on its own, so it is an error.
func (r *redisSubscription) receive() (string, error) {
	for {
		reply, err := r.pubsub.Receive(context.Background())
		if err != nil {
			return "", err
		}
		switch reply := reply.(type) {
		case *redis.Message:
			return reply.Payload, nil
		case *redis.Pong:
		default:
			return "", fmt.Errorf("unexpected %v on the subscription", reply)
		}
	}
}

func (r *redisSubscription) close() {
	r.link.close()
	_ = r.pubsub.Close()
}
