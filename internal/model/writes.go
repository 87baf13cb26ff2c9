package model

import (
	"fmt"
	"slices"
)

// write emits the next step of writer w, up to the sending of its message. A write
// is a change of the source and then a call, whose local part comes before its
// message; an Update is a call from its fence on.
func (m *machine) write(s *state, w int) {
	u := &s.writer[w]
	switch u.phase {
	case idle:
		if s.left.Writes == 0 || w > 0 && m.alike(s, w) {
			return
		}
		for _, op := range m.Writers[w].Does {
			if op == Update {
				m.beginUpdate(s, w)
			} else {
				m.writeSource(s, w, op)
			}
		}
	case fenced:
		m.writeSource(s, w, Update)
	case written, late:
		m.localPart(s, w)
	}
}

// beginUpdate emits the start of an Update, which is its fence and a local
// invalidation of the item. The bound does not need the latter, so that it is no
// rule here: whatever is kept or joined from here on falls to the Update's end.
func (m *machine) beginUpdate(s *state, w int) {
	t := *s
	t.left.Writes--
	m.invalidate(&t, int(m.Writers[w].Home), theItem)
	t.writer[w].phase, t.writer[w].op, t.writer[w].start = fenced, Update, t.now
	m.emit(&t, func() string { return fmt.Sprintf("%s: Update begins", m.writerName(w)) })
}

// writeSource emits a change of the source. Nobody else writes it between a Set's
// change and the end of its local part: that is the condition for using Set.
func (m *machine) writeSource(s *state, w int, op Op) {
	if op != RemoveOther && int(s.source)+1 == maxVersions {
		return
	}
	for i := range m.Writers {
		if o := &s.writer[i]; op != RemoveOther && o.phase == written && o.op == Set && !m.RacingSets {
			return
		}
	}
	t := *s
	u := &t.writer[w]
	if u.phase == idle {
		t.left.Writes--
	}
	u.phase, u.op, u.version = written, op, noVersion
	if op != RemoveOther {
		t.source++
		u.version = t.source
		t.named[t.source] = ops[op].names
	}
	if m.Writers[w].Home == Elsewhere || m.localPartLast(w, op) {
		u.phase = queued
		m.send(&t, w)
	}
	m.emit(&t, func() string {
		text := fmt.Sprintf("%s writes v%d to the source", m.writerName(w), t.source)
		if op == RemoveOther {
			text = fmt.Sprintf("%s writes another item to the source", m.writerName(w))
		}
		if t.writer[w].phase == queued {
			text += fmt.Sprintf("; %v sends its message", op)
		}
		return text
	})
}

// localPartLast reports whether a write sends its message first. (A Set or Update
// keeps its value, so that the order is no question there.)
func (m *machine) localPartLast(w int, op Op) bool {
	return m.Writers[w].Home != Elsewhere && op != Update && op != Set && !m.on(LocalPartFirst)
}

// localPart emits the local part of a write at its home, after which its message
// is sent.
func (m *machine) localPart(s *state, w int) {
	t := *s
	home, u := int(m.Writers[w].Home), &t.writer[w]
	fence := u.fence
	if u.op != Update || m.on(UpdateEndInvalidates) {
		m.invalidate(&t, home, ops[u.op].names)
	}
	kept := u.op == Set || u.op == Update && m.mayKeepUpdate(fence, u.version)
	if kept {
		e := entry{held: true, written: true, version: u.version, start: t.now}
		if u.op == Update && m.on(UpdateFenceFirst) && m.on(UpdateStartIsFence) {
			e.start = u.start
		}
		t.instance[home].entry = e
	}
	if u.op == Update && kept {
		m.see(UpdateKept)
	} else if u.op == Update {
		m.see(UpdateDiscarded)
	}
	sent := u.phase != late
	if sent {
		u.phase, u.fence, u.start = queued, 0, 0
		m.send(&t, w)
	} else {
		*u = writer{scripts: u.scripts}
	}
	m.emit(&t, func() string {
		text := fmt.Sprintf("%s: %v's local part", m.writerName(w), s.writer[w].op)
		switch {
		case kept:
			text += fmt.Sprintf(" keeps v%d", s.writer[w].version)
		case s.writer[w].op == Update:
			text += fmt.Sprintf(" does not keep v%d", s.writer[w].version)
		}
		if sent {
			text += "; it sends its message"
		}
		return text
	})
}

// alike reports whether starting this writer is no different from starting the
// one before it.
func (m *machine) alike(s *state, w int) bool {
	a, b := m.Writers[w-1], m.Writers[w]
	return s.writer[w-1] == s.writer[w] && a.Home == b.Home && slices.Equal(a.Does, b.Does)
}

// mayKeepUpdate reports whether nothing else has invalidated an Update's value
// since its start. Without the fence at its start it cannot know.
func (m *machine) mayKeepUpdate(fence target, v version) bool {
	if !m.on(UpdateFenceFirst) {
		return true
	}
	return fence&(theItem|wholeCache|gap) == 0 && m.mayKeep(fence, v)
}

func (m *machine) writerName(w int) string {
	if home := int(m.Writers[w].Home); home >= 0 {
		return fmt.Sprintf("writer %d on %s", w+1, name(home))
	}
	return fmt.Sprintf("writer %d", w+1)
}
