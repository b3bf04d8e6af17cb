-- Claim a key. KEYS: the key. ARGV: the caller's claim, milliseconds, the claim of a dead run that may be replaced.
-- Returns nil, or the value that is there.
local found = redis.call('GET', KEYS[1])
if found and found ~= ARGV[3] then return found end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return nil
