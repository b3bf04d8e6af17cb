-- Have a message wait until it is due.
--
-- KEYS: the set of delayed messages, the workers' sign, the message's list; for a message that a worker has fetched also the
-- hash and the index of unacknowledged messages.
-- ARGV: when it is due (milliseconds since 1970), the message; for a fetched one also its tag.
-- Returns 1 if it waits or is due, 0 if it does not wait: nobody would move it, or a fetched one is due already.
--
-- The sign is written again if no other message is due earlier: idle workers are notified of that (CLIENT TRACKING).
local delayed, sign, list, unacked, index = unpack(KEYS)
local due, message, tag = tonumber(ARGV[1]), ARGV[2], ARGV[3]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if tag then
  if due <= now then return 0 end
  if redis.call('HDEL', unacked, tag) == 0 then return 1 end -- it was restored meanwhile
  redis.call('ZREM', index, tag)
else
  local moved = redis.call('EXISTS', sign)
  if due <= now or moved == 0 then
    redis.call('LPUSH', list, message)
    return due <= now and 1 or 0
  end
end
local earlier = redis.call('ZCOUNT', delayed, '-inf', due) -- a producer may count the messages of others, not read them
redis.call('ZADD', delayed, due, list .. '\n' .. message)
if earlier == 0 then redis.call('SET', sign, 1, 'XX', 'KEEPTTL') end
return 1
