package redisbus

import "github.com/redis/go-redis/v9"

// onMaster is the part of the scripts for publishing and probing that has only a master
// run them. A replica can be made to take writes, and those are nobody's but its own; it
// has its master's history, and its position may be of long ago.
//
// It goes by INFO, and where that is refused by what the command ROLE has told before,
// which no script may call: role is that, or unknown if it was refused too. If role is
// empty nothing is done, and the answer is askRole.
const onMaster = `
local info = redis.pcall('INFO', 'replication')
if type(info) ~= 'string' then info = '' end
role = string.match(info, 'role:(%a+)') or role
if role == '' then return '` + askRole + `' end
if role ~= 'master' and role ~= '` + unknownRole + `' then return redis.error_reply('` + isReplica + `') end
`

const (
	askRole     = "ROLE?"
	unknownRole = "unknown"
	isReplica   = "READONLY nearcache: this server is a replica, so nobody would hear of what it takes"
)

// publishScript publishes an invalidation as the next link of the channel's
// chain. The position is computed here, inside Redis, so that a script that runs
// twice because its reply was lost makes two positions. It is written before the
// message goes out, so that a server that takes no writes (out of memory, a
// replica, a demoted master) sends no message either.
//
// What is shared is changed in between; that it can be is seen first. If the message
// cannot go out, values have gone that would have gone a little later.
//
// Where nothing is shared, as far as the publisher knows, it does not say what there
// would be to change, which for many keys costs as much as all the rest. If it turns
// out that it should have, nothing is done, and the answer is empty.
//
// KEYS: position, and those of changeValues. ARGV: channel, nonce, head of the
// envelope, body, 1 if changeValues has what it needs, or 0, and the role, and then what
// it needs.
var publishScript = redis.NewScript(`
local role = string.sub(ARGV[5], 2)
` + onMaster + `
local epoch = redis.call('HGET', KEYS[2], 'epoch')
if epoch and string.sub(ARGV[5], 1, 1) ~= '1' then return '' end
local before = redis.call('GET', KEYS[1])
local previous = before
if not previous or #previous ~= 40 then previous = '' end
local own = redis.sha1hex(previous .. ARGV[2])
redis.call('SET', KEYS[1], own)
` + changeValues + `
local sent = redis.pcall('PUBLISH', ARGV[1],
  ARGV[3] .. string.char(#previous) .. previous .. string.char(#own) .. own .. ARGV[4])
if type(sent) == 'table' and sent['err'] then
  if before then redis.call('SET', KEYS[1], before) else redis.call('DEL', KEYS[1]) end
  return sent
end
return own
`)

// probeScript answers a probe on the instance's own channel, with the channel's
// position, which it makes if there is none, and the server's history id, which
// changes when a replica is promoted and when a server restarts; without the right
// to INFO it is empty. The position is written in any case, so that a probe fails
// wherever publishing would. What was shared in another history is void: a replica
// that took over may have values that are gone.
//
// KEYS: position, clears. ARGV: own channel, nonce, head of the envelope, nonce of a
// position, role.
var probeScript = redis.NewScript(`
local role = ARGV[5]
` + onMaster + `
local position = redis.call('GET', KEYS[1])
if not position or #position ~= 40 then position = redis.sha1hex(ARGV[4]) end
redis.call('SET', KEYS[1], position)
local history = string.match(info, 'master_replid:(%x+)') or ''
local of = history ~= '' and redis.call('HGET', KEYS[2], 'history')
if of and of ~= history then redis.call('DEL', KEYS[2]) end
return redis.call('PUBLISH', ARGV[1], ARGV[3] .. '\0' .. string.char(#position) .. position ..
  '\1' .. string.char(#history) .. history .. string.char(#ARGV[2]) .. ARGV[2])
`)

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
