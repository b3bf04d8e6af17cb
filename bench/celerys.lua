-- Acknowledge a batch, take the next one and record it as unacknowledged, with its time.
-- KEYS: the queue, the hash of what is unacknowledged, its index. ARGV: how many, the batch's number, the tags of the last one.
if #ARGV > 2 then
  redis.call('HDEL', KEYS[2], unpack(ARGV, 3))
  redis.call('ZREM', KEYS[3], unpack(ARGV, 3))
end
local taken, now = redis.call('RPOP', KEYS[1], ARGV[1]) or {}, redis.call('TIME')[1]
for number, message in ipairs(taken) do
  redis.call('HSET', KEYS[2], ARGV[2] .. '-' .. number, message)
  redis.call('ZADD', KEYS[3], now, ARGV[2] .. '-' .. number)
end
return taken
