package proof

import (
	"context"
	"sync"
	"time"

	"github.com/nearcache/nearcache/internal/fakebus"
	"github.com/nearcache/nearcache/internal/messagetest"
	"github.com/nearcache/nearcache/internal/transport"
)

// bus is one instance's way to the fake bus, and notes what goes by.
type bus struct {
	transport.Bus
	in      *fakebus.Instance
	actor   string
	journal *journal

	mu         sync.Mutex // guards everything below
	redials    int
	subscribed int
	id         [16]byte      // of the newest subscription, see identity
	confirmed  time.Duration // when the newest subscription was
	echoed     time.Duration // when the first echo came over it; 0: none yet
}

func newBus(in *fakebus.Instance, actor string, journal *journal) *bus {
	return &bus{Bus: in.Bus(), in: in, actor: actor, journal: journal}
}

func (b *bus) Subscribe(ctx context.Context, as transport.Identity) (transport.Subscription, error) {
	s, err := b.Bus.Subscribe(ctx, as)
	b.journal.log(b.actor, "subscribes: %t", err == nil)
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.subscribed++
	b.id = as.ID
	b.confirmed, b.echoed = b.journal.now(), 0
	return &subscription{s, b}, nil
}

func (b *bus) Publish(ctx context.Context, m transport.Message) error {
	err := b.Bus.Publish(ctx, m)
	if err != nil {
		b.journal.log(b.actor+"/pub", "fails to publish")
	}
	return err
}

func (b *bus) Redial() {
	b.journal.log(b.actor+"/redial", "redials") // beside what is received at that instant
	b.mu.Lock()
	b.redials++
	b.mu.Unlock()
	b.Bus.Redial()
}

// identity returns the id that everybody can see in the name of the instance's own
// channel. It is zero until the first subscription.
func (b *bus) identity() [16]byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.id
}

// warmSince reports whether, before a read, an echo had come over a second or later
// subscription, and returns when that was confirmed: what is held from before then
// was kept over a reconnect.
func (b *bus) warmSince(read time.Duration) (confirmed time.Duration, warm bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.confirmed, b.subscribed > 1 && b.echoed > 0 && b.echoed < read
}

type subscription struct {
	transport.Subscription
	bus *bus
}

func (s *subscription) Probe(ctx context.Context, nonce string) error {
	err := s.Subscription.Probe(ctx, nonce)
	if err != nil {
		s.bus.journal.log(s.bus.actor+"/probe", "fails to probe")
	}
	return err
}

func (s *subscription) Receive() (payload string, own bool, err error) {
	payload, own, err = s.Subscription.Receive()
	b := s.bus
	kind := byte('?')
	if len(payload) > len(messagetest.Magic) {
		kind = payload[len(messagetest.Magic)]
	}
	b.journal.log(b.actor, "receives %c %v", kind, err)
	b.mu.Lock()
	defer b.mu.Unlock()
	if own && kind == messagetest.KindEcho && b.echoed == 0 {
		b.echoed = b.journal.now()
	}
	return payload, own, err
}
