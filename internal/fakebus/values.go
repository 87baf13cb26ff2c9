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

// values is an instance's access to the values in Redis, over connections of its own.
//
// Many goroutines send requests at once, and at one instant in any order. So nothing here
// depends on which is first. The connection of an exchange, and how long each packet takes,
// depend on what is asked and when. Exchanges share a connection instead of waiting for it.
// A pool that returns any free connection would be closer to Redis's clients, but runs
// could not be repeated.
type values struct {
	in *Instance

	// Everything below is guarded by Bus.mu.
	closed bool
	conns  [valueConns]*conn // nil: dial first
}

// derive returns a stream of random numbers that depends only on the seed, the instance,
// the time, and what it is for.
func (in *Instance) derive(what uint64) *rand.Rand {
	now := uint64(time.Now().UnixNano())
	return rand.New(rand.NewPCG(in.bus.options.Seed^what, now^uint64(in.number+1)<<56))
}

// asking identifies an exchange. The order of keys does not matter, since it may come from
// a map. Tokens do not matter, since they may be random. So if one instance claims the same
// key twice at one instant, either exchange may get the claim. We accept this because an
// instance has one load of a key at a time.
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

// pipelined is the longest time between the first and the last command of a pipeline.
const pipelined = time.Millisecond / 2

// Read reads values, and a moment later what shows whether they are valid. A pipeline is
// not a transaction, so anything may happen in between.
func (v *values) Read(
	ctx context.Context, cache string, keys, regions []string, most int,
) (transport.Reading, error) {
	keys, regions = slices.Clone(keys), slices.Clone(regions) // the request may arrive after ctx has ended
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
			case now != d: // another server by now: a kept connection breaks in the middle of a pipeline
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
		return transport.Reading{}, err // not r, which may still be written to
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

// Redial closes the connections, even while exchanges wait on them.
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

// script is an exchange that a server refuses if it takes no writes.
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
	if err := ctx.Err(); err != nil { // checked first, since a select would choose at random
		return err
	}
	r := v.in.derive(what) // before the dial, after which many may be sent at one instant
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

// get returns the connection in a place once it is open, for one more exchange.
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

// dialLocked begins to dial a connection. It does not wait; get does.
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

// release returns a connection that an exchange has used. If there was no answer in time,
// no other exchange gets it, since it may be dead.
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
