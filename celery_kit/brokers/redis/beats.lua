-- Which of several beats leads: it holds a lease, which it extends again and again.
--
-- KEYS: the lease, whose value is the beat that leads. ARGV: the operation (`hold`, `leave`), a beat, and for `hold` the
-- milliseconds of the lease. Returns who led before this call, and the server's time: seconds and microseconds.
local lease, operation, beat, milliseconds = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local leader = redis.call('GET', lease)
if operation == 'hold' and (not leader or leader == beat) then
  redis.call('SET', lease, beat, 'PX', milliseconds)
elseif operation == 'leave' and leader == beat then
  redis.call('DEL', lease)
end
local time = redis.call('TIME')
return {leader or '', time[1], time[2]}
