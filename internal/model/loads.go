package model

import "fmt"

// loads emits the steps of the loads of instance i: a Get misses and starts one,
// another Get joins it, it consults the shared level, it reads the source, it ends,
// it puts what it has read.
func (m *machine) loads(s *state, i int) {
	m.displace(s, i)
	m.startLoad(s, i)
	for k := range s.instance[i].flights {
		m.join(s, i, k)
		m.sendExtension(s, i, k)
		switch s.instance[i].flights[k].phase {
		case asking, found, foundBefore, missed:
			m.consult(s, i, k)
		case loading:
			t := *s
			f := &t.instance[i].flights[k]
			f.phase, f.version = loaded, t.source
			f.proven = !m.on(ProofAtEnd) && m.mayKeep(f.fence, f.version)
			m.emit(&t, func() string { return fmt.Sprintf("%s reads the source: v%d", loadName(s, i, k), f.version) })
		case loaded:
			m.endLoad(s, i, k)
			m.put(s, i, k)
		case putting:
			m.put(s, i, k)
		}
	}
}

// displace emits the eviction of an entry that makes room for another.
func (m *machine) displace(s *state, i int) {
	if s.left.Displaced == 0 || !s.instance[i].entry.held {
		return
	}
	t := *s
	t.left.Displaced--
	t.instance[i].entry = entry{}
	m.emit(&t, func() string { return fmt.Sprintf("%s's entry makes room for another item's", name(i)) })
}

// startLoad emits the start of a load by a Get that finds nothing to serve and no
// load to join.
func (m *machine) startLoad(s *state, i int) {
	in := &s.instance[i]
	if s.left.Loads == 0 || in.entry.held && m.serves(in, in.entry.start, s.now) {
		return
	}
	for k := range in.flights {
		f := &in.flights[k]
		if f.phase == noFlight {
			t := *s
			t.left.Loads--
			m.begin(&t, i, k, t.now)
			m.emit(&t, func() string { return fmt.Sprintf("a Get misses on %s, and starts a load", name(i)) })
			return
		}
		if m.joinable(in, f, s.now) {
			return
		}
	}
}

// begin starts a load whose first caller's read started at some time.
func (m *machine) begin(t *state, i, k int, read int8) {
	t.instance[i].flights[k] = flight{phase: loading, start: t.now, lastRead: read}
	if m.mayAsk(t, i) {
		m.ask(t, i, k)
	}
}

// joinable reports whether a Get that starts now may have the load's result.
func (m *machine) joinable(in *instance, f *flight, now int8) bool {
	if f.phase == putting || f.fence != 0 && m.on(FlightForgotten) {
		return false
	}
	return m.serves(in, m.since(f), now) || !m.on(FlightJoinableByLease)
}

// join emits a Get's joining of a load, if that makes a difference: if none that
// starts now has joined it yet.
func (m *machine) join(s *state, i, k int) {
	in := &s.instance[i]
	f := &in.flights[k]
	if !m.Joiners || f.phase == noFlight {
		return
	}
	if m.waitable(in, k, s.now) && !(f.waits && f.waitsFrom == s.now) {
		t := *s
		g := &t.instance[i].flights[k]
		g.waits, g.waitsFrom = true, t.now
		m.emit(&t, func() string {
			return fmt.Sprintf("a Get waits for %s, which is older than a clear", loadName(s, i, k))
		})
	}
	if f.lastRead == s.now || !m.joinable(in, f, s.now) {
		return
	}
	t := *s
	t.instance[i].flights[k].lastRead = t.now
	m.emit(&t, func() string { return fmt.Sprintf("a Get joins %s", loadName(s, i, k)) })
}

// waitable reports whether a Get that starts now waits for the load, and has its result
// only if it is proven: the load is the newest, and nothing but regions was cleared since
// it began.
func (m *machine) waitable(in *instance, k int, now int8) bool {
	f := &in.flights[k]
	newest := k == len(in.flights)-1 || in.flights[k+1].phase == noFlight
	return newest && f.phase != putting && f.fence != 0 && f.fence&^anyRegion == 0 && m.serves(in, m.since(f), now)
}

// serveWaiters ends the wait of those that waited for a load which has ended and was
// flight k: they have its result, or share the load after it.
func (m *machine) serveWaiters(t *state, i, k int, f *flight) {
	if !f.waits {
		return
	}
	proven := m.mayKeep(f.fence, f.version)
	if !m.on(ProofAtEnd) {
		proven = f.proven
	}
	if proven || !m.on(WaiterNeedsProof) {
		m.see(WaiterServed)
		m.read(t, i, f.version, f.waitsFrom, "from a load that it has waited for")
		return
	}
	in := &t.instance[i]
	for other := range in.flights {
		o := &in.flights[other]
		switch later := k == 0; {
		case o.phase == noFlight:
			m.see(WaiterLoads)
			m.begin(t, i, other, f.waitsFrom)
			return
		case o.phase != putting && (later || !m.on(WaiterSharesLater)):
			m.see(WaiterLoads)
			o.lastRead = max(o.lastRead, f.waitsFrom)
			return
		}
	}
}

// endLoad emits the end of a load: its callers get what it has read, and the result is
// kept if nothing has overtaken the load.
func (m *machine) endLoad(s *state, i, k int) {
	t := *s
	in := &t.instance[i]
	f := in.flights[k]
	if !m.stillCounts(in, &f, t.now) {
		in.flights[k] = f.toSource()
		m.emit(&t, func() string { return fmt.Sprintf("%s does not trust what it has read", loadName(s, i, k)) })
		return
	}
	if f.token == 0 {
		in.endFlight(k)
	} else {
		in.flights[k] = flight{phase: putting, version: f.version, stamp: f.stamp, token: f.token}
	}

	m.read(&t, i, f.version, f.lastRead, "from a load")
	if f.lastRead > f.start && f.start != never {
		m.see(JoinedServed)
	}
	if f.fence != 0 {
		m.see(ForgottenServed)
	}
	if f.shared {
		m.see(SharedServed)
		if m.notFound(f.version) {
			m.see(SharedNotFound)
		}
	}
	kept := m.mayKeep(f.fence, f.version)
	if kept {
		start := m.since(&f)
		if !m.on(LoadStartIsRegistration) {
			start = t.now
		}
		in.entry = entry{held: true, shared: f.shared, version: f.version, start: start}
		if f.fence != 0 {
			m.see(LoadKeptBesideClear)
		}
		if m.notFound(f.version) {
			m.see(NotFoundKept)
		}
	} else {
		m.see(LoadDiscarded)
	}
	m.serveWaiters(&t, i, k, &f)
	m.emit(&t, func() string {
		if kept {
			return fmt.Sprintf("%s ends, v%d is kept", loadName(s, i, k), f.version)
		}
		return fmt.Sprintf("%s ends, v%d is not kept", loadName(s, i, k), f.version)
	})
}

// mayKeep reports whether the result of a load or write may be kept, given what
// was invalidated since its start. What regions it belongs to is known only now.
func (m *machine) mayKeep(fence target, v version) bool {
	switch {
	case fence&theItem != 0 && m.on(FenceKeys),
		fence&wholeCache != 0 && m.on(FenceClears),
		fence&gap != 0:
		return false
	case m.notFound(v):
		return fence&anyRegion == 0 || !m.on(FenceNotFounds)
	}
	return fence&m.regions(v) == 0 || !m.on(FenceRegions)
}

// endFlight forgets a flight that is over. The oldest stays the first.
func (in *instance) endFlight(k int) {
	in.flights[k] = in.flights[1]
	in.flights[1] = flight{}
}

func loadName(s *state, i, k int) string {
	switch {
	case s.instance[i].flights[1].phase == noFlight:
		return name(i) + "'s load"
	case k == 0:
		return name(i) + "'s older load"
	}
	return name(i) + "'s newer load"
}

// slowRead emits the steps of a Get whose two looks lie apart.
func (m *machine) slowRead(s *state, i int) {
	t := *s
	in := &t.instance[i]
	r := in.reader
	if !r.active {
		in.reader = reader{active: true, start: t.now}
		if m.on(LeaseReadFirst) {
			in.reader.leased = m.leased(in, t.now)
			m.emit(&t, func() string {
				return fmt.Sprintf("a slow Get starts on %s; lease: %v", name(i), t.instance[i].reader.leased)
			})
		} else if in.entry.held {
			in.reader.entry = in.entry
			m.emit(&t, func() string {
				return fmt.Sprintf("a slow Get starts on %s; it finds v%d", name(i), t.instance[i].reader.entry.version)
			})
		}
		return
	}
	in.reader = reader{}
	found, leased, judged := in.entry, r.leased, r.start
	if !m.on(LeaseReadFirst) {
		found, leased, judged = r.entry, m.leased(in, t.now), t.now
	}
	if found.held && (leased || m.young(found.start, judged)) {
		m.see(SlowHit)
		m.read(&t, i, found.version, r.start, "slowly")
	}
	m.emit(&t, func() string { return fmt.Sprintf("the slow Get of %d ends on %s", r.start, name(i)) })
}
