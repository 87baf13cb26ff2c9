package connstring

import (
	"errors"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// Endpoint is the address of one server.
type Endpoint struct {
	// Network is "tcp" or "unix".
	Network string

	// Host is a host name or an IP without brackets; for unix, the socket's path.
	Host string

	// Port is 1 to 65535; 0 for unix.
	Port int
}

// Address returns the address to dial on Network: host:port, with brackets
// around an IPv6, or the socket's path.
func (e Endpoint) Address() string {
	if e.Network == "unix" {
		return e.Host
	}
	return net.JoinHostPort(e.Host, strconv.Itoa(e.Port))
}

// token returns the endpoint as the comma-separated form writes it.
func (e Endpoint) token() string {
	if e.Network == "unix" {
		return socketMark + e.Host
	}
	return e.Address()
}

// socketMark goes before a unix socket's path. No option's name starts with it.
const socketMark = "!"

// parseEndpoint reads host, host:port, an IPv4 with or without a port, ::1,
// [::1], [::1]:port or !path. A port that was not given stays 0. The errors do
// not repeat the text: whether it may be shown is for the caller to know.
func parseEndpoint(text string) (Endpoint, error) {
	if path, ok := strings.CutPrefix(text, socketMark); ok {
		return socket(path)
	}
	host, port := text, ""
	hasPort := false
	switch {
	case strings.HasPrefix(text, "["):
		ip, tail, closed := strings.Cut(text[1:], "]")
		host = ip
		port, hasPort = strings.CutPrefix(tail, ":")
		if !closed || !isIPv6(ip) || tail != "" && !hasPort {
			return Endpoint{}, errors.New("must be an IPv6 in brackets, with or without a :port")
		}
	case isIPv6(text): // a bare IPv6 has no port: its colons are its own
	default:
		host, port, hasPort = strings.Cut(text, ":")
		if !isHost(host) {
			return Endpoint{}, errors.New("must be a host name or an IP, with or without a :port")
		}
	}
	e := Endpoint{Network: "tcp", Host: host}
	if hasPort {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return Endpoint{}, errors.New("must have a port from 1 to 65535")
		}
		e.Port = int(n)
	}
	return e, nil
}

// parseSocketPath reads the path of a socket without a mark, with or without unix:
// before it. Base64 may start with a / too, so a password can: it must look like the
// path of a socket. The result is false if text starts like none.
func parseSocketPath(text string) (e Endpoint, isPath bool, err error) {
	path := strings.TrimPrefix(text, "unix:")
	if !strings.HasPrefix(path, "/") {
		return Endpoint{}, false, nil
	}
	known := strings.HasSuffix(path, ".sock") || strings.HasSuffix(path, ".socket")
	for _, folder := range []string{"/run/", "/var/", "/tmp/", "/private/"} {
		known = known || strings.HasPrefix(path, folder)
	}
	if !known || strings.HasPrefix(path, "//") || strings.ContainsAny(path, "@:?#=;") {
		return Endpoint{}, true, errors.New("starts like the path of a unix socket: write it as !/run/redis.sock, " +
			"or as unix:///run/redis.sock?db=1 (its text is withheld, as it may be part of a password)")
	}
	e, err = socket(path)
	return e, true, err
}

// mayBeHost reports whether a host may have the name of an option, bare or with a
// port. Those that are not named here have a number or a secret for their value: with
// a port they are much rather an option whose = was mistyped.
func mayBeHost(name string, hasPort bool) bool {
	bare := []string{"host", "hostname", "server", "servers", "endpoint", "endpoints", "address", "addresses"}
	withPort := []string{"addr", "database", "db", "defaults", "name", "network", "proxy", "tunnel", "user", "username", "version"}
	return canonical(name, bare) != "" || hasPort && canonical(name, withPort) != ""
}

// checkName refuses a host, whose port was given or is taken from the scheme, that is
// much rather an option.
func (e Endpoint) checkName() error {
	if e.Network == "tcp" && knownOption(e.Host) != "" && !mayBeHost(e.Host, true) {
		return errors.New("must not have the name of an option")
	}
	return nil
}

func socket(path string) (Endpoint, error) {
	if path == "" {
		return Endpoint{}, errors.New("must not be empty")
	}
	e := Endpoint{Network: "unix"}
	if err := setText(&e.Host, path); err != nil {
		return Endpoint{}, err
	}
	return e, nil
}

// isUnmistakable reports whether a parsed endpoint, whose port is 0 if it was not
// given, can hardly be anything else, such as the tail of a password.
func (e Endpoint) isUnmistakable() bool {
	if e.Network == "unix" {
		return strings.HasPrefix(e.Host, "/")
	}
	return e.Port != 0 || isIP(e.Host) || strings.EqualFold(e.Host, "localhost") || hasDomain(e.Host)
}

// hasDomain reports whether the host ends in a dot and a name of two letters or
// more, as domains do and the digits and short runs of a password seldom.
func hasDomain(host string) bool {
	host = strings.TrimSuffix(host, ".")
	domain := host[strings.LastIndexByte(host, '.')+1:]
	return len(domain) >= 2 && len(domain) < len(host) && only(domain, isLetter)
}

// isAzure reports whether the endpoint is a cache of Azure, of any kind.
func (e Endpoint) isAzure() bool {
	return e.isAzureManaged() || e.inDomain(
		".redis.cache.windows.net",
		".redis.cache.chinacloudapi.cn",
		".redis.cache.usgovcloudapi.net",
		".redis.cache.cloudapi.de",
	)
}

// isAzureManaged reports whether the endpoint is an Azure Managed Redis, which
// speaks TLS unless told otherwise.
func (e Endpoint) isAzureManaged() bool {
	return e.inDomain(
		".redis.azure.net",
		".redis.chinacloudapi.cn",
		".redis.usgovcloudapi.net",
		".redis.sovcloud-api.de",
		".redis.sovcloud-api.fr",
		".redisenterprise.cache.azure.net",
	)
}

func (e Endpoint) inDomain(suffixes ...string) bool {
	if e.Network != "tcp" {
		return false
	}
	host := strings.ToLower(strings.TrimSuffix(e.Host, "."))
	for _, suffix := range suffixes {
		if strings.HasSuffix(host, suffix) {
			return true
		}
	}
	return false
}

func isIP(s string) bool {
	addr, err := netip.ParseAddr(s)
	return err == nil && (addr.Is4() || isIPv6(s))
}

// isIPv6 also takes a zone, as in fe80::1%eth0, which netip lets hold anything.
func isIPv6(s string) bool {
	addr, err := netip.ParseAddr(s)
	return err == nil && addr.Is6() && (addr.Zone() == "" || isName(addr.Zone()))
}

// isHost reports whether s is an IPv4 or a plausible host name. Digits and dots
// alone are no name: they are a mistyped IPv4, or a port after a comma.
func isHost(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	if only(s, func(c byte) bool { return isDigit(c) || c == '.' }) {
		return isIP(s)
	}
	for label := range strings.SplitSeq(strings.TrimSuffix(s, "."), ".") {
		valid := only(label, func(c byte) bool { return isLetter(c) || isDigit(c) || c == '-' || c == '_' })
		if label == "" || len(label) > 63 || label[0] == '-' || !valid {
			return false
		}
	}
	return true
}

func only(s string, allowed func(byte) bool) bool {
	for i := range len(s) {
		if !allowed(s[i]) {
			return false
		}
	}
	return true
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

func isLetter(c byte) bool { return 'a' <= c|0x20 && c|0x20 <= 'z' }
