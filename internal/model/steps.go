package model

import "fmt"

// start returns the first state. Every instance is subscribed and has had the
// echo of a probe that it sent at 0, and a caller has loaded the item; the shared
// level has it too.
func (m *machine) start() state {
	s := state{left: m.Budget, master: server{data{position: 1}, 1}, minted: 1}
	if m.NoHistory {
		s.master.history = 0
	}
	if m.NoPosition {
		s.master.position = absent
	}
	if m.Shared {
		s.epochs = 1
		s.master.clears = clears{epoch: 1, history: s.master.history}
		s.master.value = value{stamp: stamp{epoch: 1}}
	}
	s.replica = s.master.data
	for v := range s.accepted {
		s.accepted[v] = never
	}
	for i := range m.Instances {
		in := &s.instance[i]
		in.link = toMaster
		if m.NoPosition {
			in.unproven, in.lease = true, never
			continue
		}
		in.position, in.history = s.master.position, s.master.history
		in.entry = entry{held: true}
	}
	return s
}

// steps emits every state that one step leads to.
func (m *machine) steps(s *state) {
	m.tick(s)
	m.failMaster(s)
	m.takeAgain(s)
	m.extend(s)
	for i := range m.Instances {
		m.connection(s, i)
		m.receive(s, i)
		m.probe(s, i)
		m.loads(s, i)
		if m.SlowReaders {
			m.slowRead(s, i)
		}
	}
	for w := range m.Writers {
		m.write(s, w)
		m.publish(s, w)
	}
}

// tick lets time pass. What has become too old to matter is forgotten, so that
// states which differ in nothing else are one.
func (m *machine) tick(s *state) {
	if s.now == m.Until {
		return
	}
	t := *s
	t.now++
	lapse := func(at *int8) {
		if !m.young(*at, t.now) {
			*at = never
		}
	}
	for i := range m.Instances {
		in := &t.instance[i]
		lapse(&in.lease)
		if m.SlowReaders { // who judge by an earlier moment
			continue
		}
		lapse(&in.entry.start)
		for k := range in.flights {
			if in.flights[k].phase != noFlight {
				lapse(&in.flights[k].start)
			}
			if in.flights[k].readsShared() {
				lapse(&in.flights[k].lease)
			}
		}
	}
	m.emit(&t, func() string { return fmt.Sprintf("it is %d", t.now) })
}
