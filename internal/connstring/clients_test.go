package connstring_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache/internal/connstring"
)

// What portals, charts and other clients print.
func TestParseWhatOthersPrint(t *testing.T) {
	type Config = connstring.Config
	local := func(input string, change func(*Config)) parseTest { return parseTest{input, input, with(change)} }
	tls := func(c *Config) { c.TLS = true }
	plain := func(*Config) {}
	secret := func(c *Config) { c.Password = "hunter2" }
	ignored := func(names ...string) func(*Config) { return func(c *Config) { c.Ignored = names } }
	socket := config(unix("/run/redis.sock"))
	socketOf2 := socket
	socketOf2.Database = 2
	managed := config(tcp("a.redis.cache.windows.net", 6380))
	managed.TLS, managed.AbortConnect, managed.Password = true, false, "hunter2="
	two := config(tcp("a", 1), tcp("b", 2))
	twoWithPassword := two
	twoWithPassword.User, twoWithPassword.Password, twoWithPassword.Database = "ann", "hunter2", 3
	secure := func(c Config) Config { c.TLS = true; return c }

	runParseTests(t, []parseTest{
		// Quotes, blanks and semicolons around the whole.
		local(`"localhost"`, plain),
		local(`'localhost'`, plain),
		local(" \"localhost\"\r\n", plain),
		local(`'"localhost"'`, plain),
		local(`"redis://localhost:6379"`, plain),
		local(`'redis://:hunter2@localhost';`, secret),
		local(`"localhost,password=hunter2";`, secret),
		local("localhost;", plain),
		local("localhost:6379,ssl=false;", plain),
		local("localhost;;\n", plain),
		local("redis://:hunter2@localhost:6379/0;", secret),
		{"Azure's in quotes", `"a.redis.cache.windows.net:6380,password=hunter2=,ssl=True,abortConnect=False";`, managed},
		local("localhost,password=hunter2;", func(c *Config) { c.Password = "hunter2;" }),
		local("localhost,user=ann;", func(c *Config) { c.User = "ann;" }),
		local(`localhost,password=a"b`, func(c *Config) { c.Password = `a"b` }),

		// Quotes around a value.
		local(`localhost:6379,ssl="false",abortConnect='true',defaultDatabase="3"`, func(c *Config) { c.Database = 3 }),
		local(`localhost,name="orders"`, func(c *Config) { c.ClientName = "orders" }),
		local(`redis://localhost?client_name=%22orders%22&db='3'`, func(c *Config) { c.ClientName, c.Database = "orders", 3 }),

		// Schemes.
		local("valkey://localhost", plain),
		local("VALKEY://:hunter2@localhost:6379", secret),
		local("valkeys://localhost", tls),
		local("redis+ssl://localhost", tls),
		local("redis+tls://localhost", tls),
		local("valkey+ssl://localhost", tls),
		local("tcp://localhost:6379", plain),
		local("tls://localhost:6379", tls),
		{"redis-socket", "redis-socket:///run/redis.sock", socket},
		{"redis+socket", "redis+socket:///run/redis.sock?database=2", socketOf2},
		{"redis+unix", "redis+unix:///run/redis.sock?db=2", socketOf2},

		// Several hosts in a URL.
		{"two hosts", "redis://a:1,b:2", two},
		{"two hosts with all", "redis://ann:hunter2@a:1,b:2/3", twoWithPassword},
		{"two hosts with TLS", "rediss://a:1,b:2", secure(two)},
		{"two hosts, IPv6", "redis://[::1]:1,[::2]", config(tcp("::1", 1), tcp("::2", 6379))},
		{"a comma in the password of one host", "redis://:a,b@localhost", with(func(c *Config) { c.Password = "a,b" })},
		{"an @ and a comma in the password", "redis://:p@ss,word@localhost", with(func(c *Config) { c.Password = "p@ss,word" })},

		// The database.
		local("localhost:6379/1", func(c *Config) { c.Database = 1 }),
		local("localhost/1", func(c *Config) { c.Database = 1 }),
		local("localhost:6379/", plain),
		{"[::1]:6379/1", "[::1]:6379/1", func() Config { c := config(tcp("::1", 6379)); c.Database = 1; return c }()},
		local("localhost:6379/1,defaultDatabase=2", func(c *Config) { c.Database = 2 }),
		local("defaultDatabase=0,localhost:6379/1", plain),
		{"the same database twice", "a:1/0,b:2/0", two},
		local("localhost,database=1", func(c *Config) { c.Database = 1 }),
		local("localhost,db=1", func(c *Config) { c.Database = 1 }),
		local("redis://localhost?database=1", func(c *Config) { c.Database = 1 }),

		// Sockets.
		{"a bare socket", "/run/redis.sock", socket},
		{"a bare socket with a database", "/run/redis.sock,database=2", socketOf2},
		{"unix and one slash", "unix:/run/redis.sock", socket},
		{"a bare socket elsewhere", "/srv/redis.socket", config(unix("/srv/redis.socket"))},
		{"a bare socket without an ending", "/var/run/redis/6379", config(unix("/var/run/redis/6379"))},

		// Options without a value.
		local("localhost,allowAdmin", ignored("allowAdmin")),
		local("localhost:6379,ALLOWADMIN,ssl=false", ignored("allowAdmin")),
		local("allowAdmin,localhost", ignored("allowAdmin")),
		local("localhost,highIntegrity,decode_responses", ignored("highIntegrity", "decode_responses")),
		{"db is what a container is called", "db", config(tcp("db", 6379))},
		{"so is database", "database,name=x", func() Config { c := config(tcp("database", 6379)); c.ClientName = "x"; return c }()},
		{"a host with the name of an option", "proxy:1,name:2,db:3", config(tcp("proxy", 1), tcp("name", 2), tcp("db", 3))},
		{"host is a host", "host,server", config(tcp("host", 6379), tcp("server", 6379))},
		{"a URL's host with the name of an option", "redis://proxy", config(tcp("proxy", 6379))},

		// Credentials under other names.
		local("localhost,username=ann,pwd=hunter2", func(c *Config) { c.User, c.Password = "ann", "hunter2" }),
		local("localhost,PASS=hunter2", secret),
		local("localhost,auth=hunter2", secret),

		// TLS.
		local("localhost:6379,tls=true", tls),
		local("localhost:6379,useSsl=true", tls),
		local("rediss://localhost?ssl=true", tls),
		local("rediss://localhost?tls", tls),
		local("redis://localhost?ssl=false", plain),
		local("rediss://localhost?skip_verify=false&insecure=0", tls),
		local("rediss://localhost?ssl_cert_reqs=required&ssl_check_hostname=True", tls),
		local("rediss://localhost?ssl_cert_reqs=CERT_REQUIRED", tls),
		local("rediss://localhost?ssl_cert_reqs=optional", tls),
		local("rediss://localhost?verifyPeer=FULL&rejectUnauthorized=true", tls),
		local("localhost,checkCertificateRevocation=false", plain),

		// redis-py, ioredis, Lettuce, go-redis.
		local("redis://localhost?socket_timeout=0.5&socket_connect_timeout=2", func(c *Config) {
			c.SyncTimeout, c.ConnectTimeout = 500*time.Millisecond, 2*time.Second
		}),
		local("redis://localhost?decode_responses=True&health_check_interval=30&retry_on_timeout=true&protocol=3&max_connections=5", func(c *Config) {
			c.Ignored, c.Protocol = []string{"decode_responses", "health_check_interval", "retry_on_timeout", "max_connections"}, 3
		}),
		local("redis://localhost?family=0", ignored("family")),
		local("redis://localhost?family=6&maxRetriesPerRequest=null&lazyConnect=true", ignored("family", "maxRetriesPerRequest", "lazyConnect")),
		local("redis://localhost?timeout=10s&clientName=orders&libraryName=x", func(c *Config) {
			c.SyncTimeout, c.ClientName, c.Ignored = 10*time.Second, "orders", []string{"libraryName"}
		}),
		local("redis://localhost?commandTimeout=300&connectionName=orders", func(c *Config) {
			c.SyncTimeout, c.ClientName = 300*time.Millisecond, "orders"
		}),
	})
}

func TestParseTLSVersions(t *testing.T) {
	for value, wantTLS13 := range map[string]bool{
		"tls12": false, "Tls12": false, "tls12|tls13": false, "Tls13 | Tls12": false, "tls1.2": false, "TLSv1.2": false, "TLS1_2": false,
		"3072": false, "15360": false, "None": false, "0": false, `"tls12"`: false,
		"tls13": true, "TLSv1.3": true, "12288": true,
	} {
		t.Run(value, func(t *testing.T) {
			c, err := connstring.Parse("h,sslprotocols=" + value)
			require.NoError(t, err)
			assert.Equal(t, wantTLS13, c.TLS13)
			checkRoundTrip(t, c)
			c, err = connstring.Parse("rediss://h?sslProtocols=" + strings.ReplaceAll(value, " ", ""))
			require.NoError(t, err)
			assert.Equal(t, wantTLS13, c.TLS13)
		})
	}
	for _, value := range []string{"tls", "tls11", "tls11|tls12", "Tls12|Tls11", "ssl3", "default", "tls1.0", "768", "3840", "240", "1"} {
		t.Run(value+" is lower", func(t *testing.T) {
			_, err := connstring.Parse("h,sslProtocols=" + value)
			assert.EqualError(t, err, "connection string: token 2: sslProtocols is not supported with this value: "+
				"TLS 1.2 is the lowest version that is spoken: write sslProtocols=tls12, or leave it out")
		})
	}
	for _, value := range []string{"", "tls14", "|", "-1", "99999999", "best"} {
		t.Run(value+" is nothing", func(t *testing.T) {
			_, err := connstring.Parse("h,sslProtocols=" + value)
			assert.ErrorContains(t, err, "sslProtocols must be tls12, tls13 or tls12|tls13")
		})
	}
}

// Every option that there is, without a value, is an error or is accepted, and no
// endpoint. Nor is one whose = was mistyped.
func TestParseOptionsAreNoEndpoints(t *testing.T) {
	names := []string{
		"user", "username", "password", "pwd", "pass", "passwd", "auth", "defaultDatabase", "database", "db", "ssl", "tls",
		"sslHost", "connectTimeout", "syncTimeout", "asyncTimeout", "connectRetry", "abortConnect", "keepAlive", "name",
		"serviceName", "channelPrefix", "protocol", "proxy", "tunnel", "sslProtocols", "checkCertificateRevocation",
		"sentinelUser", "sentinelPassword", "defaults", "allowAdmin", "configChannel", "tiebreaker", "version", "setlib",
		"writeBuffer", "responseTimeout", "resolveDns", "family", "timeout", "skip_verify", "ssl_cert_reqs", "pool_size",
		"client_name", "dial_timeout", "read_timeout", "master_name", "socket_timeout", "decode_responses", "keyPrefix", "port",
	}
	for _, name := range names {
		for _, input := range []string{"h," + name, "h:1," + strings.ToUpper(name), name + ",h", "redis://h," + name} {
			if strings.HasSuffix(input, ",h") && (name == "db" || name == "database") || strings.HasPrefix(input, "redis:") &&
				strings.Contains(" user username database db name proxy tunnel defaults version ", " "+name+" ") {
				continue // these may be hosts
			}
			t.Run(input, func(t *testing.T) {
				c, err := connstring.Parse(input)
				if err != nil {
					assert.Empty(t, c)
					return
				}
				assert.Len(t, c.Endpoints, 1)
				assert.Equal(t, "h", c.Endpoints[0].Host)
				assert.Equal(t, []string{c.Ignored[0]}, c.Ignored, "it was taken for the option")
			})
		}
		t.Run("after a password: "+name, func(t *testing.T) {
			_, err := connstring.Parse("h,password=hunter2," + name)
			require.Error(t, err, "the password may hold the comma")
			assert.NotContains(t, err.Error(), "hunter2")
		})
	}
	for _, input := range []string{"password:1234", "h,pwd:1234", "h,connectTimeout:5000", "password/1234", "ssl/1234", "redis://password:1234", "h,ssl:1", "redis://h?addr=password:1"} {
		t.Run(input, func(t *testing.T) {
			_, err := connstring.Parse(input)
			require.Error(t, err)
			assert.NotContains(t, err.Error(), "1234")
		})
	}
}

// The texts that no error may show hold "hunter2".
func TestParseSaysWhatToWrite(t *testing.T) {
	tests := []struct{ input, want string }{
		{"h,ssl", "token 2: ssl needs a value, as in ssl=…"},
		{"h,database", "token 2: database needs a value, as in database=…; a host of that name needs a port, as in database:6379"},
		{"h,password=x,allowAdmin", "token 3: allowAdmin needs a value, as in allowAdmin=…; if it is a part of the password"},
		{"h,pool_size", "token 2: pool_size is an option of a redis:// URL, and no endpoint"},
		{"h,sslProtocols=tls12,tls13", "token 3: a version of TLS: join several by |, as in sslProtocols=tls12|tls13"},
		{"h,pwd:hunter2", "token 2: pwd needs an = before its value"},
		{"h,user hunter2", "token 2: user needs an = before its value"},

		{"h:6379;password=hunter2", "token 1: holds a semicolon"},
		{"h;ssl=true;password=hunter2", "token 1: holds a semicolon"},
		{"h;hunter2", "token 1: holds a semicolon"},
		{"h:6379,ssl=true;password=hunter2", "token 2: ssl must be true or false, and no further option (its value is withheld, as it may hold a password): options are separated by commas"},
		{"h:6379,ssl=true password=hunter2", "token 2: ssl must be true or false, and no further option"},
		{"h:6379,name=x;password=hunter2", "token 2: name must be a name, and no further option"},
		{"h:6379,user=ann;password=hunter2", "token 2: user must hold no further option"},
		{"redis://h?db=1;password=hunter2", "db must be a whole number, 0 or more, and no further option"},
		{"h,ssl=password:hunter2", "token 2: ssl must be true or false (its value is withheld"},

		{"h:6379:hunter2", "token 1: neither an option"},
		{"h:6379 hunter2", "token 1: neither an option"},
		{"h:6379/hunter2", "token 1: what follows the / of an endpoint must be the number of a database"},
		{"h:6379/-1", "token 1: what follows the / of an endpoint must be the number"},
		{"a:1/1,b:2/2", "token 2: another database than that of an endpoint before: give one, by defaultDatabase"},
		{"/hunter2hunter2", "token 1: starts like the path of a unix socket: write it as !/run/redis.sock"},
		{"/hunter2hunter2/x=", "token 1: starts like the path of a unix socket"},
		{"//:hunter2@h:6379", "token 1: starts like the path of a unix socket"},
		{"/run/redis.sock?password=hunter2", "token 1: starts like the path of a unix socket"},
		{"redis:///run/redis.sock", "the URL of a socket starts with unix://"},

		{`h,password="hunter2"`, "token 2: password must be without quotes"},
		{`h,pwd='hunter2'`, "token 2: pwd must be without quotes"},
		{`h,user="hunter2"`, "token 2: user must be without quotes"},
		{"REDIS_URL=redis://:hunter2@h", "token 1: a URL with a name before it: give only what follows the ="},
		{`REDIS_URL="rediss://:hunter2@h"`, "token 1: a URL with a name before it"},
		{"redis-cli --tls -u redis://default:hunter2@h:6379", "token 1: a command: give its URL alone, and write it with rediss:// if the command has --tls"},
		{"hunter2hunter2hunter2==", "token 1: unknown option (its name is withheld"},

		{"host=h,password=x", "token 1: host is not supported: an endpoint is written without a name"},
		{"h,port=6379", "token 2: port is not supported: an endpoint is written without a name"},
		{"h,keyPrefix=x", "token 2: keyprefix is not supported: give channelPrefix"},
		{"redis://h?family=5", `family must be 0, 4 or 6, got "5"`},
		{"redis://h?timeout=5000", "timeout must have a unit, as in 5s or 500ms"},
		{"redis://h?socket_timeout=never", "socket_timeout must be a number of seconds"},
		{"redis://h?socket_timeout=NaN", "socket_timeout must be a number of seconds"},
		{"redis://h?pwd=hunter2", "pwd is not supported: user and password go before the host"},

		{"redis-sentinel://:hunter2@h", "scheme redis-sentinel://: Sentinel is not supported yet: name the address of the primary"},
		{"valkey-sentinel://h", "Sentinel is not supported yet"},
		{"redis+cluster://h", "Redis Cluster is not supported yet"},
		{"https://u:hunter2@h.upstash.io", "scheme https:// is not supported: it is the address of a web interface, or of a REST API"},
		{"rediss://h#insecure", "#insecure is not supported: certificates are always verified"},

		{"rediss://h?ssl=false", "ssl is not supported with this value: the scheme says it: write rediss:// for TLS, or redis:// for none"},
		{"redis://h?tls=true", "tls is not supported with this value: the scheme says it"},
		{"redis://h?ssl", "ssl is not supported with this value: the scheme says it"},
		{"rediss://h?ssl=hunter2pass", "ssl must be true or false (its value is withheld"},
		{"rediss://h?insecure=true", "insecure is not supported with this value: certificates are always verified: leave it out, and set Redis.TLSConfig, or name the authority by SSL_CERT_FILE"},
		{"rediss://h?ssl_cert_reqs=none", "ssl_cert_reqs is not supported with this value: certificates are always verified: leave it out, and set Redis.TLSConfig"},
		{"h,ssl_cert_reqs=CERT_NONE", "token 2: ssl_cert_reqs is not supported with this value"},
		{"rediss://h?ssl_check_hostname=false", "give the name by sslHost"},
		{"rediss://h?rejectUnauthorized=false", "rejectUnauthorized is not supported with this value"},
		{"rediss://h?verifyPeer=NONE", "verifyPeer is not supported with this value"},
		{"rediss://h?ssl_ca_certs=/etc/ca.pem", "ssl_ca_certs is not supported: set Redis.TLSConfig, or name the authority by SSL_CERT_FILE"},
		{"rediss://h?ssl_password=hunter2", "ssl_password is not supported: set Redis.TLSConfig"},
		{"h,skip_verify=maybe", `skip_verify must be true or false, got "maybe"`},
	}
	for _, test := range tests {
		t.Run(test.input, func(t *testing.T) {
			c, err := connstring.Parse(test.input)
			require.ErrorContains(t, err, test.want)
			assert.NotContains(t, err.Error(), "hunter2")
			assert.Equal(t, connstring.Config{}, c)
		})
	}
}
