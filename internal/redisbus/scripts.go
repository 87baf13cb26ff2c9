package redisbus

import "github.com/redis/go-redis/v9"

// onMaster is the part of the publish script and the probe script that lets only a master
// run them. A replica can be configured to take writes, which reach no other server. It has
// its master's history, and its position may be old.
//
// It reads the server's role from INFO. If INFO is refused it uses the argument role: what
// the command ROLE answered before, because scripts may not call ROLE. The argument is
// unknownRole if ROLE was refused too. If it is empty the script does nothing and answers
// askRole.
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

// publishScript publishes an invalidation as the next link of the channel's chain. The
// position is computed inside Redis: if the script runs twice because its reply was lost,
// it makes two positions. The position is written before the message is published. So a
// server that takes no writes (out of memory, a replica, a demoted master) publishes no
// message either.
//
// The values of the shared level are changed between the two, when it is certain that the
// server takes writes. If the message then cannot be published, the values were deleted a
// little early.
//
// While the publisher knows of no shared values it leaves out the arguments of
// changeValues, which for many keys cost as much as everything else. If there are shared
// values after all, the script does nothing and its answer is empty.
//
// KEYS: position, and those of changeValues. ARGV: channel, nonce, head of the envelope,
// body, then 1 or 0 (whether the arguments of changeValues follow) with the role appended,
// then the arguments of changeValues.
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

// probeScript answers a probe on the instance's own channel. The answer has the channel's
// position, which the script makes if there is none, and the server's history id. That
// changes when a replica is promoted and when a server restarts. It is empty without the
// right to INFO. The position is always written, so that a probe fails wherever publishing
// would. Values that were shared in another history become invalid: a replica that took
// over may have values that its master had already deleted.
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

// The keys of the shared level in Redis. All have the channel's hash tag, so that each
// script touches one slot of a Cluster.
//
//	{channel}:value:<cache>:<key>  a value
//	{channel}:token:<cache>:<key>  the claim of the load that is to replace it
//	{channel}:clears               a hash: what was cleared, of all caches
//
// The hash has these fields. A count is the server's time in microseconds, or the last
// count plus one if that is larger. Counts only have to grow. That they are times shows
// when a region's field can be deleted: when no value that is older can be left.
//
//	epoch              drawn when the hash is made
//	history            the server's history id at that time
//	n:<cache>          the cache's count
//	c:<cache>          the count after the last clear of the whole cache
//	r:<cache>:<region> the count after the last clear of the region
//	l:<cache>          the longest life of the cache's values, in milliseconds
//	limit              with more fields than this, old ones are looked for

// changeValues is the part of the publish script that changes the values of the shared
// level. If there is no hash, no value is valid, and there is nothing to change.
//
// A region's field is deleted when all values that were stored before it should have
// expired. A value that has not is invalid from then on, as after a clear of the cache.
//
// KEYS: 2 clears, then values and tokens to delete. ARGV: from 6 on, pairs: a cache and
// the field of a clear, whose count the script sets. Two empty strings clear everything.
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

// claimScript claims loads. What is stored and is not a value has an empty id, and is
// replaced as if there were nothing. Tokens and the epoch are made inside Redis: a script
// that runs twice makes different ones, so what an invalidation has deleted does not come
// back. A token is stored with the epoch and the count of its claim. A load that began
// before a clear of the cache stores nothing valid, so nobody waits for it.
//
// KEYS: clears, then the value and the token of each claim. ARGV: cache, history, nonce of
// an epoch, life of values, then for each claim: what its token is made of, its life, the
// id of the value that was seen (* for any), and the token by which this instance has
// claimed the key already, if it has.
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

// putScript stores the values of loads whose claims are still there, and ends the claims.
//
// KEYS: the value and the token of each. ARGV: for each, token, bytes (empty: no value), and
// the value's life, or without a value what to do instead. Last, how long the bypass lasts
// after a claim that stored nothing.
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

// keepScript extends or releases claims whose token is still the load's. It sets only what
// it has found in the same step, so it makes no token. It uses SET and not PEXPIRE, because
// users have the right to SET already.
//
// KEYS: tokens. ARGV: for each, what it has to be, and its life; 0 releases it.
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
