-- ARGV: value, fence
local held = redis.call('GET', KEYS[2]) == ARGV[1]
if not held then
  local expires = redis.call('ZSCORE', KEYS[3], ARGV[1])
  held = expires and tonumber(expires) >= now_ms()
end
if not held then return {'gone'} end
local fence = tonumber(redis.call('HGET', node, 'fence') or 0)
if tonumber(ARGV[2]) > fence then redis.call('HSET', node, 'fence', ARGV[2]) end
return {'done'}
