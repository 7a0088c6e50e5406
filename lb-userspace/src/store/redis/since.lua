-- Where the store stands, and the kept changes after a number, as many as one answer holds: see State::since.
-- KEYS: meta, changes. ARGV: first number, changes at most, bytes after which no more are added.
local meta = redis.call('HMGET', KEYS[1], 'schema', 'origin', 'number', 'digest')
local changes, bytes, from = {}, 0, ARGV[1] .. '-0'
while #changes < tonumber(ARGV[2]) and bytes < tonumber(ARGV[3]) do
  local entry = redis.call('XRANGE', KEYS[2], from, '+', 'COUNT', 1)[1]
  if not entry then break end
  changes[#changes + 1] = entry[2][2]
  bytes = bytes + #entry[2][2]
  from = '(' .. entry[1]
end
return {meta, changes}
