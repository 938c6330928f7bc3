-- What was used, in windows of buckets. All times are whole milliseconds.
--
-- KEYS[1] is a hash. Its values are packed integers of 8 bytes, and a window is r60 for requests in 60 seconds, or t60
-- for tokens:
--   <window>           used, newest, amount, previous, oldest: all but two are numbers of buckets; `amount` is what the
--                      newest one holds, and `previous` is the one before it
--   <window>:<bucket>  amount, previous, next: of all but the newest; `previous` of the oldest means nothing
-- No bucket is empty. What is to be written is collected first: a script that the server lets write once, it lets finish.

local BUCKETS, CEILING = 60, 2 ^ 62 -- what is packed has 63 bits

local call, floor, max, min = redis.call, math.floor, math.max, math.min
local pack, unpacked = struct.pack, struct.unpack
local state = KEYS[1]
local now
local dropped, written = {}, {}

local function drop(name)
  dropped[#dropped + 1] = name
end

local function set(name, value)
  written[#written + 1] = name
  written[#written + 1] = value
end

local function new(id, length, limit)
  return {
    id = id, length = length, limit = limit, is_changed = false,
    used = 0, newest = false, amount = 0, previous = 0, oldest = 0, -- as they are written
  }
end

local function leaves(window, bucket)
  return window.length + math.ceil((bucket + 1) * window.length / BUCKETS)
end

local function bucket_of(window, at)
  return floor(at * BUCKETS / window.length)
end

local function field(window, bucket)
  return string.format('%s:%.0f', window.id, bucket)
end

-- the amount in a bucket, and its neighbours; nothing, where it is not there
local function read(window, bucket)
  local value = call('HGET', state, field(window, bucket))
  if value then
    return unpacked('<i8i8i8', value)
  end
end

local function link(window, bucket, amount, previous, following)
  set(field(window, bucket), pack('<i8i8i8', amount, previous, following))
end

-- take the value of a window, and drop what has left it
local function load(window, value)
  if value then
    window.used, window.newest, window.amount, window.previous, window.oldest = unpacked('<i8i8i8i8i8', value)
  end
  while window.newest and leaves(window, window.oldest) <= now do
    window.is_changed = true
    if window.oldest == window.newest then
      window.used, window.newest = 0, false
    else
      local amount, _, following = read(window, window.oldest)
      drop(field(window, window.oldest))
      window.used, window.oldest = max(0, window.used - amount), following
    end
  end
end

local function store(window)
  if window.is_changed and window.newest then
    local value = pack('<i8i8i8i8i8', window.used, window.newest, window.amount, window.previous, window.oldest)
    set(window.id, value)
  elseif window.is_changed then
    drop(window.id)
  end
end

local function add(window, amount)
  -- the clock of a server may go back; a newest bucket does not
  local bucket = max(bucket_of(window, now), window.newest or 0)
  if not window.newest then
    window.amount, window.previous, window.oldest = 0, bucket, bucket
  elseif bucket > window.newest then
    link(window, window.newest, window.amount, window.previous, bucket)
    window.amount, window.previous = 0, window.newest
  end
  window.used, window.amount = min(window.used + amount, CEILING), min(window.amount + amount, CEILING)
  window.newest, window.is_changed = bucket, true
end

local function take_from_newest(window)
  window.amount = window.amount - 1
  if window.amount == 0 and window.oldest == window.newest then
    window.newest = false
  elseif window.amount == 0 then
    window.newest = window.previous
    window.amount, window.previous = read(window, window.newest)
    drop(field(window, window.newest))
  end
end

local function unlink(window, bucket, previous, following)
  drop(field(window, bucket))
  if bucket == window.oldest then
    window.oldest = following
  else
    local amount, before = read(window, previous)
    link(window, previous, amount, before, following)
  end
  if following == window.newest then
    window.previous = previous
  else
    local amount, _, after = read(window, following)
    link(window, following, amount, previous, after)
  end
end

-- take 1 out of the bucket of that time, if it still counts
local function give_back(window, at)
  local bucket = bucket_of(window, at)
  if bucket < window.oldest then -- it may be there still, to be dropped by this very call
    return
  elseif bucket == window.newest then
    take_from_newest(window)
  else
    local amount, previous, following = read(window, bucket)
    if not amount then
      return
    elseif amount > 1 then
      link(window, bucket, amount - 1, previous, following)
    else
      unlink(window, bucket, previous, following)
    end
  end
  window.used, window.is_changed = window.used - 1, true
end

-- when there is room for so much beside what is held; -1 where that depends on what is held
local function passes(window, held, needs)
  local excess = window.used - window.limit + held + needs -- in this order exact up to 2^53
  if excess < 1 then
    return now
  end
  local bucket = window.newest and window.oldest
  while bucket do
    local amount, following = window.amount, nil
    if bucket ~= window.newest then
      local _
      amount, _, following = read(window, bucket)
    end
    excess = excess - amount
    if excess < 1 then
      return leaves(window, bucket)
    end
    bucket = following
  end
  return -1
end
