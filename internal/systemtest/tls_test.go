package systemtest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache"
	"github.com/nearcache/nearcache/internal/redistest"
)

// authority is a certificate authority of a test's own.
type authority struct {
	t      *testing.T
	key    *ecdsa.PrivateKey
	cert   *x509.Certificate
	dir    string
	serial int64
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t, dir: t.TempDir()}
	a.cert, a.key = a.issue("authority", &x509.Certificate{
		Subject: pkix.Name{CommonName: "nearcache test authority"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign,
	})
	return a
}

// issue writes a certificate and its key to files of a name. The first one is
// the authority's own.
func (a *authority) issue(name string, template *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(a.t, err)
	a.serial++
	template.SerialNumber = big.NewInt(a.serial)
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	require.NoError(a.t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(a.t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(a.t, err)
	for _, file := range []struct {
		suffix, kind string
		der          []byte
	}{{".crt", "CERTIFICATE", der}, {".key", "PRIVATE KEY", keyDER}} {
		text := pem.EncodeToMemory(&pem.Block{Type: file.kind, Bytes: file.der})
		require.NoError(a.t, os.WriteFile(a.file(name+file.suffix), text, 0o600))
	}
	return cert, key
}

func (a *authority) file(name string) string { return filepath.Join(a.dir, name) }

func (a *authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

// startRedis starts a server whose certificate is for a name, or an IP, only.
func (a *authority) startRedis(t *testing.T, host string) *redisProcess {
	t.Helper()
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: host}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if ip := net.ParseIP(host); ip != nil {
		template.IPAddresses = []net.IP{ip}
	} else {
		template.DNSNames = []string{host}
	}
	a.issue(host, template)
	return newRedisProcess(t, redistest.StartWith(t, func(port int) []string {
		return []string{
			"--port", "0", "--tls-port", strconv.Itoa(port), "--tls-auth-clients", "no",
			"--tls-ca-cert-file", a.file("authority.crt"),
			"--tls-cert-file", a.file(host + ".crt"), "--tls-key-file", a.file(host + ".key"),
		}
	}))
}

const otherName = "redis.example.test"

func TestTLSWithOptions(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	ca := newAuthority(t)
	server := ca.startRedis(t, "127.0.0.1")
	options := func(config *tls.Config) nearcache.BackplaneOptions {
		return nearcache.BackplaneOptions{Redis: &redis.UniversalOptions{
			Addrs: []string{server.addr}, TLSConfig: config, DialTimeout: 10 * time.Minute,
		}}
	}

	t.Run("the right authority", func(t *testing.T) {
		raw := rawClientWith(t, &redis.Options{Addr: server.addr, TLSConfig: &tls.Config{RootCAs: ca.pool()}})
		src := newSource()
		a := joinWith(t, src.load, options(&tls.Config{RootCAs: ca.pool()}))
		b := joinWith(t, src.load, options(&tls.Config{RootCAs: ca.pool(), ServerName: "127.0.0.1"}))
		b.get(t, "/1")
		require.NoError(t, a.items.Remove(ctx, "/1"))
		barrier(t, raw, a, b)
		assert.False(t, b.held("/1"))
	})

	t.Run("another authority", func(t *testing.T) {
		err := connectError(t, options(&tls.Config{RootCAs: newAuthority(t).pool()}))
		var unknown x509.UnknownAuthorityError
		assert.ErrorAs(t, err, &unknown)
		assert.ErrorContains(t, err, server.addr)
		assert.ErrorContains(t, err, "unknown authority")
	})

	t.Run("another name", func(t *testing.T) {
		err := connectError(t, options(&tls.Config{RootCAs: ca.pool(), ServerName: otherName}))
		var mismatch x509.HostnameError
		assert.ErrorAs(t, err, &mismatch)
		assert.ErrorContains(t, err, otherName)
	})

	t.Run("no TLS at the client", func(t *testing.T) {
		err := connectError(t, nearcache.BackplaneOptions{RedisConnectionString: server.addr + ",connectRetry=0"})
		assert.ErrorContains(t, err, server.addr)
	})

	t.Run("no TLS at the server", func(t *testing.T) {
		err := connectError(t, nearcache.BackplaneOptions{
			RedisConnectionString: startRedis(t).addr + ",ssl=true,connectRetry=0,connectTimeout=500",
		})
		assert.ErrorContains(t, err, "TLS handshake")
	})
}

// TestTLSWithConnectionString connects in processes of their own, since a process
// reads the system's authorities once and the test has to name its own there.
func TestTLSWithConnectionString(t *testing.T) {
	t.Parallel()
	if runtime.GOOS == "windows" || runtime.GOOS == "darwin" {
		t.Skip("SSL_CERT_FILE does not replace the system's authorities on " + runtime.GOOS)
	}
	ca := newAuthority(t)
	right, misnamed := ca.startRedis(t, "127.0.0.1"), ca.startRedis(t, otherName)
	trusted := ca.file("authority.crt")
	other := newAuthority(t).file("authority.crt")
	tests := []struct {
		name, connection, authority string
		says                        string // in Connect's error; empty: it succeeds
	}{
		{"the right authority", right.addr + ",ssl=True", trusted, ""},
		{"as a URL", "rediss://" + right.addr, trusted, ""},
		{"another authority", right.addr + ",ssl=True" + forever, other, "unknown authority"},
		{"another name", misnamed.addr + ",ssl=True" + forever, trusted, "127.0.0.1"},
		{"another name that sslHost knows", misnamed.addr + ",ssl=True,sslHost=" + otherName, trusted, ""},
		{"another name than sslHost says", right.addr + ",ssl=True,sslHost=" + otherName + forever, trusted, otherName},
	}
	url := newSource().serve(t)
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			env := []string{"SSL_CERT_FILE=" + test.authority, "SSL_CERT_DIR=" + t.TempDir()}
			c, connected := startChild(t, url, test.connection, env...)
			if test.says != "" {
				assert.Contains(t, connected.Error, "certificate")
				assert.Contains(t, connected.Error, test.says)
				return
			}
			require.Empty(t, connected.Error)
			require.Empty(t, c.do("remove", "/1").Error)
			assert.Empty(t, c.do("close").Error)
			assert.Zero(t, c.exit())
		})
	}
}
