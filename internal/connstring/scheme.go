package connstring

import (
	"fmt"
	"strings"
)

// cutScheme splits a URL. "host,password=a://b" is none: what comes before :// is
// no name.
func cutScheme(s string) (scheme, rest string, isURL bool) {
	scheme, rest, isURL = strings.Cut(s, "://")
	return strings.ToLower(scheme), rest, isURL && isName(scheme)
}

// knownScheme returns the scheme, redis, rediss or unix, that a client of Redis or
// Valkey means by scheme. None of the names leaves in doubt whether TLS is meant.
func knownScheme(scheme string) (string, error) {
	// valkey-py and others have each of the schemes with this name too.
	if after, ok := strings.CutPrefix(scheme, "valkey"); ok {
		scheme = "redis" + after
	}
	const standalone = "name the address of the primary, as in redis://host:6379"
	switch scheme {
	case "redis", "tcp":
		return "redis", nil
	case "rediss", "redis+ssl", "redis+tls", "tls":
		return "rediss", nil
	case "unix", "redis+unix", "redis+socket", "redis-socket":
		return "unix", nil
	case "sentinel", "sentinels", "redis-sentinel", "rediss-sentinel", "redis+sentinel", "rediss+sentinel":
		return "", fmt.Errorf("scheme %s://: Sentinel is not supported yet: %s", scheme, standalone)
	case "redis-cluster", "rediss-cluster", "redis+cluster", "rediss+cluster":
		return "", fmt.Errorf("scheme %s://: Redis Cluster is not supported yet: %s", scheme, standalone)
	case "http", "https":
		return "", fmt.Errorf("scheme %s:// is not supported: it is the address of a web interface, or of a REST API. "+
			"Use the address of Redis itself: redis://, rediss:// or unix://", scheme)
	}
	return "", fmt.Errorf("scheme %s:// is not supported: use redis://, rediss:// or unix://", scheme)
}
