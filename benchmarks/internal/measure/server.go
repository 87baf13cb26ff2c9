// Package measure holds what the measurements share: a Redis of their own, and a
// way to print what several runs found.
package measure

import (
	"os"

	"github.com/nearcache/nearcache/internal/redistest"
)

// StartServer starts a redis-server on a free port and returns when it accepts
// connections. The error wraps exec.ErrNotFound where redis-server is not installed.
func StartServer() (*redistest.Server, error) { return redistest.Launch(os.TempDir()) }
