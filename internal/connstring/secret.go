package connstring

import (
	"fmt"
	"io"
	"log/slog"
)

// Secret is a text that prints as *****, or as nothing if it is empty. Convert
// it, string(s), to get at the text.
//
// Two printings get past it, as fmt asks neither for methods: the verbs %w and
// %p, which go vet rejects for it, and a struct that holds it, or a Config, in an
// unexported field. We accept this because hiding the text from fmt altogether
// takes a pointer, and with it == and the plain conversion; instead, do not keep
// a Secret in a struct that gets printed.
type Secret string

const redacted = "*****"

// String returns ***** or "".
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return redacted
}

// GoString returns what String returns, quoted.
func (s Secret) GoString() string { return fmt.Sprintf("connstring.Secret(%q)", s.String()) }

// Format prints what String or GoString returns, for every verb.
func (s Secret) Format(f fmt.State, verb rune) { format(s, f, verb) }

// LogValue returns what String returns, for slog.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText returns what String returns, for encoders such as encoding/json.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

type printer interface {
	fmt.Stringer
	fmt.GoStringer
}

// format is the Format of Secret and Config. Their String and GoString alone would
// not do: for a verb that does not suit a string, such as %d, fmt ignores them and
// prints the raw fields, if only as a part of its complaint about the verb.
func format(p printer, f fmt.State, verb rune) {
	if verb == 'v' && f.Flag('#') {
		_, _ = io.WriteString(f, p.GoString())
		return
	}
	_, _ = fmt.Fprintf(f, fmt.FormatString(f, verb), p.String())
}
