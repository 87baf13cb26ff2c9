package connstring

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// builder collects a config while its string is read. Defaults that depend on
// other options, which may come later, wait for finish.
type builder struct {
	cfg               Config // but for TLS and AbortConnect
	tls, abortConnect *bool  // nil: not given
	port, tlsPort     int    // for endpoints without one
	databaseGiven     bool   // by an option, which beats pathDatabase
	pathDatabase      *int   // of host:port/1; nil: not given
}

func newBuilder(port, tlsPort int) *builder {
	return &builder{cfg: Config{ConnectRetry: -1}, port: port, tlsPort: tlsPort}
}

// finish fills in what was not given and returns the config.
func (b *builder) finish() (Config, error) {
	c := b.cfg
	if len(c.Endpoints) == 0 {
		return Config{}, errors.New("it names no endpoint")
	}
	if b.tls != nil {
		c.TLS = *b.tls
	} else {
		// StackExchange.Redis does the same. Leaving TLS off where it turns TLS on
		// would send the password in the clear.
		c.TLS = slices.ContainsFunc(c.Endpoints, func(e Endpoint) bool {
			return e.isAzureManaged() || e.isAzure() && e.Port == 6380
		})
	}
	if b.abortConnect != nil {
		c.AbortConnect = *b.abortConnect
	} else {
		c.AbortConnect = !slices.ContainsFunc(c.Endpoints, Endpoint.isAzure)
	}

	if b.pathDatabase != nil && !b.databaseGiven {
		c.Database = *b.pathDatabase
	}

	port := b.port
	switch {
	case c.ServiceName != "":
		port = 26379
	case c.TLS:
		port = b.tlsPort
	}
	given := c.Endpoints
	c.Endpoints = nil
	for _, e := range given {
		if e.Network == "tcp" && e.Port == 0 {
			e.Port = port
		}
		if !slices.Contains(c.Endpoints, e) {
			c.Endpoints = append(c.Endpoints, e)
		}
	}
	return c, nil
}

// set applies an option of the comma-separated form, or of another client under
// whose name it can mean nothing else. It returns the option's canonical name, "" if
// there is no such option, and an error that says what the option takes, without the
// value.
func (b *builder) set(key, value string) (name string, err error) {
	c := &b.cfg
	switch strings.ToLower(key) {
	case "user", "username":
		return "user", setUser(&c.User, value)
	case "password", "pwd", "pass", "passwd", "auth":
		return "password", setPassword(&c.Password, value)
	case "defaultdatabase", "database", "db":
		b.databaseGiven = true
		return "defaultDatabase", setInt(&c.Database, value)
	case "ssl", "tls", "usessl":
		return "ssl", setBool(&b.tls, value)
	case "sslhost":
		return "sslHost", setHost(&c.TLSHost, value)
	case "connecttimeout":
		return "connectTimeout", setMillis(&c.ConnectTimeout, value)
	case "synctimeout", "commandtimeout":
		return "syncTimeout", setMillis(&c.SyncTimeout, value)
	case "asynctimeout":
		return "asyncTimeout", setMillis(&c.AsyncTimeout, value)
	case "socket_connect_timeout":
		return "socket_connect_timeout", setSeconds(&c.ConnectTimeout, value)
	case "socket_timeout":
		return "socket_timeout", setSeconds(&c.SyncTimeout, value)
	case "timeout":
		return "timeout", setTimeout(&c.SyncTimeout, value)
	case "connectretry":
		return "connectRetry", setInt(&c.ConnectRetry, value)
	case "abortconnect":
		return "abortConnect", setBool(&b.abortConnect, value)
	case "keepalive":
		return "keepAlive", setKeepAlive(&c.KeepAlive, value)
	case "name", "clientname", "client_name", "connectionname":
		return "name", setClientName(&c.ClientName, value)
	case "servicename":
		return "serviceName", setName(&c.ServiceName, value)
	case "channelprefix":
		return "channelPrefix", setPrefix(&c.ChannelPrefix, value)
	case "protocol":
		return "protocol", setProtocol(&c.Protocol, value)
	case "family":
		b.ignore("family") // both are tried
		if canonical(value, []string{"0", "4", "6"}) == "" {
			return "family", errors.New("must be 0, 4 or 6")
		}
		return "family", nil
	}
	if name, err := b.setTLSOption(key, value); name != "" {
		return name, err
	}
	if name, why := unsupportedOption(key); name != "" {
		return name, refusal{why: why}
	}
	if name := canonical(key, tuningOptions()); name != "" {
		b.ignore(name)
		return name, nil
	}
	return "", nil
}

func (b *builder) ignore(name string) {
	if !slices.Contains(b.cfg.Ignored, name) {
		b.cfg.Ignored = append(b.cfg.Ignored, name)
	}
}

// refusal says why an option is an error: whatever its value, or with this one.
type refusal struct {
	why     string
	ofValue bool
}

func (r refusal) Error() string {
	if r.ofValue {
		return "is not supported with this value: " + r.why
	}
	return "is not supported: " + r.why
}

func isRefusal(err error) bool {
	_, ok := errors.AsType[refusal](err)
	return ok
}

// canonicalOption returns the canonical name of an option of the comma-separated
// form that key spells, or "".
func canonicalOption(key string) string {
	name, _ := newBuilder(0, 0).set(key, "")
	return name
}

// knownOption returns the name of an option of either form that key spells, or "".
func knownOption(key string) string {
	name, _ := newBuilder(0, 0).setURL(key, "")
	return name
}

// spelt returns the name that key, which is one of an option, has in an error.
func spelt(name, key string) string {
	if strings.EqualFold(name, key) {
		return name
	}
	return strings.ToLower(key)
}

// unsupportedOption returns the canonical name of an option that would change
// security or topology, or says what is said in another way, and why it is refused;
// else "".
func unsupportedOption(key string) (name, why string) {
	switch strings.ToLower(key) {
	case "proxy":
		return "proxy", "connections go to Redis itself"
	case "tunnel":
		return "tunnel", "connections go to Redis itself"
	case "sentineluser":
		return "sentinelUser", "sentinels get the same user as the servers"
	case "sentinelpassword":
		return "sentinelPassword", "sentinels get the same password as the servers"
	case "defaults":
		return "defaults", "give the options it stands for, such as ssl and abortConnect"
	case "keyprefix", "key_prefix", "prefix", "instancename":
		return strings.ToLower(key), "give channelPrefix, which sets services apart that share a Redis"
	case "host", "hostname", "server", "servers", "endpoint", "endpoints", "address", "addresses", "addr", "port":
		return strings.ToLower(key), "an endpoint is written without a name, as in redis.example.com:6379"
	}
	return "", ""
}

// tuningOptions are the options of StackExchange.Redis that are accepted and
// ignored. A few are the names of its properties, which strings written by hand
// confuse with its options. The others are of redis-py, ioredis, Lettuce and
// CSRedis.
func tuningOptions() []string {
	return []string{
		"allowAdmin", "configChannel", "configCheckSeconds", "connectMaxRetries",
		"defaultVersion", "heartbeatConsistencyChecks", "heartbeatInterval",
		"highIntegrity", "highPrioritySocketThreads", "highPriorityThreads",
		"includeDetailInExceptions", "includePerformanceCountersInExceptions",
		"incrementalMaintenanceEvents", "libraryName", "maintNotifications",
		"maintPostEventRelaxed", "maintRelaxedTimeout", "maintRelaxedWindowMax",
		"preserveAsyncOrder", "resolveDns", "responseTimeout", "setClientLibrary",
		"setlib", "tcpKeepAlive", "tiebreaker", "topologyRefreshSeconds", "version",
		"writeBuffer",

		"decode_responses", "encoding", "encoding_errors", "health_check_interval",
		"lib_name", "lib_version", "max_connections", "retry_on_error",
		"retry_on_timeout", "single_connection_client", "socket_keepalive",
		"socket_read_size",

		"allowUsernameInURI", "autoResendUnfulfilledCommands", "autoResubscribe",
		"enableAutoPipelining", "enableOfflineQueue", "enableReadyCheck",
		"lazyConnect", "maxRetriesPerRequest", "noDelay", "pingInterval",
		"showFriendlyErrorStack",

		"libraryVersion", "poolSize", "preheat", "asyncPipeline",
	}
}

// canonical returns the name among names that key spells in any case, or "".
func canonical(key string, names []string) string {
	for _, name := range names {
		if strings.EqualFold(name, key) {
			return name
		}
	}
	return ""
}

// explain turns an error of set, for the option that key spells, into one for the
// user. The value is shown only if
// show is set and it holds nothing else; that of a refused option never is, as a
// tunnel's holds credentials.
func explain(name, key, value string, err error, show bool) error {
	credential := isCredential(name)
	name = spelt(name, key)
	switch {
	case isRefusal(err), credential:
		return fmt.Errorf("%s %w", name, err)
	case holdsOption(value) || strings.Contains(value, ";"):
		return fmt.Errorf("%s %w, and no further option (its value is withheld, as it may hold a password): "+
			"options are separated by commas, in a URL by &", name, err)
	case show && isShowable(value):
		return fmt.Errorf("%s %w, got %q", name, err, value)
	default:
		return fmt.Errorf("%s %w (its value is withheld, as it may be part of a password)", name, err)
	}
}

// isName reports whether s is short and has only the characters of option names
// and schemes. Anything else, such as an access key whose padding was taken for
// the = of an option, is not shown in errors.
func isName(s string) bool {
	return s != "" && len(s) <= 32 && only(s, func(c byte) bool {
		return isLetter(c) || isDigit(c) || c == '_' || c == '-' || c == '.' || c == '+'
	})
}

// setText refuses what String could not write, or would garble a log line.
func setText(to *string, value string) error {
	if !utf8.ValidString(value) || strings.TrimSpace(value) != value ||
		strings.ContainsFunc(value, func(r rune) bool { return r == ',' || !unicode.IsPrint(r) }) {
		return errors.New("must have no commas, outer blanks or characters that do not print")
	}
	*to = value
	return nil
}

// setUser refuses what is there by mistake and would be sent with the user.
func setUser(to *string, value string) error {
	switch {
	case isQuoted(value):
		return errQuoted
	case holdsOption(value):
		return errors.New("must hold no further option: options are separated by commas")
	}
	return setText(to, value)
}

var errQuoted = errors.New("must be without quotes: in this form they would count as a part of it. " +
	"If they are one, give it in a URL, with %22 for \" and %27 for '")

func setPassword(to *Secret, value string) error {
	if isQuoted(value) {
		return errQuoted
	}
	*to = Secret(value)
	return nil
}

// setName is setText for a name that may stand at the end of what String writes.
func setName(to *string, value string) error {
	if holdsOption(value) {
		return errors.New("must be a name")
	}
	return setText(to, unwrapValue(value))
}

// setClientName drops the characters that Redis refuses in a name, as
// StackExchange.Redis does: "My App" is a common value there.
func setClientName(to *string, value string) error {
	var name string
	if err := setName(&name, value); err != nil {
		return err
	}
	*to = unwrapValue(strings.Map(func(r rune) rune {
		if r < '!' || r > '~' {
			return -1
		}
		return r
	}, name))
	return nil
}

func setHost(to *string, value string) error {
	if value != "" && !isHost(value) && !isIPv6(value) {
		return errors.New("must be a host name or an IP")
	}
	*to = value
	return nil
}

func setPrefix(to *string, value string) error {
	valid := only(value, func(c byte) bool {
		return isLetter(c) || isDigit(c) || c == '_' || c == '-' || c == '.'
	})
	if value == "" || len(value) > 128 || !valid {
		return errors.New("must be 1 to 128 letters, digits, '_', '.' or '-'")
	}
	*to = value
	return nil
}

func setBool(to **bool, value string) error {
	switch strings.ToLower(value) {
	case "true", "yes", "on", "1":
		*to = new(true)
	case "false", "no", "off", "0":
		*to = new(false)
	default:
		return errors.New("must be true or false")
	}
	return nil
}

func setInt(to *int, value string) error {
	n, err := strconv.ParseInt(value, 10, 32)
	if err != nil || n < 0 {
		return errors.New("must be a whole number, 0 or more")
	}
	*to = int(n)
	return nil
}

// longest is the longest timeout that the comma-separated form can express.
const longest = math.MaxInt32 * time.Millisecond

func setMillis(to *time.Duration, value string) error {
	n, err := strconv.ParseInt(value, 10, 32)
	if err != nil || n <= 0 {
		return errors.New("must be a whole number of milliseconds, 1 or more")
	}
	*to = time.Duration(n) * time.Millisecond
	return nil
}

// setDuration takes a Go duration or whole seconds, as go-redis does in URLs.
func setDuration(to *time.Duration, value string) error {
	d, err := time.ParseDuration(value)
	if n, notInt := strconv.ParseInt(value, 10, 32); notInt == nil {
		d, err = time.Duration(n)*time.Second, nil
	}
	if err != nil || d <= 0 || d > longest || d%time.Millisecond != 0 {
		return errors.New("must be seconds, or a Go duration such as 1m30s, in whole milliseconds from 1ms to 596h")
	}
	*to = d
	return nil
}

// setSeconds takes seconds as redis-py does, with or without a fraction.
func setSeconds(to *time.Duration, value string) error {
	seconds, err := strconv.ParseFloat(value, 64)
	if err != nil || !(seconds >= 0.001 && seconds <= longest.Seconds()) {
		return errors.New("must be a number of seconds, 0.001 or more")
	}
	*to = time.Duration(seconds*1000) * time.Millisecond
	return nil
}

// setTimeout takes a duration with a unit, as Lettuce does: without one, some clients
// mean seconds and others milliseconds.
func setTimeout(to *time.Duration, value string) error {
	if _, err := strconv.ParseFloat(value, 64); err == nil || setDuration(to, value) != nil {
		return errors.New("must have a unit, as in 5s or 500ms (syncTimeout is in milliseconds without one)")
	}
	return nil
}

func setKeepAlive(to *time.Duration, value string) error {
	n, err := strconv.ParseInt(value, 10, 32)
	if err != nil || n < -1 {
		return errors.New("must be a whole number of seconds, 0 for none or -1 for the default")
	}
	switch n {
	case -1:
		*to = 0
	case 0:
		*to = -1
	default:
		*to = time.Duration(n) * time.Second
	}
	return nil
}

func setProtocol(to *int, value string) error {
	switch strings.ToLower(value) {
	case "resp2", "2", "2.0":
		*to = 2
	case "resp3", "3", "3.0":
		*to = 3
	default:
		return errors.New("must be resp2 or resp3")
	}
	return nil
}
