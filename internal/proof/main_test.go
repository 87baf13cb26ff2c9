package proof

import (
	"testing"

	"go.uber.org/goleak"
)

// TestMain runs the tests and then checks that no goroutine is left.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
