package model

import "fmt"

// publish emits the steps of the scripts of writer w: Redis runs one, soon or
// late; its publisher gets no answer, and sends another.
func (m *machine) publish(s *state, w int) {
	for k := range s.writer[w].scripts {
		switch c := &s.writer[w].scripts[k]; {
		case c.phase == noScript:
			continue
		case c.phase == onItsWay && !m.on(PublishIsAtomic):
			m.readPosition(s, w, k)
		default:
			m.runScript(s, w, k)
		}
		m.runScriptOnDemoted(s, w, k)
		m.giveUp(s, w, k)
	}
}

// send puts the publish script of writer w on its way to Redis. It stays there
// for any time, so that sending it at once leaves nothing out.
func (m *machine) send(t *state, w int) {
	u := &t.writer[w]
	if !m.on(PositionMintedInScript) && u.position == absent {
		u.position = t.mint()
	}
	k := u.freeScript()
	u.scripts[k] = script{phase: onItsWay, awaited: true, own: u.position, version: u.version, names: ops[u.op].names, all: u.op == ClearAll}
}

func (u *writer) freeScript() int {
	for k := range u.scripts {
		if u.scripts[k].phase == noScript {
			return k
		}
	}
	return -1
}

// giveUp emits the end of a publisher's patience.
func (m *machine) giveUp(s *state, w, k int) {
	u := &s.writer[w]
	if s.left.Delays == 0 || !u.scripts[k].awaited || u.freeScript() < 0 {
		return
	}
	t := *s
	t.left.Delays--
	t.writer[w].scripts[k].awaited = false
	m.send(&t, w)
	m.emit(&t, func() string {
		return fmt.Sprintf("%s gets no answer in time and sends its message again; the first is still on its way", m.writerName(w))
	})
}

// readPosition emits the first half of a script that reads in one step and writes
// in another.
func (m *machine) readPosition(s *state, w, k int) {
	t := *s
	c := &t.writer[w].scripts[k]
	c.phase, c.previous = halfRun, t.master.position
	m.emit(&t, func() string {
		return fmt.Sprintf("%s's commands read the position: %v", m.writerName(w), c.previous)
	})
}

// runScript emits the execution of a script: it reads the position, makes and
// writes the next one, deletes from the shared level, and sends the message to
// whoever is subscribed.
func (m *machine) runScript(s *state, w, k int) {
	t := *s
	c := t.writer[w].scripts[k]
	t.writer[w].scripts[k] = script{}
	if c.phase == published {
		m.deleteShared(&t, c)
		m.answer(s, &t, w, c, func() string { return m.writerName(w) + "'s commands delete from the shared level" })
		return
	}
	previous := t.master.position
	if c.phase == halfRun {
		previous = c.previous
	}
	own := c.own
	if own == absent {
		own = t.mint()
	}
	t.master.position = own
	if m.Shared && !m.on(DeleteIsPublish) {
		m.accept(&t, w, c, toMaster, message{kind: invalidation, previous: previous, own: own})
		c.phase = published
		t.writer[w].scripts[k] = c
		m.emit(&t, func() string {
			return fmt.Sprintf("%s's commands publish: %v → %v%s", m.writerName(w), previous, own, versionText(c.version))
		})
		return
	}
	m.deleteShared(&t, c)
	m.accept(&t, w, c, toMaster, message{kind: invalidation, previous: previous, own: own})
	m.answer(s, &t, w, c, func() string {
		return fmt.Sprintf("Redis runs the script of %s: %v → %v%s", m.writerName(w), previous, own, versionText(c.version))
	})
}

// runScriptOnDemoted emits the execution of a script by a server that was the master.
func (m *machine) runScriptOnDemoted(s *state, w, k int) {
	if s.demoted.history == 0 || s.writer[w].scripts[k].phase != onItsWay {
		return
	}
	if m.refuses(PublishNeedsWrite, PublishNeedsMaster) {
		m.see(Refused) // and is sent again: nothing has changed
		return
	}
	t := *s
	c := t.writer[w].scripts[k]
	t.writer[w].scripts[k] = script{}
	own := t.mint()
	m.accept(&t, w, c, toDemoted, message{kind: invalidation, previous: t.demoted.position, own: own})
	m.answer(s, &t, w, c, func() string {
		return fmt.Sprintf("the old master runs the script of %s%s", m.writerName(w), versionText(c.version))
	})
}

// accept notes that Redis has accepted an invalidation, and sends it to everyone
// who is subscribed there.
func (m *machine) accept(t *state, w int, c script, where link, msg message) {
	if c.version != noVersion {
		if t.accepted[c.version] == never {
			t.accepted[c.version] = t.now
		} else {
			m.see(AcceptedTwice)
		}
	}
	msg.names, msg.from = c.names, m.Writers[w].Home
	for i := range m.Instances {
		if t.instance[i].link == where {
			m.deliver(t, i, msg)
		}
	}
}

// answer emits the two ends of a script that has run: its answer reaches the
// publisher, or is lost.
func (m *machine) answer(s, t *state, w int, c script, text func() string) {
	if !c.awaited {
		m.emit(t, func() string { return text() + ", late" })
		return
	}
	if s.left.LostReplies > 0 {
		lost := *t
		lost.left.LostReplies--
		m.send(&lost, w)
		m.emit(&lost, func() string { return text() + "; the answer is lost, and the message sent again" })
	}
	u := &t.writer[w]
	if m.localPartLast(w, u.op) {
		u.phase = late
	} else {
		*u = writer{scripts: u.scripts}
	}
	m.emit(t, text)
}

func versionText(v version) string {
	if v == noVersion {
		return ", another item's invalidation is accepted"
	}
	return fmt.Sprintf(", v%d's invalidation is accepted", v)
}
