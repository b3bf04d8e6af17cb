-- Remove acknowledged messages, take the next ones, and record them as unacknowledged in kombu's format.
--
-- KEYS: the hash and the index of unacknowledged messages, the hash of dead letters, the set of delayed messages, the sign that
-- they are moved, then the lists, `width` of each priority.
-- ARGV: room (messages), bytes, width, the owner of this worker's lease, for how many seconds the sign is renewed, the most bytes
-- of a message, then the tags of acknowledged messages.
-- Returns the milliseconds until the next delayed message is due (move.lua), the places of the messages' lists with spaces
-- between them, and the messages. The place is negative for an item that is not a whole message: it was dead-lettered or, if
-- that failed, pushed to `<list>.malformed` (dead.py, collect). One that is too large is not returned.
--
-- A message is recorded with the server's time, as in celery_kit/brokers/redis/fixes.py. Its tag is in its properties, which
-- are at its end: decoding a message of 1 MB would block the server for 10 ms.
local unacked, index, dead = KEYS[1], KEYS[2], KEYS[3]
local room, bytes, width = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])

-- The lease (leases.lua): only what its owner still holds is acknowledged, and nothing is taken after it has ended.
local leases, held, first_tag = unacked .. '.leases', unacked .. '.held:' .. ARGV[4], 7
if #ARGV >= first_tag then
  local mine = redis.call('ZMSCORE', held, unpack(ARGV, first_tag))
  local all, tags = redis.call('ZMSCORE', index, unpack(ARGV, first_tag)), {}
  for place, score in ipairs(mine) do
    if score and score == all[place] then tags[#tags + 1] = ARGV[first_tag + place - 1] end
  end
  if #tags > 0 then
    redis.call('ZREM', held, unpack(tags))
    redis.call('ZREM', index, unpack(tags))
    redis.call('HDEL', unacked, unpack(tags))
  end
end
if room > 0 and tonumber(redis.call('ZSCORE', leases, ARGV[4]) or 0) == 0 then
  return redis.error_reply('ENDED this worker was taken for dead, and others got its messages')
end

local time = redis.call('TIME')
local now = time[1] .. '.' .. string.format('%06d', time[2])
local function decode(text)
  local fine, found = pcall(cjson.decode, text)
  if fine and type(found) == 'table' then return found end
end
local function properties(message)
  local tail, from, start = string.sub(message, -4096), 1, nil
  repeat
    local _, last = string.find(tail, '"properties": ', from, true)
    if last then start, from = last + 1, last + 1 end
  until not last
  local found = start and decode(string.sub(tail, start, -2))
  if not found or not found.delivery_tag then found = (decode(message) or {}).properties end
  local to = type(found) == 'table' and type(found.delivery_tag) == 'string' and found.delivery_info
  return type(to) == 'table' and type(to.exchange) == 'string' and type(to.routing_key) == 'string' and found
end
local found, places = {KEYS[6] and move(KEYS[4], KEYS[5], KEYS[6], tonumber(ARGV[5]), bytes) or -1, ''}, {}
local records, scores = {}, {}
local function take(place)
  local message = redis.call('RPOP', KEYS[place])
  if not message then return false end
  local large = #message > tonumber(ARGV[6])
  local its = not large and properties(message)
  if its then
    local to = its.delivery_info
    records[#records + 1] = its.delivery_tag
    records[#records + 1] = '[' .. message .. ', ' .. cjson.encode(to.exchange) .. ', ' .. cjson.encode(to.routing_key) .. ']'
    scores[#scores + 1] = now + #scores / 2e6 -- a microsecond more for each, so that they keep their order
    scores[#scores + 1] = its.delivery_tag
  else
    local why = large and 'it has ' .. #message .. ' bytes, more than ' .. ARGV[6] or nil
    local record = cjson.encode({list = KEYS[place], item = message, at = time[1], why = why})
    local stored = redis.pcall('HSET', dead, string.sub(redis.sha1hex(message), 1, 12), record)
    if type(stored) == 'table' and stored.err then redis.call('LPUSH', KEYS[place] .. '.malformed', message) end
  end
  places[#places + 1] = its and place - 5 or 5 - place
  found[#found + 1] = large and '' or message
  room, bytes = room - 1, bytes - #message
  return true
end
for first = 6, #KEYS, width do
  repeat
    local more = false
    for place = first, first + width - 1 do
      if room > 0 and bytes > 0 and take(place) then more = true end
    end
  until not more
end
if #records > 0 then
  redis.call('HSET', unacked, unpack(records))
  redis.call('ZADD', index, unpack(scores))
  redis.call('ZADD', held, unpack(scores))
end
if room > 0 and bytes > 0 then redis.call('EXISTS', unpack(KEYS, 5)) end
found[2] = table.concat(places, ' ')
return found
