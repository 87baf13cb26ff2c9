package nearcache

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/auth"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// printings returns v in every form that BackplaneOptions.String promises to cover.
func printings(t *testing.T, v any) map[string]string {
	forms := map[string]string{}
	for _, verb := range "vsqxXdboOcUeEfFgGtT" {
		for _, flags := range []string{"", "+", "#", "-", " ", "0", "20", ".3"} {
			format := "%" + flags + string(verb)
			forms[format] = fmt.Sprintf(format, v)
		}
	}
	forms["Println"] = fmt.Sprintln(v)
	forms["Errorf"] = fmt.Errorf("options: %v", v).Error()
	text, err := json.Marshal(v)
	require.NoError(t, err)
	forms["json"] = string(text)
	for name, handler := range map[string]func(*bytes.Buffer) slog.Handler{
		"slog text": func(b *bytes.Buffer) slog.Handler { return slog.NewTextHandler(b, nil) },
		"slog json": func(b *bytes.Buffer) slog.Handler { return slog.NewJSONHandler(b, nil) },
	} {
		var b bytes.Buffer
		slog.New(handler(&b)).With("with", v).Info("connecting", "value", v, slog.Group("group", "value", v))
		forms[name] = b.String()
	}
	return forms
}

func checkHidden(t *testing.T, v any, secrets ...string) {
	t.Helper()
	for form, text := range printings(t, v) {
		text = strings.ToLower(strings.ReplaceAll(text, " ", ""))
		for _, secret := range secrets {
			if strings.Contains(text, strings.ToLower(secret)) || strings.Contains(text, hex.EncodeToString([]byte(secret))) {
				t.Errorf("%s of %T shows the secret: %.300s", form, v, text)
			}
		}
	}
}

// secretCredentials gives a secret, and is one.
type secretCredentials struct{ text string }

func (s secretCredentials) Subscribe(auth.CredentialsListener) (auth.Credentials, auth.UnsubscribeFunc, error) {
	return auth.NewBasicCredentials(s.text, s.text), func() error { return nil }, nil
}

// plantSecrets puts a secret into every field of go-redis's options that can hold a
// text, or that gives one, but for those that say where Redis is and what things are
// called. A field that go-redis adds is planted too.
func plantSecrets(secret string) *redis.UniversalOptions {
	u := &redis.UniversalOptions{
		Addrs:     []string{"127.0.0.1:6379", "redis://ann:" + secret + "@127.0.0.1:6379"},
		TLSConfig: &tls.Config{ServerName: secret},
	}
	named := map[string]bool{"MasterName": true}
	v := reflect.ValueOf(u).Elem()
	for i := range v.NumField() {
		if f := v.Field(i); f.Kind() == reflect.String && !named[v.Type().Field(i).Name] {
			f.SetString(secret)
		}
	}
	u.CredentialsProvider = func() (string, string) { return secret, secret }
	u.CredentialsProviderContext = func(context.Context) (string, string, error) { return secret, secret, nil }
	u.StreamingCredentialsProvider = secretCredentials{secret}
	return u
}

// No printing of options shows a secret, whatever field it is in.
func TestOptionsPrintRedacted(t *testing.T) {
	const secret = "hunter2secret"
	for name, o := range map[string]BackplaneOptions{
		"comma-separated":                {RedisConnectionString: "h:6379,user=ann,password=" + secret},
		"a user alone":                   {RedisConnectionString: "h:6379,user=" + secret},
		"URL":                            {RedisConnectionString: "redis://ann:" + secret + "@h:6379/2"},
		"URL with a user alone":          {RedisConnectionString: "rediss://" + secret + "@h:6379"},
		"what cannot be read":            {RedisConnectionString: "h:6379,no such option=1,password=" + secret},
		"another scheme":                 {RedisConnectionString: "http://ann:" + secret + "@h"},
		"nothing but the password":       {RedisConnectionString: "password=" + secret},
		"options":                        {Redis: plantSecrets(secret)},
		"both":                           {RedisConnectionString: "h,password=" + secret, Redis: plantSecrets(secret)},
		"a callback and a logger":        {RedisConnectionString: "h,password=" + secret, OnEvent: func(Event) {}, Logger: slog.Default()},
		"everything else that there is ": {RedisConnectionString: "h,password=" + secret, Channel: "c", MaxStaleness: time.Second, PublishOnly: true},
	} {
		t.Run(name, func(t *testing.T) {
			type settings struct {
				Nearcache BackplaneOptions
				Pointer   *BackplaneOptions
				List      []BackplaneOptions
				Map       map[string]BackplaneOptions
				Any       any
			}
			for _, v := range []any{
				o, &o, []BackplaneOptions{o}, map[string]*BackplaneOptions{"k": &o},
				settings{o, &o, []BackplaneOptions{o}, map[string]BackplaneOptions{"k": o}, o},
			} {
				checkHidden(t, v, secret)
			}
			_, err := Connect(t.Context(), o.withTimeout())
			if err != nil {
				checkHidden(t, map[string]string{"error": err.Error(), "deep": fmt.Sprintf("%+v %#v", err, errors.Unwrap(err))}, secret)
			}
		})
	}
}

// withTimeout makes an attempt to connect end at once.
func (o BackplaneOptions) withTimeout() BackplaneOptions {
	o.RedisConnectionString = strings.ReplaceAll(o.RedisConnectionString, "h:6379", "127.0.0.1:1")
	o.Channel = "not a channel" // an error that comes before any connection
	return o
}

// What is no secret is shown: options are printed to be read.
func TestOptionsPrintWhatIsNoSecret(t *testing.T) {
	o := BackplaneOptions{
		RedisConnectionString: "redis.example:6380,password=hunter2,ssl=true",
		Redis:                 &redis.UniversalOptions{Addrs: []string{"other.example:6379"}, DB: 3, Password: "hunter2"},
		Channel:               "orders", MaxStaleness: time.Second,
	}
	for _, text := range []string{o.String(), fmt.Sprintf("%v", o), fmt.Sprintf("%#v", &o), o.LogValue().String()} {
		for _, shown := range []string{"redis.example:6380", "password=*****", "ssl=true", "other.example:6379", "DB:3", "Credentials:*****", "orders", "1s"} {
			assert.Contains(t, text, shown)
		}
	}
	text, err := json.Marshal(o)
	require.NoError(t, err)
	assert.JSONEq(t, `{
		"RedisConnectionString": "redis.example:6380,password=*****,ssl=true,abortConnect=true",
		"Redis": {"Addrs": ["other.example:6379"], "DB": 3, "Credentials": "*****"},
		"Channel": "orders", "MaxStaleness": 1000000000
	}`, string(text))
	require.Contains(t, BackplaneOptions{}.String(), "Redis:<nil>")
}

// What holds the options while they are in use shows none of their secrets: a
// backplane, the server behind it, and its connections.
func TestWhatHoldsOptionsPrintsNoSecret(t *testing.T) {
	const secret = "hunter2secret"
	for _, o := range []BackplaneOptions{
		{RedisConnectionString: "127.0.0.1:1,abortConnect=false,user=ann,password=" + secret},
		{Redis: &redis.UniversalOptions{Addrs: []string{"127.0.0.1:1"}, Username: "ann", Password: secret}, AllowDisconnectedStart: true},
	} {
		o.Logger = slog.New(slog.DiscardHandler)
		server, err := newRedisServer(o)
		require.NoError(t, err)
		bp, err := Connect(t.Context(), o)
		require.NoError(t, err)
		require.NoError(t, bp.Close())
		for _, v := range []any{server, bp} {
			for _, format := range []string{"%v", "%+v", "%#v", "%s", "%d", "%x"} {
				text := fmt.Sprintf(format, v)
				assert.NotContains(t, text, secret, format)
				assert.NotContains(t, text, hex.EncodeToString([]byte(secret)), format)
			}
		}
	}
}
