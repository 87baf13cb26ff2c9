package proof

import (
	"crypto/sha1"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nearcache/nearcache/internal/fakebus"
	"github.com/nearcache/nearcache/internal/messagetest"
)

// fault is one kind of fault. It begins on an instance, may go on in steps,
// each after a while, and ends itself.
type fault struct {
	name  string
	begin func(run *schedule, in *instance, r *rand.Rand) []step
}

// step is the next thing to happen in a fault.
type step struct {
	after time.Duration
	what  string
	do    func()
}

func (f fault) String() string { return f.name }

// fault begins a fault on some instance, or a few at once.
func (run *schedule) fault(r *rand.Rand, actors *sync.WaitGroup) {
	for range []int{1, 1, 1, 2, 3}[r.IntN(5)] {
		f := run.plan.faults[r.IntN(len(run.plan.faults))]
		in := run.fleet[r.IntN(len(run.fleet))]
		run.journal.log("faults", "%s on %s", f.name, in.name)
		steps := f.begin(run, in, r)
		if len(steps) > 0 {
			actors.Go(func() {
				for _, s := range steps {
					time.Sleep(s.after)
					run.journal.log("faults", "%s on %s: %s", f.name, in.name, s.what)
					s.do()
				}
			})
		}
		time.Sleep(between(r, 1, 3*time.Millisecond))
	}
}

// while draws how long a fault lasts: shorter than MaxStaleness, or longer.
func (run *schedule) while(r *rand.Rand) time.Duration {
	limit := run.plan.maxStaleness[0]
	if r.IntN(2) == 0 {
		return between(r, limit/50, limit)
	}
	return between(r, limit, 3*limit)
}

// momentary is a fault that is over as soon as it began.
func momentary(name string, do func(run *schedule, in *fakebus.Instance, r *rand.Rand)) fault {
	return fault{name, func(run *schedule, in *instance, r *rand.Rand) []step {
		do(run, in.bus.in, r)
		return nil
	}}
}

// lasting is a fault that lasts a while.
func lasting(name string, do, undo func(run *schedule, in *fakebus.Instance, r *rand.Rand)) fault {
	return fault{name, func(run *schedule, in *instance, r *rand.Rand) []step {
		do(run, in.bus.in, r)
		mine := rand.New(rand.NewPCG(run.seed, r.Uint64())) // it ends beside other faults
		return []step{{run.while(r), "ends", func() { undo(run, in.bus.in, mine) }}}
	}}
}

// failover promotes the replica. Where INFO is refused no connection is kept: the
// library does not promise that it notices a failover that it cannot see.
func (run *schedule) failover(kept bool) { run.bus.Failover(kept && !run.bus.InfoRefused()) }

// forge publishes what an instance would take for good news, or what it clears for:
// anything but a replacement for an invalidation that it has missed. Nothing protects from
// that.
func (run *schedule) forge(in *instance, r *rand.Rand) {
	atomic.AddUint64(&run.totals.forged, 1)
	id := in.bus.identity()
	position, history := run.bus.Position()
	other := sha1.Sum([]byte(fmt.Sprint(r.Uint64())))
	made := hex.EncodeToString(other[:])
	if r.IntN(4) == 0 {
		position = made
	}
	nonce := string(other[:16])
	if r.IntN(2) == 0 { // the clocks', as nonces once were
		now := uint64(time.Now().UnixNano())
		nonce = string(binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, now), now))
	}
	echo := messagetest.Echo(id, position, history, nonce)
	message := messagetest.Message(id, position, made, messagetest.Body(
		messagetest.Operation{Op: messagetest.RemoveKeys, Cache: "a", Values: []string{"0"}}))
	switch r.IntN(8) {
	case 0:
		run.bus.Forge(echo)
	case 1:
		run.bus.Forge(message)
	case 2:
		run.bus.Forge(messagetest.Magic + "nonsense")
	case 3:
		run.bus.Forge("nonsense")
	case 4:
		in.bus.in.Forge(message)
	case 5:
		in.bus.in.Forge(messagetest.Magic + "nonsense")
	default:
		in.bus.in.Forge(echo)
	}
}

func heal(_ *schedule, in *fakebus.Instance, r *rand.Rand) { in.Heal(r.IntN(2) == 0) }

var faultKinds = []fault{
	momentary("lost messages", func(_ *schedule, in *fakebus.Instance, r *rand.Rand) { in.Drop(1 + r.IntN(3)) }),
	momentary("duplicate messages", func(_ *schedule, in *fakebus.Instance, r *rand.Rand) { in.Duplicate(1 + r.IntN(3)) }),
	momentary("swapped messages", func(_ *schedule, in *fakebus.Instance, _ *rand.Rand) { in.Swap() }),
	momentary("delayed messages", func(run *schedule, in *fakebus.Instance, r *rand.Rand) { in.Delay(run.while(r)) }),
	momentary("cut connections", func(_ *schedule, in *fakebus.Instance, _ *rand.Rand) { in.Cut() }),
	momentary("dead connections", func(_ *schedule, in *fakebus.Instance, _ *rand.Rand) { in.Deaden() }),
	momentary("late script", func(run *schedule, in *fakebus.Instance, r *rand.Rand) { in.Late(run.while(r)) }),
	momentary("script run twice", func(_ *schedule, in *fakebus.Instance, r *rand.Rand) {
		in.Twice()
		if r.IntN(2) == 0 {
			in.LoseReply()
		}
	}),
	momentary("lost reply", func(_ *schedule, in *fakebus.Instance, _ *rand.Rand) { in.LoseReply() }),
	momentary("lost position", func(run *schedule, _ *fakebus.Instance, _ *rand.Rand) { run.bus.LosePosition() }),
	momentary("lost values", func(run *schedule, _ *fakebus.Instance, _ *rand.Rand) { run.bus.EvictValues() }),
	momentary("lost tokens", func(run *schedule, _ *fakebus.Instance, _ *rand.Rand) { run.bus.EvictTokens() }),
	momentary("lost clears", func(run *schedule, _ *fakebus.Instance, _ *rand.Rand) { run.bus.EvictClears() }),
	momentary("demotion", func(run *schedule, _ *fakebus.Instance, _ *rand.Rand) { run.bus.Demote() }),
	lasting("mute commands", func(_ *schedule, in *fakebus.Instance, _ *rand.Rand) { in.Mute(fakebus.Up) }, heal),
	lasting("mute messages", func(_ *schedule, in *fakebus.Instance, _ *rand.Rand) { in.Mute(fakebus.Down) }, heal),
	lasting("partition", func(_ *schedule, in *fakebus.Instance, _ *rand.Rand) { in.Partition() }, heal),
	lasting("refused writes",
		func(run *schedule, _ *fakebus.Instance, _ *rand.Rand) { run.bus.RefuseWrites(true) },
		func(run *schedule, _ *fakebus.Instance, _ *rand.Rand) { run.bus.RefuseWrites(false) }),
	lasting("refused INFO",
		func(run *schedule, _ *fakebus.Instance, _ *rand.Rand) { run.bus.RefuseInfo(true) },
		func(run *schedule, _ *fakebus.Instance, _ *rand.Rand) { run.bus.RefuseInfo(!run.plan.info) }),
	lasting("restart",
		func(run *schedule, _ *fakebus.Instance, _ *rand.Rand) { run.bus.Stop() },
		func(run *schedule, _ *fakebus.Instance, _ *rand.Rand) { run.bus.Start() }),
	lasting("failover",
		func(run *schedule, _ *fakebus.Instance, _ *rand.Rand) { run.bus.HoldReplica() },
		func(run *schedule, _ *fakebus.Instance, r *rand.Rand) {
			run.failover(r.IntN(2) == 0)
		}),
	{"writable replica", func(run *schedule, in *instance, r *rand.Rand) []step {
		atomic.AddUint64(&run.totals.astray, 1)
		in.bus.in.LeadAstray()
		if r.IntN(4) > 0 {
			in.bus.in.Cut() // else it is dialled when something else goes wrong
		}
		return []step{{run.while(r), "ends", func() { in.bus.in.LeadBack() }}}
	}},
	{"hostile publisher", func(run *schedule, in *instance, r *rand.Rand) []step {
		var steps []step
		mine := rand.New(rand.NewPCG(run.seed, r.Uint64()))
		for range 3 + r.IntN(10) {
			steps = append(steps, step{between(r, 1, run.plan.maxStaleness[1]/4), "forges", func() { run.forge(in, mine) }})
		}
		return steps
	}},
	{"pause", func(run *schedule, in *instance, r *rand.Rand) []step {
		in.halt()
		in.bus.in.Pause()
		run.totals.paused++
		return []step{{run.while(r), "ends", func() { in.bus.in.Resume(); in.resume() }}}
	}},
	// An echo comes late, and what was accepted right behind it never does.
	{"late echo", func(run *schedule, in *instance, r *rand.Rand) []step {
		life := run.plan.maxStaleness[1]
		in.bus.in.Slow(between(r, life/4, life))
		lost := r.IntN(2) == 0
		return []step{
			{between(r, life/2, 3*life), "mute", func() { in.bus.in.Slow(0); in.bus.in.Mute(fakebus.Down) }},
			{run.while(r), "ends", func() { in.bus.in.Heal(lost) }},
		}
	}},
	// What some instance has missed, the replica that is promoted has missed too.
	// Sometimes those who know better are away.
	{"forgotten messages", func(run *schedule, in *instance, r *rand.Rand) []step {
		run.bus.HoldReplica()
		kept := r.IntN(4) > 0
		if kept && r.IntN(4) > 0 {
			in.bus.in.Drop(1 + r.IntN(4))
		} else {
			in.bus.in.Cut()
		}
		steps := []step{{between(r, 1, run.plan.writePause), "failover", func() {
			in.bus.in.Drop(0)
			run.failover(kept)
		}}}
		if r.IntN(2) == 0 {
			return steps
		}
		others := slices.DeleteFunc(slices.Clone(run.fleet), func(other *instance) bool { return other == in })
		return append(steps, step{1, "the others mute", func() {
			for _, other := range others {
				other.bus.in.Mute(fakebus.Up)
			}
		}}, step{2 * run.plan.maxStaleness[0], "ends", func() {
			for _, other := range others {
				other.bus.in.Heal(false)
			}
		}})
	}},
}
