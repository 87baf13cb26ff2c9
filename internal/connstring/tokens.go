package connstring

import (
	"errors"
	"fmt"
	"strings"
)

// parseTokens reads the comma-separated form of StackExchange.Redis: a token with
// an = is an option, one without is an endpoint, as is one that starts with "!".
// Keys are case-insensitive, values end at the comma and may hold further =, and
// of a repeated option the last counts.
//
// A password that holds a comma falls apart into tokens. So after a password:
//
//   - a token without = must be unmistakable as an endpoint: it has a port, is an
//     IP, localhost, a name that ends in a domain, or an absolute socket path;
//   - an error never shows the text of a token, only its position and, if it is
//     an option that exists, its name.
//
// The text is not shown either if the string holds an @ anywhere: it may be a URL
// that lost its scheme, in which any token may be part of user:password@host.
func parseTokens(s string) (Config, error) {
	b := newBuilder(6379, 6380)
	afterPassword, hasAt := false, strings.Contains(s, "@")
	for i, text := range strings.Split(s, ",") {
		t := token{position: i + 1, text: strings.TrimSpace(text), afterPassword: afterPassword, hasAt: hasAt}
		if t.text == "" {
			continue
		}
		key, value, isOption := strings.Cut(t.text, "=")
		if !isOption || strings.HasPrefix(t.text, socketMark) {
			if err := b.endpointToken(t); err != nil {
				return Config{}, err
			}
			continue
		}
		name, err := b.set(strings.TrimSpace(key), strings.TrimSpace(value))
		switch {
		case name == "":
			return Config{}, t.unknown(strings.TrimSpace(key))
		case err != nil:
			return Config{}, t.fail(explain(name, strings.TrimSpace(value), err, t.shown()))
		case name == "password":
			afterPassword = true
		}
	}
	return b.finish()
}

func (b *builder) endpointToken(t token) error {
	e, err := parseEndpoint(t.text)
	// "password:secret" and "password secret" lack their =.
	mistyped := strings.HasPrefix(strings.ToLower(t.text), "pass")
	if name := canonical(t.text, []string{"password", "ssl", "abortConnect"}); name != "" {
		return t.fail(fmt.Errorf("%s needs a value, as in %s=…", name, name))
	}
	switch {
	case t.afterPassword && (err != nil || !e.isUnmistakable()):
		return t.tail()
	case err != nil && t.shown() && !mistyped:
		return t.fail(fmt.Errorf("endpoint %q %w", t.text, err))
	case err != nil:
		return t.fail(errors.New("neither an option, name=value, nor an endpoint " +
			"(its text is withheld, as it may be part of a password). " +
			"A URL must start with redis://, rediss:// or unix://"))
	}
	b.cfg.Endpoints = append(b.cfg.Endpoints, e)
	return nil
}

// token is one part of the comma-separated form, with what decides whether an
// error may show its text.
type token struct {
	position      int // from 1, empty tokens counted
	text          string
	afterPassword bool
	hasAt         bool // the whole string holds an @
}

func (t token) shown() bool { return !t.afterPassword && !t.hasAt }

func (t token) fail(err error) error { return fmt.Errorf("token %d: %w", t.position, err) }

func (t token) unknown(key string) error {
	word, isCommand := strings.CutPrefix(key, "$")
	switch {
	case t.afterPassword:
		return t.tail()
	case isCommand && t.shown() && isName(word):
		return t.fail(fmt.Errorf("%s is not supported: commands cannot be renamed or disabled", key))
	case isCommand:
		return t.fail(errors.New("a $COMMAND option is not supported: commands cannot be renamed or disabled"))
	case t.shown() && isName(key):
		return t.fail(fmt.Errorf("unknown option %q", key))
	default:
		return t.fail(errors.New("unknown option (its name is withheld, as it may be part of a password)"))
	}
}

// tail is the error for a token that may be the end of a password.
func (t token) tail() error {
	return t.fail(errors.New("neither a known option nor, after a password, clearly an endpoint. " +
		"If it is a part of the password: a comma cannot be escaped in this form, but a redis:// URL can carry it as %2C, " +
		"and so can the Redis field. If it is an endpoint: put it before the password"))
}
