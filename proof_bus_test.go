package nearcache

import (
	"context"
	"sync"
	"time"

	"github.com/nearcache/nearcache/internal/fakebus"
)

// proofBus is one instance's end of the fake bus as a backplane wants it, and
// notes what goes by.
type proofBus struct {
	in      *fakebus.Instance
	self    instanceID
	actor   string
	journal *proofJournal

	mu         sync.Mutex // guards everything below
	redials    int
	subscribed int
	confirmed  time.Duration // when the newest subscription was
	echoed     time.Duration // when the first echo came over it; 0: none yet
}

var _ bus = (*proofBus)(nil)

// first is what Connect waits for; the network is well then.
func (b *proofBus) first(ctx context.Context, attempt func(context.Context) error) error {
	return attempt(ctx)
}

func (b *proofBus) subscribe(ctx context.Context) (subscription, error) {
	s, err := b.in.Subscribe(ctx)
	b.journal.log(b.actor, "subscribes: %t", err == nil)
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.subscribed++
	b.confirmed, b.echoed = b.journal.now(), 0
	return &proofSubscription{Subscription: s, bus: b}, nil
}

func (b *proofBus) publish(ctx context.Context, body string) error {
	err := b.in.Publish(ctx, string(appendHead(nil, kindInvalidation, b.self)), body)
	if err != nil {
		b.journal.log(b.actor+"/pub", "publishes in vain")
	}
	return err
}

func (b *proofBus) redial() {
	b.journal.log(b.actor+"/redial", "redials") // beside what is received at that instant
	b.mu.Lock()
	b.redials++
	b.mu.Unlock()
	b.in.Redial()
}

func (b *proofBus) close() { b.in.Redial() }

// warmSince reports whether, before a read, an echo had come over a second or later
// subscription, and returns when that was confirmed: what is held from before then
// was kept over a reconnect.
func (b *proofBus) warmSince(read time.Duration) (confirmed time.Duration, warm bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.confirmed, b.subscribed > 1 && b.echoed > 0 && b.echoed < read
}

type proofSubscription struct {
	*fakebus.Subscription
	bus *proofBus
}

func (s *proofSubscription) probe(ctx context.Context, nonce string) error {
	err := s.Probe(ctx, string(appendHead(nil, kindEcho, s.bus.self)), nonce)
	if err != nil {
		s.bus.journal.log(s.bus.actor+"/probe", "probes in vain")
	}
	return err
}

func (s *proofSubscription) receive() (string, error) {
	payload, err := s.Receive()
	b := s.bus
	kind := byte('?')
	if len(payload) > len(magic) {
		kind = payload[len(magic)]
	}
	b.journal.log(b.actor, "receives %c %v", kind, err)
	b.mu.Lock()
	defer b.mu.Unlock()
	if kind == kindEcho && b.echoed == 0 {
		b.echoed = b.journal.now()
	}
	return payload, err
}

func (s *proofSubscription) close() { s.Close() }
