package nearcache

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"net"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/nearcache/nearcache/internal/connstring"
	"github.com/nearcache/nearcache/internal/transport"
)

// This file and the others whose names begin with redis are the only ones that know
// go-redis: here are the scripts and what they are run for, in redislink.go and
// redispool.go the connections, in redisvalues.go what has to do with the shared level,
// and in redisreply.go what errors mean.

const (
	defaultConnectTimeout = 5 * time.Second
	defaultCommandTimeout = 5 * time.Second
	keepAliveProbes       = 3
)

// onMaster is the part of the scripts for publishing and probing that has only a master
// run them. A replica can be made to take writes, and those are nobody's but its own; it
// has its master's history, and its position may be of long ago.
//
// It goes by INFO, and where that is refused by what the command ROLE has told before,
// which no script may call: role is that, or unknown if it was refused too. If role is
// empty nothing is done, and the answer is askRole.
const onMaster = `
local info = redis.pcall('INFO', 'replication')
if type(info) ~= 'string' then info = '' end
role = string.match(info, 'role:(%a+)') or role
if role == '' then return '` + askRole + `' end
if role ~= 'master' and role ~= '` + unknownRole + `' then return redis.error_reply('` + isReplica + `') end
`

const (
	askRole     = "ROLE?"
	unknownRole = "unknown"
	isReplica   = "READONLY nearcache: this server is a replica, so nobody would hear of what it takes"
)

// publishScript publishes an invalidation as the next link of the channel's
// chain. The position is computed here, inside Redis, so that a script that runs
// twice because its reply was lost makes two positions. It is written before the
// message goes out, so that a server that takes no writes (out of memory, a
// replica, a demoted master) sends no message either.
//
// What is shared is changed in between; that it can be is seen first. If the message
// cannot go out, values have gone that would have gone a little later.
//
// Where nothing is shared, as far as the publisher knows, it does not say what there
// would be to change, which for many keys costs as much as all the rest. If it turns
// out that it should have, nothing is done, and the answer is empty.
//
// KEYS: position, and those of changeValues. ARGV: channel, nonce, head of the
// envelope, body, 1 if changeValues has what it needs, or 0, and the role, and then what
// it needs.
var publishScript = redis.NewScript(`
local role = string.sub(ARGV[5], 2)
` + onMaster + `
local epoch = redis.call('HGET', KEYS[2], 'epoch')
if epoch and string.sub(ARGV[5], 1, 1) ~= '1' then return '' end
local before = redis.call('GET', KEYS[1])
local previous = before
if not previous or #previous ~= 40 then previous = '' end
local own = redis.sha1hex(previous .. ARGV[2])
redis.call('SET', KEYS[1], own)
` + changeValues + `
local sent = redis.pcall('PUBLISH', ARGV[1],
  ARGV[3] .. string.char(#previous) .. previous .. string.char(#own) .. own .. ARGV[4])
if type(sent) == 'table' and sent['err'] then
  if before then redis.call('SET', KEYS[1], before) else redis.call('DEL', KEYS[1]) end
  return sent
end
return own
`)

// probeScript answers a probe on the instance's own channel, with the channel's
// position, which it makes if there is none, and the server's history id, which
// changes when a replica is promoted and when a server restarts; without the right
// to INFO it is empty. The position is written in any case, so that a probe fails
// wherever publishing would. What was shared in another history is void: a replica
// that took over may have values that are gone.
//
// KEYS: position, clears. ARGV: own channel, nonce, head of the envelope, nonce of a
// position, role.
var probeScript = redis.NewScript(`
local role = ARGV[5]
` + onMaster + `
local position = redis.call('GET', KEYS[1])
if not position or #position ~= 40 then position = redis.sha1hex(ARGV[4]) end
redis.call('SET', KEYS[1], position)
local history = string.match(info, 'master_replid:(%x+)') or ''
local of = history ~= '' and redis.call('HGET', KEYS[2], 'history')
if of and of ~= history then redis.call('DEL', KEYS[2]) end
return redis.call('PUBLISH', ARGV[1], ARGV[3] .. '\0' .. string.char(#position) .. position ..
  '\1' .. string.char(#history) .. history .. string.char(#ARGV[2]) .. ARGV[2])
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

	channel     string // as it is named in Redis
	keyPrefix   string // of all keys
	positionKey string
	clearsKey   string // see redisvalues.go

	// What go-redis is not told, since the library does it: see prepare.
	credentials credentials
	database    int
	clientName  string
	onConnect   func(context.Context, *redis.Conn) error
	nameRefused logOnce // for the log

	publishing keptLink
	sharing    atomic.Bool // there is something shared, or was once
	values     redisValues
	panics     *panics
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
	s.keyPrefix = "{" + s.channel + "}:" // with the string's prefix: each channel has its own chain
	s.positionKey = s.keyPrefix + "position"
	s.clearsKey = s.keyPrefix + "clears"
	if s.options.DB != 0 {
		// Pub/Sub knows no databases and keys do: two databases are two backplanes.
		s.channel = fmt.Sprintf("%s@%d", s.channel, s.options.DB)
	}
	s.panics = &panics{logger: o.Logger, scrub: s.scrub}
	if s.panics.logger == nil {
		s.panics.logger = slog.Default()
	}
	s.takeOptions()
	s.publishing.server = s
	s.values.server, s.values.links.server = s, s
	return s, nil
}

// takeOptions takes from the options what go-redis is not to do, and sets the rest for
// clients of one connection each.
func (s *redisServer) takeOptions() {
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

	o.Protocol = 2 // in RESP3, messages would arrive among other pushes
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
	o.DisableIdentity = true // it would be two denied commands for each connection, where CLIENT is denied
	o.Limiter = nil
	o.PushNotificationProcessor = nil
	o.AutoPipelineOptions = nil
	// Client-side caching does not work in RESP2, which would be logged for each connection.
	o.ClientSideCacheConfig, o.ClientSideCache, o.ClientSideCacheStrategy = nil, nil, 0
	o.ClientSideCacheRefreshOnInvalidate, o.ClientSideCacheCoalesceMisses = false, false
	o.ClientSideCacheInvalidationBatchWindow = 0
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

// Publish runs the publish script once. The connection outlives ctx: it lasts until
// it is dropped.
func (s *redisServer) Publish(ctx context.Context, m transport.Message) error {
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

// roleOf asks a server what it is: a master, a replica, or that is not for us to know.
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

// Redial closes the connection that Publish keeps.
func (s *redisServer) Redial() { s.publishing.drop() }

// Close closes all but subscriptions.
func (s *redisServer) Close() {
	s.publishing.drop()
	s.values.links.drop(true)
	s.credentials.close()
}

// nonce makes a position that a probe makes, or an epoch, unlike any other.
func nonce() []byte {
	b := drawNonce()
	return b[:]
}

// First makes attempts for as long as they make sense.
func (s *redisServer) First(ctx context.Context, attempt func(context.Context) error) (err error) {
	ctx, cancel := context.WithTimeout(ctx, s.connectTimeout)
	defer cancel()
	pause := newBackoff(mathrand.Int64N)
	for {
		before := err
		if err = attempt(ctx); err == nil {
			return nil
		}
		if ctx.Err() != nil && before != nil {
			err = before // it says more than that there was no time left
		}
		if refused(err) || pause.Failures() == s.connectRetry || !pause.Wait(ctx, nil) {
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
		return fmt.Errorf("nearcache: Redis at %s refuses: %w", s.options.Addr, err)
	}
	return fmt.Errorf("nearcache: cannot reach Redis at %s: %w "+
		"(to start without it, set abortConnect=false or AllowDisconnectedStart)", s.options.Addr, err)
}

// redisSubscription is a subscription over a link of its own, and a second link
// for its probes, because a connection that is subscribed can do nothing else.
type redisSubscription struct {
	server   *redisServer
	as       transport.Identity
	own      string // the channel for echoes
	link     *redisLink
	pubsub   *redis.PubSub
	lifetime context.Context
	end      context.CancelFunc

	probing keptLink
}

// Subscribe makes one attempt at a subscription, confirmed.
func (s *redisServer) Subscribe(ctx context.Context, as transport.Identity) (sub transport.Subscription, err error) {
	err = s.panics.apart("Subscribe", func() (err error) {
		sub, err = s.subscribeHere(ctx, as)
		return err
	})
	if err != nil {
		return nil, err
	}
	return sub, nil
}

// subscribeHere is Subscribe in the caller's goroutine.
func (s *redisServer) subscribeHere(ctx context.Context, as transport.Identity) (_ *redisSubscription, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.connectTimeout)
	defer cancel()
	sub := &redisSubscription{server: s, as: as, own: fmt.Sprintf("%s%x", s.keyPrefix, as.ID), probing: keptLink{server: s}}
	sub.lifetime, sub.end = context.WithCancel(context.Background())
	if sub.link, err = s.dial(ctx, sub.lifetime, s.prepare); err != nil {
		sub.end()
		return nil, err
	}
	sub.link.raw.replies.bounds = subscribedReplies
	sub.pubsub = sub.link.client.Subscribe(ctx)
	ready := false
	defer func() { // also after a panic in a hook of Options.Redis
		if !ready {
			sub.Close()
		}
	}()
	// go-redis looks at ctx's deadline only.
	defer context.AfterFunc(ctx, sub.end)()
	if err := sub.confirm(ctx, s.channel, sub.own); err != nil {
		return nil, s.explain(fmt.Errorf("SUBSCRIBE %s %s: %w", s.channel, sub.own, sub.link.raw.explain(inTime(ctx, err))))
	}
	sub.link.raw.deafen()
	if _, _, err := sub.probing.get(ctx, sub.lifetime); err != nil { // here, so that no lease pays for it
		return nil, err
	}
	ready = true
	return sub, nil
}

// confirm subscribes to channels and waits until Redis has confirmed each.
func (r *redisSubscription) confirm(ctx context.Context, channels ...string) error {
	if err := r.pubsub.Subscribe(ctx, channels...); err != nil {
		return err
	}
	for _, channel := range channels {
		// Never used again: a timeout in the middle of a message would leave the
		// rest of it to be read as the next one.
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

// Probe runs the probe script once.
func (r *redisSubscription) Probe(ctx context.Context, probeNonce string) error {
	s := r.server
	return r.probing.run(ctx, r.lifetime, func(ctx context.Context, link *redisLink) error {
		keys := []string{s.positionKey, s.clearsKey}
		for role := ""; ; {
			reply, err := link.eval(ctx, probeScript, keys, r.own, probeNonce, r.as.Echo, nonce(), role).Result()
			if err != nil || reply != askRole {
				return err
			}
			if role, err = roleOf(ctx, link.conn); err != nil {
				return err
			}
		}
	})
}

// Receive waits without a deadline. Any reply other than a message means that
// go-redis has changed the subscription on its own, so it is an error.
func (r *redisSubscription) Receive() (payload string, own bool, err error) {
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

// Close may be called while the others wait, for either connection.
func (r *redisSubscription) Close() {
	r.end()
	r.link.close()
	_ = r.pubsub.Close()
	r.probing.drop()
}
