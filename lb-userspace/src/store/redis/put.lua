-- One record: see State::check_record and State::put_record.
-- KEYS: record, index, version, fence's record, meta. ARGV: key, "s" or "d", value, claimed (0 or 1), holder, epoch, expected
-- ("any", "absent" or "version"), version, time to live ("" for ever), fenced (0 or 1), its holder, its epoch, channel,
-- notice, records at most, what the names of records begin with, schema.
local schema = redis.call('HGET', KEYS[5], 'schema')
if schema and tonumber(schema) ~= tonumber(ARGV[17]) then return {'schema', schema} end
if ARGV[10] == '1' then
  local held = redis.call('HMGET', KEYS[4], 'holder', 'epoch')
  if held[1] ~= ARGV[11] or held[2] ~= ARGV[12] then return {'fenced'} end
end
local have = redis.call('HGET', KEYS[1], 'version')
if (ARGV[7] == 'absent' and have) or (ARGV[7] == 'version' and have ~= ARGV[8]) then
  return {'conflict', have or ''}
end
-- Records that expired leave their names behind; each write looks at one of them.
local any = redis.call('ZRANDMEMBER', KEYS[2])
if any and redis.call('EXISTS', ARGV[16] .. any) == 0 then redis.call('ZREM', KEYS[2], any) end
local set = ARGV[2] == 's'
if set and not have and redis.call('ZCARD', KEYS[2]) >= tonumber(ARGV[15]) then return {'full'} end
local version = redis.call('INCR', KEYS[3])
redis.call('DEL', KEYS[1])
-- A store of records alone has a schema, too.
if not schema then redis.call('HSET', KEYS[5], 'schema', ARGV[17]) end
if set then
  local time = redis.call('TIME')
  local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
  redis.call('HSET', KEYS[1], 'value', ARGV[3], 'version', version, 'written', string.format('%.0f', now_ms))
  if ARGV[4] == '1' then redis.call('HSET', KEYS[1], 'holder', ARGV[5], 'epoch', ARGV[6]) end
  if ARGV[9] ~= '' then redis.call('PEXPIRE', KEYS[1], ARGV[9]) end
  redis.call('ZADD', KEYS[2], 0, ARGV[1])
else
  redis.call('ZREM', KEYS[2], ARGV[1])
end
redis.call('PUBLISH', ARGV[13], ARGV[14])
return {'ok', version}
