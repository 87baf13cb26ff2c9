package systemtest

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/auth"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache"
)

// tokens is a streaming provider of credentials.
type tokens struct {
	mu          sync.Mutex // guards everything below
	current     auth.Credentials
	listeners   map[auth.CredentialsListener]bool
	subscribed  int
	fails       func() error
	unsubscribe func() error
}

func (p *tokens) Subscribe(l auth.CredentialsListener) (auth.Credentials, auth.UnsubscribeFunc, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.subscribed++
	if p.fails != nil {
		if err := p.fails(); err != nil {
			return nil, nil, err
		}
	}
	if p.listeners == nil {
		p.listeners = map[auth.CredentialsListener]bool{}
	}
	p.listeners[l] = true
	return p.current, func() error {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.listeners, l)
		if p.unsubscribe != nil {
			return p.unsubscribe()
		}
		return nil
	}, nil
}

// rotate hands out other credentials.
func (p *tokens) rotate(c auth.Credentials) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.current = c
	for l := range p.listeners {
		l.OnNext(c)
	}
}

func (p *tokens) counts() (subscribed, listening int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.subscribed, len(p.listeners)
}

// TestStreamingCredentials changes the credentials while connections live, closes these
// as a server does whose tokens expire, and finds that nothing was missed.
func TestStreamingCredentials(t *testing.T) {
	t.Parallel()
	const first, second = "t0ken-one", "t0ken-two"
	server := startRedis(t)
	raw := server.client()
	acl := func(rules ...any) {
		t.Helper()
		require.NoError(t, raw.Do(context.Background(), append([]any{"ACL", "SETUSER", "app"}, rules...)...).Err())
	}
	acl("on", ">"+first, "~*", "&*", "+@all")
	provider := &tokens{current: auth.NewBasicCredentials("app", first)}
	var log lockedBuffer
	bp, err := nearcache.Connect(t.Context(), nearcache.BackplaneOptions{
		Redis: &redis.UniversalOptions{
			Addrs: []string{server.addr}, StreamingCredentialsProvider: provider, ClientName: "app", DB: 1,
			Protocol: 3, ClientSideCacheConfig: &redis.ClientSideCacheConfig{},
		},
		Logger: slog.New(slog.NewTextHandler(&log, nil)),
	})
	require.NoError(t, err)
	items, err := nearcache.New(bp, nearcache.Options[string, int]{
		Name: "items", Load: newCountedLoads().load, Shared: &nearcache.SharedOptions[int]{Timeout: patience},
	})
	require.NoError(t, err)
	use := func(key string) {
		t.Helper()
		stored := items.Stats().Shared.Stored
		_, err := items.Get(t.Context(), key)
		require.NoError(t, err)
		eventually(t, "it is stored", func() bool { return items.Stats().Shared.Stored > stored })
		require.NoError(t, items.Remove(t.Context(), "nothing"))
	}
	use("1")
	warm := bp.Stats().SubscribedWarm

	acl("resetpass", ">"+second)
	provider.rotate(auth.NewBasicCredentials("app", second))
	use("2") // over the connections that there are
	for _, kind := range []string{"pubsub", "normal"} {
		require.Positive(t, killConnections(t, raw, kind, "app"))
	}
	eventually(t, "it is connected again", func() bool { return bp.Stats().Reconnects == 1 && bp.State() == nearcache.StateLive })
	use("3")
	require.Equal(t, warm+1, bp.Stats().SubscribedWarm)
	_, held := items.Peek("1")
	require.True(t, held, "nothing was missed")
	subscribed, listening := provider.counts()
	require.Equal(t, 1, subscribed)
	require.Equal(t, 1, listening)

	for l := range provider.listeners {
		for range 5 {
			l.OnError(errors.New("no new " + second))
		}
		l.OnNext(nil)
	}
	require.Contains(t, log.String(), "StreamingCredentialsProvider has failed")
	require.NoError(t, bp.Close())
	_, listening = provider.counts()
	require.Zero(t, listening)
	for _, secret := range []string{first, second} {
		require.NotContains(t, log.String(), secret)
		require.NotContains(t, clientLog.String(), secret)
	}
}

// What a provider does wrong is an error of Connect, or, once it has begun, of an
// attempt.
func TestCredentialsProvidersThatFail(t *testing.T) {
	t.Parallel()
	broken := errors.New("no identity")
	good := &tokens{current: auth.NewBasicCredentials("", "")}
	tests := []struct {
		name   string
		change func(*redis.UniversalOptions)
		says   string
	}{
		{"an error", func(o *redis.UniversalOptions) {
			o.StreamingCredentialsProvider = &tokens{fails: func() error { return broken }}
		}, "no identity"},
		{"a panic", func(o *redis.UniversalOptions) {
			o.StreamingCredentialsProvider = &tokens{fails: func() error { panic("no identity") }}
		}, "panic"},
		{"nothing", func(o *redis.UniversalOptions) { o.StreamingCredentialsProvider = &tokens{} }, "no credentials"},
		{"a context provider's error", func(o *redis.UniversalOptions) {
			o.CredentialsProviderContext = func(context.Context) (string, string, error) { return "", "", broken }
		}, "no identity"},
		{"a context provider's panic", func(o *redis.UniversalOptions) {
			o.CredentialsProviderContext = func(context.Context) (string, string, error) { panic("no identity") }
		}, "panic"},
		{"a provider's panic", func(o *redis.UniversalOptions) {
			o.CredentialsProvider = func() (string, string) { panic("no identity") }
		}, "panic"},
		{"OnConnect's panic", func(o *redis.UniversalOptions) {
			o.StreamingCredentialsProvider = good
			o.OnConnect = func(context.Context, *redis.Conn) error { panic("no identity") }
		}, "panic"},
		{"OnConnect's error", func(o *redis.UniversalOptions) {
			o.OnConnect = func(context.Context, *redis.Conn) error { return broken }
		}, "no identity"},
	}
	server := startRedis(t)
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			o := &redis.UniversalOptions{Addrs: []string{server.addr}, DialTimeout: 2 * time.Second}
			test.change(o)
			err := connectError(t, nearcache.BackplaneOptions{Redis: o})
			assert.ErrorContains(t, err, test.says)
			notDoubled(t, err.Error())
			bp, err := nearcache.Connect(t.Context(), nearcache.BackplaneOptions{
				Redis: o, Logger: discard, AllowDisconnectedStart: true, CloseTimeout: time.Second,
			})
			require.NoError(t, err)
			eventually(t, "an attempt fails", func() bool { return bp.Stats().ConnectFailures > 0 })
			require.NoError(t, within(t, "Close returns", bp.Close))
		})
	}
	_, listening := good.counts()
	assert.Zero(t, listening)
}

// A provider that takes its time keeps neither Connect beyond its context nor Close.
func TestCredentialsProviderThatHangs(t *testing.T) {
	t.Parallel()
	server, release := startRedis(t), make(chan struct{})
	provider := &slowTokens{tokens: tokens{current: auth.NewBasicCredentials("default", "")}, release: release}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	o := nearcache.BackplaneOptions{
		Redis: &redis.UniversalOptions{Addrs: []string{server.addr}, StreamingCredentialsProvider: provider}, Logger: discard,
	}
	err := within(t, "Connect returns", func() error {
		_, err := nearcache.Connect(ctx, o)
		return err
	})
	require.ErrorIs(t, err, context.DeadlineExceeded)
	close(release)
	eventually(t, "the subscription that came too late is ended", func() bool {
		_, listening := provider.counts()
		return provider.called.Load() && listening == 0
	})
}

type slowTokens struct {
	tokens
	release chan struct{}
	called  atomic.Bool
}

func (p *slowTokens) Subscribe(l auth.CredentialsListener) (auth.Credentials, auth.UnsubscribeFunc, error) {
	<-p.release
	c, unsubscribe, err := p.tokens.Subscribe(l)
	p.called.Store(true)
	return c, unsubscribe, err
}

// The other ways to give credentials, and the hook for connections, are used for every
// connection.
func TestCredentialsProviders(t *testing.T) {
	t.Parallel()
	server := startRedis(t, "--requirepass", "secret")
	for name, change := range map[string]func(*redis.UniversalOptions){
		"plain": func(o *redis.UniversalOptions) {
			o.CredentialsProvider = func() (string, string) { return "default", "secret" }
		},
		"with a context": func(o *redis.UniversalOptions) {
			o.CredentialsProvider = func() (string, string) { return "default", "wrong" }
			o.CredentialsProviderContext = func(context.Context) (string, string, error) { return "default", "secret", nil }
		},
	} {
		t.Run(name, func(t *testing.T) {
			var hooked atomic.Int64
			o := &redis.UniversalOptions{Addrs: []string{server.addr}, OnConnect: func(ctx context.Context, c *redis.Conn) error {
				hooked.Add(1)
				return c.Ping(ctx).Err()
			}}
			change(o)
			in := joinWith(t, newSource().load, nearcache.BackplaneOptions{Redis: o})
			require.NoError(t, in.items.Remove(t.Context(), "/1"))
			require.EqualValues(t, 3, hooked.Load())
		})
	}
}
