package redisbus

import (
	"crypto/tls"
	"testing"

	"github.com/stretchr/testify/require"
)

// sslProtocols decides the lowest version of TLS, which is never below 1.2.
func TestConnectionStringTLSVersion(t *testing.T) {
	tests := []struct {
		connection string
		min        uint16
	}{
		{"h,ssl=true", tls.VersionTLS12},
		{"h,ssl=true,sslProtocols=tls12", tls.VersionTLS12},
		{"h,ssl=true,sslProtocols=tls12|tls13", tls.VersionTLS12},
		{"h,ssl=true,sslProtocols=tls13", tls.VersionTLS13},
		{"valkeys://h?sslProtocols=12288", tls.VersionTLS13},
		{`"h:6380,ssl=true,sslProtocols=3072";`, tls.VersionTLS12},
	}
	for _, test := range tests {
		t.Run(test.connection, func(t *testing.T) {
			s := newServer(t, Config{ConnectionString: test.connection})
			require.Equal(t, test.min, s.options.TLSConfig.MinVersion)
		})
	}
}
