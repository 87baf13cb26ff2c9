package nearcachetest_test

import (
	"testing"

	"go.uber.org/goleak"
)

// A fleet leaves no goroutine behind.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
