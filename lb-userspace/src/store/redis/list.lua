-- Records in the order of their keys: see State::record_list. Names of records that expired are passed over.
-- KEYS: index, meta. ARGV: lowest key with its bracket, prefix, records at most, what the names of records begin with.
local time, records, from, more = redis.call('TIME'), {}, ARGV[1], true
while more do
  local names = redis.call('ZRANGEBYLEX', KEYS[1], from, '+', 'LIMIT', 0, 500)
  more = #names == 500
  for _, name in ipairs(names) do
    if #records >= tonumber(ARGV[3]) or string.sub(name, 1, #ARGV[2]) ~= ARGV[2] then
      more = false
      break
    end
    local fields = redis.call('HMGET', ARGV[4] .. name, 'value', 'version', 'written', 'holder', 'epoch')
    if fields[1] then records[#records + 1] = {name, redis.call('PTTL', ARGV[4] .. name), fields} end
    from = '(' .. name
  end
end
return {redis.call('HGET', KEYS[2], 'schema'), time, records}
