package redisbus

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/nearcache/nearcache/internal/transport"
)

// The answer to a claim is kept until its load has ended, so it is bounded.
const (
	mostEpoch = transport.IDLength
	mostStamp = 32 // seconds, a point and microseconds
)

// values is the way to the values in Redis. It has connections of its own, because many
// requests may be under way at once.
type values struct {
	server *Server
	links  linkPool
}

// Values returns the way to the values in Redis.
func (s *Server) Values() transport.Values { return &s.values }

// Redial closes the connections, so that the next attempts dial again.
func (v *values) Redial() { v.links.drop(false) }

func (s *Server) valueKey(cache, key string) string {
	return s.keyPrefix + "value:" + cache + ":" + key
}

func (s *Server) tokenKey(cache, key string) string {
	return s.keyPrefix + "token:" + cache + ":" + key
}

// appendChanges appends the keys and arguments of changeValues.
func (s *Server) appendChanges(keys []string, args []any, changes []transport.Change) ([]string, []any) {
	for _, c := range changes {
		for _, key := range c.Keys {
			keys = append(keys, s.valueKey(c.Cache, key), s.tokenKey(c.Cache, key))
		}
		for _, region := range c.Regions {
			args = append(args, c.Cache, regionField(c.Cache, region))
		}
		switch {
		case c.All:
			args = append(args, "", "")
		case c.Clear:
			args = append(args, c.Cache, "c:"+c.Cache)
		}
	}
	return keys, args
}

func regionField(cache, region string) string { return "r:" + cache + ":" + region }

// Read reads values in one pipeline. A script would cost Redis more than everything else. A
// value is read after the time that it has left, and before the clears that decide whether
// it is valid: whatever happens in between counts against the value.
//
// It sends GETRANGE and not GET, so that Redis sends at most one byte more than a value may
// have. An empty string is no value.
func (v *values) Read(ctx context.Context, cache string, keys, regions []string, most int) (transport.Reading, error) {
	var reading transport.Reading
	s := v.server
	lives := make([]*redis.DurationCmd, len(keys))
	values := make([]*redis.StringCmd, len(keys))
	fields := []string{"epoch", "n:" + cache, "c:" + cache}
	for _, region := range regions {
		fields = append(fields, regionField(cache, region))
	}
	var clears *redis.SliceCmd
	var info *redis.StringCmd
	const framing, field = 32, 64 // bytes: more than a string's head, and a field of the clears, take
	bounds := replyBounds{
		bytes:    max(ordinaryReplies.bytes+field*len(regions), most+1+framing),
		elements: ordinaryReplies.elements + len(regions),
	}
	err := v.links.run(ctx, true, func(ctx context.Context, link *redisLink) error {
		link.raw.replies.bounds = bounds
		defer func() { link.raw.replies.bounds = ordinaryReplies }()
		commands, err := link.conn.Pipelined(ctx, func(p redis.Pipeliner) error {
			for i, key := range keys {
				name := s.valueKey(cache, key)
				lives[i], values[i] = p.PTTL(ctx, name), p.GetRange(ctx, name, 0, int64(most))
			}
			clears = p.HMGet(ctx, s.clearsKey, fields...)
			info = p.Info(ctx, "replication")
			return nil
		})
		return pipelineError(commands, err, clears, info)
	})
	if err != nil {
		return reading, err
	}
	counts := clears.Val()
	if len(counts) != len(fields) {
		return reading, fmt.Errorf("unexpected reply to HMGET %s", s.clearsKey)
	}
	reading.Values = make([]transport.Value, len(keys))
	for i := range keys {
		if reading.Values[i], err = readValue(lives[i], values[i]); err != nil {
			return reading, err
		}
	}
	reading.Master, reading.History = readInfo(info.Val())
	reading.Epoch, _ = counts[0].(string)
	reading.Count, reading.Cleared = readCount(counts[1]), readCount(counts[2])
	for _, c := range counts[3:] {
		reading.Regions = append(reading.Regions, readCount(c))
	}
	return reading, nil
}

// pipelineError returns why a pipeline has failed. Pipelined returned err. The pipeline has
// failed if a needed command has, or if the connection ended, or if Redis refused
// go-redis's own first exchange: go-redis returns that error, and sets it on no command.
// The errors of other commands are left to those commands.
func pipelineError(commands []redis.Cmder, err error, needed ...redis.Cmder) error {
	failed := false
	for _, c := range commands {
		if failed = failed || c.Err() != nil; c.Err() != nil && !answered(c.Err()) {
			return c.Err() // the connection ended before the last answer
		}
	}
	for _, c := range needed {
		if c.Err() != nil {
			return c.Err()
		}
	}
	if failed {
		return nil
	}
	return err
}

func readValue(life *redis.DurationCmd, value *redis.StringCmd) (v transport.Value, err error) {
	bytes, err := value.Bytes()
	switch {
	case err == nil && len(bytes) == 0, errors.Is(err, redis.Nil):
		return v, nil
	case err == nil && life.Err() == nil:
		return transport.Value{Found: true, Bytes: bytes, Life: life.Val()}, nil
	case code(err) == "WRONGTYPE":
		v.Found = true
		return v, nil
	case err != nil:
		return v, err
	}
	return v, life.Err()
}

// readInfo reads the section of INFO on replication.
func readInfo(info string) (master bool, history string) {
	for line := range strings.Lines(info) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		switch name {
		case "role":
			master = value == "master"
		case "master_replid":
			history = value
		}
	}
	return master, history
}

// readCount reads a count; an absent one is 0. A field that is not a number reads as the
// largest count: cleared for good.
func readCount(field any) uint64 {
	text, ok := field.(string)
	if !ok {
		return 0
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 1<<64 - 1
	}
	return n
}

// Claim claims loads.
func (v *values) Claim(
	ctx context.Context, cache, history string, life time.Duration, claims []transport.Claim,
) (claimed transport.Claimed, err error) {
	s := v.server
	keys := append(make([]string, 0, 1+2*len(claims)), s.clearsKey)
	args := append(make([]any, 0, 4+4*len(claims)), cache, history, s.drawNonce(), milliseconds(life))
	for _, c := range claims {
		seen := c.Seen
		if c.Any {
			seen = "*"
		}
		keys = append(keys, s.valueKey(cache, c.Key), s.tokenKey(cache, c.Key))
		args = append(args, c.Token, milliseconds(c.Life), seen, c.Own)
	}
	var reply []string
	// Not again: if the first attempt has succeeded after all, the second would find the
	// load claimed, and this instance would wait for a load that does not exist.
	err = v.links.run(ctx, false, func(ctx context.Context, link *redisLink) (err error) {
		reply, err = link.eval(ctx, claimScript, keys, args...).StringSlice()
		return err
	})
	if err != nil {
		return claimed, err
	}
	if len(reply) != 4 || len(reply[2]) != len(claims) || len(reply[0]) > mostEpoch || len(reply[3]) > mostStamp {
		return claimed, fmt.Errorf("unexpected reply to a claim")
	}
	claimed.Epoch, claimed.Count, claimed.Stamp = reply[0], readCount(reply[1]), reply[3]
	for _, state := range []byte(reply[2]) {
		claimed.States = append(claimed.States, transport.ClaimState(state))
	}
	return claimed, nil
}

// Put ends claims.
func (v *values) Put(ctx context.Context, cache string, puts []transport.Put) ([]bool, error) {
	s := v.server
	keys := make([]string, 0, 2*len(puts))
	args := make([]any, 0, 3*len(puts)+1)
	for _, p := range puts {
		keys = append(keys, s.valueKey(cache, p.Key), s.tokenKey(cache, p.Key))
		args = append(args, p.Token, p.Bytes, putArgument(&p))
	}
	args = append(args, milliseconds(transport.BypassFor))
	var reply string
	err := v.links.run(ctx, true, func(ctx context.Context, link *redisLink) (err error) {
		reply, err = link.eval(ctx, putScript, keys, args...).Text()
		return err
	})
	if err != nil {
		return nil, err
	}
	if len(reply) != len(puts) {
		return nil, fmt.Errorf("unexpected reply to a put")
	}
	stored := make([]bool, len(puts))
	for i := range stored {
		stored[i] = reply[i] == '1'
	}
	return stored, nil
}

// Keep extends claims, and releases them.
func (v *values) Keep(ctx context.Context, keeps []transport.Keep) ([]bool, error) {
	s := v.server
	keys := make([]string, 0, len(keeps))
	args := make([]any, 0, 2*len(keeps))
	for _, k := range keeps {
		life := int64(0)
		if k.Life > 0 {
			life = milliseconds(k.Life)
		}
		keys, args = append(keys, s.tokenKey(k.Cache, k.Key)), append(args, k.Token, life)
	}
	var reply string
	err := v.links.run(ctx, true, func(ctx context.Context, link *redisLink) (err error) {
		reply, err = link.eval(ctx, keepScript, keys, args...).Text()
		return err
	})
	if err != nil {
		return nil, err
	}
	if len(reply) != len(keeps) {
		return nil, fmt.Errorf("unexpected reply to a keep")
	}
	kept := make([]bool, len(keeps))
	for i := range kept {
		kept[i] = reply[i] == '1'
	}
	return kept, nil
}

// putArgument returns the third argument of putScript.
func putArgument(p *transport.Put) any {
	switch {
	case len(p.Bytes) > 0:
		return milliseconds(p.Life)
	case p.Forget:
		return "forget"
	case p.Bypass:
		return "vain"
	}
	return "release"
}

// milliseconds returns at least 1, because Redis refuses a life of 0.
func milliseconds(d time.Duration) int64 { return max(d.Milliseconds(), 1) }
