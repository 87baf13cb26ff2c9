// Package connstring reads Redis connection strings: redis:// URLs, and the
// comma-separated form of StackExchange.Redis that Azure and .NET hand out.
//
// Parse tells the two apart by itself:
//
//	redis://user:password@localhost:6379/2?client_name=orders
//	rediss://:password@[::1]:6380
//	unix://:password@/run/redis.sock?db=2
//	contoso5.redis.cache.windows.net:6380,password=abc=,ssl=True,abortConnect=False
//
// What is guaranteed:
//
//   - No error shows a password, nor a text that may be a part of one. Where a
//     text is in doubt, the error names its position instead.
//   - A Config shows its password as ***** in every form of printing that Secret
//     covers.
//   - A security or topology option that is not honoured is an error, never
//     ignored, unless it asks for no more than is done anyway. Tuning options without a meaning here are listed in Config.Ignored.
//   - The name of an option without a value is never taken for an endpoint.
//   - Each endpoint is complete: it has a valid port or it is a unix socket.
//
// What is not:
//
//   - The comma-separated form cannot escape a comma. A password that holds one
//     is cut there, and the rest is read as further tokens. Most such tails are
//     refused (see parseTokens), but one that spells a valid option or endpoint
//     is taken for it. We accept this because StackExchange.Redis reads such
//     strings the same way; the URL form has %2C.
//   - Hosts are not resolved, and nothing is connected to.
package connstring

import (
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"
)

// Config is a parsed connection string. Only Parse fills in the defaults: the
// zero Config has no endpoints and is of no use.
type Config struct {
	// Endpoints are the servers, or the sentinels if ServiceName is set, in the
	// order given and without duplicates. Parse returns at least one.
	Endpoints []Endpoint

	// User is the ACL user; "" means the server's default user. It never holds a
	// comma, nor a character that does not print.
	User string

	// Password is the password; "" means none.
	Password Secret

	// Database is the number of the database to select. Defaults to 0.
	Database int

	// TLS reports whether to encrypt. In the comma-separated form it defaults to
	// false, except where StackExchange.Redis turns it on: Azure's port 6380, and
	// Azure Managed Redis. In the URL form the scheme decides.
	TLS bool

	// TLS13 reports whether TLS 1.3 is the lowest version to speak; otherwise 1.2 is.
	TLS13 bool

	// TLSHost is the name to verify the server's certificate against; "" means
	// the endpoint's host. A unix socket has no host to fall back on.
	TLSHost string

	// ConnectTimeout, SyncTimeout and AsyncTimeout are whole milliseconds; 0
	// means not given. The URL form also gives the last two as read_timeout and
	// write_timeout, and redis-py's socket_timeout is SyncTimeout.
	ConnectTimeout, SyncTimeout, AsyncTimeout time.Duration

	// ConnectRetry is how often to repeat the first connect; -1 means not given.
	ConnectRetry int

	// AbortConnect reports whether a failed first connect is final. Defaults to
	// true, and to false if an endpoint is one of Azure's.
	AbortConnect bool

	// KeepAlive is the period of keep-alive probes in whole seconds; 0 means not
	// given, and a negative value that they are switched off.
	KeepAlive time.Duration

	// ClientName is the connection's name on the server, "" for none. It holds
	// only the characters that Redis takes, from '!' to '~', and no comma.
	ClientName string

	// ServiceName is the sentinel service to follow; "" means no sentinels.
	ServiceName string

	// ChannelPrefix goes before each pub/sub channel's name; "" means none.
	ChannelPrefix string

	// Protocol is the RESP version, 2 or 3; 0 means not given.
	Protocol int

	// Ignored are the names of the tuning options that were accepted and have no
	// meaning here, in canonical spelling, by first appearance, no duplicates.
	Ignored []string
}

// Parse reads a connection string. Around it, blanks, quotes and semicolons at its
// end do not count. What starts with redis://, rediss:// or unix://, or with the name
// that another client has for one of them (valkey://, valkeys://, redis+ssl://,
// redis-socket:// and so on, in any case), is a URL; any other scheme is an error; a
// string without a scheme is in the comma-separated form. Errors start with
// "connection string: " and never hold a password.
func Parse(s string) (Config, error) {
	cfg, err := parse(unwrap(s))
	if err != nil {
		return Config{}, fmt.Errorf("connection string: %w", err)
	}
	return cfg, nil
}

func parse(s string) (Config, error) {
	if s == "" {
		return Config{}, errors.New("it is empty")
	}
	scheme, rest, isURL := cutScheme(s)
	if !isURL {
		return parseTokens(s)
	}
	scheme, err := knownScheme(scheme)
	if err != nil {
		return Config{}, err
	}
	return parseURL(scheme, rest)
}

// String returns the config in the comma-separated form, with the password, if
// there is one, as *****. Parse reads the result back into the same config, but
// for the password and for Ignored, which String leaves out as it has no effect.
//
// A user without a password is shown as ***** too: in redis://name@host some
// clients take the name for the user, as Parse does, and others for the
// password, so it may be one.
func (c Config) String() string {
	var parts []string
	add := func(name, value string) { parts = append(parts, name+"="+value) }
	addText := func(name, value string) {
		if value != "" {
			add(name, value)
		}
	}
	addMillis := func(name string, d time.Duration) {
		if d != 0 {
			add(name, strconv.FormatInt(d.Milliseconds(), 10))
		}
	}

	for _, e := range c.Endpoints {
		parts = append(parts, e.token())
	}
	if c.Password == "" {
		addText("user", Secret(c.User).String())
	} else {
		addText("user", c.User)
	}
	addText("password", c.Password.String())
	if c.Database != 0 {
		add("defaultDatabase", strconv.Itoa(c.Database))
	}
	add("ssl", strconv.FormatBool(c.TLS))
	if c.TLS13 {
		add("sslProtocols", "tls13")
	}
	addText("sslHost", c.TLSHost)
	addMillis("connectTimeout", c.ConnectTimeout)
	addMillis("syncTimeout", c.SyncTimeout)
	addMillis("asyncTimeout", c.AsyncTimeout)
	if c.ConnectRetry >= 0 {
		add("connectRetry", strconv.Itoa(c.ConnectRetry))
	}
	add("abortConnect", strconv.FormatBool(c.AbortConnect))
	if c.KeepAlive != 0 {
		add("keepAlive", strconv.FormatInt(int64(max(c.KeepAlive, 0)/time.Second), 10))
	}
	addText("name", c.ClientName)
	addText("serviceName", c.ServiceName)
	addText("channelPrefix", c.ChannelPrefix)
	if c.Protocol != 0 {
		add("protocol", "resp"+strconv.Itoa(c.Protocol))
	}
	return strings.Join(parts, ",")
}

// GoString returns what String returns, as a Go-like expression for %#v.
func (c Config) GoString() string { return fmt.Sprintf("connstring.Config(%q)", c.String()) }

// Format prints what String or GoString returns, for every verb.
func (c Config) Format(f fmt.State, verb rune) { format(c, f, verb) }

// LogValue returns what String returns, for slog.
func (c Config) LogValue() slog.Value { return slog.StringValue(c.String()) }
