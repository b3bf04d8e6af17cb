-- Remove a dead letter and push its message, in one step: it is sent back once, whoever else does the same or is killed.
--
-- KEYS: the hash of the letter, the index of failed tasks, the list to push to, if any. ARGV: the letter's name, the message.
-- Returns 0 if the letter is gone.
if redis.call('HDEL', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.call('ZREM', KEYS[2], ARGV[1])
if KEYS[3] then redis.call('LPUSH', KEYS[3], ARGV[2]) end
return 1
