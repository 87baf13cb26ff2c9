package connstring_test

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache/internal/connstring"
)

// FuzzParse checks, for any input:
//
//  1. Parse does not panic.
//  2. What it accepts is valid: see checkValid.
//  3. What it accepts, String writes so that Parse reads it back.
//  4. A password planted in the input shows neither in the error nor in any
//     printing of the config.
//  5. Where the input cuts the password in two, the error does not show the
//     tail either. Only the error: a tail that spells an endpoint is one.
//  6. Where options are separated as in no form, neither the error nor the config
//     shows the password that comes after.
func FuzzParse(f *testing.F) {
	const secret = "S3cr3tOfTheF0x" // no fuzzer finds it by chance

	for _, seed := range []string{
		"", "h", "h:1", "[::1]:6380", "!/run/redis.sock", "h,ssl=true,name=x", "h,$INFO=", "h,password=a,cd",
		"contoso5.redis.cache.windows.net:6380,password=abc=,ssl=True,abortConnect=False",
		"redis://ann:pw@h:1/2?db=3&addr=x:1", "rediss://[fe80::1%25eth0]", "unix://:p@/s?db=1", "redis://:a/b?c#d@h",
		"=", ",cd", ",redis:x", ",!/s", ",::1", ",$GET=", ",tunnel=", ",name=\xff", "@h", "@h/0?client_name=x", "/x@h", "?x@h", "%", ",a.b:1", ",ssl=", "=@h",
		`"h"`, `'redis://h';`, "h;", "h:1/2", "/run/redis.sock", "unix:/run/redis.sock", "valkeys://a:1,b/2?family=0&tls", "redis://u:p@a:1,u:p@b",
		"h,allowAdmin", "h,name=\"x\";", "h,sslprotocols=tls13", "h;password=", ",pwd=", ";pwd='x'", "/1", ":1:", "redis-cli -u redis://h", "A=redis://h",
	} {
		f.Add(seed, seed)
	}
	f.Fuzz(func(t *testing.T, before, after string) {
		check(t, before+after)
		if strings.Contains(before+after, secret) {
			return
		}

		// before must end where a password starts, or it is no password that is
		// planted: "name=" + "password=" + secret is a name.
		for _, input := range []string{
			"h,password=" + secret + after,
			"h,user=u,PASSWORD = " + secret + after,
			"redis://:" + secret + after,
			"redis://user:" + secret + after,
			"rediss://:" + secret + "@h" + after,
			"unix://:" + secret + "@/s" + after,
		} {
			checkSecret(t, secret, input)
		}
		if !strings.Contains(before, "://") {
			checkSecret(t, secret, before+",password="+secret+after)
		}

		for _, input := range []string{
			"h,password=a," + secret + after,
			"h,password=a," + before + secret + after,
			"redis://:1/" + secret + after + "@h",
			"redis://:1?" + secret + after + "@h",
			"redis://:1#" + secret + after + "@h",
			"user:1," + secret + after + "@h",
			"user:" + secret + after + "@h",
		} {
			if _, err := connstring.Parse(input); err != nil && strings.Contains(err.Error(), secret) {
				t.Errorf("the error for %q shows the tail of its password: %s", input, err)
			}
		}

		for _, input := range []string{
			"h;password=" + secret + after,
			"h:1;ssl=true;password=" + secret + after,
			"h:1,ssl=true;password=" + secret + after,
			"h:1,ssl=true password=" + secret + after,
			"h:1,name=x;password=" + secret + after,
			"h:1,serviceName=x;password=" + secret + after,
			"h:1,db=1&pwd=" + secret + after,
			"redis://h?name=x;password=" + secret + after,
			"redis://h,password=" + secret + after,
			"h:1:" + secret + after,
			"[::1]:1:" + secret + after,
			"h:1 " + secret + after,
			"h:1/" + secret + after,
			"password:" + secret + after,
			"X=redis://:" + secret + after,
		} {
			c, err := connstring.Parse(input)
			if printed := fmt.Sprintf("%v %#v %v", c, c, err); strings.Contains(printed, secret) {
				t.Errorf("%q shows its password: %s", input, printed)
			}
		}
	})
}

func check(t *testing.T, input string) {
	t.Helper()
	c, err := connstring.Parse(input)
	if err != nil {
		assert.True(t, strings.HasPrefix(err.Error(), "connection string: "), "%q", err)
		assert.Equal(t, connstring.Config{}, c)
		return
	}
	checkValid(t, c)
	checkRoundTrip(t, c)
}

func checkValid(t *testing.T, c connstring.Config) {
	t.Helper()
	require.NotEmpty(t, c.Endpoints)
	for _, e := range c.Endpoints {
		assert.NotEmpty(t, e.Host)
		switch e.Network {
		case "tcp":
			assert.True(t, 1 <= e.Port && e.Port <= 65535, "%v", e)
		case "unix":
			assert.Zero(t, e.Port)
		default:
			t.Errorf("network %q", e.Network)
		}
	}
	assert.GreaterOrEqual(t, c.Database, 0)
	assert.GreaterOrEqual(t, c.ConnectRetry, -1)
	assert.GreaterOrEqual(t, c.ConnectTimeout, milliseconds(0))
	assert.GreaterOrEqual(t, c.SyncTimeout, milliseconds(0))
	assert.GreaterOrEqual(t, c.AsyncTimeout, milliseconds(0))
	assert.Contains(t, []int{0, 2, 3}, c.Protocol)
	assert.NotContains(t, c.String(), "\n", "a log line is one line")
}

// overridden matches another password, which may come later and count.
var overridden = regexp.MustCompile(`(?i)(pwd|pass|passwd|auth)\s*=`)

func checkSecret(t *testing.T, secret, input string) {
	t.Helper()
	check(t, input)
	c, err := connstring.Parse(input)
	// TestSecretIsHidden tries every verb; here the common ones keep the pace.
	printed := fmt.Sprintf("%v %+v %#v %s %d %+v %#v", c, c, c, &c, c, err, err)
	if strings.Contains(printed, secret) {
		t.Errorf("%q shows its password: %s", input, printed)
	}
	if err != nil {
		return
	}
	if overridden.MatchString(input) {
		return
	}
	if strings.Count(strings.ToLower(input), "password") == 1 || strings.Contains(input, "://:") {
		assert.Contains(t, string(c.Password), secret, "the secret was not planted as the password of %q", input)
	}
}
