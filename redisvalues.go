package nearcache

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

// The keys of the shared level in Redis. All have the channel's hash tag, so that
// each script touches one slot of a Cluster.
//
//	{channel}:value:<cache>:<key>  a value
//	{channel}:token:<cache>:<key>  whose load is under way, and replaces it
//	{channel}:clears               a hash: what was cleared, of all caches
//
// The hash has these fields. A count is the server's time in microseconds, or one
// more than the last if that is larger: clears only have to grow, but a region's
// field can go when no value is left that is older.
//
//	epoch              made with the hash
//	history            the server's history id then
//	n:<cache>          the cache's count
//	c:<cache>          the count after the last clear of the whole cache
//	r:<cache>:<region> the count after the last clear of the region
//	l:<cache>          the longest life of the cache's values, in milliseconds
//	limit              how many fields there may be before old ones are looked for

// changeValues is the part of the publish script that changes what is shared. If
// there is no hash, no value is valid, and nothing has to go.
//
// A region's field goes when all values have expired that were stored before, as far
// as is known; if one has not, it is void from then on, as after a clear of the cache.
//
// KEYS: 2 clears, then values and tokens to delete. ARGV: from 6 on, pairs: a cache
// and the field of a clear, without its count. Two empty ones clear everything.
const changeValues = `
if epoch then
  for i = 3, #KEYS, 1000 do redis.call('DEL', unpack(KEYS, i, math.min(i + 999, #KEYS))) end
  if #ARGV > 5 then
    local time = redis.call('TIME')
    local now = time[1] * 1000000 + time[2]
    for i = 6, #ARGV, 2 do
      if ARGV[i] == '' then
        redis.call('DEL', KEYS[2])
        break
      end
      if redis.call('HGET', KEYS[2], 'l:' .. ARGV[i]) then -- else it has no values
        local count = math.max((tonumber(redis.call('HGET', KEYS[2], 'n:' .. ARGV[i])) or 0) + 1, now)
        count = string.format('%.0f', count)
        redis.call('HSET', KEYS[2], 'n:' .. ARGV[i], count, ARGV[i + 1], count)
      end
    end
    local limit = tonumber(redis.call('HGET', KEYS[2], 'limit')) or 1024
    if redis.call('HLEN', KEYS[2]) > limit then
      local all, life = redis.call('HGETALL', KEYS[2]), {}
      for i = 1, #all, 2 do
        local cache = string.match(all[i], '^l:(.*)$')
        if cache then life[cache] = tonumber(all[i + 1]) end
      end
      for i = 1, #all, 2 do
        local cache = string.match(all[i], '^r:([^:]*):')
        local count = tonumber(all[i + 1])
        if cache and count + life[cache] * 1000 < now then
          redis.call('HDEL', KEYS[2], all[i])
          if count > (tonumber(redis.call('HGET', KEYS[2], 'c:' .. cache)) or 0) then
            redis.call('HSET', KEYS[2], 'c:' .. cache, all[i + 1])
          end
        end
      end
      local left = redis.call('HLEN', KEYS[2])
      if left > 65536 then
        redis.call('DEL', KEYS[2])
      else
        redis.call('HSET', KEYS[2], 'limit', math.max(1024, 2 * left))
      end
    end
  end
end
`

// claimScript claims loads. A value that is no value has an empty id, and is
// replaced as if there were none. Tokens and epoch are made here, inside Redis, so that
// a script that runs twice makes others: what an invalidation has taken away does not
// come back. A token stands with the epoch and the count of its claim, since a load that
// began before a clear of the cache brings nothing that is worth a wait.
//
// KEYS: clears, then value and token of each. ARGV: cache, history, nonce of an
// epoch, life of values, then of each claim: token, its life, id of the value that
// was seen, or * for any, and the token that this instance has of it already.
var claimScript = redis.NewScript(`
local time = redis.call('TIME')
local stamp = time[1] .. '.' .. time[2]
local epoch = redis.call('HGET', KEYS[1], 'epoch')
if not epoch then
  epoch = string.sub(redis.sha1hex(ARGV[3] .. stamp), 1, 16)
  redis.call('HSET', KEYS[1], 'epoch', epoch, 'history', ARGV[2])
end
if (tonumber(redis.call('HGET', KEYS[1], 'l:' .. ARGV[1])) or 0) < tonumber(ARGV[4]) then
  redis.call('HSET', KEYS[1], 'l:' .. ARGV[1], ARGV[4])
end
local count = redis.call('HGET', KEYS[1], 'n:' .. ARGV[1]) or '0'
local cleared = tonumber(redis.call('HGET', KEYS[1], 'c:' .. ARGV[1])) or 0
local states = {}
for i = 0, (#KEYS - 1) / 2 - 1 do
  local value, token, seen = KEYS[2 + 2 * i], KEYS[3 + 2 * i], ARGV[7 + 4 * i]
  local held = redis.call('GET', token)
  if held == '!' and seen ~= '*' then
    states[i + 1] = 'v'
  elseif held and string.sub(held, 17, 32) == epoch and (tonumber(string.sub(held, 33)) or 0) >= cleared then
    states[i + 1] = string.sub(held, 1, 16) == ARGV[8 + 4 * i] and 'o' or 'b'
  else
    local id = seen ~= '*' and redis.pcall('GETRANGE', value, 1, 16) or ''
    if type(id) == 'string' and id ~= '' and id ~= seen then
      states[i + 1] = 'c'
    else
      local made = string.sub(redis.sha1hex(ARGV[5 + 4 * i] .. stamp), 1, 16)
      redis.call('SET', token, made .. epoch .. count, 'PX', ARGV[6 + 4 * i])
      states[i + 1] = 't'
    end
  end
end
return {epoch, count, table.concat(states), stamp}
`)

// putScript stores the values of loads whose claims have lasted, and ends the
// claims.
//
// KEYS: value and token of each. ARGV: of each, token, bytes (none: no value), life; or
// without a value what to do instead. Then for how long a claim in vain is remembered.
var putScript = redis.NewScript(`
local stored = {}
for i = 0, #KEYS / 2 - 1 do
  local value, token = KEYS[1 + 2 * i], KEYS[2 + 2 * i]
  stored[i + 1] = '0'
  local bytes, what = ARGV[2 + 3 * i], ARGV[3 + 3 * i]
  if string.sub(redis.call('GET', token) or '', 1, 16) == ARGV[1 + 3 * i] then
    redis.call('DEL', token)
    if bytes ~= '' then
      redis.call('SET', value, bytes, 'PX', what)
      stored[i + 1] = '1'
    elseif what ~= 'release' then
      redis.call('SET', token, '!', 'PX', ARGV[#ARGV])
      if what == 'forget' then redis.call('DEL', value) end
    end
  end
end
return table.concat(stored)
`)

// keepScript extends claims, and releases them, where the token is still the load's. It
// sets only what it has found in the same step, so it makes no token. (SET and not
// PEXPIRE: users have that right.)
//
// KEYS: tokens. ARGV: of each, what it has to be, and its life; 0: it is released.
var keepScript = redis.NewScript(`
local kept = {}
for i, token in ipairs(KEYS) do
  kept[i] = '0'
  local held, life = redis.pcall('GET', token), ARGV[2 * i]
  if type(held) == 'string' and string.sub(held, 1, 16) == ARGV[2 * i - 1] then
    if life == '0' then redis.call('DEL', token) else redis.call('SET', token, held, 'PX', life) end
    kept[i] = '1'
  end
end
return table.concat(kept)
`)

// What a claim answers is kept until its load has ended, so it is bounded.
const (
	mostEpoch = transport.IDLength
	mostStamp = 32 // seconds, a point and microseconds
)

// redisValues is the way to the values in Redis, over connections of its own, since
// many ask at once.
type redisValues struct {
	server *redisServer
	links  linkPool
}

// Values returns the way to the values in Redis.
func (s *redisServer) Values() transport.Values { return &s.values }

// Redial closes the connections, for the next attempts to dial anew.
func (v *redisValues) Redial() { v.links.drop(false) }

func (s *redisServer) valueKey(cache, key string) string {
	return s.keyPrefix + "value:" + cache + ":" + key
}

func (s *redisServer) tokenKey(cache, key string) string {
	return s.keyPrefix + "token:" + cache + ":" + key
}

// appendChanges appends what changeValues goes by.
func (s *redisServer) appendChanges(keys []string, args []any, changes []transport.Change) ([]string, []any) {
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

// Read reads values in one pipeline: no script, which would cost Redis more than the
// rest. A value is read after how long it has to live, and before what it is judged
// by: whatever happens in between counts against it.
//
// GETRANGE and not GET: Redis sends no more of a value than can be one. An empty value
// is none.
func (v *redisValues) Read(ctx context.Context, cache string, keys, regions []string, most int) (transport.Reading, error) {
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
	const framing, field = 32, 64 // bytes, more than a string's head and a field of the clears take
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

// pipelineError returns why a pipeline has failed, err being what it returned: the
// error of a command that is needed, or one that is not of a command, which go-redis
// leaves out of the commands if Redis has answered with it. The errors of the other
// commands are theirs.
func pipelineError(commands []redis.Cmder, err error, needed ...redis.Cmder) error {
	failed := false
	for _, c := range commands {
		if failed = failed || c.Err() != nil; c.Err() != nil && !answered(c.Err()) {
			return c.Err() // the connection ended among the answers
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

// readCount reads a count. One that is none was cleared for ever.
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
func (v *redisValues) Claim(
	ctx context.Context, cache, history string, life time.Duration, claims []transport.Claim,
) (claimed transport.Claimed, err error) {
	s := v.server
	keys := append(make([]string, 0, 1+2*len(claims)), s.clearsKey)
	args := append(make([]any, 0, 4+4*len(claims)), cache, history, nonce(), milliseconds(life))
	for _, c := range claims {
		seen := c.Seen
		if c.Any {
			seen = "*"
		}
		keys = append(keys, s.valueKey(cache, c.Key), s.tokenKey(cache, c.Key))
		args = append(args, c.Token, milliseconds(c.Life), seen, c.Own)
	}
	var reply []string
	// Not once more: if the first attempt has succeeded after all, the second would find
	// the load claimed, and wait for nobody.
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
func (v *redisValues) Put(ctx context.Context, cache string, puts []transport.Put) ([]bool, error) {
	s := v.server
	keys := make([]string, 0, 2*len(puts))
	args := make([]any, 0, 3*len(puts)+1)
	for _, p := range puts {
		keys = append(keys, s.valueKey(cache, p.Key), s.tokenKey(cache, p.Key))
		args = append(args, p.Token, p.Bytes, putArgument(&p))
	}
	args = append(args, milliseconds(transport.VainFor))
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
func (v *redisValues) Keep(ctx context.Context, keeps []transport.Keep) ([]bool, error) {
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

// milliseconds is at least one: Redis refuses a life of none.
func milliseconds(d time.Duration) int64 { return max(d.Milliseconds(), 1) }
