package connstring_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache/internal/connstring"
)

func tcp(host string, port int) connstring.Endpoint {
	return connstring.Endpoint{Network: "tcp", Host: host, Port: port}
}

func unix(path string) connstring.Endpoint {
	return connstring.Endpoint{Network: "unix", Host: path}
}

// config returns what Parse gives for a string of these endpoints alone.
func config(endpoints ...connstring.Endpoint) connstring.Config {
	return connstring.Config{Endpoints: endpoints, ConnectRetry: -1, AbortConnect: true}
}

// with returns config(localhost:6379) after change.
func with(change func(*connstring.Config)) connstring.Config {
	c := config(tcp("localhost", 6379))
	change(&c)
	return c
}

type parseTest struct {
	name  string
	input string
	want  connstring.Config
}

func runParseTests(t *testing.T, tests []parseTest) {
	t.Helper()
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := connstring.Parse(test.input)
			require.NoError(t, err)
			assert.Equal(t, test.want, got)
			checkRoundTrip(t, got)
		})
	}
}

// checkRoundTrip checks that String writes all of the config, but for what it
// says it leaves out.
func checkRoundTrip(t *testing.T, c connstring.Config) {
	t.Helper()
	again, err := connstring.Parse(c.String())
	require.NoError(t, err, "of %q", c.String())
	if c.Password != "" {
		assert.Equal(t, connstring.Secret("*****"), again.Password)
		c.Password = again.Password
	} else if c.User != "" {
		assert.Equal(t, "*****", again.User)
		c.User = again.User
	}
	c.Ignored = nil
	assert.Equal(t, c, again)
}

func TestParseChoosesTheForm(t *testing.T) {
	runParseTests(t, []parseTest{
		{"redis URL", "redis://h", config(tcp("h", 6379))},
		{"URL in capitals", "REDIS://h", config(tcp("h", 6379))},
		{"URL among blanks", " \t redis://h \n", config(tcp("h", 6379))},
		{"tokens among blanks", " \n h \t", config(tcp("h", 6379))},
		{"tokens whose password holds a scheme", "h,password=redis://x", func() connstring.Config {
			c := config(tcp("h", 6379))
			c.Password = "redis://x"
			return c
		}()},
	})

	t.Run("another scheme is named, and so are the supported ones", func(t *testing.T) {
		_, err := connstring.Parse("ftp://user:hunter2@host")
		assert.EqualError(t, err, "connection string: scheme ftp:// is not supported: use redis://, rediss:// or unix://")
	})
}

func TestEndpointAddress(t *testing.T) {
	tests := []struct {
		name     string
		endpoint connstring.Endpoint
		want     string
	}{
		{"host", tcp("redis.example.com", 6379), "redis.example.com:6379"},
		{"IPv4", tcp("127.0.0.1", 1), "127.0.0.1:1"},
		{"IPv6 gets brackets", tcp("::1", 6380), "[::1]:6380"},
		{"socket is its path", unix("/run/redis.sock"), "/run/redis.sock"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			assert.Equal(t, test.want, test.endpoint.Address())
		})
	}
}

func TestString(t *testing.T) {
	tests := []struct {
		name  string
		input string
		want  string
	}{
		{
			"the shortest string",
			"h",
			"h:6379,ssl=false,abortConnect=true",
		},
		{
			"the password is redacted",
			"h,password=hunter2",
			"h:6379,password=*****,ssl=false,abortConnect=true",
		},
		{
			"a user is shown beside a password",
			"redis://ann:hunter2@h",
			"h:6379,user=ann,password=*****,ssl=false,abortConnect=true",
		},
		{
			"a user alone may be a password",
			"redis://hunter2@h",
			"h:6379,user=*****,ssl=false,abortConnect=true",
		},
		{
			"ignored options are left out",
			"h,tiebreaker=x",
			"h:6379,ssl=false,abortConnect=true",
		},
		{
			"every option, in one order",
			"protocol=3,channelPrefix=p,serviceName=s,name=n,keepAlive=60,abortConnect=no,connectRetry=2," +
				"asyncTimeout=3,syncTimeout=2,connectTimeout=1,sslHost=x,sslProtocols=tls13,ssl=on,defaultDatabase=4,user=u,password=p,!/s,[::1]:1",
			"!/s,[::1]:1,user=u,password=*****,defaultDatabase=4,ssl=true,sslProtocols=tls13,sslHost=x," +
				"connectTimeout=1,syncTimeout=2,asyncTimeout=3,connectRetry=2,abortConnect=false,keepAlive=60," +
				"name=n,serviceName=s,channelPrefix=p,protocol=resp3",
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c, err := connstring.Parse(test.input)
			require.NoError(t, err)
			assert.Equal(t, test.want, c.String())
		})
	}
}

func ExampleParse() {
	c, err := connstring.Parse("contoso5.redis.cache.windows.net:6380,password=abc=,ssl=True,abortConnect=False")
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(c.Endpoints[0].Address())
	fmt.Println(c)

	_, err = connstring.Parse("localhost,syncTimeout=5s")
	fmt.Println(err)
	// Output:
	// contoso5.redis.cache.windows.net:6380
	// contoso5.redis.cache.windows.net:6380,password=*****,ssl=true,abortConnect=false
	// connection string: token 2: syncTimeout must be a whole number of milliseconds, 1 or more, got "5s"
}

func milliseconds(n int) time.Duration { return time.Duration(n) * time.Millisecond }
