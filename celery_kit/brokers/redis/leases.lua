-- What leases.py asks of the server: each call does one of the operations below.
--
-- KEYS: the hash and the index of unacknowledged messages. ARGV: the operation, an owner, and what the operation takes.
-- The owner's lease is a member of the sorted set `<hash>.leases`. Its score is the server's time when the lease ends, or 0 once
-- the lease has ended for good. What the owner holds is the sorted set `<hash>.held:<owner>`: tags with their scores in the index.
-- Whoever fetches a message again gives it another score. So a message whose two scores differ is no longer the owner's.
local unacked, index, operation, owner = KEYS[1], KEYS[2], ARGV[1], ARGV[2]
local leases, held = unacked .. '.leases', unacked .. '.held:' .. owner
local quiet = held .. ':quiet'
local time = redis.call('TIME')
local now = time[1] .. '.' .. string.format('%06d', time[2])
local CHUNK = 1000 -- Lua's unpack() has its limit at some 8,000
redis.call('ZREM', leases, '') -- a full server refuses the first write that needs memory, and no later one

local function ends()
  return tonumber(redis.call('ZSCORE', leases, owner) or 0)
end
local function until_in(seconds)
  redis.call('ZADD', leases, string.format('%.6f', now + seconds), owner)
end
local function wait(seconds)
  redis.call('SET', quiet, 1, 'PX', math.floor(seconds * 1000))
end
-- Those of the tags that the owner still holds.
local function owned(tags)
  local found = {}
  if #tags > 0 then
    local mine, all = redis.call('ZMSCORE', held, unpack(tags)), redis.call('ZMSCORE', index, unpack(tags))
    for place, score in ipairs(mine) do
      if score and score == all[place] then found[#found + 1] = tags[place] end
    end
  end
  return found
end
local function forget_if_empty()
  if redis.call('EXISTS', held) == 0 and ends() == 0 then redis.call('ZREM', leases, owner) end
end

local operations = {}

-- Begin a lease. The owner takes over these tags from a former owner, whose lease ends. Returns the time.
function operations.begin(seconds, former, ...)
  until_in(tonumber(seconds))
  wait(seconds / 2)
  if former ~= '' then
    local before = unacked .. '.held:' .. former
    for _, tag in ipairs({...}) do
      local score = redis.call('ZSCORE', before, tag)
      if score then
        redis.call('ZREM', before, tag)
        redis.call('ZADD', held, score, tag)
      end
    end
    owner, held = former, before
    redis.call('ZADD', leases, 'XX', 0, former)
    forget_if_empty()
  end
  return now
end

-- Renew a lease. `times`: 1 to renew also the times of what its owner holds, which plain Celery compares with its visibility
-- timeout: 30 ms for 10,000 messages. Returns the time; nil if the lease has ended for good. After a late renewal the owner looks
-- for no ended leases: the server may have been unavailable, and then all leases are late.
function operations.renew(seconds, times)
  local before = ends()
  if before == 0 then return false end
  if now - (before - seconds) > seconds / 2 then wait(seconds) end
  until_in(seconds)
  local tags = times == '1' and redis.call('ZRANGE', held, 0, -1) or {}
  for first = 1, #tags, CHUNK do
    local chunk = {unpack(tags, first, math.min(first + CHUNK - 1, #tags))}
    local scores = {}
    for place, tag in ipairs(owned(chunk)) do
      scores[#scores + 1] = now + (first + place) / 1e6 -- they keep their order
      scores[#scores + 1] = tag
    end
    if #scores < 2 * #chunk then redis.call('ZREM', held, unpack(chunk)) end
    if #scores > 0 then
      redis.call('ZADD', index, unpack(scores))
      redis.call('ZADD', held, unpack(scores))
    end
  end
  return now
end

-- End a lease for good.
operations['end'] = function()
  redis.call('ZADD', leases, 'XX', 0, owner)
  forget_if_empty()
end

-- The owners of leases that have ended, after the seconds until the next one ends. `sent`: the time when this was sent; a call
-- that a frozen server executes late finds all leases late, like a call of an owner that has not renewed its own in time.
function operations.ended(seconds, sent)
  local mine = ends()
  if mine - now > seconds / 2 and now - sent < seconds / 5 and redis.call('EXISTS', quiet) == 0 then
    for _, other in ipairs(redis.call('ZRANGEBYSCORE', leases, '(0', now)) do
      redis.call('ZADD', leases, 0, other)
    end
  end
  local following = redis.call('ZRANGEBYSCORE', leases, '(' .. now, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
  return {tostring((following[2] or now + seconds) - now), unpack(redis.call('ZRANGEBYSCORE', leases, 0, 0))}
end

-- Record a message that was popped. Returns whether the owner's lease lasts.
function operations.take(tag, record)
  redis.call('HSET', unacked, tag, record)
  redis.call('ZADD', index, now, tag)
  if ends() == 0 then return 0 end
  redis.call('ZADD', held, now, tag)
  return 1
end

-- Acknowledge those of the tags that the owner still holds.
function operations.ack(...)
  local tags = owned({...})
  redis.call('ZREM', held, ...)
  if #tags > 0 then
    redis.call('ZREM', index, unpack(tags))
    redis.call('HDEL', unacked, unpack(tags))
  end
end

-- Requeue those of the messages that the owner still holds. Each is its tag, a number, and so many commands, lists and items.
-- Returns how many were requeued.
function operations.restore(...)
  local given, place, number = {...}, 1, 0
  while place <= #given do
    local tag, pushes = given[place], tonumber(given[place + 1])
    if pushes > 0 and #owned({tag}) > 0 and redis.call('HDEL', unacked, tag) == 1 then
      redis.call('ZREM', index, tag)
      for push = place + 2, place + 3 * pushes, 3 do redis.call(given[push], given[push + 1], given[push + 2]) end
      number = number + 1
    end
    redis.call('ZREM', held, tag)
    place = place + 2 + 3 * pushes
  end
  forget_if_empty()
  return number
end

return operations[operation](unpack(ARGV, 3))
