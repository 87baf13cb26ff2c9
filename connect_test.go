package nearcache

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache/internal/fakebus"
	"github.com/nearcache/nearcache/internal/transport"
)

// What a stand-in for Redis asks of the caches changes nothing unless it asks for it.
func TestStandIn(t *testing.T) {
	for name, asks := range map[string]bool{"as in production": false, "to be replayed": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				bus := fakebus.New(fakebus.Options{Instances: 1})
				defer bus.Close()
				in := bus.Instance(0)
				bp, err := Connect(transport.WithStandIn(t.Context(), transport.StandIn{
					Bus: in.Bus(), Random: in.Jitter, FullStaleness: asks, NoBreaker: asks,
				}), BackplaneOptions{Logger: slog.New(slog.DiscardHandler)})
				require.NoError(t, err)
				defer bp.Close()
				c := sharedNumbers(t, bp, itself)
				require.Equal(t, asks, c.local.freshLeaseAge == c.local.staleness)

				var attempts int
				for range 2 * mostFailures {
					_ = c.loader.shared.redis.attempt(t.Context(), func(context.Context) error {
						attempts++
						return errRefused
					})
				}
				if asks {
					require.Equal(t, 2*mostFailures, attempts)
				} else {
					require.Equal(t, mostFailures, attempts)
				}
			})
		})
	}
}
