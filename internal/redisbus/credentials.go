package redisbus

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/auth"

	"github.com/nearcache/nearcache/internal/barrier"
	"github.com/nearcache/nearcache/internal/loglimit"
)

// credentials are what new connections authenticate with, wherever that comes from.
//
// go-redis subscribes to a streaming provider once for each connection, to authenticate
// again on it, and panics if the connection is not in a pool. A connection that is
// subscribed to channels cannot authenticate again in RESP2. If the server closes it
// because its credentials have expired, the subscription is made again, and nothing is
// lost if no message was missed. So a backplane subscribes to the provider once, and new
// connections get the newest credentials.
type credentials struct {
	failures loglimit.Limit // lines about them

	username, password string
	plain              func() (username, password string)
	withContext        func(context.Context) (username, password string, err error)
	stream             auth.StreamingCredentialsProvider
	panics             *barrier.Panics
	errClosed          error // of calls after close

	mu          sync.Mutex // guards everything below
	newest      auth.Credentials
	handedOut   [2]string     // the last two passwords
	subscribing chan struct{} // closed when the attempt to subscribe has ended; nil: none is under way
	failure     error         // of the last attempt
	unsubscribe auth.UnsubscribeFunc
	subscribed  bool
	closed      bool
}

// take moves the credentials from o to c, and has o ask c for them.
func (c *credentials) take(o *redis.Options) {
	c.username, c.password = o.Username, o.Password
	c.plain, c.withContext, c.stream = o.CredentialsProvider, o.CredentialsProviderContext, o.StreamingCredentialsProvider
	o.Username, o.Password, o.CredentialsProvider, o.StreamingCredentialsProvider = "", "", nil, nil
	o.CredentialsProviderContext = c.get
}

// get returns the credentials for a new connection.
func (c *credentials) get(ctx context.Context) (username, password string, err error) {
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if password != "" && password != c.handedOut[0] {
			c.handedOut[0], c.handedOut[1] = password, c.handedOut[0]
		}
	}()
	defer c.panics.Caught("credentials provider", &err)
	switch {
	case c.stream != nil:
		newest, err := c.subscription(ctx)
		if err != nil {
			return "", "", fmt.Errorf("StreamingCredentialsProvider: %w", err)
		}
		username, password = newest.BasicAuth()
	case c.withContext != nil:
		return c.withContext(ctx)
	case c.plain != nil:
		username, password = c.plain()
	default:
		username, password = c.username, c.password
	}
	return username, password, nil
}

// subscription returns the newest credentials of the streaming provider. It subscribes
// first if that has not been done. Subscribe takes no context, and may ask a server for the
// first token. So it has a goroutine of its own, and a later call waits for the same one.
func (c *credentials) subscription(ctx context.Context) (auth.Credentials, error) {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil, c.errClosed
	}
	if !c.subscribed && c.subscribing == nil {
		c.subscribing = make(chan struct{})
		go c.subscribe(c.subscribing)
	}
	pending := c.subscribing
	c.mu.Unlock()
	if pending != nil {
		select {
		case <-pending:
		case <-ctx.Done():
			return nil, fmt.Errorf("no credentials yet: %w", ctx.Err())
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.newest != nil:
		return c.newest, nil
	case c.failure != nil:
		return nil, c.failure
	}
	return nil, errors.New("it gave no credentials")
}

func (c *credentials) subscribe(done chan struct{}) {
	first, unsubscribe, err := c.callSubscribe()
	c.mu.Lock()
	c.subscribing, c.failure = nil, err
	if err == nil {
		c.subscribed, c.unsubscribe = true, unsubscribe
		if c.newest == nil { // else OnNext has brought newer ones already
			c.newest = first
		}
	}
	closed := c.closed
	c.mu.Unlock()
	close(done)
	if closed {
		c.end()
	}
}

func (c *credentials) callSubscribe() (first auth.Credentials, unsubscribe auth.UnsubscribeFunc, err error) {
	defer c.panics.Caught("StreamingCredentialsProvider.Subscribe", &err)
	return c.stream.Subscribe(c)
}

// OnNext is called by the streaming provider with new credentials.
func (c *credentials) OnNext(next auth.Credentials) {
	if next == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.newest = next
}

// OnError is called by the streaming provider when it cannot get new credentials. The last
// ones stay in use.
func (c *credentials) OnError(err error) {
	c.mu.Lock()
	closed := c.closed
	c.mu.Unlock()
	if !closed && err != nil && c.failures.Allow() {
		text := err.Error()
		if c.panics.Scrub != nil {
			text = c.panics.Scrub(text)
		}
		c.panics.Logger.Warn("nearcache: StreamingCredentialsProvider has failed; new connections use the last credentials", "err", text)
	}
}

// close ends the subscription to the streaming provider.
func (c *credentials) close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.end()
}

// end unsubscribes once.
//
//  1. Subscribe is called   2. close finds nothing to unsubscribe from   3. Subscribe
//     returns: subscribe calls end.
func (c *credentials) end() {
	c.mu.Lock()
	unsubscribe := c.unsubscribe
	c.unsubscribe = nil
	c.mu.Unlock()
	if unsubscribe == nil {
		return
	}
	err := func() (err error) {
		defer c.panics.Caught("StreamingCredentialsProvider's unsubscribe", &err)
		return unsubscribe()
	}()
	if err != nil {
		c.panics.Logger.Warn("nearcache: StreamingCredentialsProvider could not be unsubscribed from", "err", c.panics.Scrub(err.Error()))
	}
}

// secrets returns what must not be shown.
func (c *credentials) secrets() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []string
	for _, secret := range append(c.handedOut[:], c.password) {
		if secret != "" {
			all = append(all, secret)
		}
	}
	return all
}
