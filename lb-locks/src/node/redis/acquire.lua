-- ARGV: value, ttl, flags (s shared, f fence, u unguarded), epoch, digest, max_ttl,
--       and of a waiter: ticket id, its order or '', its patience
local value, ttl, flags, ticket = ARGV[1], ARGV[2], ARGV[3], ARGV[7]
local function flag(letter) return flags ~= '' and string.find(flags, letter, 1, true) end
local refusal, run = admit(ttl, ARGV[4], ARGV[5], ARGV[6], not flag('u'))
if refusal then return refusal end
-- Readers, waiters, a writer's intent: rarely is there any, and one look tells.
local alone = not ticket and redis.call('EXISTS', KEYS[3], KEYS[4], KEYS[6]) == 0
if not alone then
  local now = now_ms()
  for _, gone in ipairs(redis.call('ZRANGEBYSCORE', KEYS[5], '-inf', '(' .. now)) do
    redis.call('ZREM', KEYS[4], gone)
    redis.call('ZREM', KEYS[5], gone)
  end
  local ahead = redis.call('ZCARD', KEYS[4])
  if ticket and (ahead < QUEUE_MAX or redis.call('ZSCORE', KEYS[4], ticket)) then
    local order = tonumber(ARGV[8])
    if not order then
      local last = redis.call('ZREVRANGE', KEYS[4], 0, 0, 'WITHSCORES')
      order = (tonumber(last[2]) or 0) + 1
    end
    local patience = tonumber(ARGV[9])
    redis.call('ZADD', KEYS[4], 'NX', string.format('%.0f', order), ticket)
    redis.call('ZADD', KEYS[5], string.format('%.0f', now + patience), ticket)
    keep(KEYS[4], patience + 1)
    keep(KEYS[5], patience + 1)
    ahead = redis.call('ZRANK', KEYS[4], ticket)
  end
  if ahead > 0 then return {'queued', ahead} end
end
if not flag('s') then
  if not alone and redis.call('EXISTS', KEYS[3]) == 1 then
    local now = now_ms()
    redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', '(' .. now)
    local last = redis.call('ZREVRANGE', KEYS[3], 0, 0, 'WITHSCORES')
    if last[2] then
      redis.call('SET', KEYS[6], '1', 'PX', INTENT_MS)
      return {'held', tonumber(last[2]) - now}
    end
  end
  if not redis.call('SET', KEYS[2], value, 'NX', 'PX', ttl) then
    return {'held', redis.call('PTTL', KEYS[2])}
  end
  if not alone then redis.call('DEL', KEYS[6]) end
else
  local rest = redis.call('PTTL', KEYS[2])
  if rest == -2 then rest = redis.call('PTTL', KEYS[6]) end
  if rest ~= -2 then return {'held', rest} end
  local now = now_ms()
  redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', '(' .. now)
  redis.call('ZADD', KEYS[3], string.format('%.0f', now + tonumber(ttl)), value)
  keep(KEYS[3], tonumber(ttl) + 1)
end
if ticket then
  redis.call('ZREM', KEYS[4], ticket)
  redis.call('ZREM', KEYS[5], ticket)
end
local fence = 0
if flag('f') then fence = redis.call('HINCRBY', node, 'fence', 1) end
return {'granted', fence, run}
