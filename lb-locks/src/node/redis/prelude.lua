-- Shared by all functions. KEYS: node record, writer, readers, order of waiters, their deadlines, writer's intent; each
-- function gets the first ones up to the last that it uses. A vote's price is mostly that of the words and calls that it
-- takes, so both are few where a lock is free, and numbers stay text until they are calculated with.
local node
-- The run of the server, asked for once: a local of the library lives in the process and ends with it.
local run_known
local function run_id()
  run_known = run_known or string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
  return run_known
end
local function now_ms()
  local t = redis.call('TIME')
  return tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
end
local function wait_of(max_ttl) return max_ttl + math.ceil(max_ttl / 100) + 2 end
-- Starts the quarantine of this run if it has none; returns the rest of it.
local function quarantine(run, max_ttl_offered, now)
  local q = redis.call('HMGET', node, 'q_run', 'q_since', 'max_ttl')
  local since, max_ttl = tonumber(q[2]), tonumber(q[3])
  if q[1] ~= run then
    since = now
    redis.call('HSET', node, 'q_run', run, 'q_since', now)
  end
  if not max_ttl then
    if max_ttl_offered then redis.call('HSET', node, 'max_ttl', max_ttl_offered) end
    max_ttl = max_ttl_offered or 0
  end
  return math.max(0, since + wait_of(max_ttl) - now)
end
-- Checked before every vote. Returns a refusal, or nil and the run.
local function admit(ttl, epoch, digest, max_ttl_offered, guarded)
  local run = run_known or run_id()
  local n = redis.call('HMGET', node, 'ready', 'max_ttl', 'epoch', 'digest')
  if guarded and n[1] ~= run then
    local rest = quarantine(run, tonumber(max_ttl_offered), now_ms())
    if rest > 0 then return {'quarantined', rest} end
    return {'repair', run}
  end
  if n[3] ~= epoch or n[4] ~= digest then
    local mine, theirs = tonumber(n[3]) or 0, tonumber(epoch)
    if mine > theirs or (mine == theirs and (n[4] or '') ~= digest) then
      return {'list', mine, n[4] or '', redis.call('HGET', node, 'members') or ''}
    end
  end
  local max_ttl = tonumber(n[2]) or tonumber(max_ttl_offered)
  if tonumber(ttl) > max_ttl then return {'ttl', max_ttl} end
  return nil, run
end
-- Lets a key live for at least `ms` more.
local function keep(key, ms)
  if redis.call('PTTL', key) < ms then redis.call('PEXPIRE', key, ms) end
end
