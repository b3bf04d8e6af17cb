-- Release the caller's claim, unless another run has taken the key. KEYS: the key. ARGV: the caller's claim.
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return nil
