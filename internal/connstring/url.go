package connstring

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
	"unicode"
)

// parseURL reads what follows the scheme of redis://, rediss:// or unix://:
//
//	redis://[user[:password]@]host[:port][,host[:port]…][/db][?options]
//	unix://[user[:password]@]/path/to.sock[?options]
//
// An empty host is localhost. The default port is 6379, for rediss:// as well,
// as is the convention of Redis clients (the comma-separated form has 6380), and
// 26379 with serviceName. User, password and socket path are percent-decoded. A
// blank option is as good as none, and db beats the path.
//
// The URL is taken apart by hand because the errors of net/url quote the URL, and
// the password with it. For the same reason no error shows the text of the host
// or the path: if a /, ? or # in the password is not percent-encoded, they hold a
// part of it, and if one is followed by an @, the options do too.
func parseURL(scheme, rest string) (Config, error) {
	if strings.ContainsFunc(rest, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }) {
		return Config{}, errors.New("a URL has no blanks or control characters: percent-encode them")
	}
	if strings.HasSuffix(rest, "#insecure") {
		return Config{}, errors.New("#insecure is not supported: certificates are always verified, so leave it out")
	}
	if strings.Contains(rest, "#") {
		return Config{}, errors.New("a Redis URL has no fragment: percent-encode # as %23")
	}
	rest, query, _ := strings.Cut(rest, "?")
	authority, path := rest, ""
	if i := strings.IndexByte(rest, '/'); i >= 0 {
		authority, path = rest[:i], rest[i:]
	}

	b := newBuilder(6379, 6379)
	b.tls = new(scheme == "rediss")
	host, err := b.userinfo(authority)
	if err != nil {
		return Config{}, err
	}
	if scheme == "unix" {
		err = b.socketURL(host, path)
	} else {
		err = b.hostURL(host, path)
	}
	if err != nil {
		return Config{}, fmt.Errorf("%w. %s", err, encodeHint)
	}
	if err := b.query(query, !strings.Contains(path+query, "@")); err != nil {
		return Config{}, err
	}
	return b.finish()
}

const encodeHint = "In the user and the password, percent-encode / ? # and %"

// userinfo takes the user and the password off the authority and returns the
// rest. As in net/url, the last @ ends them.
func (b *builder) userinfo(authority string) (host string, err error) {
	i := strings.LastIndexByte(authority, '@')
	if i < 0 {
		return authority, nil
	}
	if holdsHost(authority[:i]) {
		return "", errors.New("a URL has one user and password, before its first host, as in " +
			"redis://user:password@a:6379,b:6379. If the password holds an @, percent-encode it as %40")
	}
	user, password, _ := strings.Cut(authority[:i], ":")
	user, userErr := url.PathUnescape(user)
	password, passwordErr := url.PathUnescape(password)
	if userErr != nil || passwordErr != nil {
		return "", errors.New("the user or the password is not percent-encoded: write % as %25")
	}
	if err := setText(&b.cfg.User, user); err != nil {
		return "", fmt.Errorf("the user %w", err)
	}
	b.cfg.Password = Secret(password)
	return authority[i+1:], nil
}

func (b *builder) socketURL(host, path string) error {
	if host != "" {
		return errors.New("a unix:// URL has no host: its path starts with a /, as in unix:///run/redis.sock")
	}
	path, err := url.PathUnescape(path)
	if err != nil {
		return errors.New("the path is not percent-encoded")
	}
	if strings.Trim(path, "/") == "" {
		return errors.New("the path of the unix socket must not be empty")
	}
	e, err := socket(path)
	if err != nil {
		return fmt.Errorf("the path of the unix socket %w", err)
	}
	b.cfg.Endpoints = []Endpoint{e}
	return nil
}

// holdsHost reports whether the user and the password hold an @ with a host and a
// comma after it, as where each host has its own: u:p@a:1,u:p@b:2.
func holdsHost(userinfo string) bool {
	pieces := strings.Split(userinfo, "@")
	for _, piece := range pieces[1:] {
		host, _, isList := strings.Cut(piece, ",")
		if e, err := parseEndpoint(host); isList && err == nil && e.isUnmistakable() {
			return true
		}
	}
	return false
}

func (b *builder) hostURL(hosts, path string) error {
	for host := range strings.SplitSeq(hosts, ",") {
		host, err := url.PathUnescape(host) // an IPv6 zone starts with %25
		switch {
		case err != nil:
			return errors.New("the host is not percent-encoded")
		case strings.HasPrefix(host, socketMark) || isIPv6(host):
			return errors.New("the host must be a name, an IPv4 or an IPv6 in brackets")
		case strings.Contains(host, "="):
			return errors.New("the host must have no options after a comma: in a URL they follow a ?, as in redis://host:6379?name=orders")
		case host == "" && hosts != "":
			return errors.New("the hosts must have one comma between them")
		case host == "" || strings.HasPrefix(host, ":"):
			host = "localhost" + host
		}
		e, err := parseEndpoint(host)
		if err == nil {
			err = e.checkName()
		}
		if err != nil {
			return fmt.Errorf("the host with its port %w", err)
		}
		b.cfg.Endpoints = append(b.cfg.Endpoints, e)
	}
	if db := strings.Trim(path, "/"); db != "" {
		if err := setInt(&b.cfg.Database, db); err != nil && hosts == "" {
			return fmt.Errorf("the path, which is the database, %w (the URL of a socket starts with unix://)", err)
		} else if err != nil {
			return fmt.Errorf("the path, which is the database, %w", err)
		}
	}
	return nil
}

// query applies the options after the ?. If show is not set the errors name only
// options that exist, and no values.
func (b *builder) query(query string, show bool) error {
	for i, option := range strings.Split(query, "&") {
		key, value, _ := strings.Cut(option, "=")
		key, keyErr := url.QueryUnescape(key)
		value, valueErr := url.QueryUnescape(value)
		if keyErr != nil || valueErr != nil {
			return fmt.Errorf("option %d of the URL is not percent-encoded", i+1)
		}
		if key == "" && value == "" {
			continue
		}
		value = unwrapValue(value)
		target := b
		if value == "" {
			target = newBuilder(0, 0) // go-redis: not given; only the name is checked
			target.tls = b.tls
		}
		name, err := target.setURL(key, value)
		switch {
		case name == "" && show && isName(key):
			return fmt.Errorf("unknown option %q", key)
		case name == "":
			return fmt.Errorf("option %d of the URL is unknown (its name is withheld, as it may be part of a password). %s", i+1, encodeHint)
		case err != nil && (value != "" || isRefusal(err)):
			return explain(name, key, value, err, show)
		}
	}
	return nil
}

// setURL applies an option of a URL: one of go-redis, or one of the
// comma-separated form that the other parts of the URL do not already give.
func (b *builder) setURL(key, value string) (name string, err error) {
	c := &b.cfg
	key = strings.ToLower(key)
	if name, why := unsupportedInURL(key); name != "" {
		return name, refusal{why: why}
	}
	if name := canonical(key, tuningOptionsOfURL()); name != "" {
		b.ignore(name)
		return name, nil
	}
	switch key {
	case "ssl", "tls", "usessl":
		return "ssl", b.confirmTLS(value)
	case "db":
		return "db", setInt(&c.Database, value)
	case "client_name":
		return "client_name", setClientName(&c.ClientName, value)
	case "master_name":
		return "master_name", setText(&c.ServiceName, value)
	case "dial_timeout":
		return "dial_timeout", setDuration(&c.ConnectTimeout, value)
	case "read_timeout":
		return "read_timeout", setDuration(&c.SyncTimeout, value)
	case "write_timeout":
		return "write_timeout", setDuration(&c.AsyncTimeout, value)
	case "addr":
		e, err := parseEndpoint(value)
		if err == nil {
			err = e.checkName()
		}
		if err == nil {
			c.Endpoints = append(c.Endpoints, e)
		}
		return "addr", err
	}
	return b.set(key, value)
}

// confirmTLS refuses what contradicts the scheme. Without a value the option asks for
// TLS.
func (b *builder) confirmTLS(value string) error {
	given := new(true)
	if value != "" {
		if err := setBool(&given, value); err != nil {
			return err
		}
	}
	if b.tls != nil && *given != *b.tls {
		return refusal{why: "the scheme says it: write rediss:// for TLS, or redis:// for none, and leave the option out", ofValue: true}
	}
	return nil
}

// unsupportedInURL returns the name of an option that would change security or
// topology, or belongs elsewhere in the URL, and why it is refused; else "".
func unsupportedInURL(key string) (name, why string) {
	switch key {
	case "user", "username", "password", "pwd", "pass", "passwd", "auth":
		return key, "user and password go before the host, as in redis://user:password@host"
	case "network":
		return key, "the scheme says it, redis:// or unix://"
	case "sentinel_username", "sentinel_password":
		return key, "sentinels get the same user and password as the servers"
	case "read_only", "replica_only", "route_by_latency", "route_randomly", "use_disconnected_replicas":
		return key, "reads go to the primary"
	}
	return "", ""
}

// tuningOptionsOfURL are the options of go-redis that are accepted and ignored.
func tuningOptionsOfURL() []string {
	return []string{
		"conn_max_idle_time", "conn_max_lifetime", "conn_max_lifetime_jitter",
		"context_timeout_enabled", "dialer_retries", "dialer_retry_timeout",
		"disableIdentity", "failing_timeout_seconds", "identitySuffix",
		"idle_check_frequency", "idle_timeout", "max_active_conns",
		"max_concurrent_dials", "max_conn_age", "max_idle_conns", "max_redirects",
		"max_retries", "max_retry_backoff", "min_idle_conns", "min_retry_backoff",
		"pipeline_pool_size", "pipeline_read_buffer_size",
		"pipeline_write_buffer_size", "pool_fifo", "pool_size", "pool_timeout",
		"read_buffer_size", "route_by_latency_tolerance", "unstable_resp3",
		"write_buffer_size",
	}
}
