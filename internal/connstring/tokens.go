package connstring

import (
	"errors"
	"fmt"
	"strings"
)

// parseTokens reads the comma-separated form of StackExchange.Redis: a token with
// an = is an option, one without is an endpoint, as is one that starts with "!" or is
// the path of a socket. An endpoint may end in /1, the number of the database. Keys are case-insensitive, values end at the comma and may hold further =, and
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
		if !isOption || strings.HasPrefix(t.text, socketMark) || strings.HasPrefix(t.text, "/") {
			if err := b.endpointToken(t); err != nil {
				return Config{}, err
			}
			continue
		}
		key, value = strings.TrimSpace(key), strings.TrimSpace(value)
		if !isCredential(canonicalOption(key)) {
			value = unwrapValue(value)
		}
		name, err := b.set(key, value)
		switch {
		case name == "":
			return Config{}, t.unknown(key, value)
		case err != nil:
			return Config{}, t.fail(explain(name, key, value, err, t.shown()))
		case name == "password":
			afterPassword = true
		}
	}
	return b.finish()
}

func (b *builder) endpointToken(t token) error {
	if name := knownOption(t.text); name != "" && !mayBeHost(t.text, false) && !t.isFirstDatabase() {
		return b.bareOption(t, spelt(name, t.text))
	}
	if isProtocol(t.text) {
		return t.fail(errors.New("a version of TLS: join several by |, as in sslProtocols=tls12|tls13"))
	}
	text, database, hasDatabase := t.text, "", false
	if !strings.HasPrefix(text, socketMark) {
		text, database, hasDatabase = strings.Cut(text, "/") // host:6379/1
	}
	e, err := parseEndpoint(text)
	if t.afterPassword {
		if err != nil || hasDatabase || !e.isUnmistakable() {
			return t.tail()
		}
		b.cfg.Endpoints = append(b.cfg.Endpoints, e)
		return nil
	}
	if e, isPath, err := parseSocketPath(t.text); isPath {
		if err != nil {
			return t.fail(err)
		}
		b.cfg.Endpoints = append(b.cfg.Endpoints, e)
		return nil
	}

	word := t.text // "password:secret" and "password secret" lack their =
	if i := strings.IndexAny(word, ": \t/"); i >= 0 {
		word = word[:i]
	}
	option := knownOption(word)
	switch {
	case option != "" && (err != nil || !mayBeHost(word, e.Port != 0 || hasDatabase)) && word != t.text:
		return t.fail(fmt.Errorf("%s needs an = before its value, as in %[1]s=…", spelt(option, word)))
	case word == "redis-cli" || word == "valkey-cli":
		return t.fail(errors.New("a command: give its URL alone, and write it with rediss:// if the command has --tls"))
	case e.Network != "unix" && strings.Contains(t.text, ";"):
		return t.fail(errSemicolon)
	case err != nil && t.shown() && t.isPlain():
		return t.fail(fmt.Errorf("endpoint %q %w", t.text, err))
	case err != nil:
		return t.fail(errors.New("neither an option, name=value, nor an endpoint " +
			"(its text is withheld, as it may be part of a password). " +
			"A URL must start with redis://, rediss:// or unix://"))
	}
	b.cfg.Endpoints = append(b.cfg.Endpoints, e)
	if database == "" {
		return nil
	}
	var number int
	if err := setInt(&number, database); err != nil {
		return t.fail(errors.New("what follows the / of an endpoint must be the number of a database"))
	}
	if b.pathDatabase != nil && *b.pathDatabase != number {
		return t.fail(errors.New("another database than that of an endpoint before: give one, by defaultDatabase"))
	}
	b.pathDatabase = &number
	return nil
}

// bareOption is for the name of an option without a value. One that has no effect
// here has none without a value either.
func (b *builder) bareOption(t token, name string) error {
	if tuning := canonical(t.text, tuningOptions()); tuning != "" && !t.afterPassword {
		b.ignore(tuning)
		return nil
	}
	hint := ""
	if mayBeHost(t.text, true) {
		hint = fmt.Sprintf("; a host of that name needs a port, as in %s:6379", t.text)
	}
	if t.afterPassword {
		hint = "; if it is a part of the password, give that in a redis:// URL, with %2C for its comma"
	}
	if canonicalOption(t.text) == "" {
		return t.fail(fmt.Errorf("%s is an option of a redis:// URL, and no endpoint%s", name, hint))
	}
	return t.fail(fmt.Errorf("%s needs a value, as in %[1]s=…%s", name, hint))
}

var errSemicolon = errors.New("holds a semicolon (its text is withheld, as it may hold a password): " +
	"options are separated by commas, as in localhost:6379,password=…,ssl=true")

// token is one part of the comma-separated form, with what decides whether an
// error may show its text.
type token struct {
	position      int // from 1, empty tokens counted
	text          string
	afterPassword bool
	hasAt         bool // the whole string holds an @
}

func (t token) shown() bool { return !t.afterPassword && !t.hasAt }

// isPlain reports whether the text does not look as if a password followed a host
// and its port.
func (t token) isPlain() bool {
	if strings.HasPrefix(t.text, socketMark) {
		return true
	}
	text := t.text
	if ip, tail, closed := strings.Cut(text, "]"); closed && strings.HasPrefix(ip, "[") {
		text = tail
	} else if strings.HasPrefix(text, "[") {
		return !strings.ContainsAny(text, " \t/")
	}
	return strings.Count(text, ":") <= 1 && !strings.Contains(text, "/") &&
		!(strings.Contains(text, ":") && strings.ContainsAny(text, " \t")) &&
		!strings.HasPrefix(strings.ToLower(text), "pass")
}

// isFirstDatabase reports whether the first token is the host db or database, which
// is what many a container is called: nobody begins with an option without a value.
func (t token) isFirstDatabase() bool {
	return t.position == 1 && canonical(t.text, []string{"db", "database"}) != ""
}

func (t token) fail(err error) error { return fmt.Errorf("token %d: %w", t.position, err) }

func (t token) unknown(key, value string) error {
	word, isCommand := strings.CutPrefix(key, "$")
	switch {
	case t.afterPassword:
		return t.tail()
	case strings.Contains(key, ";"):
		return t.fail(errSemicolon)
	case isCommand && t.shown() && isName(word):
		return t.fail(fmt.Errorf("%s is not supported: commands cannot be renamed or disabled", key))
	case isCommand:
		return t.fail(errors.New("a $COMMAND option is not supported: commands cannot be renamed or disabled"))
	case startsURL(value):
		return t.fail(errors.New("a URL with a name before it: give only what follows the ="))
	case t.shown() && isName(key) && strings.Trim(value, "=") != "":
		return t.fail(fmt.Errorf("unknown option %q", key))
	default:
		// Without a value, the = may pad the base64 of an access key.
		return t.fail(errors.New("unknown option (its name is withheld, as it may be part of a password)"))
	}
}

func startsURL(s string) bool {
	scheme, _, isURL := cutScheme(strings.TrimLeft(s, `"'`))
	_, err := knownScheme(scheme)
	return isURL && err == nil
}

// tail is the error for a token that may be the end of a password.
func (t token) tail() error {
	return t.fail(errors.New("neither a known option nor, after a password, clearly an endpoint. " +
		"If it is a part of the password: a comma cannot be escaped in this form, but a redis:// URL can carry it as %2C, " +
		"and so can the Redis field. If it is an endpoint: put it before the password"))
}
