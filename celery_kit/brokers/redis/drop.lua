-- Forget a claim (claim.lua), unless it is another one by now. KEYS: the list of claimed messages. ARGV: the claim's token.
if redis.call('LINDEX', KEYS[1], 0) == ARGV[1] then redis.call('DEL', KEYS[1]) end
