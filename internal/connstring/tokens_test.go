package connstring_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache/internal/connstring"
)

func TestParseTokensEndpoints(t *testing.T) {
	runParseTests(t, []parseTest{
		{"host", "redis0", config(tcp("redis0", 6379))},
		{"host and port", "redis0:6380", config(tcp("redis0", 6380))},
		{"name with an underscore", "my_redis", config(tcp("my_redis", 6379))},
		{"name that ends in a dot", "redis.example.com.:1", config(tcp("redis.example.com.", 1))},
		{"IPv4", "10.0.0.1", config(tcp("10.0.0.1", 6379))},
		{"IPv4 and port", "10.0.0.1:1", config(tcp("10.0.0.1", 1))},
		{"bare IPv6 has no port", "::1", config(tcp("::1", 6379))},
		{"bare IPv6 that could be read as having one", "fe80::1:6380", config(tcp("fe80::1:6380", 6379))},
		{"IPv6 in brackets", "[::1]", config(tcp("::1", 6379))},
		{"IPv6 in brackets and port", "[::1]:6380", config(tcp("::1", 6380))},
		{"IPv6 with a zone", "[fe80::1%eth0]:1", config(tcp("fe80::1%eth0", 1))},
		{"unix socket", "!/run/redis.sock", config(unix("/run/redis.sock"))},
		{"unix socket with an =", "!/run/a=b.sock", config(unix("/run/a=b.sock"))},
		{"highest port", "h:65535", config(tcp("h", 65535))},
		{"several", "a,b:1,!/s", config(tcp("a", 6379), tcp("b", 1), unix("/s"))},
		{"duplicates count once", "a,b,a:6379,a:1", config(tcp("a", 6379), tcp("b", 6379), tcp("a", 1))},
		{"blanks and empty tokens", " a , ,, b ,", config(tcp("a", 6379), tcp("b", 6379))},
	})
}

func TestParseTokensDefaultsAwaitTheLastToken(t *testing.T) {
	tls := func(c connstring.Config) connstring.Config { c.TLS = true; return c }
	service := func(c connstring.Config) connstring.Config { c.ServiceName = "mymaster"; return c }
	azure := func(c connstring.Config) connstring.Config { c.AbortConnect = false; return c }
	runParseTests(t, []parseTest{
		{"port 6380 with ssl", "h,ssl=true", tls(config(tcp("h", 6380)))},
		{"an explicit port stays, with ssl", "h:6379,ssl=true", tls(config(tcp("h", 6379)))},
		{"port 26379 with a service", "h,serviceName=mymaster", service(config(tcp("h", 26379)))},
		{"port 26379 with a service and ssl", "h,ssl=1,serviceName=mymaster", tls(service(config(tcp("h", 26379))))},
		{
			"Azure does not abort", "a.redis.cache.windows.net:6379",
			azure(config(tcp("a.redis.cache.windows.net", 6379))),
		},
		{
			"Azure by a name in capitals that ends in a dot", "A.REDIS.CACHE.WINDOWS.NET.:6379",
			azure(config(tcp("A.REDIS.CACHE.WINDOWS.NET.", 6379))),
		},
		{
			"Azure among others", "h,a.redis.cache.usgovcloudapi.net",
			azure(config(tcp("h", 6379), tcp("a.redis.cache.usgovcloudapi.net", 6379))),
		},
		{"Azure but told to abort", "abortConnect=true,a.redis.cache.cloudapi.de", config(tcp("a.redis.cache.cloudapi.de", 6379))},
		{"a name that only contains Azure's", "a.redis.cache.windows.net.evil.example", config(tcp("a.redis.cache.windows.net.evil.example", 6379))},
		{
			"Azure's port 6380 means ssl", "a.redis.cache.windows.net:6380",
			tls(azure(config(tcp("a.redis.cache.windows.net", 6380)))),
		},
		{
			"Azure's port 6380 but told not to", "a.redis.cache.windows.net:6380,ssl=false",
			azure(config(tcp("a.redis.cache.windows.net", 6380))),
		},
		{
			"Azure Managed Redis means ssl", "a.redisenterprise.cache.azure.net:10000",
			tls(azure(config(tcp("a.redisenterprise.cache.azure.net", 10000)))),
		},
		{
			"Azure Managed Redis, new name", "a.westeurope.redis.azure.net:10000",
			tls(azure(config(tcp("a.westeurope.redis.azure.net", 10000)))),
		},
		{"port 6380 elsewhere does not mean ssl", "h:6380", config(tcp("h", 6380))},
		{"not aborting on request", "h,abortConnect=false", azure(config(tcp("h", 6379)))},
	})
}

func TestParseTokensOptions(t *testing.T) {
	type Config = connstring.Config
	option := func(name, options string, change func(*Config)) parseTest {
		return parseTest{name, "localhost," + options, with(change)}
	}
	azure := config(tcp("contoso5.redis.cache.windows.net", 6380))
	azure.Password, azure.TLS, azure.AbortConnect = "abc=", true, false
	runParseTests(t, []parseTest{
		{"what Azure hands out", "contoso5.redis.cache.windows.net:6380,password=abc=,ssl=True,abortConnect=False", azure},
		option("user and password", "user=ann,password=hunter2", func(c *Config) { c.User, c.Password = "ann", "hunter2" }),
		option("user alone", "user=ann", func(c *Config) { c.User = "ann" }),
		option("password full of =", "password===a=b==", func(c *Config) { c.Password = "==a=b==" }),
		option("empty password", "password=", func(*Config) {}),
		option("keys in any case, among blanks", " PASSWORD = x , DefaultDatabase = 3 ", func(c *Config) { c.Password, c.Database = "x", 3 }),
		option("the last of a repeated option", "defaultDatabase=1,password=a,password=b,defaultDatabase=2", func(c *Config) { c.Password, c.Database = "b", 2 }),
		option("sslHost", "sslHost=redis.example.com", func(c *Config) { c.TLSHost = "redis.example.com" }),
		option("timeouts", "connectTimeout=1,syncTimeout=2000,asyncTimeout=2147483647", func(c *Config) {
			c.ConnectTimeout, c.SyncTimeout, c.AsyncTimeout = milliseconds(1), milliseconds(2000), milliseconds(2147483647)
		}),
		option("connectRetry", "connectRetry=3", func(c *Config) { c.ConnectRetry = 3 }),
		option("connectRetry none", "connectRetry=0", func(c *Config) { c.ConnectRetry = 0 }),
		option("keepAlive", "keepAlive=60", func(c *Config) { c.KeepAlive = time.Minute }),
		option("keepAlive by default", "keepAlive=-1", func(*Config) {}),
		option("keepAlive off", "keepAlive=0", func(c *Config) { c.KeepAlive = -1 }),
		option("name", "name=orders-1", func(c *Config) { c.ClientName = "orders-1" }),
		option("name loses what Redis refuses", "name=My Äpp", func(c *Config) { c.ClientName = "Mypp" }),
		option("channelPrefix", "channelPrefix=Shop_1.eu-", func(c *Config) { c.ChannelPrefix = "Shop_1.eu-" }),
		option("the longest channelPrefix", "channelPrefix="+strings.Repeat("x", 128), func(c *Config) { c.ChannelPrefix = strings.Repeat("x", 128) }),
		option("blank texts are not given", "user=,name=,serviceName=,sslHost=", func(*Config) {}),
		option("tuning is ignored", "tiebreaker=x,allowAdmin=true,TIEBREAKER=y,version=7.0,setlib=0", func(c *Config) {
			c.Ignored = []string{"tiebreaker", "allowAdmin", "version", "setlib"}
		}),
		option("options after a password", "password=x,syncTimeout=1,name=n,configChannel=", func(c *Config) {
			c.Password, c.SyncTimeout, c.ClientName, c.Ignored = "x", milliseconds(1), "n", []string{"configChannel"}
		}),
	})

	for protocol, want := range map[string]int{"resp2": 2, "2": 2, "2.0": 2, "RESP3": 3, "3": 3, "3.0": 3} {
		t.Run("protocol "+protocol, func(t *testing.T) {
			c, err := connstring.Parse("h,protocol=" + protocol)
			require.NoError(t, err)
			assert.Equal(t, want, c.Protocol)
		})
	}
	for value, want := range map[string]bool{
		"true": true, "TRUE": true, "Yes": true, "on": true, "1": true,
		"false": false, "False": false, "no": false, "OFF": false, "0": false,
	} {
		t.Run("boolean "+value, func(t *testing.T) {
			c, err := connstring.Parse("h,ssl=" + value)
			require.NoError(t, err)
			assert.Equal(t, want, c.TLS)
		})
	}
}

func TestParseTokensIgnoresTuning(t *testing.T) {
	for _, name := range []string{
		"allowAdmin", "configChannel", "configCheckSeconds", "connectMaxRetries", "defaultVersion",
		"heartbeatConsistencyChecks", "highIntegrity", "highPrioritySocketThreads", "highPriorityThreads",
		"includeDetailInExceptions", "includePerformanceCountersInExceptions", "incrementalMaintenanceEvents",
		"libraryName", "preserveAsyncOrder", "resolveDns", "responseTimeout", "setClientLibrary", "setlib",
		"tcpKeepAlive", "tiebreaker", "version", "writeBuffer",
	} {
		t.Run(name, func(t *testing.T) {
			c, err := connstring.Parse("h," + strings.ToUpper(name) + "=whatever")
			require.NoError(t, err)
			assert.Equal(t, []string{name}, c.Ignored)
		})
	}
}

func TestParseTokensAfterAPassword(t *testing.T) {
	after := func(endpoint string, want connstring.Endpoint) parseTest {
		c := config(want)
		c.Password = "x"
		return parseTest{endpoint + " is an endpoint", "password=x," + endpoint, c}
	}
	runParseTests(t, []parseTest{
		after("h:1", tcp("h", 1)),
		after("10.0.0.1", tcp("10.0.0.1", 6379)),
		after("::1", tcp("::1", 6379)),
		after("[::1]", tcp("::1", 6379)),
		after("!/s", unix("/s")),
		after("localhost", tcp("localhost", 6379)),
		after("redis.example.com", tcp("redis.example.com", 6379)),
	})

	for _, tail := range []string{
		"cd", "c$d=", "$INFO=", "c=d", "=", "==", "a.1", "a.b2", "!s", "h:0", "h:x", "c@d", "[cd", "123",
		"pool_size=3", "unknown=1", "ünknown",
	} {
		t.Run(tail+" is the password's tail", func(t *testing.T) {
			const want = "connection string: token 3: neither a known option nor, after a password, clearly an endpoint. " +
				"If it is a part of the password: a comma cannot be escaped in this form, " +
				"but a redis:// URL can carry it as %2C, and so can the Redis field. " +
				"If it is an endpoint: put it before the password"
			_, err := connstring.Parse("h,password=ab," + tail)
			require.EqualError(t, err, want)
			_, err = connstring.Parse("h,password=," + tail)
			require.EqualError(t, err, want, "the password may start with the comma")
		})
	}
}

// The texts that no error may show hold "hunter2".
func TestParseTokensErrors(t *testing.T) {
	tests := []struct {
		name  string
		input string
		want  string // after "connection string: "
	}{
		{"empty", "", "it is empty"},
		{"blank", " \t\n", "it is empty"},
		{"only commas", ",,", "it names no endpoint"},
		{"no endpoint", "password=hunter2,ssl=true", "it names no endpoint"},

		{"bad port", "h,localhost:70000", `token 2: endpoint "localhost:70000" must have a port from 1 to 65535`},
		{"port 0", "localhost:0", `token 1: endpoint "localhost:0" must have a port`},
		{"negative port", "localhost:-1", `"localhost:-1" must have a port`},
		{"signed port", "localhost:+1", `"localhost:+1" must have a port`},
		{"empty port", "localhost:", `"localhost:" must have a port`},
		{"port in hexadecimal", "localhost:0x1", `"localhost:0x1" must have a port`},
		{"no host", ":6379", `":6379" must be a host name or an IP`},
		{"colon for dot", "redis:example:6379", "token 1: neither an option, name=value, nor an endpoint"},
		{"digits alone", "localhost,6379", `token 2: endpoint "6379" must be a host name or an IP`},
		{"bad IPv4", "10.0.0.256:6379", `"10.0.0.256:6379" must be a host name or an IP`},
		{"name with a blank", "my host", `"my host" must be a host name`},
		{"name with an empty label", "a..b", `"a..b" must be a host name`},
		{"label with a dash first", "-a", `"-a" must be a host name`},
		{"label too long", strings.Repeat("a", 64), "must be a host name"},
		{"name too long", strings.Repeat("a.", 127), "must be a host name"},
		{"IPv4 in brackets", "[10.0.0.1]:1", `"[10.0.0.1]:1" must be an IPv6 in brackets`},
		{"bracket not closed", "[::1", `"[::1" must be an IPv6 in brackets`},
		{"text after the bracket", "[::1]x", `"[::1]x" must be an IPv6 in brackets`},
		{"bracket, empty port", "[::1]:", `"[::1]:" must have a port`},
		{"zone with a line break", "[fe80::1%a\nb]", `must be an IPv6`},
		{"socket without a path", "!", `endpoint "!" must not be empty`},
		{"socket with a control character", "!/a\x00b", `endpoint "!/a\x00b" must have no`},

		{"unknown option", "h,frobnicate=1", `token 2: unknown option "frobnicate"`},
		{"unknown option's value", "h,passwrod=hunter2", `token 2: unknown option "passwrod"`},
		{"option of a URL", "h,pool_size=1", `token 2: unknown option "pool_size"`},
		{"no option name", "h,=hunter2", "token 2: unknown option (its name is withheld"},
		{"access key instead of a string", "hunter2hunter2hunter2hunter2hunter2hunter2x=", "token 1: unknown option (its name is withheld"},
		{"colon instead of =", "h,password:hunter2", "token 2: password needs an = before its value, as in password=…"},
		{"blank instead of =", "h,Password hunter2", "token 2: password needs an ="},
		{"URL without a scheme", "ann:hunter2@localhost:6379", "A URL must start with redis://"},
		{"URL without a scheme, comma in the password", "ann:hunter2,x@localhost:6379", "token 1: neither an option"},
		{"URL without a scheme, = in the password", "ann:hunter2=x@localhost:6379", "token 1: unknown option (its name is withheld"},
		{"URL without a scheme, an option in the password", "ann:1,ssl=hunter2@localhost", "token 2: ssl must be true or false (its value is withheld"},
		{"URL in one quote", `"redis://:hunter2@localhost`, "token 1: neither an option"},

		{"password without a value", "h,password", "token 2: password needs a value"},
		{"ssl without a value", "h,SSL", "token 2: ssl needs a value"},
		{"ssl", "h,ssl=maybe", `token 2: ssl must be true or false, got "maybe"`},
		{"abortConnect", "h,abortconnect=2", `abortConnect must be true or false, got "2"`},
		{"blank boolean", "h,ssl=", `ssl must be true or false, got ""`},
		{"value after a password", "h,password=a,ssl=hunter2", "token 3: ssl must be true or false (its value is withheld"},
		{"defaultDatabase", "h,defaultDatabase=-1", `defaultDatabase must be a whole number, 0 or more, got "-1"`},
		{"defaultDatabase too large", "h,defaultDatabase=2147483648", `defaultDatabase must be`},
		{"connectRetry", "h,connectRetry=x", `connectRetry must be a whole number, 0 or more, got "x"`},
		{"connectTimeout", "h,connectTimeout=0", `connectTimeout must be a whole number of milliseconds, 1 or more, got "0"`},
		{"syncTimeout", "h,syncTimeout=5s", `syncTimeout must be`},
		{"asyncTimeout too large", "h,asyncTimeout=2147483648", `asyncTimeout must be`},
		{"keepAlive", "h,keepAlive=-2", `keepAlive must be a whole number of seconds, 0 for none or -1 for the default, got "-2"`},
		{"protocol", "h,protocol=4", `protocol must be resp2 or resp3, got "4"`},
		{"channelPrefix", "h,channelPrefix=a:b", `channelPrefix must be 1 to 128 letters, digits, '_', '.' or '-', got "a:b"`},
		{"channelPrefix blank", "h,channelPrefix=", `channelPrefix must be`},
		{"channelPrefix too long", "h,channelPrefix=" + strings.Repeat("x", 129), `channelPrefix must be`},
		{"sslHost", "h,sslHost=a b", `sslHost must be a host name or an IP, got "a b"`},
		{"name with a line break", "h,name=a\nb", `name must have no commas, outer blanks or characters that do not print, got "a\nb"`},
		{"user that is not UTF-8", "h,user=a\xffb", `user must have no`},

		{"command map", "h,$INFO=", "token 2: $INFO is not supported"},
		{"command map, odd name", "h,$hunter2 hunter2=", "token 2: a $COMMAND option is not supported"},
		{"proxy", "h,proxy=twemproxy", "token 2: proxy is not supported"},
		{"tunnel", "h,tunnel=http://ann:hunter2@proxy", "token 2: tunnel is not supported"},
		{"sslProtocols", "h,SSLPROTOCOLS=tls11", "sslProtocols is not supported"},
		{"checkCertificateRevocation", "h,checkCertificateRevocation=true", "checkCertificateRevocation is not supported"},
		{"sentinelUser", "h,sentinelUser=ann", "sentinelUser is not supported"},
		{"sentinelPassword", "h,sentinelPassword=hunter2", "sentinelPassword is not supported"},
		{"defaults", "h,defaults=azure", "defaults is not supported"},
		{"not supported, after a password", "h,password=a,proxy=hunter2", "token 3: proxy is not supported"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c, err := connstring.Parse(test.input)
			require.ErrorContains(t, err, test.want)
			assert.True(t, strings.HasPrefix(err.Error(), "connection string: "), "%q", err)
			assert.NotContains(t, strings.ToLower(err.Error()), "hunter2")
			assert.Equal(t, connstring.Config{}, c)
		})
	}
}
