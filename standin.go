package nearcache

import (
	"context"

	"github.com/nearcache/nearcache/internal/transport"
)

// joinStandIn makes a backplane on what stands in for Redis: that of package
// nearcachetest, which alone can ask for it (see transport.WithStandIn). The
// options that say where Redis is have no meaning here.
func joinStandIn(ctx context.Context, o BackplaneOptions, s transport.StandIn) (*Backplane, error) {
	bp, err := joinBus(ctx, o, s.Bus, simulatedIdentity(s.Instance, s.Random), s.Random)
	if err != nil {
		return nil, err
	}
	bp.channel = o.Channel
	bp.fullStaleness, bp.noBreaker = s.FullStaleness, s.NoBreaker
	return bp, nil
}
