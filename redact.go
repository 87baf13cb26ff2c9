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

// redacted is printed in the place of what may be a secret.
const redacted = "*****"

// printedOptions is what is shown of BackplaneOptions: no field that can carry a
// secret, and no function, whose address says nothing.
type printedOptions struct {
	RedisConnectionString  string        `json:",omitempty"`
	Redis                  *printedRedis `json:",omitempty"`
	Channel                string        `json:",omitempty"`
	MaxStaleness           time.Duration `json:",omitempty"`
	AllowDisconnectedStart bool          `json:",omitempty"`
	PublishOnly            bool          `json:",omitempty"`
	CloseTimeout           time.Duration `json:",omitempty"`
}

// printedRedis is what is shown of go-redis's options. Names and passwords of users,
// and whatever gives them, are only said to be there: a name may be half of a secret,
// and in some forms of URL it is a password.
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

// redactConnectionString returns a connection string without its secrets. One that
// cannot be read is not shown at all: where its password is, is unknown.
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
		if strings.Contains(addr, "@") { // somebody's URL, with a password
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

// String returns the options without secrets: what may be one is shown as *****.
//
// All other printing does the same: the verbs of fmt, encoding/json, and log/slog.
// Three kinds of printing get past it. In a struct that holds the options in an
// unexported field, fmt calls no methods, so do not print such a struct. Nor does fmt
// for %w and %p, which go vet rejects. And what reads fields by reflection, as dumpers
// do, reads these.
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

// GoString returns what String returns, as a Go-like expression.
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

// MarshalJSON returns the options without secrets, and without Logger and OnEvent.
// They cannot be read back from that.
func (o BackplaneOptions) MarshalJSON() ([]byte, error) { return json.Marshal(o.printed()) }
