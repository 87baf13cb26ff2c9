package fakebus

import "time"

// The faults of one instance's network. No method blocks.

// Mute stops all packets in one direction, over old and new connections, until Heal. No
// connection breaks.
func (in *Instance) Mute(way Direction) {
	in.bus.mu.Lock()
	defer in.bus.mu.Unlock()
	in.muted[way] = true
}

// Partition mutes both ways.
func (in *Instance) Partition() {
	in.Mute(Up)
	in.Mute(Down)
}

// Heal ends Mute and Partition. Packets that got stuck arrive now, or are lost. If they are
// lost, their connections are dead, and neither end knows.
func (in *Instance) Heal(lost bool) {
	in.bus.mu.Lock()
	defer in.bus.mu.Unlock()
	if lost {
		for _, p := range in.held {
			if in.muted[p.way] {
				p.conn.dead = true
			}
		}
		for _, s := range in.subscriptions {
			if in.muted[Down] && len(s.inbox) > 0 {
				s.conn.dead = true
			}
		}
	}
	in.muted = [2]bool{}
	in.releaseLocked()
}

// Pause stops the instance as far as the network can: nothing reaches it, and its
// commands do not leave it, until Resume.
func (in *Instance) Pause() {
	in.bus.mu.Lock()
	defer in.bus.mu.Unlock()
	in.paused = true
}

// Resume ends Pause. What was held up arrives at once, at both ends.
func (in *Instance) Resume() {
	in.bus.mu.Lock()
	defer in.bus.mu.Unlock()
	in.paused = false
	in.releaseLocked()
}

// Reaches reports whether a command that the instance sends now would be executed and
// answered, over a connection without a fault.
func (in *Instance) Reaches() bool {
	in.bus.mu.Lock()
	defer in.bus.mu.Unlock()
	return !in.bus.down && !in.bus.refusing && !in.paused && in.muted == [2]bool{}
}

// Cut closes all of the instance's connections, as a proxy or CLIENT KILL would.
func (in *Instance) Cut() {
	in.bus.mu.Lock()
	defer in.bus.mu.Unlock()
	in.cutLocked()
}

func (in *Instance) cutLocked() {
	in.cutScriptsLocked()
	for c := range in.open {
		if c.values != nil {
			c.cutLocked()
		}
	}
}

// cutScriptsLocked closes all connections but those for values.
func (in *Instance) cutScriptsLocked() {
	in.subscriptions = nil
	for _, c := range in.openLocked() {
		in.cutConnLocked(c, in.latencyLocked(releasing))
	}
}

// leaveDemoted closes the connections to demoted masters.
func (in *Instance) leaveDemoted() {
	in.bus.mu.Lock()
	defer in.bus.mu.Unlock()
	for c := range in.open {
		if c.demoted != nil {
			c.cutLocked()
		}
	}
}

// Deaden leaves all of the instance's connections half open: nothing arrives, and neither
// end knows. New connections work.
func (in *Instance) Deaden() {
	in.bus.mu.Lock()
	defer in.bus.mu.Unlock()
	for c := range in.open {
		c.dead = true
	}
}

// LeadAstray makes the instance's address lead to a writable replica whose replication has
// stalled. It has the master's present data and history. Scripts refuse to run there.
// Existing connections stay.
func (in *Instance) LeadAstray() {
	in.bus.mu.Lock()
	defer in.bus.mu.Unlock()
	b := in.bus
	in.astray = &demoted{data: b.data.clone(), before: b.history, history: b.history, joined: time.Now()}
}

// LeadBack ends LeadAstray for new connections.
func (in *Instance) LeadBack() {
	in.bus.mu.Lock()
	defer in.bus.mu.Unlock()
	in.astray = nil
}

// Forge publishes to this instance's own channel as a user that is no instance.
func (in *Instance) Forge(payload string) {
	in.bus.mu.Lock()
	defer in.bus.mu.Unlock()
	if len(in.subscriptions) > 0 {
		in.deliverLocked(payload, &in.subscriptions[0].as.ID)
	}
}

// Drop loses the next n messages to the instance, echoes included.
func (in *Instance) Drop(n int) {
	in.bus.mu.Lock()
	defer in.bus.mu.Unlock()
	in.drop = n
}

// DropInvalidations loses the next n invalidations that other instances publish,
// on their way to this one. Echoes pass.
func (in *Instance) DropInvalidations(n int) {
	in.bus.mu.Lock()
	defer in.bus.mu.Unlock()
	in.dropInvalidations = n
}

// Duplicate delivers the next n messages to the instance twice.
func (in *Instance) Duplicate(n int) {
	in.bus.mu.Lock()
	defer in.bus.mu.Unlock()
	in.duplicate = n
}

// Swap delivers the next message to the instance after the one that follows it.
func (in *Instance) Swap() {
	in.bus.mu.Lock()
	defer in.bus.mu.Unlock()
	in.swap = true
}

// Delay delays what the instance's subscriptions receive until d has passed.
func (in *Instance) Delay(d time.Duration) {
	in.bus.mu.Lock()
	defer in.bus.mu.Unlock()
	for _, s := range in.subscriptions {
		s.stalled = time.Now().Add(d)
		signal(s.changed)
	}
}

// Slow makes every message to the instance take d longer from now on.
func (in *Instance) Slow(d time.Duration) {
	in.bus.mu.Lock()
	defer in.bus.mu.Unlock()
	in.slow = d
}

// Late makes the instance give up its next script, publish or probe. The script is still
// executed after d.
func (in *Instance) Late(d time.Duration) {
	in.bus.mu.Lock()
	defer in.bus.mu.Unlock()
	in.late = d
}

// Twice makes Redis execute the instance's next script twice, as for a client that follows
// redirects.
func (in *Instance) Twice() {
	in.bus.mu.Lock()
	defer in.bus.mu.Unlock()
	in.twice = true
}

// LoseReply breaks the connection after the instance's next script, before its reply.
func (in *Instance) LoseReply() {
	in.bus.mu.Lock()
	defer in.bus.mu.Unlock()
	in.losesReply = true
}

// faultless cancels faults that have not struck yet, and those that do not end.
func (in *Instance) faultless() {
	in.bus.mu.Lock()
	defer in.bus.mu.Unlock()
	in.late, in.twice, in.losesReply = 0, false, false
	in.drop, in.duplicate, in.swap, in.slow = 0, 0, false, 0
	in.dropInvalidations = 0
	in.astray = nil
}
