package fakebus

import (
	"context"
	"time"

	"github.com/nearcache/nearcache/internal/transport"
)

// Subscription is one confirmed subscription to the fleet's channel and to the instance's
// own channel.
type Subscription struct {
	in       *Instance
	as       transport.Identity
	conn     *conn
	changed  chan struct{} // one token: next may return something else
	probing  link
	lifetime context.Context // ends with Close
	end      context.CancelFunc

	// Everything below is guarded by Bus.mu.
	inbox   []message
	due     time.Time // when the newest message arrives
	stalled time.Time // nothing arrives before that
}

type message struct {
	payload string
	own     bool // on the instance's own channel
	due     time.Time
	late    bool // to be overtaken by the next one
}

// Subscribe makes one attempt to subscribe, and to dial a connection for probes.
func (in *Instance) Subscribe(ctx context.Context, as transport.Identity) (*Subscription, error) {
	c, err := in.dial(ctx, subscribing)
	if err != nil {
		return nil, err
	}
	s := &Subscription{
		in: in, as: as, conn: c, changed: make(chan struct{}, 1), probing: link{in: in, purpose: probing},
	}
	s.lifetime, s.end = context.WithCancel(context.Background())
	ctx, cancel := context.WithTimeout(ctx, in.bus.options.CommandTimeout)
	defer cancel()
	err = in.exchange(ctx, c, subscribing, func() error {
		if c.err == nil && !c.astray { // the instance still waits; a stalled replica gets no messages
			in.subscriptions = append(in.subscriptions, s)
		}
		return nil
	})
	if err == nil {
		_, _, err = s.probing.get(ctx)
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// Probe makes one attempt to run the probe script, over a connection that it keeps.
func (s *Subscription) Probe(ctx context.Context, nonce string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.lifetime, cancel)()
	return s.probing.run(ctx, func() error { return s.in.bus.runProbeLocked(s.as, nonce) })
}

// Receive waits for the next payload, and reports whether it came on the instance's own
// channel. Only one goroutine may call it at a time.
func (s *Subscription) Receive() (payload string, own bool, err error) {
	for {
		m, wait, err := s.next()
		if wait == 0 {
			return m.payload, m.own, err
		}
		var due <-chan time.Time
		var timer *time.Timer
		if wait > 0 {
			timer = time.NewTimer(wait)
			due = timer.C
		}
		select {
		case <-s.changed:
		case <-due:
		case <-s.conn.ended:
		}
		if timer != nil {
			timer.Stop()
		}
	}
}

// next returns the next message, an error, or how long to wait. A negative wait is until
// something has changed.
func (s *Subscription) next() (m message, wait time.Duration, err error) {
	s.in.bus.mu.Lock()
	defer s.in.bus.mu.Unlock()
	if s.conn.err != nil {
		return m, 0, s.conn.err
	}
	if len(s.inbox) == 0 || s.in.muted[Down] || s.in.paused || s.conn.dead {
		return m, -1, nil
	}
	m = s.inbox[0]
	if m.late && len(s.inbox) == 1 {
		return m, -1, nil // until it is overtaken
	}
	if s.stalled.After(m.due) {
		m.due = s.stalled
	}
	if wait := time.Until(m.due); wait > 0 {
		return m, wait, nil
	}
	s.inbox = s.inbox[1:]
	return m, 0, nil
}

// Close ends the subscription, and a Probe and a Receive under way.
func (s *Subscription) Close() {
	s.end()
	s.in.bus.mu.Lock()
	defer s.in.bus.mu.Unlock()
	s.conn.endLocked(ErrReset)
	s.probing.closed = true
	s.probing.dropLocked()
	s.forgetLocked()
}

// forgetLocked makes Redis deliver nothing more to s.
func (s *Subscription) forgetLocked() {
	left := s.in.subscriptions[:0:0]
	for _, other := range s.in.subscriptions {
		if other != s {
			left = append(left, other)
		}
	}
	s.in.subscriptions = left
}

// deliverLocked sends one message to all subscriptions of the instance. If own is set, it
// sends it only to those whose own channel has that id.
func (in *Instance) deliverLocked(payload string, own *[16]byte) {
	var to []*Subscription
	for _, s := range in.subscriptions {
		if own == nil || s.as.ID == *own {
			to = append(to, s)
		}
	}
	if len(to) == 0 {
		return
	}
	copies := 1
	switch {
	case in.drop > 0:
		in.drop--
		return
	case in.duplicate > 0:
		in.duplicate--
		copies = 2
	}
	late := in.swap
	in.swap = false
	for _, s := range to {
		for range copies {
			s.deliverLocked(message{payload: payload, own: own != nil, late: late})
		}
	}
}

func (s *Subscription) deliverLocked(m message) {
	in := s.in
	if len(s.inbox) >= in.bus.options.OutputLimit {
		s.forgetLocked()
		in.cutConnLocked(s.conn, in.latencyLocked(delivering))
		return
	}
	// Messages of one connection arrive in order, and at different instants.
	due := time.Now().Add(in.slow + in.latencyLocked(delivering))
	if !due.After(s.due) {
		due = s.due.Add(in.momentLocked())
	}
	s.due = due
	m.due = due
	if last := len(s.inbox) - 1; last >= 0 && s.inbox[last].late {
		s.inbox[last].payload, m.payload = m.payload, s.inbox[last].payload
		s.inbox[last].own, m.own = m.own, s.inbox[last].own
		s.inbox[last].due, s.inbox[last].late, m.late = due, false, false
		s.due = due.Add(in.momentLocked())
		m.due = s.due
	}
	s.inbox = append(s.inbox, m)
	signal(s.changed)
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
