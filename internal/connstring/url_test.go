package connstring_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache/internal/connstring"
)

func TestParseURL(t *testing.T) {
	type Config = connstring.Config
	url := func(name, input string, change func(*Config)) parseTest {
		return parseTest{name, input, with(change)}
	}
	at := func(name, input string, endpoints ...connstring.Endpoint) parseTest {
		return parseTest{name, input, config(endpoints...)}
	}
	secure := config(tcp("h", 6379))
	secure.TLS = true
	service := config(tcp("h", 26379))
	service.ServiceName = "mymaster"
	azure := config(tcp("a.redis.cache.windows.net", 6380))
	azure.AbortConnect = false
	socket := config(unix("/run/my redis.sock"))
	socket.User, socket.Password, socket.Database = "ann", "hunter2", 2
	runParseTests(t, []parseTest{
		at("nothing is localhost", "redis://", tcp("localhost", 6379)),
		at("port alone is localhost's", "redis://:1", tcp("localhost", 1)),
		at("path alone is localhost's", "redis:///", tcp("localhost", 6379)),
		at("host and port", "redis://redis.example.com:6380", tcp("redis.example.com", 6380)),
		at("IPv6", "redis://[::1]", tcp("::1", 6379)),
		at("IPv6 and port", "redis://[::1]:6380/", tcp("::1", 6380)),
		at("IPv6 with a zone", "redis://[fe80::1%25eth0]", tcp("fe80::1%eth0", 6379)),
		{"rediss is TLS, and has the same port", "RedisS://h", secure},
		{"port 26379 with a service", "redis://h?serviceName=mymaster", service},
		{"go-redis's name for a service", "redis://h?master_name=mymaster", service},
		{"the scheme decides about TLS, for Azure too", "redis://a.redis.cache.windows.net:6380", azure},

		url("user and password", "redis://ann:hunter2@localhost", func(c *Config) { c.User, c.Password = "ann", "hunter2" }),
		url("password alone", "redis://:hunter2@localhost", func(c *Config) { c.Password = "hunter2" }),
		url("user alone", "redis://ann@localhost", func(c *Config) { c.User = "ann" }),
		url("user with an empty password", "redis://ann:@localhost", func(c *Config) { c.User = "ann" }),
		url("password without a host", "redis://:hunter2@", func(c *Config) { c.Password = "hunter2" }),
		url("percent-decoding", "redis://%61nn:a%2Cb%40c%2Fd%3Fe%23f%25g+h@localhost", func(c *Config) {
			c.User, c.Password = "ann", "a,b@c/d?e#f%g+h"
		}),
		url("password with a raw @ and :", "redis://:a@b:c@localhost", func(c *Config) { c.Password = "a@b:c" }),

		url("database", "redis://localhost/3", func(c *Config) { c.Database = 3 }),
		url("db beats the path", "redis://localhost/3?db=4", func(c *Config) { c.Database = 4 }),
		url("blank db does not", "redis://localhost/3?db=", func(c *Config) { c.Database = 3 }),
		url("timeouts in seconds and as durations", "redis://localhost?dial_timeout=3&read_timeout=1m1s&write_timeout=15ms", func(c *Config) {
			c.ConnectTimeout, c.SyncTimeout, c.AsyncTimeout = 3*time.Second, 61*time.Second, milliseconds(15)
		}),
		url("timeouts in milliseconds", "redis://localhost?connectTimeout=3&syncTimeout=4&asyncTimeout=5", func(c *Config) {
			c.ConnectTimeout, c.SyncTimeout, c.AsyncTimeout = milliseconds(3), milliseconds(4), milliseconds(5)
		}),
		url("client_name and protocol", "redis://localhost?client_name=my+app%21&protocol=3", func(c *Config) { c.ClientName, c.Protocol = "myapp!", 3 }),
		url("options of the other form, in any case", "redis://localhost?ABORTCONNECT=false&channelprefix=p&sslhost=h&keepAlive=0&connectRetry=0&name=n", func(c *Config) {
			c.AbortConnect, c.ChannelPrefix, c.TLSHost, c.KeepAlive, c.ConnectRetry, c.ClientName = false, "p", "h", -1, 0, "n"
		}),
		url("blank options are not given", "redis://localhost?&abortConnect=&channelPrefix=&dial_timeout=&addr=&protocol=&pool_size=&", func(*Config) {}),
		url("tuning is ignored", "redis://localhost?pool_size=1&Tiebreaker=x&POOL_SIZE=2&disableidentity=true", func(c *Config) {
			c.Ignored = []string{"pool_size", "tiebreaker", "disableIdentity"}
		}),
		url("an @ in a value", "redis://localhost?client_name=a@b", func(c *Config) { c.ClientName = "a@b" }),
		at("more endpoints", "redis://a:1?addr=b:2&addr=c&addr=[::1]:3&addr=a:1", tcp("a", 1), tcp("b", 2), tcp("c", 6379), tcp("::1", 3)),

		at("socket", "unix:///run/redis.sock", unix("/run/redis.sock")),
		{"socket with all", "unix://ann:hunter2@/run/my%20redis.sock?db=2", socket},
	})
}

func TestParseURLIgnoresTuning(t *testing.T) {
	for _, name := range []string{
		"conn_max_idle_time", "conn_max_lifetime", "idle_timeout", "max_active_conns", "max_conn_age",
		"max_idle_conns", "max_retries", "max_retry_backoff", "min_idle_conns", "min_retry_backoff",
		"pool_fifo", "pool_size", "pool_timeout", "max_redirects",
	} {
		t.Run(name, func(t *testing.T) {
			c, err := connstring.Parse("redis://h?" + name + "=whatever")
			require.NoError(t, err)
			assert.Equal(t, []string{name}, c.Ignored)
		})
	}
}

// The texts that no error may show hold "hunter2".
func TestParseURLErrors(t *testing.T) {
	const encode = "percent-encode / ? # and %"
	tests := []struct {
		name  string
		input string
		want  string
	}{
		{"another scheme", "rediss+srv://:hunter2@h", "scheme rediss+srv:// is not supported"},
		{"tokens after a scheme", "redis://h:6379,password=hunter2", "the host must have no options after a comma: in a URL they follow a ?"},
		{"bad port", "redis://:hunter2@h:65536", "must have a port from 1 to 65535"},
		{"port 0", "redis://h:0", "must have a port"},
		{"bare IPv6", "redis://::1", "IPv6 in brackets"},
		{"bare IPv6 with a host part", "redis://fe80::1", "the host must be a name, an IPv4 or an IPv6 in brackets"},
		{"socket mark", "redis://!x", "the host must be a name"},
		{"several hosts with an empty one", "redis://a,,b", "the hosts must have one comma between them"},
		{"several hosts, one wrong", "redis://a,b:0", "the host with its port must have a port"},
		{"several hosts with a password each", "redis://u:hunter2@a:1,u:hunter2@b:2", "one user and password, before its first host"},
		{"host that is not percent-encoded", "redis://:hunter2@%zz", "the host is not percent-encoded"},
		{"password without an @", "redis://:hunter2", encode},
		{"/ in the password", "redis://:1/hunter2@h", encode},
		{"? in the password", "redis://:1?hunter2@h", encode},
		{"? in the password, an = too", "redis://:1?hunter2=@h", "option 1 of the URL is unknown"},
		{"? in the password, an option too", "redis://:1?db=hunter2@h", "db must be a whole number, 0 or more (its value is withheld"},
		{"# in the password", "redis://:1#hunter2@h", "percent-encode # as %23"},
		{"% in the password", "redis://:hunter2%@h", "write % as %25"},
		{"% in the user", "redis://hunter2%zz:x@h", "write % as %25"},
		{"blank in the password", "redis://:hunter2 x@h", "no blanks or control characters"},
		{"line break in the password", "redis://:hunter2\nx@h", "no blanks or control characters"},
		{"comma in the user", "redis://hunter2,:x@h", "the user must have no commas"},
		{"line break in the user", "redis://hunter2%0A:x@h", "the user must have no commas"},

		{"database", "redis://h/x", "the path, which is the database, must be a whole number"},
		{"negative database", "redis://h/-1", "the path, which is the database, must be"},
		{"deeper path", "redis://h/1/2", "the path, which is the database, must be"},
		{"db", "redis://h?db=x", `db must be a whole number, 0 or more, got "x"`},
		{"unknown option", "redis://:hunter2@h?frobnicate=1", `unknown option "frobnicate"`},
		{"blank unknown option", "redis://h?frobnicate", `unknown option "frobnicate"`},
		{"unknown option's value", "redis://h?passwrod=hunter2", `unknown option "passwrod"`},
		{"odd option name", "redis://h?a=&hunter2%20x=1", `unknown option "a"`},
		{"option that is not percent-encoded", "redis://h?name=n&hunter2%zz=1", "option 2 of the URL is not percent-encoded"},
		{"duration", "redis://h?dial_timeout=soon", `dial_timeout must be seconds, or a Go duration`},
		{"no duration", "redis://h?read_timeout=0", `read_timeout must be`},
		{"disabled duration", "redis://h?write_timeout=-1", `write_timeout must be`},
		{"duration below milliseconds", "redis://h?read_timeout=1500us", `read_timeout must be`},
		{"duration too long", "redis://h?read_timeout=2147484", `read_timeout must be`},
		{"protocol", "redis://h?protocol=1", `protocol must be resp2 or resp3, got "1"`},
		{"addr", "redis://h?addr=x:0", `addr must have a port from 1 to 65535, got "x:0"`},
		{"comma in a value", "redis://h?client_name=a,b", `client_name must have no commas`},

		{"skip_verify", "rediss://h?skip_verify=true", "skip_verify is not supported with this value: certificates are always verified"},
		{"skip_verify blank", "rediss://h?skip_verify", "skip_verify is not supported"},
		{"ssl", "redis://h?ssl=true", "ssl is not supported with this value: the scheme says it"},
		{"password as an option", "redis://h?password=hunter2", "password is not supported: user and password go before the host"},
		{"username as an option", "redis://h?UserName=ann", "username is not supported"},
		{"network", "redis://h?network=unix", "network is not supported"},
		{"read_only", "redis://h?read_only=true", "read_only is not supported"},
		{"sentinel_password", "redis://h?sentinel_password=hunter2", "sentinel_password is not supported"},
		{"tunnel", "redis://h?tunnel=hunter2", "tunnel is not supported"},

		{"socket with a host", "unix://hunter2/run/redis.sock", "a unix:// URL has no host"},
		{"/ in a socket's password", "unix://:x/hunter2@/run/redis.sock", "a unix:// URL has no host"},
		{"socket without a path", "unix://:hunter2@", "the path of the unix socket must not be empty"},
		{"socket with the path /", "unix:///", "the path of the unix socket must not be empty"},
		{"socket with a comma", "unix:///a,hunter2", "the path of the unix socket must have no commas"},
		{"socket that is not percent-encoded", "unix:///hunter2%zz", "the path is not percent-encoded"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c, err := connstring.Parse(test.input)
			require.ErrorContains(t, err, test.want)
			assert.True(t, strings.HasPrefix(err.Error(), "connection string: "), "%q", err)
			assert.NotContains(t, err.Error(), "hunter2")
			assert.Equal(t, connstring.Config{}, c)
		})
	}
}
