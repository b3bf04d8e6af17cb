-- The first part of fetch.lua: move delayed messages that are due to their lists, at most MOST of them or some `bytes`.
--
-- `sign`: for how many seconds producers may rely on it that somebody does so; 0 to leave that as it is. `spare`: the list for
-- what is not a delayed message. Returns the milliseconds until the next one is due: 0 if more are due, -1 if there is none.
local MOST, AT_ONCE = 100, 10
local function move(delayed, movers, spare, sign, bytes)
  if sign > 0 then redis.pcall('SET', movers, 1, 'EX', sign) end -- a server whose memory is full refuses it
  local time = redis.call('TIME')
  local now, moved = time[1] * 1000 + math.floor(time[2] / 1000), 0
  while true do
    local first = redis.call('ZRANGE', delayed, 0, 0, 'WITHSCORES')[2]
    if not first then return -1 end
    if tonumber(first) > now then return tonumber(first) - now end
    if moved >= MOST or bytes <= 0 then return 0 end
    local due = redis.call('ZRANGEBYSCORE', delayed, '-inf', now, 'LIMIT', 0, AT_ONCE)
    redis.call('ZREM', delayed, unpack(due))
    for _, member in ipairs(due) do
      local at = string.find(member, '\n', 1, true)
      local list, message = at and string.sub(member, 1, at - 1) or spare, string.sub(member, (at or 0) + 1)
      local pushed = redis.pcall('LPUSH', list, message)
      if type(pushed) == 'table' then redis.call('ZADD', delayed, now + 60000, member) end -- the key is not a list
      bytes = bytes - #message
    end
    moved = moved + #due
  end
end
