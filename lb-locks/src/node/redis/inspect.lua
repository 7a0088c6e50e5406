local now, out = now_ms(), {'inspection'}
local value = redis.call('GET', KEYS[2])
if value then
  out[#out + 1] = {'x', value, redis.call('PTTL', KEYS[2])}
end
local readers = redis.call('ZRANGEBYSCORE', KEYS[3], now, '+inf', 'WITHSCORES')
for at = 1, #readers, 2 do
  out[#out + 1] = {'s', readers[at], tonumber(readers[at + 1]) - now}
end
for _, ticket in ipairs(redis.call('ZRANGE', KEYS[4], 0, -1)) do
  local deadline = redis.call('ZSCORE', KEYS[5], ticket)
  if deadline and tonumber(deadline) >= now then out[#out + 1] = {'q', ticket} end
end
return out
