-- Store messages from another broker, and note the token of their batch, in one step: a batch is stored once.
--
-- KEYS: the note of the batch, the set of delayed messages, the workers' sign that they move these, the hashes of dead letters
-- and of failed tasks, the index of these. ARGV: the seconds for which the note and the failed tasks stay, then for each message
-- its place, its list or name, its score, and what is stored.
-- Returns 0 if the batch is noted already. The first write is refused as a whole if the server is full.
local note, delayed, movers, dead, failed, index = unpack(KEYS)
for at = 3, #ARGV, 4 do
  if ARGV[at] == 'queue' or ARGV[at] == 'delayed' then
    local kind = redis.call('TYPE', ARGV[at + 1]).ok
    if kind ~= 'list' and kind ~= 'none' then return redis.error_reply('the key ' .. ARGV[at + 1] .. ' is not a list') end
  end
end
if not redis.call('SET', note, 1, 'NX', 'EX', ARGV[1]) then return 0 end
local moved, some = redis.call('EXISTS', movers) == 1, false
for at = 3, #ARGV, 4 do
  local place, name, score, item = unpack(ARGV, at, at + 3)
  if place == 'delayed' and moved then
    redis.call('ZADD', delayed, score, name .. '\n' .. item)
    some = true
  elseif place == 'queue' or place == 'delayed' then
    redis.call('LPUSH', name, item)
  elseif place == 'dead' then
    redis.call('HSET', dead, name, item)
  elseif tonumber(redis.call('ZSCORE', index, name) or 0) <= tonumber(score) then -- a later failure of the task stays
    redis.call('HSET', failed, name, item)
    redis.call('ZADD', index, score, name)
  end
end
if some then redis.call('SET', movers, 1, 'XX', 'KEEPTTL') end -- notifies idle workers that one may be due earlier
for _, key in ipairs({failed, index}) do redis.call('EXPIRE', key, ARGV[2]) end
return 1
