-- ARGV: old epoch, old digest, new epoch, new digest, new members, channel, join
local now = now_ms()
local n = redis.call('HMGET', node, 'epoch', 'digest', 'members', 'max_ttl', 'list_since')
local epoch, digest = tonumber(n[1]) or 0, n[2] or ''
if epoch == tonumber(ARGV[3]) and digest == ARGV[4] then return {'done'} end
local join = ARGV[7] == '1'
local fits = epoch == tonumber(ARGV[1]) and digest == ARGV[2]
if join then fits = epoch < tonumber(ARGV[3]) end
if epoch ~= 0 and not fits then return {'list', epoch, digest, n[3] or ''} end
local since = tonumber(n[5]) or 0
local rest = since > 0 and math.max(0, since + wait_of(tonumber(n[4]) or 0) - now) or 0
if rest > 0 and not join then return {'soon', rest} end
redis.call('HSET', node, 'epoch', ARGV[3], 'digest', ARGV[4], 'members', ARGV[5], 'list_since', now)
if join then redis.call('HDEL', node, 'ready', 'q_run', 'q_since') end
redis.call('PUBLISH', ARGV[6], ARGV[3])
return {'done'}
