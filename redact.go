package nearcache

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/nearcache/nearcache/internal/connstring"
)

// redacted is printed instead of what may be a secret.
const redacted = "*****"

// printedOptions are the fields of BackplaneOptions that are printed. Those that may
// contain a secret are redacted. Functions are left out, since their addresses say nothing.
type printedOptions struct {
	RedisConnectionString  string        `json:",omitempty"`
	Redis                  *printedRedis `json:",omitempty"`
	Channel                string        `json:",omitempty"`
	MaxStaleness           time.Duration `json:",omitempty"`
	AllowDisconnectedStart bool          `json:",omitempty"`
	PublishOnly            bool          `json:",omitempty"`
	CloseTimeout           time.Duration `json:",omitempty"`
}

// printedRedis are the fields of go-redis's options that are printed. Of users' names,
// passwords and credential providers, it only shows that there are some. A name may be a
// part of the secret, and in some forms of URL it is a password.
type printedRedis struct {
	Addrs       []string `json:",omitempty"`
	MasterName  string   `json:",omitempty"`
	DB          int      `json:",omitempty"`
	TLS         bool     `json:",omitempty"`
	Credentials string   `json:",omitempty"`
}

func (o BackplaneOptions) printed() printedOptions {
	return printedOptions{
		RedisConnectionString:  redactConnectionString(o.RedisConnectionString),
		Redis:                  printedRedisOf(o.Redis),
		Channel:                o.Channel,
		MaxStaleness:           o.MaxStaleness,
		AllowDisconnectedStart: o.AllowDisconnectedStart,
		PublishOnly:            o.PublishOnly,
		CloseTimeout:           o.CloseTimeout,
	}
}

// redactConnectionString returns a connection string without its secrets. If the string
// cannot be parsed, none of it is shown, since the password could be anywhere in it.
func redactConnectionString(text string) string {
	if text == "" {
		return ""
	}
	c, err := connstring.Parse(text)
	if err != nil {
		return redacted
	}
	return c.String()
}

func printedRedisOf(u *redis.UniversalOptions) *printedRedis {
	if u == nil {
		return nil
	}
	p := &printedRedis{MasterName: u.MasterName, DB: u.DB, TLS: u.TLSConfig != nil}
	for _, addr := range u.Addrs {
		if strings.Contains(addr, "@") { // a URL, perhaps with a password
			addr = redacted
		}
		p.Addrs = append(p.Addrs, addr)
	}
	if u.Username != "" || u.Password != "" || u.SentinelUsername != "" || u.SentinelPassword != "" ||
		u.CredentialsProvider != nil || u.CredentialsProviderContext != nil || u.StreamingCredentialsProvider != nil {
		p.Credentials = redacted
	}
	return p
}

// String returns the options without secrets: what may be a secret is shown as *****.
// The verbs of fmt, encoding/json and log/slog do the same.
//
// Three ways of printing still show secrets:
//
//   - printing a struct that holds the options in an unexported field, since fmt then
//     calls no methods
//   - the verbs %w and %p, which go vet rejects
//   - packages that read fields by reflection, as dumpers do
func (o BackplaneOptions) String() string {
	p := o.printed()
	s := fmt.Sprintf("{RedisConnectionString:%s Redis:", p.RedisConnectionString)
	if p.Redis == nil {
		s += "<nil>"
	} else {
		s += fmt.Sprintf("%+v", *p.Redis)
	}
	return s + fmt.Sprintf(" Channel:%s MaxStaleness:%v AllowDisconnectedStart:%t PublishOnly:%t CloseTimeout:%v}",
		p.Channel, p.MaxStaleness, p.AllowDisconnectedStart, p.PublishOnly, p.CloseTimeout)
}

// GoString returns what String returns, after the name of the type.
func (o BackplaneOptions) GoString() string { return "nearcache.BackplaneOptions" + o.String() }

// Format prints what String or GoString returns, whatever the verb.
func (o BackplaneOptions) Format(f fmt.State, verb rune) {
	if verb == 'v' && f.Flag('#') {
		_, _ = io.WriteString(f, o.GoString())
		return
	}
	_, _ = fmt.Fprintf(f, fmt.FormatString(f, verb), o.String())
}

// LogValue returns what String returns, for log/slog.
func (o BackplaneOptions) LogValue() slog.Value { return slog.StringValue(o.String()) }

// MarshalJSON returns the options without secrets, and without Logger and OnEvent. The
// options cannot be restored from it.
func (o BackplaneOptions) MarshalJSON() ([]byte, error) { return json.Marshal(o.printed()) }
