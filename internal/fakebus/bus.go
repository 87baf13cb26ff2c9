// Package fakebus simulates one Redis deployment and the network between it and
// the instances of a fleet: in memory, in the time of package time, and driven by
// a seed. It is for tests inside a testing/synctest bubble, where its waits are
// durable and its latencies cost nothing.
//
// It does what the scripts do: those that publish, those that probe and those for values.
// It promises what Redis Pub/Sub promises, which is only the order within one connection.
// It can fail in many of the ways in which such a deployment fails; each fault is a method.
//
// Every latency is a random number of nanoseconds, so two events rarely happen at one
// instant. Each instance and purpose has its own stream of random numbers. Requests for
// values come from many goroutines, so their latencies depend on what is asked and when.
// So the order in which goroutines run at one instant changes nothing, and a seed gives
// the same history in every run.
package fakebus

import (
	"crypto/sha1"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/nearcache/nearcache/internal/transport"
)

// ErrRefused is the error of a script while Redis refuses writes.
var ErrRefused = errors.New("OOM command not allowed when used memory > 'maxmemory'")

// ErrReadOnly is the error of a script on a replica.
var ErrReadOnly = errors.New("READONLY You can't write against a read only replica")

// ErrNoInfo is the error of a command that needs INFO, while INFO is refused.
var ErrNoInfo = errors.New("NOPERM this user has no permissions to run the 'info' command")

// ErrReset is the error of a connection that the other end, or the instance itself, has
// closed.
var ErrReset = errors.New("connection reset")

// Options describes a deployment. A field that is zero has its default.
type Options struct {
	// Seed is the seed of all random numbers.
	Seed uint64

	// Instances is how many instances the fleet has. Defaults to 1.
	Instances int

	// MinLatency and MaxLatency bound the time that a packet takes one way. One packet in a
	// hundred takes up to ten times as long. Default to 50 µs and 2 ms.
	MinLatency, MaxLatency time.Duration

	// ConnectTimeout bounds a dial and CommandTimeout a command. Default to 5 s.
	ConnectTimeout, CommandTimeout time.Duration

	// OutputLimit is how many messages may wait for one subscriber before Redis
	// closes its connection. Defaults to 1000.
	OutputLimit int

	// ClearsLimit is the least number of fields of the hash of clears at which it is tidied:
	// regions without a value are removed. Defaults to 1024, as in Redis.
	ClearsLimit int

	// OnAccept is called each time that the publish script was executed: with the instance,
	// the body of its message, the time when Publish was called, and the current time. It
	// is called under the lock of the Bus, and must not call the Bus.
	OnAccept func(instance int, body string, sent, accepted time.Time)
}

// Bus is one deployment: a master that executes scripts one after another, a
// replica, and a network to each instance. Its methods may be called from any
// number of goroutines.
type Bus struct {
	options   Options
	instances []*Instance

	mu       sync.Mutex // guards everything below, and all of the network
	closed   bool
	server   *rand.Rand // histories
	data     *data
	replica  *data // what a replica has that hears of nothing new; nil: it has all
	history  string
	noInfo   bool // INFO is refused
	refusing bool // no writes
	down     bool // nothing listens
}

// New makes a deployment that is up and empty.
func New(o Options) *Bus {
	o.Instances = max(o.Instances, 1)
	if o.MinLatency == 0 {
		o.MinLatency = 50 * time.Microsecond
	}
	if o.MaxLatency == 0 {
		o.MaxLatency = 2 * time.Millisecond
	}
	if o.ConnectTimeout == 0 {
		o.ConnectTimeout = 5 * time.Second
	}
	if o.CommandTimeout == 0 {
		o.CommandTimeout = 5 * time.Second
	}
	if o.OutputLimit == 0 {
		o.OutputLimit = 1000
	}
	if o.ClearsLimit == 0 {
		o.ClearsLimit = 1024
	}
	b := &Bus{options: o, server: stream(o.Seed, -1, 0), data: newData()}
	b.history = b.name()
	for i := range o.Instances {
		in := &Instance{bus: b, number: i}
		in.publishing = link{in: in, purpose: publishing}
		for p := range in.random {
			in.random[p] = stream(o.Seed, i, purpose(p))
		}
		b.instances = append(b.instances, in)
	}
	return b
}

// Instance returns the network end of instance i.
func (b *Bus) Instance(i int) *Instance { return b.instances[i] }

// RoundTrip returns more than the longest time for a packet and its answer, without a
// fault.
func (b *Bus) RoundTrip() time.Duration {
	return 2*seldomSlower*b.options.MaxLatency + time.Millisecond
}

// Close ends the deployment: every connection breaks, and nothing more happens.
func (b *Bus) Close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	for _, in := range b.instances {
		for c := range in.open {
			c.endLocked(ErrReset)
		}
	}
}

// purpose is what a stream of random numbers is for. Only one goroutine draws from a
// stream, or only the one event of an instant.
type purpose int

const (
	publishing purpose = iota
	probing
	subscribing
	delivering
	releasing
	purposes // the number of purposes
)

func stream(seed uint64, instance int, p purpose) *rand.Rand {
	return rand.New(rand.NewPCG(seed, uint64(instance+1)*uint64(purposes)+uint64(p)))
}

// name returns 40 random hexadecimal digits.
func (b *Bus) name() string {
	var bytes [20]byte
	for i := range bytes {
		bytes[i] = byte(b.server.Uint32())
	}
	return hex.EncodeToString(bytes[:])
}

func sha1hex(s string) string {
	sum := sha1.Sum([]byte(s))
	return hex.EncodeToString(sum[:])
}

// runPublishLocked executes the publish script.
func (b *Bus) runPublishLocked(in *Instance, m transport.Message, sent time.Time) error {
	if b.refusing {
		return ErrRefused
	}
	b.data.change(m.Changes, b.options.ClearsLimit)
	previous := b.data.position
	own := sha1hex(previous + m.Nonce)
	b.data.position = own
	payload := m.Head + short(previous) + short(own) + m.Body
	for _, to := range b.instances {
		if to != in && to.dropInvalidations > 0 {
			to.dropInvalidations--
			continue
		}
		to.deliverLocked(payload, nil)
	}
	if b.options.OnAccept != nil {
		b.options.OnAccept(in.number, m.Body, sent, time.Now())
	}
	return nil
}

// runProbeLocked executes the probe script.
func (b *Bus) runProbeLocked(as transport.Identity, nonce string) error {
	if b.refusing {
		return ErrRefused
	}
	if b.data.position == "" {
		b.data.position = sha1hex(nonce)
	}
	history := b.history
	if b.noInfo {
		history = ""
	}
	b.data.probe(history)
	echo := as.Echo + short("") + short(b.data.position) + "\x01" + long(history) + long(nonce)
	for _, to := range b.instances { // clones have one channel
		to.deliverLocked(echo, &as.ID)
	}
	return nil
}

// short returns a string after one byte of its length, and long after a uvarint.
func short(s string) string { return string([]byte{byte(len(s))}) + s }
func long(s string) string  { return string(binary.AppendUvarint(nil, uint64(len(s)))) + s }

// Forge publishes to the channel as a user that is no instance.
func (b *Bus) Forge(payload string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, in := range b.instances {
		in.deliverLocked(payload, nil)
	}
}

// Position returns the channel's position and the server's history. Any user that can
// write them can read them.
func (b *Bus) Position() (position, history string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.data.position, b.history
}

// LosePosition removes the position key, as an eviction or a FLUSHALL would.
func (b *Bus) LosePosition() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.data.position = ""
}

// EvictValues removes all values, as running out of memory may do to some.
func (b *Bus) EvictValues() {
	b.mu.Lock()
	defer b.mu.Unlock()
	clear(b.data.values)
}

// EvictTokens removes all tokens: no load has a claim then.
func (b *Bus) EvictTokens() {
	b.mu.Lock()
	defer b.mu.Unlock()
	clear(b.data.tokens)
}

// EvictClears removes the hash of clears, which leaves no value valid.
func (b *Bus) EvictClears() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.data.clears = nil
}

// HoldReplica stops replication until the replica is promoted. The replica keeps the
// position, the values, the tokens and the clears of now.
func (b *Bus) HoldReplica() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.replica == nil {
		b.replica = b.data.clone()
	}
}

// Failover promotes the replica, which may have fallen behind, and begins a new history.
// The connections break, as on a standalone server, or are kept, as those of subscribers
// at other nodes of a Cluster.
func (b *Bus) Failover(keepConnections bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.replica != nil {
		b.data, b.replica = b.replica, nil
	}
	b.history = b.name()
	if !keepConnections {
		b.cutAllLocked()
	}
}

// Demote promotes the replica, as Failover does, but the old master stays as a replica.
// Connections for values stay with it until Redial or Heal; other connections break. It
// answers reads from its old data, and knows the new history after a moment. It receives
// nothing new, and refuses scripts.
func (b *Bus) Demote() {
	b.mu.Lock()
	defer b.mu.Unlock()
	old := &demoted{data: b.data, before: b.history, history: b.name()}
	old.joined = time.Now().Add(time.Duration(b.server.Int64N(int64(b.RoundTrip()))))
	if b.replica == nil {
		b.replica = b.data.clone()
	}
	b.data, b.replica, b.history = b.replica, nil, old.history
	for _, in := range b.instances {
		in.cutScriptsLocked()
		for c := range in.open {
			if c.values != nil && c.demoted == nil {
				c.demoted = old
			}
		}
	}
}

// demoted is a server that was the master.
type demoted struct {
	data            *data
	before, history string
	joined          time.Time // until then it shows before, and then history
}

// answererLocked returns the data, history and role of the server at the other end of c.
func (b *Bus) answererLocked(c *conn) (d *data, history string, master bool) {
	old := c.demoted
	switch {
	case old == nil:
		return b.data, b.history, true
	case time.Now().Before(old.joined):
		return old.data, old.before, false
	default:
		return old.data, old.history, false
	}
}

// Stop ends the server's process. Nothing can connect until Start.
func (b *Bus) Stop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.down = true
	b.cutAllLocked()
}

// Start starts the server's process after a Stop, without any data.
func (b *Bus) Start() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.down {
		b.down, b.data, b.replica, b.history = false, newData(), nil, b.name()
	}
}

// RefuseWrites makes every script fail, or work again. Values can be read.
func (b *Bus) RefuseWrites(refuse bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.refusing = refuse
}

// RefuseInfo makes INFO fail, or work again. Without INFO, echoes have no history, and
// reads of values fail.
func (b *Bus) RefuseInfo(refuse bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.noInfo = refuse
}

// InfoRefused reports whether INFO fails.
func (b *Bus) InfoRefused() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.noInfo
}

// Heal ends every lasting fault, except RefuseInfo. Connections that are broken or dead
// stay so, and those to a demoted master break.
func (b *Bus) Heal() {
	b.Start()
	b.RefuseWrites(false)
	for _, in := range b.instances {
		in.leaveDemoted()
		in.Heal(false)
		in.Resume()
		in.faultless()
	}
}

func (b *Bus) cutAllLocked() {
	for _, in := range b.instances {
		in.cutLocked()
	}
}
