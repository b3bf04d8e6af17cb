-- Store the states of tasks, except where a state that must not be overwritten is stored, and publish them to those who wait.
--
-- KEYS: the keys of the results. ARGV: seconds until they expire (0: never), the states that must not be overwritten (each
-- between spaces), then the value for each of KEYS.
-- Returns the places of those whose key holds a value that is not JSON: they are not stored.
local expires, lasting, others = tonumber(ARGV[1]), ARGV[2], {}
for i, key in ipairs(KEYS) do
  local value, keep, old = ARGV[i + 2], false, redis.call('GET', key)
  if old then
    local ok, meta = pcall(cjson.decode, old)
    if not ok or type(meta) ~= 'table' then
      others[#others + 1], keep = i, true
    else
      keep = string.find(lasting, ' ' .. tostring(meta.status) .. ' ', 1, true)
    end
  end
  if not keep then
    if expires > 0 then
      redis.call('SET', key, value, 'EX', expires)
    else
      redis.call('SET', key, value)
    end
    redis.call('PUBLISH', key, value)
  end
end
return others
