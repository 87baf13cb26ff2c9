package redisbus

import (
	"context"
	"testing"

	"github.com/redis/go-redis/v9"
	"go.uber.org/goleak"
)

// TestMain runs the tests and then checks that no goroutine is left.
func TestMain(m *testing.M) {
	redis.SetLogger(quiet{}) // go-redis logs to stderr otherwise
	goleak.VerifyTestMain(m)
}

type quiet struct{}

func (quiet) Printf(context.Context, string, ...any) {}
