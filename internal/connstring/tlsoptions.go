package connstring

import (
	"errors"
	"strconv"
	"strings"
)

// setTLSOption applies the options that say how servers are verified, and which
// versions of TLS may be spoken. What they can ask for without making the connection
// less safe than it is anyway is accepted. The name is "" if key is none of them.
func (b *builder) setTLSOption(key, value string) (name string, err error) {
	const byConfig = "set Redis.TLSConfig, or name the authority by SSL_CERT_FILE in the environment"
	switch key = strings.ToLower(key); key {
	case "sslprotocols":
		return "sslProtocols", setProtocols(&b.cfg.TLS13, value)
	case "checkcertificaterevocation":
		return "checkCertificateRevocation", harmless("false", value, "revocation lists are not consulted: leave it out")
	case "ssl_cert_reqs":
		// In redis-py, and so in Celery and Django, a client that has optional still
		// verifies.
		return key, oneOf(value, []string{"required", "optional", "cert_required", "cert_optional"},
			"certificates are always verified: leave it out, and "+byConfig)
	case "ssl_check_hostname":
		return key, harmless("true", value, "the certificate's name is always verified: leave it out, and give the name by sslHost")
	case "skip_verify", "insecure", "insecure_skip_verify", "insecureskipverify", "tls_skip_verify":
		return key, harmless("false", value, "certificates are always verified: leave it out, and "+byConfig)
	case "rejectunauthorized":
		return "rejectUnauthorized", harmless("true", value, "certificates are always verified: leave it out, and "+byConfig)
	case "verifypeer":
		return "verifyPeer", oneOf(value, []string{"full", "true"},
			"the certificate and its name are always verified: leave it out, and "+byConfig)
	// ssl_password, which unlocks a key, is a secret: no refusal shows a value.
	case "ssl_ca_certs", "ssl_ca_path", "ssl_ca_data", "ssl_certfile", "ssl_keyfile", "ssl_password",
		"ssl_ciphers", "ssl_min_version", "ssl_validate_ocsp", "ssl_validate_ocsp_stapled":
		return key, refusal{why: byConfig}
	}
	return "", nil
}

// harmless refuses a boolean other than the one that changes nothing.
func harmless(safe, value, why string) error {
	var given *bool
	if err := setBool(&given, value); value != "" && err != nil {
		return err
	}
	if given == nil || strconv.FormatBool(*given) != safe {
		return refusal{why: why, ofValue: true}
	}
	return nil
}

func oneOf(value string, safe []string, why string) error {
	if canonical(value, safe) == "" {
		return refusal{why: why, ofValue: true}
	}
	return nil
}

// The bits of System.Security.Authentication.SslProtocols.
const (
	tls12 = 3072
	tls13 = 12288
)

var lowerTLS = refusal{why: "TLS 1.2 is the lowest version that is spoken: write sslProtocols=tls12, or leave it out", ofValue: true}

// setProtocols reads .NET's SslProtocols: names that are joined by |, or the number.
// TLS 1.2 is the lowest version in any case, so what it must not do is to ask for a
// lower one. To ask for 1.3 alone makes that the lowest; to ask for 1.2 alone does
// not keep 1.3 from being spoken.
func setProtocols(tls13Alone *bool, value string) error {
	bits := 0
	for name := range strings.SplitSeq(strings.ToLower(value), "|") {
		name = strings.NewReplacer(".", "", "_", "", " ", "", "tlsv", "tls").Replace(name)
		switch name {
		case "none": // the choice is left to the client
		case "tls12":
			bits |= tls12
		case "tls13":
			bits |= tls13
		case "ssl2", "ssl3", "tls", "tls1", "tls10", "tls11", "default":
			return lowerTLS
		default:
			n, err := strconv.ParseUint(name, 10, 16)
			switch {
			case err != nil:
				return errors.New("must be tls12, tls13 or tls12|tls13")
			case n&^(tls12|tls13) != 0:
				return lowerTLS
			}
			bits |= int(n)
		}
	}
	*tls13Alone = bits&tls12 == 0 && bits&tls13 != 0
	return nil
}

// isProtocol reports whether a token without a value is the end of a list of TLS
// versions that commas separate.
func isProtocol(text string) bool {
	return canonical(text, []string{"tls10", "tls11", "tls12", "tls13", "ssl2", "ssl3"}) != ""
}
