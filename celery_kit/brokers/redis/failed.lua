-- Store failed tasks, and drop those that are too old, or too many.
--
-- KEYS: the hash of failed tasks, by id, and its index by the server's time. ARGV: how many stay, for how many seconds, then
-- pairs of an id and a record.
local most, expires = tonumber(ARGV[1]), tonumber(ARGV[2])
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
for place = 3, #ARGV, 2 do
  redis.call('HSET', KEYS[1], ARGV[place], ARGV[place + 1])
  redis.call('ZADD', KEYS[2], now + place / 1000000, ARGV[place])
end
local function drop(ids)
  for _, id in ipairs(ids) do
    redis.call('HDEL', KEYS[1], id)
    redis.call('ZREM', KEYS[2], id)
  end
end
drop(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now - expires))
local surplus = redis.call('ZCARD', KEYS[2]) - most
if surplus > 0 then drop(redis.call('ZRANGE', KEYS[2], 0, surplus - 1)) end
redis.call('EXPIRE', KEYS[1], expires)
redis.call('EXPIRE', KEYS[2], expires)
