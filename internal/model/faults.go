package model

import "fmt"

// failMaster emits what can happen to Redis.
func (m *machine) failMaster(s *state) {
	if m.Budget.Failovers > 0 && s.replica != s.master.position {
		t := *s
		t.replica = t.master.position
		m.emit(&t, func() string { return fmt.Sprintf("the replica catches up: %v", t.replica) })
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
		m.promote(&t, t.master.position)
		for i := range m.Instances {
			if t.instance[i].link == toMaster {
				t.instance[i].link = toDemoted
			}
		}
		m.emit(&t, func() string {
			return fmt.Sprintf("failover: %v; connections stay with the old master", t.master)
		})
	}
	if s.left.Restarts > 0 {
		t := *s
		t.left.Restarts--
		m.promote(&t, absent)
		m.breakAll(&t)
		m.emit(&t, func() string { return fmt.Sprintf("Redis restarts empty: %v", t.master) })
	}
	if s.left.Evictions > 0 && s.master.position != absent {
		t := *s
		t.left.Evictions--
		t.master.position = absent
		m.emit(&t, func() string { return "Redis evicts the position" })
	}
}

// promote makes a server the master: one that has the given position.
func (m *machine) promote(t *state, p position) {
	t.master.position, t.replica = p, p
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
func (s server) String() string {
	if s.history == 0 {
		return s.position.String()
	}
	return fmt.Sprintf("%v in history h%d", s.position, s.history)
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
		return fmt.Sprintf("echo (%v, sent at %d)", server{msg.own, msg.history}, msg.sent)
	}
	return "undecodable message"
}
