package model

import "fmt"

// mayAsk reports whether a load that starts now may read at the shared level. It may
// not while a write of its own instance has done its local part, and is not known to
// be accepted: the instance passes over its own message.
func (m *machine) mayAsk(t *state, i int) bool {
	for w, who := range m.Writers {
		if int(who.Home) == i && t.writer[w].phase == queued && m.on(OwnWritesFirst) {
			m.see(SharedAvoided)
			return false
		}
	}
	return true
}

// ask has a load begin with the shared level, if it may: it notes the lease and
// the history that it goes by before it asks.
func (m *machine) ask(t *state, i, k int) (asks bool) {
	in := &t.instance[i]
	f := &in.flights[k]
	if !m.Shared || in.history == 0 && m.on(SharedNeedsHistory) || m.on(SharedNeedsLease) && !m.leased(in, t.now) {
		return false
	}
	f.phase, f.lease = asking, in.lease
	if m.on(HistoryNotedFirst) {
		f.history = in.history
	}
	return true
}

// consult emits the steps of a load at the shared level: it finds a value, or not,
// reads the clears, and takes the token if there is nothing valid. It may also do
// without, after any error, or when it has waited long enough.
func (m *machine) consult(s *state, i, k int) {
	switch f := &s.instance[i].flights[k]; f.phase {
	case asking:
		t := *s
		t.instance[i].flights[k] = f.toSource()
		m.emit(&t, func() string { return fmt.Sprintf("%s does without the shared level", loadName(s, i, k)) })
		m.readValue(s, i, k, toMaster)
		if s.demoted.history != 0 {
			m.readValue(s, i, k, toDemoted)
		}
	case found:
		m.readClears(s, i, k)
	case foundBefore:
		m.readRegions(s, i, k, toMaster)
		if s.demoted.history != 0 {
			m.readRegions(s, i, k, toDemoted)
		}
	case missed:
		m.take(s, i, k)
	}
}

// toSource is a load that is done with the shared level and goes on to the source.
func (f *flight) toSource() flight {
	return flight{phase: loading, start: f.start, lastRead: f.lastRead, fence: f.fence, waits: f.waits, waitsFrom: f.waitsFrom}
}

// readValue emits a load's finding of the value, or of none. What it found is
// judged when it has read the clears, on the same connection. (The other order would
// do as well, but only the value tells whose clears there are to be read.)
func (m *machine) readValue(s *state, i, k int, with link) {
	t := *s
	f := &t.instance[i].flights[k]
	v := t.at(with).value
	switch {
	case v.stamp.epoch == 0, !m.on(ServerCheckedLast) && !m.counts(&t, f, with):
		f.miss()
	default:
		f.phase, f.with, f.version, f.stamp = found, with, v.version, v.stamp
	}
	m.emit(&t, func() string {
		text := fmt.Sprintf("%s asks %s: ", loadName(s, i, k), serverName(with))
		if t.instance[i].flights[k].phase == missed {
			return text + "nothing"
		}
		return text + fmt.Sprintf("v%d, %v", v.version, v.stamp)
	})
}

// readClears emits a load's look at the clears and at the role and history of the
// server, after which it knows whether the value is valid, unless the regions are
// to be looked at.
func (m *machine) readClears(s *state, i, k int) {
	t := *s
	f := &t.instance[i].flights[k]
	c := t.at(f.with).clears
	switch {
	case m.on(ServerCheckedLast) && !m.counts(&t, f, f.with):
		f.miss()
	case !m.sameEpoch(c, f):
		m.see(SharedInvalid)
		f.miss()
	case f.stamp.count == c.count, !m.on(ClearsChecked):
		f.use()
	case f.stamp.count < c.cache, m.notFound(f.version) && m.on(SharedNotFoundIsLatest):
		m.see(SharedInvalid)
		f.miss()
	default:
		f.phase, f.with = foundBefore, broken
	}
	m.emit(&t, func() string {
		return fmt.Sprintf("%s reads the clears of %s: %v%s", loadName(s, i, k), serverName(s.instance[i].flights[k].with), c, f.verdict())
	})
}

// readRegions emits a load's look at the clears of the regions of what it has
// found, which may be on another connection.
func (m *machine) readRegions(s *state, i, k int, with link) {
	t := *s
	f := &t.instance[i].flights[k]
	c := t.at(with).clears
	valid := (m.counts(&t, f, with) || !m.on(RegionsReadCounts)) && (m.sameEpoch(c, f) || !m.on(RegionsReadWithEpoch))
	for n, r := range [...]target{regionR, regionS} {
		valid = valid && (m.regions(f.version)&r == 0 || f.stamp.count >= c.regions[n])
	}
	if valid {
		f.use()
		m.see(SharedUsedBesideClear)
	} else {
		m.see(SharedInvalid)
		f.miss()
	}
	m.emit(&t, func() string {
		return fmt.Sprintf("%s reads the clears of regions of %s: %v%s", loadName(s, i, k), serverName(with), c, f.verdict())
	})
}

// counts reports whether what a server tells counts.
func (m *machine) counts(t *state, f *flight, with link) bool {
	if with == toDemoted && !m.Isolated && m.on(SharedFromMaster) {
		m.see(ReplicaAvoided)
		return false
	}
	h := t.at(with).history
	if !m.on(HistoryNotedFirst) {
		f.history = h // to be compared in the end
	}
	return h == f.history || !m.on(SharedOfLeaseHistory)
}

// stillCounts is what counts has left for the end of a load.
func (m *machine) stillCounts(in *instance, f *flight, now int8) bool {
	return !f.shared || m.on(HistoryNotedFirst) || f.history == in.history && m.leased(in, now)
}

// sameEpoch reports whether a value that was found is of the clears' epoch.
func (m *machine) sameEpoch(c clears, f *flight) bool {
	return c.epoch != 0 && (c.epoch == f.stamp.epoch || !m.on(EpochChecked))
}

// use ends a load's consultation of the shared level with a valid value.
func (f *flight) use() {
	f.phase, f.shared, f.stamp, f.with = loaded, true, stamp{}, broken
}

// miss ends it without.
func (f *flight) miss() {
	*f = f.toSource()
	f.phase = missed
}

func (f *flight) verdict() string {
	switch f.phase {
	case missed:
		return ": not valid"
	case loaded:
		return ": valid"
	}
	return ": there was a clear since"
}

// take emits the execution of the script by which a load takes the token: it makes
// an epoch if there is none, and notes epoch and count with the token. Another
// load's token is a reason to wait and to ask again, under the lease of that moment.
func (m *machine) take(s *state, i, k int) {
	t := *s
	f := &t.instance[i].flights[k]
	made := m.makeEpoch(&t, 0, t.instance[i].history)
	if t.master.token != 0 {
		m.see(TokenBusy)
		m.shareToken(&t, i, k)
		if m.ask(&t, i, k) { // else it does without, as it could have done before
			m.emit(&t, func() string {
				return fmt.Sprintf("%s waits for another, and is about to ask again", loadName(s, i, k))
			})
		}
		return
	}
	own := t.takeToken(0)
	f.phase, f.token, f.stamp = loading, own, stamp{t.master.clears.epoch, t.master.clears.count}
	text := func() string { return fmt.Sprintf("%s takes the token: %v", loadName(s, i, k), f.stamp) }
	if s.left.Retakes > 0 {
		again := t
		again.left.Retakes--
		again.retake.pending = true
		if !m.on(TokenMadeInScript) {
			again.retake.token = own
		}
		if !m.on(EpochMadeInScript) {
			again.retake.epoch = made
		}
		m.emit(&again, func() string { return text() + "; the script will run once more" })
	}
	m.emit(&t, text)
}

// shareToken emits a load's sharing of the token that another one of its instance has.
// Both read the source after the token was taken.
func (m *machine) shareToken(s *state, i, k int) {
	for _, g := range s.instance[i].flights {
		if g.token != s.master.token {
			continue
		}
		t := *s
		f := &t.instance[i].flights[k]
		f.phase, f.token, f.stamp = loading, g.token, g.stamp
		m.see(TokenShared)
		m.emit(&t, func() string {
			return fmt.Sprintf("%s shares the token of its instance's other load", loadName(s, i, k))
		})
	}
}

// sendExtension emits that a load has its claim extended, some time later.
func (m *machine) sendExtension(s *state, i, k int) {
	f := &s.instance[i].flights[k]
	if s.left.Extensions == 0 || f.token == 0 || s.extension.pending {
		return
	}
	t := *s
	t.left.Extensions--
	t.extension = extension{pending: true, token: f.token}
	m.emit(&t, func() string { return fmt.Sprintf("%s has its claim extended", loadName(s, i, k)) })
}

// extend emits the execution of the script that extends a claim. Time does not end
// tokens here, so there is nothing to do but to leave alone what is another's, or gone.
func (m *machine) extend(s *state) {
	if !s.extension.pending {
		return
	}
	t := *s
	t.extension = extension{}
	own := s.extension.token
	switch {
	case t.master.token == own:
		m.see(ClaimExtended)
	case t.master.token == 0 && !m.on(ExtensionMakesNoToken), t.master.token != 0 && !m.on(ExtensionOfOwnToken):
		t.master.token = own
	default:
		m.see(ExtensionRefused)
	}
	m.emit(&t, func() string { return fmt.Sprintf("Redis extends a claim: token %d", t.master.token) })
}

// takeAgain emits the second execution of a script that takes a token. It does
// what the first did, for nobody.
func (m *machine) takeAgain(s *state) {
	if !s.retake.pending {
		return
	}
	t := *s
	t.retake = retake{}
	m.makeEpoch(&t, s.retake.epoch, t.master.history)
	if t.master.token == 0 {
		t.takeToken(s.retake.token)
	}
	m.emit(&t, func() string {
		return fmt.Sprintf("Redis runs the script for a token once more: token %d, clears: %v", t.master.token, t.master.clears)
	})
}

// makeEpoch makes an epoch if there is none, and returns it: the given one, or else
// a new one.
func (m *machine) makeEpoch(t *state, e epoch, h history) (made epoch) {
	if t.master.clears.epoch != 0 {
		return 0
	}
	if e == 0 {
		t.epochs++
		e = t.epochs
	}
	t.master.clears = clears{epoch: e, history: h}
	m.see(EpochMade)
	return e
}

// takeToken puts a token: the given one, or else a new one.
func (t *state) takeToken(k token) token {
	if k == 0 {
		t.tokens++
		k = t.tokens
	}
	t.master.token = k
	return k
}

// put emits the execution of the script that puts what a load has read, if its
// token is still there. That may be before the load ends, or after it.
func (m *machine) put(s *state, i, k int) {
	f := s.instance[i].flights[k]
	if f.token == 0 {
		return
	}
	t := *s
	if f.phase == putting {
		t.instance[i].endFlight(k)
	} else {
		g := &t.instance[i].flights[k]
		g.token, g.stamp = 0, stamp{}
	}
	stored := m.mayPut(t.master.token, f.token)
	if stored && !m.on(StampedWithToken) {
		f.stamp = stamp{t.master.clears.epoch, t.master.clears.count}
		stored = f.stamp.epoch != 0
	}
	if stored {
		t.master.value, t.master.token = value{f.version, f.stamp}, 0
		m.see(Put)
	} else {
		m.see(PutRefused)
	}
	m.emit(&t, func() string {
		if stored {
			return fmt.Sprintf("%s puts v%d, %v", loadName(s, i, k), f.version, f.stamp)
		}
		return fmt.Sprintf("%s puts nothing, its token is gone", loadName(s, i, k))
	})
}

func (m *machine) mayPut(there, own token) bool {
	switch {
	case !m.on(PutNeedsToken):
		return true
	case !m.on(TokenIsOwn):
		return there != 0
	}
	return there == own
}

// deleteShared is what a publish script does at the shared level. Without an epoch
// there is nothing that is valid.
func (m *machine) deleteShared(t *state, c script) {
	d := &t.master
	if d.clears.epoch == 0 {
		return
	}
	switch {
	case c.all:
		d.clears = clears{}
	case c.names == theItem:
		d.value = value{}
		if m.on(InvalidationDeletesToken) {
			d.token = 0
		}
	case c.names != 0:
		d.clears.count++
		if c.names == wholeCache {
			d.clears.cache = d.clears.count
		} else {
			d.clears.regions[c.names/regionR-1] = d.clears.count
		}
	}
}

// readsShared reports whether a load has read, or may yet have read, what is at
// the shared level.
func (f *flight) readsShared() bool {
	return f.shared || f.phase == asking || f.phase == found || f.phase == foundBefore
}

// since returns the moment from which the age of a load's result counts.
func (m *machine) since(f *flight) int8 {
	if f.readsShared() && m.on(SharedAgeFromLease) {
		return min(f.start, f.lease)
	}
	return f.start
}

// dropClears is what a probe does for the shared level: it ends an epoch that a new
// master has brought back.
func (m *machine) dropClears(at *server) bool {
	if !m.Shared || !m.on(ProbeDropsClears) || at.clears.epoch == 0 || at.clears.history == at.history {
		return false
	}
	at.clears = clears{}
	m.see(ClearsDropped)
	return true
}

// loseShared emits the loss of a key.
func (m *machine) loseShared(s *state) {
	lose := func(what string, from func(*server)) {
		t := *s
		t.left.Losses--
		from(&t.master)
		if t.master != s.master {
			m.emit(&t, func() string { return "Redis loses the " + what })
		}
	}
	lose("value", func(at *server) { at.value = value{} })
	lose("token", func(at *server) { at.token = 0 })
	lose("clears", func(at *server) { at.clears = clears{} })
}

// at returns the server to which a connection leads.
func (t *state) at(where link) *server {
	if where == toDemoted {
		return &t.demoted
	}
	return &t.master
}

func serverName(where link) string {
	if where == toDemoted {
		return "the old master"
	}
	return "Redis"
}

// String describes a stamp.
func (s stamp) String() string { return fmt.Sprintf("of epoch e%d, count %d", s.epoch, s.count) }

// String describes a hash of clears.
func (c clears) String() string {
	if c.epoch == 0 {
		return "none"
	}
	return fmt.Sprintf("epoch e%d, count %d, cache %d, R %d, S %d", c.epoch, c.count, c.cache, c.regions[0], c.regions[1])
}
