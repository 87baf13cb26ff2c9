package model

import "fmt"

// receive emits the state after instance i has handled its next message.
func (m *machine) receive(s *state, i int) {
	t := *s
	in := &t.instance[i]
	if in.toClear {
		in.toClear = false
		m.clear(&t, i)
		m.emit(&t, func() string { return fmt.Sprintf("%s clears everything", name(i)) })
		return
	}
	if in.messages == 0 {
		return
	}
	msg := in.inbox[0]
	copy(in.inbox[:], in.inbox[1:])
	in.messages--
	in.inbox[maxInbox-1] = message{}

	missed := false
	switch {
	case m.ignored(msg):
		m.see(ForgeryIgnored)
	case msg.kind == invalidation:
		missed = m.follow(&t, i, msg)
	case msg.kind == echo:
		missed = m.confirm(&t, i, msg)
	case msg.kind == garbage:
		missed = true
		in.position = absent
		m.clear(&t, i)
	}
	m.emit(&t, func() string {
		text := fmt.Sprintf("%s receives the %v", name(i), msg)
		if missed {
			text += fmt.Sprintf("; it was at %v: something was missed", place{s.instance[i].position, s.instance[i].history})
		}
		if t.instance[i].toClear {
			text += ", it renews its lease and is about to clear"
		}
		return text
	})
}

// ignored reports whether a message shows itself to be forged, to an instance that
// looks.
func (m *machine) ignored(msg message) bool {
	switch {
	case msg.forgery == noProbeOfNonce:
		return m.on(EchoOfProbe)
	case msg.forgery == wrongChannel && msg.kind == echo:
		return m.on(EchoFromOwnChannel)
	case msg.forgery == wrongChannel:
		return m.on(MessageFromChannel)
	}
	return false
}

// follow applies an invalidation, and reports whether one before it was missed.
func (m *machine) follow(t *state, i int, msg message) (missed bool) {
	in := &t.instance[i]
	missed = m.on(MessageChain) && !m.same(msg.previous, in.position)
	in.position = msg.own
	if missed {
		m.clear(t, i)
	} else if !m.passesOver(i, msg) {
		m.invalidate(t, i, msg.names)
	}
	return missed
}

// passesOver reports whether instance i takes a message for its own, whose local part
// is done. (The library applies one of its own that comes a second time, or that it
// published before its present subscription. That can only make an entry go earlier.)
func (m *machine) passesOver(i int, msg message) bool {
	if m.Clones && !m.on(OwnByNonce) {
		return msg.from != Elsewhere
	}
	own := int(msg.from) == i
	if own {
		m.see(OwnPassedOver)
	}
	return own
}

// confirm takes an echo, and with it a lease, and reports whether an invalidation
// before it was missed.
func (m *machine) confirm(t *state, i int, msg message) (missed bool) {
	in := &t.instance[i]
	missed = m.on(EchoComparison) && !m.same(msg.own, in.position)
	missed = missed || m.on(HistoryID) && msg.history != in.history
	missed = missed || m.on(ClearOnReconnectWithoutHistory) && msg.history == 0 && in.unproven
	first := in.unproven
	in.position, in.history, in.unproven = msg.own, msg.history, false
	if missed && m.on(ClearBeforeLease) {
		m.clear(t, i)
	}
	in.toClear = missed && !m.on(ClearBeforeLease)
	from := msg.sent
	if !m.on(LeaseFromSendTime) {
		from = t.now
	}
	if m.young(from, t.now) {
		in.lease = max(in.lease, from)
	}
	if first && in.entry.held && m.leased(in, t.now) && !m.young(in.entry.start, t.now) {
		m.see(WarmReconnect)
	}
	return missed
}

// same reports whether two positions are one.
func (m *machine) same(a, b position) bool {
	return a == b && (a != absent || !m.on(AbsentNeverEquals))
}

// clear advances the generation of instance i, since something was missed.
func (m *machine) clear(t *state, i int) {
	in := &t.instance[i]
	if m.on(ClearOnGap) && in.entry.held {
		in.entry = entry{}
		m.see(GapCleared)
	}
	if m.on(GapForgetsFlights) {
		in.fenceFlights(gap)
	}
	if m.on(GapTripsUpdates) {
		m.fenceUpdates(t, i, gap)
	}
}

// invalidate evicts what an invalidation names from instance i, and fences the
// loads and Updates that are under way there.
func (m *machine) invalidate(t *state, i int, names target) {
	in := &t.instance[i]
	if in.entry.held && m.evictsHere(names, in.entry.version) {
		in.entry = entry{}
	}
	in.fenceFlights(names)
	m.fenceUpdates(t, i, names)
}

// evictsHere is evicts, as far as the instance goes by it.
func (m *machine) evictsHere(names target, v version) bool {
	if m.notFound(v) && !m.on(NotFoundInEveryRegion) {
		names &^= anyRegion
	}
	return m.evicts(names, v)
}

func (in *instance) fenceFlights(names target) {
	for k := range in.flights {
		if f := &in.flights[k]; f.phase != noFlight && f.phase != putting {
			f.fence |= names
		}
	}
}

func (m *machine) fenceUpdates(t *state, i int, names target) {
	for w, who := range m.Writers {
		u := &t.writer[w]
		if int(who.Home) == i && u.op == Update && (u.phase == fenced || u.phase == written) {
			u.fence |= names
		}
	}
}

// probe emits the sending of a probe by instance i, and its execution by Redis.
func (m *machine) probe(s *state, i int) {
	in := &s.instance[i]
	for k := range in.probes {
		if in.probes[k].pending {
			m.runProbe(s, i, k)
			continue
		}
		if s.left.Probes > 0 {
			t := *s
			t.left.Probes--
			t.instance[i].probes[k] = probe{pending: true, sent: t.now}
			m.emit(&t, func() string { return fmt.Sprintf("%s sends a probe", name(i)) })
		}
		break
	}
}

// runProbe emits the execution of one probe. Redis sends the echo to whatever
// subscription the instance has by then.
func (m *machine) runProbe(s *state, i, k int) {
	t := *s
	in := &t.instance[i]
	if p := &in.probes[k]; !m.on(ProbeIsAtomic) && !p.halfRun {
		p.halfRun, p.history = true, t.master.history
		m.emit(&t, func() string { return fmt.Sprintf("%s reads the history: h%d", name(i), p.history) })
		return
	}
	p := in.probes[k]
	in.probes[k] = in.probes[1]
	in.probes[1] = probe{}

	at := t.master
	if in.link == toDemoted {
		if m.refuses(ProbeNeedsWrite, ProbeNeedsMaster) {
			m.see(Refused)
			m.emit(&t, func() string { return fmt.Sprintf("the old master refuses %s's probe", name(i)) })
			return
		}
		at = t.demoted
	} else if at.position == absent && m.on(MintIfAbsent) {
		at.position = t.mint()
		t.master = at
		m.see(PositionMinted)
	}
	dropped := in.link != toDemoted && m.dropClears(&t.master)
	if p.late && in.link != broken {
		m.see(LateEcho)
	}
	msg := message{kind: echo, own: at.position, history: at.history, sent: p.sent}
	if p.halfRun {
		msg.history = p.history
	}
	if m.on(EchoOnSubscription) {
		m.deliver(&t, i, msg)
	} else {
		m.confirm(&t, i, msg)
	}
	m.emit(&t, func() string {
		text := fmt.Sprintf("Redis runs %s's probe, sent at %d: %v%s", name(i), p.sent, at, fateText(&s.instance[i], in))
		if dropped {
			text += "; it drops the clears, which are of another history"
		}
		return text
	})
}

// fateText tells if a message to an instance went nowhere.
func fateText(before, after *instance) string {
	switch {
	case before.link == broken:
		return "; the echo goes nowhere"
	case after.link == broken:
		return "; too much is waiting, the connection breaks"
	}
	return ""
}

// refuses reports whether the old master refuses a script that goes by two rules: one
// for servers that take no writes, and one for those that say they are replicas.
func (m *machine) refuses(write, master Rule) bool {
	return !m.Writable && m.on(write) || !m.Isolated && m.on(master)
}

// mint makes a position unlike any other.
func (t *state) mint() position {
	t.minted++
	return t.minted
}
