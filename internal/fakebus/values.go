package fakebus

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/nearcache/nearcache/internal/transport"
)

// valueConns is how many connections an instance has for values.
const valueConns = 4

// values is an instance's way to the values in Redis, over connections of its own.
//
// Many goroutines ask at once, and at one instant in any order. So nothing here
// depends on who comes first: which connection an exchange goes over, and how long
// each packet takes, follows from what is asked and when; and exchanges share a
// connection rather than wait for it. A pool that hands out whatever connection is
// free would be closer to Redis's clients, and would not repeat itself.
type values struct {
	in *Instance

	// Everything below is guarded by Bus.mu.
	closed bool
	conns  [valueConns]*conn // nil: dial first
}

// derive returns a stream that follows from the seed, the instance, the time, and
// what it is for.
func (in *Instance) derive(what uint64) *rand.Rand {
	now := uint64(time.Now().UnixNano())
	return rand.New(rand.NewPCG(in.bus.options.Seed^what, now^uint64(in.number+1)<<56))
}

// asking identifies an exchange. The order of keys does not matter, as a map may
// have given it, and tokens do not, as they may be random. So two that claim the same
// at one instant on one instance are not told apart, and either may be the one who
// gets it. We accept this because an instance has one load of a key at a time.
func asking(kind, cache string, keys, regions []string) uint64 {
	of := hash(kind, cache)
	for _, key := range keys {
		of += hash("key", key)
	}
	for _, region := range regions {
		of += hash("region", region)
	}
	return of
}

// pipelined is how much later than the first command of a pipeline the last one is
// executed, at most.
const pipelined = time.Millisecond / 2

// Read reads values, and a moment later what they are to be judged by: a pipeline is
// no transaction, and anything may happen in between.
func (v *values) Read(
	ctx context.Context, cache string, keys, regions []string, most int,
) (transport.Reading, error) {
	keys, regions = slices.Clone(keys), slices.Clone(regions) // it may arrive when ctx has ended
	r := new(transport.Reading)
	between := time.Duration(1 + v.in.derive(asking("between", cache, keys, regions)).Int64N(int64(pipelined)))
	b := v.in.bus
	err := v.exchange(ctx, asking("read", cache, keys, regions), func(c *conn, answer func(error)) {
		d, _, _ := b.answererLocked(c)
		r.Values = d.read(cache, keys)
		for i := range r.Values {
			r.Values[i].Bytes = r.Values[i].Bytes[:min(len(r.Values[i].Bytes), most+1)]
		}
		time.AfterFunc(between, func() {
			b.mu.Lock()
			defer b.mu.Unlock()
			now, history, master := b.answererLocked(c)
			switch {
			case c.cut || b.down:
			case now != d: // a connection that is kept, but not in the middle of a pipeline
				c.cutLocked()
			case b.noInfo:
				answer(ErrNoInfo)
			default:
				r.History, r.Master = history, master
				d.judge(r, cache, regions)
				answer(nil)
			}
		})
	})
	if err != nil {
		return transport.Reading{}, err // and not r, which may yet be written to
	}
	return *r, nil
}

// Claim runs the claim script once.
func (v *values) Claim(
	ctx context.Context, cache, history string, life time.Duration, claims []transport.Claim,
) (transport.Claimed, error) {
	claims = slices.Clone(claims)
	var keys []string
	for _, c := range claims {
		keys = append(keys, c.Key)
	}
	in, claimed := v.in, new(transport.Claimed)
	err := v.script(ctx, asking("claim", cache, keys, nil), func(d *data) {
		*claimed = d.claim(cache, history, epochAt(in.bus.options.Seed, in.number), life, claims)
	})
	if err != nil {
		return transport.Claimed{}, err
	}
	return *claimed, nil
}

// Put runs the put script once.
func (v *values) Put(ctx context.Context, cache string, puts []transport.Put) ([]bool, error) {
	var keys []string
	var sent []put
	for _, p := range puts {
		keys = append(keys, p.Key)
		sent = append(sent, put{p.Key, p.Token, string(p.Bytes), p.Life, p.Bypass, p.Forget})
	}
	stored := new([]bool)
	err := v.script(ctx, asking("put", cache, keys, nil), func(d *data) { *stored = d.put(cache, sent) })
	if err != nil {
		return nil, err
	}
	return *stored, nil
}

// Keep runs the keep script once.
func (v *values) Keep(ctx context.Context, keeps []transport.Keep) ([]bool, error) {
	keeps = slices.Clone(keeps)
	var keys []string
	for _, k := range keeps {
		keys = append(keys, k.Cache+":"+k.Key)
	}
	kept := new([]bool)
	err := v.script(ctx, asking("keep", "", keys, nil), func(d *data) { *kept = d.keep(keeps) })
	if err != nil {
		return nil, err
	}
	return *kept, nil
}

// Redial closes the connections, also under exchanges that wait.
func (v *values) Redial() { v.drop(false) }

func (v *values) drop(forGood bool) {
	v.in.bus.mu.Lock()
	defer v.in.bus.mu.Unlock()
	v.closed = v.closed || forGood
	v.conns = [valueConns]*conn{}
	for c := range v.in.open {
		if c.values == v {
			c.endLocked(ErrReset)
		}
	}
}

// script is an exchange that a server refuses which takes no writes.
func (v *values) script(ctx context.Context, what uint64, execute func(*data)) error {
	b := v.in.bus
	return v.exchange(ctx, what, func(c *conn, answer func(error)) {
		d, _, master := b.answererLocked(c)
		switch {
		case !master:
			answer(ErrReadOnly)
		case b.refusing:
			answer(ErrRefused)
		default:
			execute(d)
			answer(nil)
		}
	})
}

// exchange sends a command and waits for the answer.
func (v *values) exchange(ctx context.Context, what uint64, execute func(c *conn, answer func(error))) error {
	if err := ctx.Err(); err != nil { // it must not hang on a select whether the command is sent
		return err
	}
	r := v.in.derive(what) // of now: many may be sent at one instant when a connection is there
	c, err := v.get(ctx, int(what%valueConns))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, v.in.bus.options.CommandTimeout)
	defer cancel()
	up, down := v.in.latency(r), v.in.latency(r)
	err = v.in.converse(ctx, c, up, down, r.Uint64(), func(answer func(error)) { execute(c, answer) })
	v.release(c, errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded))
	return err
}

// get returns the connection in a place, when it is there, for one exchange more.
func (v *values) get(ctx context.Context, place int) (*conn, error) {
	b := v.in.bus
	b.mu.Lock()
	if v.closed {
		b.mu.Unlock()
		return nil, ErrReset
	}
	c := v.conns[place]
	if c == nil || c.err != nil {
		c = v.dialLocked(place)
	}
	c.users++
	b.mu.Unlock()

	var err error
	select {
	case <-c.ready:
		return c, nil
	case <-c.ended:
		err = c.err
	case <-ctx.Done():
		err = ctx.Err()
	}
	v.release(c, false)
	return nil, err
}

// dialLocked begins to make a connection. It waits for nobody: whoever needs it does.
func (v *values) dialLocked(place int) *conn {
	in := v.in
	c := &conn{in: in, serial: place, values: v, ended: make(chan struct{}), ready: make(chan struct{}), demoted: in.astray}
	v.conns[place] = c
	c.openLocked()
	r := in.derive(hash("dial") + uint64(place))
	in.transferLocked(c, in.latency(r), in.latency(r), r.Uint64(),
		func(answer func(error)) { answer(nil) }, func(error) { close(c.ready) })
	time.AfterFunc(in.bus.options.ConnectTimeout, func() {
		in.bus.mu.Lock()
		defer in.bus.mu.Unlock()
		select {
		case <-c.ready:
		default:
			c.endLocked(context.DeadlineExceeded)
		}
	})
	return c
}

// release gives back a connection that an exchange has used. If there was no answer
// in time nobody else gets it: it may be dead.
func (v *values) release(c *conn, unanswered bool) {
	v.in.bus.mu.Lock()
	defer v.in.bus.mu.Unlock()
	if unanswered && v.conns[c.serial] == c {
		v.conns[c.serial] = nil
	}
	if c.users--; c.users == 0 && v.conns[c.serial] != c {
		c.endLocked(ErrReset)
	}
}

// cutLocked closes Redis's end of a connection for values.
func (c *conn) cutLocked() {
	c.in.cutConnLocked(c, c.in.latency(c.in.derive(hash("cut")+uint64(c.serial))))
}
