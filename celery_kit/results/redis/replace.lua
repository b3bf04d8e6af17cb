-- Replace the caller's claim. KEYS: the key. ARGV: the caller's claim, the new value, milliseconds.
-- A claim that has expired may be replaced as well, that of another run may not. Returns 1 if the value is written, else 0.
local found = redis.call('GET', KEYS[1])
if found and found ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1
