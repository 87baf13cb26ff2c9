package nearcache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

// answer is an error that Redis answered with.
type answer string

func (a answer) Error() string { return string(a) }
func (answer) RedisError()     {}

// Only a connection that turned out to be dead makes a second attempt worth while
// at once: after a timeout the caller has waited long enough.
func TestConnectionLost(t *testing.T) {
	for err, want := range map[error]bool{
		io.EOF:        true,
		net.ErrClosed: true,
		fmt.Errorf("write: %w", io.ErrUnexpectedEOF): true,
		os.ErrDeadlineExceeded:                       false,
		context.DeadlineExceeded:                     false,
		answer("OOM command not allowed"):            false,
	} {
		require.Equal(t, want, connectionLost(err), "%v", err)
	}
}

func TestRefused(t *testing.T) {
	for err, want := range map[error]bool{
		answer("WRONGPASS invalid username-password pair"):                true,
		answer("ERR DB index is out of range"):                            true,
		fmt.Errorf("SUBSCRIBE: %w", answer("NOPERM no permission")):       true,
		answer("LOADING Redis is loading the dataset in memory"):          false,
		answer("READONLY You can't write against a read only replica."):   false,
		answer("OOM command not allowed when used memory > 'maxmemory'."): false,
		answer("NOREPLICAS Not enough good replicas to write."):           false,
		answer("MISCONF Redis is configured to save RDB snapshots"):       false,
		answer("ERR max number of clients reached"):                       false,
		&net.OpError{Op: "dial", Err: errors.New("connection refused")}:   false,
		context.DeadlineExceeded:                                          false,
	} {
		require.Equal(t, want, refused(err), "%v", err)
	}
}
