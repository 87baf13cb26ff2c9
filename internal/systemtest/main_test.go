package systemtest

import (
	"os"
	"testing"

	"github.com/redis/go-redis/v9"
	"go.uber.org/goleak"
)

// TestMain runs the tests and then checks that no goroutine is left. With
// childVariable set the process is no test at all but an instance that a test has
// started, see child.
func TestMain(m *testing.M) {
	if connection, set := os.LookupEnv(childVariable); set {
		os.Exit(runChild(connection))
	}
	redis.SetLogger(&clientLog) // go-redis logs to stderr otherwise
	goleak.VerifyTestMain(m)
}
