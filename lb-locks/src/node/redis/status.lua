local run, now = run_id(), now_ms()
local n = redis.call('HMGET', node, 'ready', 'q_run', 'q_since', 'fence', 'max_ttl', 'epoch', 'digest', 'members', 'list_since')
local max_ttl, since, list_since = tonumber(n[5]) or 0, now, tonumber(n[9]) or 0
if n[2] == run then since = tonumber(n[3]) end
local ready, rest, list_wait = 0, math.max(0, since + wait_of(max_ttl) - now), 0
if n[1] == run then
  ready, rest = 1, 0
end
if list_since > 0 then list_wait = math.max(0, list_since + wait_of(max_ttl) - now) end
return {'status', run, ready, rest, tonumber(n[4]) or 0, max_ttl, tonumber(n[6]) or 0, n[7] or '', n[8] or '', list_wait}
