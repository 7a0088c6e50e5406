-- ARGV: run, fence, max_ttl, epoch, digest, members, force
local run, now = run_id(), now_ms()
if ARGV[1] ~= run then return {'run', run} end
local n = redis.call('HMGET', node, 'ready', 'max_ttl', 'fence', 'epoch')
if tonumber(ARGV[3]) > (tonumber(n[2]) or -1) then redis.call('HSET', node, 'max_ttl', ARGV[3]) end
if n[1] ~= run and ARGV[7] ~= '1' then
  local rest = quarantine(run, nil, now)
  if rest > 0 then return {'quarantined', rest} end
end
if tonumber(ARGV[2]) > (tonumber(n[3]) or 0) then redis.call('HSET', node, 'fence', ARGV[2]) end
if tonumber(ARGV[4]) > (tonumber(n[4]) or 0) then
  local since = ARGV[7] == '1' and 0 or now
  redis.call('HSET', node, 'epoch', ARGV[4], 'digest', ARGV[5], 'members', ARGV[6], 'list_since', since)
end
redis.call('HSET', node, 'ready', run)
redis.call('HDEL', node, 'q_run', 'q_since')
return {'done'}
