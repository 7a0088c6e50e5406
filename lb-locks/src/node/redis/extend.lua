-- ARGV: value, ttl, epoch, digest, max_ttl, guarded (0 or 1)
local refusal = admit(ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6] == '1')
if refusal then return refusal end
local ttl = tonumber(ARGV[2])
if redis.call('GET', KEYS[2]) == ARGV[1] then
  redis.call('PEXPIRE', KEYS[2], ttl)
  return {'done'}
end
local expires, now = redis.call('ZSCORE', KEYS[3], ARGV[1]), now_ms()
if expires and tonumber(expires) >= now then
  redis.call('ZADD', KEYS[3], string.format('%.0f', now + ttl), ARGV[1])
  keep(KEYS[3], ttl + 1)
  return {'done'}
end
return {'gone'}
