package fakebus

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/nearcache/nearcache/internal/transport"
)

// Direction is the way that a packet takes between an instance and Redis.
type Direction int

const (
	// Up is from the instance to Redis: commands.
	Up Direction = iota
	// Down is from Redis to the instance: replies and messages.
	Down
)

// Instance is one instance's end of the network: its requests to Redis, and the faults of
// its connections.
type Instance struct {
	bus    *Bus
	number int
	random [purposes]*rand.Rand

	// Everything below is guarded by Bus.mu.
	muted         [2]bool // by Direction
	paused        bool
	held          []packet // packets that are stuck, the first one first
	serial        int      // of the next connection
	open          map[*conn]struct{}
	subscriptions []*Subscription // those that Redis delivers to
	publishing    link

	late       time.Duration // how much later the next script is executed; 0: in time
	twice      bool          // the next script is executed twice
	losesReply bool          // the next script's reply is lost
	drop       int           // so many of the next messages are lost
	duplicate  int           // so many of the next messages come twice
	swap       bool          // the next message arrives behind the one after it
	slow       time.Duration // how much longer messages take
	astray     *demoted      // where new connections lead; nil: to the master

	dropInvalidations int // so many of the next invalidations of others are lost
}

// conn is one TCP connection.
type conn struct {
	in     *Instance
	serial int
	ended  chan struct{} // closed when the instance's end is closed; err says why
	err    error
	cut    bool // Redis's end is closed
	dead   bool // half open: nothing arrives, and neither end knows

	values  *values       // its owner, if it is for values
	astray  bool          // the other end is a replica that takes writes, unless it is for values
	users   int           // how many exchanges go over it, then
	ready   chan struct{} // closed when it was dialled, then
	demoted *demoted      // the other end; nil: the master, whichever that is
}

// packet is a packet on its way over a connection.
type packet struct {
	conn   *conn
	way    Direction
	arrive func() // called with Bus.mu held
	draw   uint64 // for values: what its release follows from, if it gets stuck
}

// seldomSlower is the factor by which one packet in a hundred is slower than the others.
const seldomSlower = 10

// latencyLocked draws the time that a packet takes one way.
func (in *Instance) latencyLocked(p purpose) time.Duration { return in.latency(in.random[p]) }

func (in *Instance) latency(r *rand.Rand) time.Duration {
	o := &in.bus.options
	spread := o.MaxLatency - o.MinLatency
	if r.IntN(100) == 0 {
		spread *= seldomSlower
	}
	return o.MinLatency + time.Duration(r.Int64N(int64(spread)+1))
}

// sendLocked makes p arrive after d. If a fault stops it, it arrives when the fault ends.
func (in *Instance) sendLocked(p packet, d time.Duration) {
	if in.paused && p.way == Up { // a stopped process sends nothing
		in.held = append(in.held, p)
		return
	}
	time.AfterFunc(d, func() {
		in.bus.mu.Lock()
		defer in.bus.mu.Unlock()
		switch {
		case in.bus.closed || p.conn.dead:
		case in.muted[p.way] || in.paused && p.way == Down:
			in.held = append(in.held, p)
		default:
			p.arrive()
		}
	})
}

// releaseLocked sends held packets that no fault stops any longer.
func (in *Instance) releaseLocked() {
	held := in.held
	in.held = nil
	for _, p := range held {
		if in.muted[p.way] || in.paused {
			in.held = append(in.held, p)
			continue
		}
		if p.conn.values != nil {
			in.sendLocked(p, moment(in.derive(p.draw)))
			continue
		}
		in.sendLocked(p, in.momentLocked())
	}
	for _, s := range in.subscriptions {
		signal(s.changed)
	}
}

// momentLocked returns a very short time, so that events that follow at once happen at
// different instants.
func (in *Instance) momentLocked() time.Duration { return moment(in.random[releasing]) }

func moment(r *rand.Rand) time.Duration {
	return time.Duration(1 + r.Int64N(int64(20*time.Microsecond)))
}

// errNoReply is returned by a command that Redis does not answer.
var errNoReply = errors.New("no reply")

// exchange sends a command over c and waits for the reply. After an error the connection
// must not be used again, and the command may still be executed.
func (in *Instance) exchange(ctx context.Context, c *conn, p purpose, execute func() error) error {
	in.bus.mu.Lock()
	up, down := in.latencyLocked(p), in.latencyLocked(p)
	in.bus.mu.Unlock()
	return in.converse(ctx, c, up, down, 0, func(answer func(error)) {
		if err := execute(); err != errNoReply {
			answer(err)
		}
	})
}

// converse is exchange with given latencies. The command may answer at any time, with
// Bus.mu held.
func (in *Instance) converse(
	ctx context.Context, c *conn, up, down time.Duration, draw uint64, execute func(answer func(error)),
) error {
	reply := make(chan error, 1)
	in.bus.mu.Lock()
	in.transferLocked(c, up, down, draw, execute, func(err error) { reply <- err })
	in.bus.mu.Unlock()

	select {
	case err := <-reply:
		return err
	case <-c.ended:
		return c.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// transferLocked sends a command over c, and its answer back.
func (in *Instance) transferLocked(
	c *conn, up, down time.Duration, draw uint64, execute func(answer func(error)), receive func(error),
) {
	send := func(way Direction, d time.Duration, arrive func()) {
		in.sendLocked(packet{conn: c, way: way, draw: draw, arrive: arrive}, d)
	}
	send(Up, up, func() {
		if c.cut || in.bus.down {
			send(Down, down, func() { c.endLocked(ErrReset) })
			return
		}
		execute(func(err error) { send(Down, down, func() { receive(err) }) })
	})
}

// script is an exchange to which the faults of scripts apply.
func (in *Instance) script(ctx context.Context, c *conn, p purpose, execute func() error) error {
	ctx, cancel := context.WithTimeout(ctx, in.bus.options.CommandTimeout)
	defer cancel()

	in.bus.mu.Lock()
	late, twice, losesReply := in.late, in.twice, in.losesReply
	in.late, in.twice, in.losesReply = 0, false, false
	giveUp := in.latencyLocked(p)
	in.bus.mu.Unlock()

	if late > 0 {
		return in.abandon(ctx, c, late, giveUp, execute)
	}
	return in.exchange(ctx, c, p, func() error {
		if twice {
			_ = execute()
		}
		err := execute()
		if losesReply {
			in.cutConnLocked(c, in.momentLocked())
			return errNoReply
		}
		return err
	})
}

// abandon sends a command that is executed late, over a connection that breaks before.
func (in *Instance) abandon(ctx context.Context, c *conn, late, giveUp time.Duration, execute func() error) error {
	in.bus.mu.Lock()
	in.sendLocked(packet{conn: c, way: Up, arrive: func() {
		if !in.bus.down {
			_ = execute()
		}
	}}, late)
	in.bus.mu.Unlock()
	select {
	case <-c.ended:
		return c.err
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(giveUp):
		in.bus.mu.Lock()
		defer in.bus.mu.Unlock()
		c.endLocked(ErrReset)
		return ErrReset
	}
}

// dial makes a connection, which takes one exchange.
func (in *Instance) dial(ctx context.Context, p purpose) (*conn, error) {
	ctx, cancel := context.WithTimeout(ctx, in.bus.options.ConnectTimeout)
	defer cancel()
	b := in.bus
	b.mu.Lock()
	c := &conn{in: in, serial: in.serial, ended: make(chan struct{}), astray: in.astray != nil}
	in.serial++
	c.openLocked()
	b.mu.Unlock()
	if err := in.exchange(ctx, c, p, func() error { return nil }); err != nil {
		c.close()
		return nil, fmt.Errorf("dial: %w", err)
	}
	return c, nil
}

// openLocked adds c to the network, unless that is closed.
func (c *conn) openLocked() {
	if c.in.bus.closed {
		c.endLocked(ErrReset)
		return
	}
	if c.in.open == nil {
		c.in.open = map[*conn]struct{}{}
	}
	c.in.open[c] = struct{}{}
}

// close closes the instance's end of a connection.
func (c *conn) close() {
	c.in.bus.mu.Lock()
	defer c.in.bus.mu.Unlock()
	c.endLocked(ErrReset)
}

func (c *conn) endLocked(err error) {
	if c.err == nil {
		c.err = err
		close(c.ended)
		delete(c.in.open, c)
	}
}

// cutConnLocked closes Redis's end; the instance gets an error after d.
func (in *Instance) cutConnLocked(c *conn, d time.Duration) {
	c.cut = true
	in.sendLocked(packet{conn: c, way: Down, arrive: func() { c.endLocked(ErrReset) }}, d)
}

// Publish makes one attempt to run the publish script, over a connection that it keeps.
// Only one goroutine may call it at a time.
func (in *Instance) Publish(ctx context.Context, m transport.Message) error {
	o := &in.bus.options
	ctx, cancel := context.WithTimeout(ctx, o.ConnectTimeout+o.CommandTimeout)
	defer cancel()
	sent := time.Now()
	return in.publishing.run(ctx, func() error { return in.bus.runPublishLocked(in, m, sent) })
}

// Redial closes the connection that Publish keeps, even while a Publish waits for an
// answer.
func (in *Instance) Redial() {
	in.bus.mu.Lock()
	defer in.bus.mu.Unlock()
	in.publishing.dropLocked()
}

// link is a connection that is kept from one script to the next.
type link struct {
	in      *Instance
	purpose purpose
	closed  bool  // for good; guarded by Bus.mu, like conn
	conn    *conn // nil: dial first
}

// run runs a script. If the connection has broken since it was last used, the
// script is run again over a new one.
func (l *link) run(ctx context.Context, execute func() error) error {
	mu := &l.in.bus.mu
	for {
		c, reused, err := l.get(ctx)
		if err != nil {
			return err
		}
		if err = l.in.script(ctx, c, l.purpose, func() error {
			if c.astray { // the replica takes writes, but says that it is a replica
				return ErrReadOnly
			}
			return execute()
		}); err == nil {
			return nil
		}
		mu.Lock()
		c.endLocked(ErrReset)
		if l.conn == c {
			l.conn = nil
		}
		closed := l.closed
		mu.Unlock()
		if closed || !reused || !errors.Is(err, ErrReset) || ctx.Err() != nil {
			return err
		}
	}
}

// get returns the connection that is kept, or a new one.
func (l *link) get(ctx context.Context) (c *conn, reused bool, err error) {
	mu := &l.in.bus.mu
	mu.Lock()
	c, closed := l.conn, l.closed
	mu.Unlock()
	switch {
	case closed:
		return nil, false, ErrReset
	case c != nil:
		return c, true, nil
	}
	if c, err = l.in.dial(ctx, l.purpose); err != nil {
		return nil, false, err
	}
	mu.Lock()
	l.conn = c
	mu.Unlock()
	return c, false, nil
}

func (l *link) dropLocked() {
	if l.conn != nil {
		l.conn.endLocked(ErrReset)
		l.conn = nil
	}
}

// openLocked returns the open connections except those for values, oldest first.
func (in *Instance) openLocked() (open []*conn) {
	for c := range in.open {
		if c.values == nil {
			open = append(open, c)
		}
	}
	slices.SortFunc(open, func(a, b *conn) int { return a.serial - b.serial })
	return open
}
