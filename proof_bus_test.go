package nearcache

import (
	"context"
	"sync"
	"time"

	"github.com/nearcache/nearcache/internal/fakebus"
	"github.com/nearcache/nearcache/internal/transport"
)

// proofBus is one instance's way to the fake bus, and notes what goes by.
type proofBus struct {
	transport.Bus
	in      *fakebus.Instance
	actor   string
	journal *proofJournal

	mu         sync.Mutex // guards everything below
	redials    int
	subscribed int
	confirmed  time.Duration // when the newest subscription was
	echoed     time.Duration // when the first echo came over it; 0: none yet
}

func newProofBus(in *fakebus.Instance, actor string, journal *proofJournal) *proofBus {
	return &proofBus{Bus: in.Bus(), in: in, actor: actor, journal: journal}
}

func (b *proofBus) Subscribe(ctx context.Context, as transport.Identity) (transport.Subscription, error) {
	s, err := b.Bus.Subscribe(ctx, as)
	b.journal.log(b.actor, "subscribes: %t", err == nil)
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.subscribed++
	b.confirmed, b.echoed = b.journal.now(), 0
	return &proofSubscription{s, b}, nil
}

func (b *proofBus) Publish(ctx context.Context, m transport.Message) error {
	err := b.Bus.Publish(ctx, m)
	if err != nil {
		b.journal.log(b.actor+"/pub", "publishes in vain")
	}
	return err
}

func (b *proofBus) Redial() {
	b.journal.log(b.actor+"/redial", "redials") // beside what is received at that instant
	b.mu.Lock()
	b.redials++
	b.mu.Unlock()
	b.Bus.Redial()
}

// warmSince reports whether, before a read, an echo had come over a second or later
// subscription, and returns when that was confirmed: what is held from before then
// was kept over a reconnect.
func (b *proofBus) warmSince(read time.Duration) (confirmed time.Duration, warm bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.confirmed, b.subscribed > 1 && b.echoed > 0 && b.echoed < read
}

type proofSubscription struct {
	transport.Subscription
	bus *proofBus
}

func (s *proofSubscription) Probe(ctx context.Context, nonce string) error {
	err := s.Subscription.Probe(ctx, nonce)
	if err != nil {
		s.bus.journal.log(s.bus.actor+"/probe", "probes in vain")
	}
	return err
}

func (s *proofSubscription) Receive() (payload string, own bool, err error) {
	payload, own, err = s.Subscription.Receive()
	b := s.bus
	kind := byte('?')
	if len(payload) > len(magic) {
		kind = payload[len(magic)]
	}
	b.journal.log(b.actor, "receives %c %v", kind, err)
	b.mu.Lock()
	defer b.mu.Unlock()
	if own && kind == kindEcho && b.echoed == 0 {
		b.echoed = b.journal.now()
	}
	return payload, own, err
}
