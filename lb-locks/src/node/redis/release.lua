-- ARGV: value, and of a waiter its ticket id
if ARGV[2] then
  redis.call('ZREM', KEYS[4], ARGV[2])
  redis.call('ZREM', KEYS[5], ARGV[2])
end
if redis.call('GET', KEYS[2]) == ARGV[1] then
  redis.call('DEL', KEYS[2])
  return {'done'}
end
local expires = redis.call('ZSCORE', KEYS[3], ARGV[1])
if expires and redis.call('ZREM', KEYS[3], ARGV[1]) == 1 and tonumber(expires) >= now_ms() then return {'done'} end
return {'gone'}
