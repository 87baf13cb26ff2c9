package connstring

import "strings"

// unwrap removes what configuration files leave around a string: blanks, a pair of
// quotes, and semicolons at its end. A ; that ends a password or a user stays, as
// StackExchange.Redis has it.
func unwrap(s string) string {
	for {
		s = strings.TrimSpace(s)
		bare := strings.TrimRight(s, "; \t\r\n")
		switch {
		case isQuoted(bare):
			s = bare[1 : len(bare)-1]
		case bare != s && !endsInCredentials(s):
			s = bare
		default:
			return s
		}
	}
}

// unwrapValue is unwrap for the value of one option that is no credential.
func unwrapValue(value string) string {
	for {
		value = strings.TrimRight(strings.TrimSpace(value), "; \t\r\n")
		if !isQuoted(value) {
			return value
		}
		value = value[1 : len(value)-1]
	}
}

// isQuoted reports whether s is in one pair of quotes, single or double.
func isQuoted(s string) bool {
	return len(s) >= 2 && (s[0] == '"' || s[0] == '\'') && strings.IndexByte(s[1:], s[0]) == len(s)-2
}

// endsInCredentials reports whether the last token of the comma-separated form is
// a user or a password.
func endsInCredentials(s string) bool {
	if _, _, isURL := cutScheme(s); isURL {
		return false
	}
	key, _, isOption := strings.Cut(s[strings.LastIndexByte(s, ',')+1:], "=")
	return isOption && isCredential(canonicalOption(strings.TrimSpace(key)))
}

// isCredential reports whether the option's value is a user or a password, which is
// taken as it is.
func isCredential(name string) bool { return name == "user" || name == "password" }

// holdsOption reports whether a value looks as if it held another option, because
// options were separated by something other than a comma. It may be a password.
func holdsOption(value string) bool {
	i := strings.IndexAny(value, ";& \t\r\n")
	return i >= 0 && strings.Contains(value[i:], "=")
}

// isShowable reports whether an error may show the value of an option that is no
// credential: it does not look as if it held one.
func isShowable(value string) bool {
	return !strings.ContainsAny(value, ";&=") && !strings.Contains(strings.ToLower(value), "pass")
}
