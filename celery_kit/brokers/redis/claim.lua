-- Claim messages for another broker: move them out of the workers' reach, in one step.
--
-- KEYS: the list of claimed messages, the set of delayed messages, the hashes of dead letters and of failed tasks, the index of
-- these, then the queues' lists. ARGV: a token, the name of the target, the most messages, and bytes from which on no further
-- one is taken.
-- Returns the claim: its token, its target, and for each message its place, its key or name, its score, and its item. That of an
-- earlier call that was not dropped, if there is one.
local claimed, delayed, index = KEYS[1], KEYS[2], KEYS[5]
local most, bytes = tonumber(ARGV[3]), tonumber(ARGV[4])
if redis.call('EXISTS', claimed) == 1 then return redis.call('LRANGE', claimed, 0, -1) end
local found = {ARGV[1], ARGV[2]}
local function room() return most > 0 and bytes > 0 end
local function add(...)
  for _, part in ipairs({...}) do
    found[#found + 1] = part
    bytes = bytes - #part
  end
  most = most - 1
end
for place = 6, #KEYS do
  while room() and redis.call('TYPE', KEYS[place]).ok == 'list' do
    add('queue', KEYS[place], '', redis.call('RPOP', KEYS[place]))
  end
end
while room() do
  local first = redis.call('ZRANGE', delayed, 0, 0, 'WITHSCORES')
  if not first[1] then break end
  redis.call('ZREM', delayed, first[1])
  add('delayed', '', first[2], first[1])
end
for place, key in pairs({dead = KEYS[3], failed = KEYS[4]}) do
  local cursor = '0'
  repeat
    local page = redis.call('HSCAN', key, cursor, 'COUNT', 100)
    cursor = page[1]
    for at = 1, #page[2], 2 do
      if room() and redis.call('HDEL', key, page[2][at]) == 1 then
        local score = place == 'failed' and redis.call('ZSCORE', index, page[2][at]) or ''
        if place == 'failed' then redis.call('ZREM', index, page[2][at]) end
        add(place, page[2][at], score, page[2][at + 1])
      end
    end
  until cursor == '0' or not room()
end
if #found == 2 then return {} end
for first = 1, #found, 1000 do redis.call('RPUSH', claimed, unpack(found, first, math.min(first + 999, #found))) end
return found
