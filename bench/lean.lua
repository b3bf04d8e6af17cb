-- Acknowledge a batch, take the next one and record it as unacknowledged.
-- KEYS: the queue, the hash of what is unacknowledged. ARGV: how many, the batch's number, the tags of the last one.
if #ARGV > 2 then redis.call('HDEL', KEYS[2], unpack(ARGV, 3)) end
local taken = redis.call('RPOP', KEYS[1], ARGV[1]) or {}
for number, message in ipairs(taken) do redis.call('HSET', KEYS[2], ARGV[2] .. '-' .. number, message) end
return taken
