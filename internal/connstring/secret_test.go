package connstring_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache/internal/connstring"
)

// printings returns v in every form that Secret promises to cover.
func printings(v any) map[string]string {
	forms := map[string]string{}
	for _, verb := range "vsqxXdboOcUeEfFgGtT" {
		for _, flags := range []string{"", "+", "#", "-", " ", "0", "20", ".3"} {
			format := "%" + flags + string(verb)
			forms[format] = fmt.Sprintf(format, v)
		}
	}
	forms["Errorf"] = fmt.Errorf("%v", v).Error()
	if text, err := json.Marshal(v); err == nil {
		forms["json"] = string(text)
	}
	for name, handler := range map[string]func(*bytes.Buffer) slog.Handler{
		"slog text": func(b *bytes.Buffer) slog.Handler { return slog.NewTextHandler(b, nil) },
		"slog json": func(b *bytes.Buffer) slog.Handler { return slog.NewJSONHandler(b, nil) },
	} {
		var b bytes.Buffer
		slog.New(handler(&b)).Info("connecting", "value", v)
		forms[name] = b.String()
	}
	return forms
}

// checkHidden checks that no printing of v holds the secret, in clear or in hex.
func checkHidden(t *testing.T, secret string, v any) {
	t.Helper()
	for form, text := range printings(v) {
		text = strings.ToLower(strings.ReplaceAll(text, " ", ""))
		if strings.Contains(text, strings.ToLower(secret)) || strings.Contains(text, hex.EncodeToString([]byte(secret))) {
			t.Errorf("%s of %T shows the secret: %s", form, v, text)
		}
	}
}

func TestSecretIsHidden(t *testing.T) {
	const password = "hunter2"
	c, err := connstring.Parse("h,password=" + password)
	require.NoError(t, err)
	require.Equal(t, password, string(c.Password))

	type holder struct {
		Config  connstring.Config
		Pointer *connstring.Config
		Secrets []connstring.Secret
		Map     map[string]connstring.Secret
	}
	values := map[string]any{
		"secret":           c.Password,
		"pointer":          &c.Password,
		"config":           c,
		"config's pointer": &c,
		"holder":           holder{c, &c, []connstring.Secret{password}, map[string]connstring.Secret{"k": password}},
		"error":            errors.Join(fmt.Errorf("%v: %s", c, c.Password)),
	}
	for name, value := range values {
		t.Run(name, func(t *testing.T) { checkHidden(t, password, value) })
	}
}

func TestSecretShowsWhetherItIsEmpty(t *testing.T) {
	tests := []struct {
		name         string
		secret       connstring.Secret
		text, goText string
	}{
		{"empty", "", "", `connstring.Secret("")`},
		{"not empty", "hunter2", "*****", `connstring.Secret("*****")`},
		{"the length does not show", "x", "*****", `connstring.Secret("*****")`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			assert.Equal(t, test.text, test.secret.String())
			assert.Equal(t, test.text, fmt.Sprint(test.secret))
			assert.Equal(t, test.goText, fmt.Sprintf("%#v", test.secret))
			assert.Equal(t, test.goText, test.secret.GoString())
			assert.Equal(t, test.text, test.secret.LogValue().String())
		})
	}
}
