package model

import "fmt"

// The property. An invalidation that Redis accepted at a must be effective for
// every read that starts at a + Bound or later: it must not return what the
// invalidation was to evict. The library promises it for reads after a + Bound;
// one tick's worth is added, so that small worlds show what large ones would.

// read checks a read that started at some time and returns a version.
func (m *machine) read(s *state, i int, v version, started int8, how string) {
	for w := v + 1; w <= s.source; w++ {
		age := started - s.accepted[w]
		if s.accepted[w] == never || age < m.Bound || !m.evicts(s.named[w], v) {
			continue
		}
		m.breach = fmt.Sprintf("BREACH: %s serves v%d to a Get that started at %d, %s; "+
			"its invalidation by v%d was accepted at %d, and the bound is %d",
			name(i), v, started, how, w, s.accepted[w], m.Bound)
		return
	}
}

// evicts reports whether an invalidation is meant for a version of the item.
func (m *machine) evicts(names target, v version) bool {
	if names&(theItem|wholeCache|gap) != 0 {
		return true
	}
	if m.notFound(v) {
		return names&anyRegion != 0
	}
	return names&m.regions(v) != 0
}

func (m *machine) regions(v version) target {
	if int(v) < len(m.Regions) {
		return target(m.Regions[v])
	}
	return 0
}

func (m *machine) notFound(v version) bool {
	return int(v) < len(m.NotFound) && m.NotFound[v]
}

// checkHits checks a hit at this very moment, on each instance that would serve
// its entry.
func (m *machine) checkHits(s *state) {
	for i := range m.Instances {
		in := &s.instance[i]
		if !in.entry.held || !m.serves(in, in.entry.start, s.now) {
			continue
		}
		how := "under its lease"
		if !m.leased(in, s.now) {
			how = "by the age of the entry"
			m.see(ServedByAge)
		} else if !m.young(in.entry.start, s.now) {
			m.see(ServedByLease)
			if in.entry.written {
				m.see(WrittenServedByLease)
			}
			if in.entry.shared {
				m.see(SharedServedByLease)
			}
		}
		m.read(s, i, in.entry.version, s.now, how)
	}
}

// serves is the serving rule, for an entry or flight that started at start and a
// read that starts now.
func (m *machine) serves(in *instance, start, now int8) bool {
	return m.leased(in, now) || m.young(start, now)
}

// leased reports whether the instance's lease is good for a read that starts now.
func (m *machine) leased(in *instance, now int8) bool { return m.young(in.lease, now) }

// young reports whether a moment is less than the bound ago.
func (m *machine) young(at, now int8) bool { return now-at < m.Bound }

// Event is something that a scenario is expected to show, so that it does not
// hold for want of anything happening.
type Event uint8

// The events.
const (
	ServedByLease         Event = iota // a hit on an entry that is too old to be served without a lease
	ServedByAge                        // a hit without a lease
	WrittenServedByLease               // a hit on what an Update or Set kept, as ServedByLease
	WarmReconnect                      // a new subscription's first echo keeps an entry, which is served from then on by its lease
	LateEcho                           // Redis answers a probe to a newer subscription than it was sent for
	PositionMinted                     // by a probe
	GapCleared                         // an entry was cleared because something was missed
	Kicked                             // Redis disconnected a slow instance
	AcceptedTwice                      // the script ran twice for one write
	LoadDiscarded                      // a load ended and was not kept
	LoadKeptBesideClear                // a load was kept, though a region was cleared under way
	NotFoundKept                       // a load found nothing, and that was kept
	JoinedServed                       // a load's result went to a Get that joined it later than it started
	ForgottenServed                    // a load's result went to its callers, and was not for others
	UpdateKept                         // an Update's value
	UpdateDiscarded                    // an Update's value was not kept
	SlowHit                            // a slow reader's hit
	Refused                            // a server that takes no writes refused a script
	SharedServed                       // a load's result came from the shared level
	SharedServedByLease                // a hit on what came from the shared level, as ServedByLease
	SharedInvalid                      // a value at the shared level was not valid
	SharedUsedBesideClear              // one was, though some other region was cleared since
	SharedNotFound                     // a not-found came from the shared level
	Put                                // a load put what it had read
	PutRefused                         // a load's token was gone
	TokenBusy                          // another load had the token
	TokenShared                        // another load of the instance had it, and both use it
	ClaimExtended                      // a claim was extended
	ExtensionRefused                   // its token was gone by then, or another's
	EpochMade                          // the clears had been lost, and a load made new ones
	ClearsDropped                      // by a probe
	ReplicaAvoided                     // a read did not count since it came from a replica
	SharedAvoided                      // by a load, since a write of its instance is under way
	WaiterServed                       // a load's result went to a Get that had to wait for the proof
	WaiterLoads                        // there was none, and the Get shares the load after it
	OwnPassedOver                      // an instance has passed over its own message
	ForgeryIgnored                     // an instance has seen that a message was forged
	eventCount
)

var eventNames = [eventCount]string{
	"ServedByLease", "ServedByAge", "WrittenServedByLease", "WarmReconnect", "LateEcho", "PositionMinted",
	"GapCleared", "Kicked", "AcceptedTwice", "LoadDiscarded", "LoadKeptBesideClear", "NotFoundKept", "JoinedServed",
	"ForgottenServed", "UpdateKept", "UpdateDiscarded", "SlowHit", "Refused",
	"SharedServed", "SharedServedByLease", "SharedInvalid", "SharedUsedBesideClear", "SharedNotFound", "Put", "PutRefused", "TokenBusy",
	"TokenShared", "ClaimExtended", "ExtensionRefused",
	"EpochMade", "ClearsDropped", "ReplicaAvoided", "SharedAvoided", "WaiterServed", "WaiterLoads", "OwnPassedOver", "ForgeryIgnored",
}

// String returns the event's name.
func (e Event) String() string { return eventNames[e] }

func (m *machine) see(e Event) { m.seen |= 1 << e }

func name(i int) string { return string(rune('A' + i)) }
