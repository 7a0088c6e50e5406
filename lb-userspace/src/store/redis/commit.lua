-- One write: see State::check and State::commit. Nothing is written before everything is checked, and XADD, the one
-- command that could still refuse, comes first.
-- KEYS: meta, objects, changes, fence's record. ARGV: schema, expected number ("" for none), expected digest, origin, number, digest,
-- change, changes kept, bytes of them, objects at most, bytes of them, channel, notice, reseed (0 or 1), fenced (0 or 1),
-- its holder, its epoch, then for each edit its key, "s" or "d", and its text.
local meta = redis.call('HMGET', KEYS[1], 'schema', 'number', 'digest', 'objects_bytes', 'changes_bytes', 'origin')
if meta[1] and tonumber(meta[1]) ~= tonumber(ARGV[1]) then return {'schema', meta[1]} end
if ARGV[15] == '1' then
  local held = redis.call('HMGET', KEYS[4], 'holder', 'epoch')
  if held[1] ~= ARGV[16] or held[2] ~= ARGV[17] then return {'fenced'} end
end
local number, digest = meta[2] or '', meta[3] or ''
if number ~= ARGV[2] or digest ~= ARGV[3] then return {'conflict', number, digest} end
local reseed = ARGV[14] == '1'
if meta[6] and meta[6] ~= ARGV[4] and not reseed then return {'origin'} end

local count, bytes = 0, 0
if not reseed then count, bytes = redis.call('HLEN', KEYS[2]), tonumber(meta[4] or '0') end
for at = 18, #ARGV, 3 do
  local key = ARGV[at]
  if not reseed and redis.call('HEXISTS', KEYS[2], key) == 1 then
    count, bytes = count - 1, bytes - #key - redis.call('HSTRLEN', KEYS[2], key)
  end
  if ARGV[at + 1] == 's' then count, bytes = count + 1, bytes + #key + #ARGV[at + 2] end
end
if count > tonumber(ARGV[10]) or bytes > tonumber(ARGV[11]) then return {'full', count, bytes} end

if reseed then redis.call('DEL', KEYS[2], KEYS[3]) end
redis.call('XADD', KEYS[3], ARGV[5] .. '-0', 'c', ARGV[7])
for at = 18, #ARGV, 3 do
  if ARGV[at + 1] == 's' then
    redis.call('HSET', KEYS[2], ARGV[at], ARGV[at + 2])
  else
    redis.call('HDEL', KEYS[2], ARGV[at])
  end
end
local kept = #ARGV[7]
if not reseed then kept = kept + tonumber(meta[5] or '0') end
local length = redis.call('XLEN', KEYS[3])
while length > 1 and (length > tonumber(ARGV[8]) or kept > tonumber(ARGV[9])) do
  local oldest = redis.call('XRANGE', KEYS[3], '-', '+', 'COUNT', 1)[1]
  redis.call('XDEL', KEYS[3], oldest[1])
  kept, length = kept - #oldest[2][2], length - 1
end
redis.call('HSET', KEYS[1], 'schema', ARGV[1], 'origin', ARGV[4], 'number', ARGV[5], 'digest', ARGV[6],
  'objects_bytes', bytes, 'changes_bytes', kept)
redis.call('PUBLISH', ARGV[12], ARGV[13])
return {'ok'}
