package model

import "fmt"

// failMaster emits what can happen to Redis.
func (m *machine) failMaster(s *state) {
	if (m.Budget.Failovers > 0 || m.Lagging) && s.replica != s.master.data {
		t := *s
		t.replica = t.master.data
		m.emit(&t, func() string { return fmt.Sprintf("the replica catches up: %v", t.replica.position) })
	}
	if s.left.Failovers > 0 {
		t := *s
		t.left.Failovers--
		m.promote(&t, t.replica)
		if !m.Cluster {
			m.breakAll(&t)
		}
		m.emit(&t, func() string {
			return fmt.Sprintf("failover to the replica: %v, was %v%s", t.master, s.master, m.connectionsText())
		})
	}
	if s.left.Demotions > 0 {
		t := *s
		t.left.Demotions--
		t.demoted = t.master
		if m.Lagging {
			m.promote(&t, t.replica)
		} else {
			m.promote(&t, t.master.data)
		}
		for i := range m.Instances {
			if t.instance[i].link == toMaster {
				t.instance[i].link = toDemoted
			}
			for k := range t.instance[i].flights {
				if f := &t.instance[i].flights[k]; f.with == toMaster {
					f.with = toDemoted
				}
			}
		}
		m.emit(&t, func() string {
			return fmt.Sprintf("failover: %v; connections stay with the old master", t.master)
		})
	}
	if m.Shared && s.demoted.history != 0 && !m.Isolated {
		m.oldMaster(s)
	}
	if s.left.Restarts > 0 {
		t := *s
		t.left.Restarts--
		m.promote(&t, data{})
		m.breakAll(&t)
		m.emit(&t, func() string { return fmt.Sprintf("Redis restarts empty: %v", t.master) })
	}
	if s.left.Evictions > 0 && s.master.position != absent {
		t := *s
		t.left.Evictions--
		t.master.position = absent
		m.emit(&t, func() string { return "Redis evicts the position" })
	}
	if s.left.Losses > 0 {
		m.loseShared(s)
	}
}

// oldMaster emits what can happen to a demoted master that knows that it is one: it
// becomes a copy of the new one, with its history, or the master again.
func (m *machine) oldMaster(s *state) {
	if s.demoted != s.master {
		t := *s
		t.demoted = t.master
		m.emit(&t, func() string { return fmt.Sprintf("the old master becomes a copy of the new one: %v", t.demoted) })
	}
	if s.left.Failovers > 0 {
		t := *s
		t.left.Failovers--
		m.promote(&t, t.demoted.data)
		t.demoted = server{}
		for i := range m.Instances {
			in := &t.instance[i]
			if in.link == toMaster {
				disconnect(in)
			} else if in.link == toDemoted {
				in.link = toMaster
			}
			for k := range in.flights {
				if f := &in.flights[k]; f.with == toDemoted {
					f.with = toMaster
				}
			}
		}
		m.emit(&t, func() string {
			return fmt.Sprintf("failover to the old master: %v, was %v", t.master, s.master)
		})
	}
}

// promote makes a server the master: one that has the given data.
func (m *machine) promote(t *state, d data) {
	t.master.data, t.replica = d, d
	if !m.NoHistory {
		t.master.history++
	}
}

func (m *machine) connectionsText() string {
	if m.Cluster {
		return "; connections stay"
	}
	return "; connections break"
}

func (m *machine) breakAll(t *state) {
	for i := range m.Instances {
		disconnect(&t.instance[i])
	}
}

// disconnect breaks a subscription. What Redis had sent is lost with it.
func disconnect(in *instance) {
	in.link, in.unproven = broken, false
	in.inbox, in.messages = [maxInbox]message{}, 0
	for k := range in.probes {
		in.probes[k].late = in.probes[k].pending
	}
}

// connection emits what can happen to the connection of instance i, and to what
// is under way on it.
func (m *machine) connection(s *state, i int) {
	in := &s.instance[i]
	if in.link == broken {
		t := *s
		t.instance[i].link, t.instance[i].unproven = toMaster, true
		m.emit(&t, func() string { return fmt.Sprintf("%s subscribes again", name(i)) })
		return
	}
	if s.left.Drops > 0 || in.link == toDemoted { // the latter once its lease is lost, or at any time
		t := *s
		if in.link == toMaster {
			t.left.Drops--
		}
		disconnect(&t.instance[i])
		m.emit(&t, func() string { return fmt.Sprintf("%s's connection breaks", name(i)) })
	}
	if s.left.BusLosses > 0 && in.messages > 0 {
		t := *s
		t.left.BusLosses--
		u := &t.instance[i]
		u.messages--
		lost := u.inbox[u.messages]
		u.inbox[u.messages] = message{}
		m.emit(&t, func() string { return fmt.Sprintf("the %v to %s is lost on the way", lost, name(i)) })
	}
	if s.left.Reorders > 0 && in.messages > 1 {
		t := *s
		t.left.Reorders--
		u := &t.instance[i]
		last := u.messages - 1
		u.inbox[last], u.inbox[last-1] = u.inbox[last-1], u.inbox[last]
		m.emit(&t, func() string {
			return fmt.Sprintf("the %v to %s overtakes the %v", u.inbox[last-1], name(i), u.inbox[last])
		})
	}
	if s.left.Garbage > 0 {
		t := *s
		t.left.Garbage--
		m.deliver(&t, i, message{kind: garbage})
		m.emit(&t, func() string { return fmt.Sprintf("something undecodable is sent to %s", name(i)) })
	}
	m.forge(s, i)
}

// forge emits the messages that a hostile user can make for instance i: those that
// say what the instance would like to hear. What makes it clear costs the bound
// nothing.
func (m *machine) forge(s *state, i int) {
	in := &s.instance[i]
	if s.left.Forgeries == 0 || in.link == broken {
		return
	}
	send := func(what string, msg message) {
		t := *s
		t.left.Forgeries--
		m.deliver(&t, i, msg)
		m.emit(&t, func() string { return fmt.Sprintf("a hostile user sends %s the forged %v%s", name(i), msg, what) })
	}
	untroubled := message{kind: echo, own: in.position, history: in.history, sent: s.now, forgery: noProbeOfNonce}
	instead := message{kind: invalidation, previous: in.position, own: s.master.position, from: Elsewhere}
	switch m.Hostile {
	case OnOwnChannels:
		send(", with a nonce of its own", untroubled)
		instead.forgery = wrongChannel
		send(", on its own channel", instead)
	case OnChannel:
		untroubled.forgery = wrongChannel
		for _, p := range in.probes {
			if untroubled.sent = p.sent; p.pending {
				send(", on the channel of invalidations", untroubled)
			}
		}
	case Messages:
		send("", instead)
	}
}

// deliver sends a message to one instance. Redis disconnects an instance for
// which too much is waiting.
func (m *machine) deliver(t *state, i int, msg message) {
	in := &t.instance[i]
	switch {
	case in.link == broken:
	case in.messages == m.Inbox:
		disconnect(in)
		m.see(Kicked)
	default:
		in.inbox[in.messages] = msg
		in.messages++
	}
}

// String describes a server.
func (s server) String() string { return place{s.position, s.history}.String() }

// place is a position and the history in which it is one.
type place struct {
	position position
	history  history
}

// String describes a place.
func (p place) String() string {
	if p.history == 0 {
		return p.position.String()
	}
	return fmt.Sprintf("%v in history h%d", p.position, p.history)
}

// String names a position.
func (p position) String() string {
	if p == absent {
		return "no position"
	}
	return fmt.Sprintf("p%d", uint8(p))
}

// String describes a message.
func (msg message) String() string {
	switch msg.kind {
	case invalidation:
		return fmt.Sprintf("message (%v → %v)", msg.previous, msg.own)
	case echo:
		return fmt.Sprintf("echo (%v, sent at %d)", place{msg.own, msg.history}, msg.sent)
	}
	return "undecodable message"
}
