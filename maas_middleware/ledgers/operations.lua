-- The operations of the ledger on one subject, below buckets.lua in the same script.
--
-- KEYS  1 hash, where beside the windows are, packed in the same way:
--           h         what all live leases hold
--           l<lease>  tokens of a live lease, when it was admitted
--       2 sorted set of the live leases, by the time at which each lapses
--       3 string of a settled lease: its tokens, when it was admitted, and until when to remember it
-- ARGV  1 operation
--       2 lease; empty for peek
--       3 packed: now (negative for the server's time), life of a lease, a, b, c, how many of the windows are of
--         requests, and seconds and limit of each window, where these come first
--       admit   a tokens, b how many of them have to be left, c how many leases may live (negative for no cap)
--       settle  a tokens of the lease, b when it was admitted, c tokens to charge
--       refund  the same, and the request is given back
--       renew   a tokens of the lease, b when it was admitted
--       peek    b how many tokens have to be left; writes nothing
-- Admit and peek are answered, packed: now, tokens (-1 where no lease was granted), when it was admitted, what is held,
-- how many leases live, and of each window: used, when its oldest and its newest bucket leave it (0 where there is none),
-- and when there is room (see `passes`; 0 where a lease was granted).

local MARK_MS, AT_ONCE = 600000, 1000

local leases, mark = KEYS[2], KEYS[3]
local operation, lease = ARGV[1], ARGV[2]
local numbers = {unpacked('<' .. string.rep('i8', #ARGV[3] / 8), ARGV[3])}
local life, a, b, c, request_windows = numbers[2], numbers[3], numbers[4], numbers[5], numbers[6]

now = numbers[1]
if now < 0 then
  local time = call('TIME')
  now = time[1] * 1000 + floor(time[2] / 1000)
end

local settled_tokens, settled_admitted
if operation ~= 'peek' then
  local value = call('GET', mark)
  if value then
    local remembered
    settled_tokens, settled_admitted, remembered = unpacked('<i8i8i8', value)
    if remembered <= now then
      settled_tokens = nil
    elseif operation ~= 'admit' then
      return
    end
  end
end

-- all that counts

local requests, tokens, windows, fields, longest = {}, {}, {}, {'h', 'l' .. lease}, 0
for i = 7, #numbers - 1, 2 do
  local is_requests = #windows < request_windows
  local kind = is_requests and requests or tokens
  local window = new((is_requests and 'r' or 't') .. numbers[i], numbers[i] * 1000, numbers[i + 1])
  kind[#kind + 1], windows[#windows + 1], fields[#fields + 1] = window, window, window.id
  longest = max(longest, window.length)
end

local values = call('HMGET', state, unpack(fields))
for i = 1, #windows do
  load(windows[i], values[i + 2])
end

local held_before = values[1] and unpacked('<i8', values[1]) or 0
local held = held_before
local lapsed = call('ZRANGEBYSCORE', leases, '-inf', now)
for first = 1, #lapsed, AT_ONCE do
  local names = {}
  for i = first, min(first + AT_ONCE - 1, #lapsed) do
    names[#names + 1] = 'l' .. lapsed[i]
    drop('l' .. lapsed[i])
  end
  for _, value in ipairs(call('HMGET', state, unpack(names))) do
    held = held - (value and unpacked('<i8', value) or 0)
  end
end
local live = call('ZCARD', leases) - #lapsed
held = live > 0 and max(0, held) or 0 -- whoever loses one of the keys locks nobody out

-- tokens of the lease, and when it was admitted; nothing, where it does not live
local function held_by_lease()
  local lapses = values[2] and call('ZSCORE', leases, lease)
  if lapses and tonumber(lapses) > now then
    return unpacked('<i8i8', values[2])
  end
end

local function hold(amount, admitted)
  set('l' .. lease, pack('<i8i8', amount, admitted))
  held, live = min(held + amount, CEILING), live + 1
end

-- the keys live as long as anything in them counts (a little longer, so as not to be told each time), and never shorter
-- than they were meant to
local function keep(key)
  local needed = life + floor(longest * (BUCKETS + 1) / BUCKETS) + 1
  if call('PTTL', key) < needed then
    call('PEXPIRE', key, needed + life)
  end
end

local function write()
  for i = 1, #windows do
    store(windows[i])
  end
  if held ~= held_before and held > 0 then
    set('h', pack('<i8', held))
  elseif held ~= held_before then
    drop('h')
  end
  for first = 1, #dropped, AT_ONCE do
    call('HDEL', state, unpack(dropped, first, min(first + AT_ONCE - 1, #dropped)))
  end
  if #lapsed > 0 then
    call('ZREMRANGEBYSCORE', leases, '-inf', now)
  end
  if #written > 0 then
    call('HSET', state, unpack(written))
  end
  keep(state)
  keep(leases)
end

local function answer(granted, admitted)
  local parts = {now, granted, admitted, held, live}
  for i = 1, #windows do
    local window = windows[i]
    local at = #parts
    parts[at + 1], parts[at + 2], parts[at + 3], parts[at + 4] = window.used, 0, 0, 0
    if window.newest then
      parts[at + 2], parts[at + 3] = leaves(window, window.oldest), leaves(window, window.newest)
    end
    if granted < 0 then
      parts[at + 4] = i > request_windows and passes(window, held, b) or passes(window, 0, 1)
    end
  end
  return pack('<' .. string.rep('i8', #parts), unpack(parts))
end

-- what is asked

if operation == 'peek' then
  return answer(-1, 0)
end

local lease_tokens, lease_admitted = held_by_lease()

if operation == 'admit' then
  if settled_tokens then
    return answer(settled_tokens, settled_admitted)
  elseif lease_tokens then
    return answer(lease_tokens, lease_admitted)
  end
  local is_refused, granted = c >= 0 and live + 1 > c, a
  for i = 1, #requests do
    is_refused = is_refused or requests[i].used + 1 > requests[i].limit
  end
  for i = 1, #tokens do
    local left = tokens[i].limit - tokens[i].used - held
    is_refused = is_refused or b > 0 and left < b
    granted = max(0, min(granted, left))
  end
  if is_refused then
    if #dropped > 0 then
      write()
    end
    return answer(-1, 0)
  end
  for i = 1, #requests do
    add(requests[i], 1)
  end
  hold(granted, now)
  call('ZADD', leases, now + life, lease)
  write()
  return answer(granted, now)
end

if operation == 'renew' then
  if not lease_tokens then
    hold(a, b)
  end
  call('ZADD', leases, now + life, lease)
  write()
  return
end

call('ZREM', leases, lease)
if lease_tokens then
  held = held - lease_tokens
  drop('l' .. lease)
end
for i = 1, c > 0 and #tokens or 0 do
  add(tokens[i], c)
end
for i = 1, operation == 'refund' and #requests or 0 do
  give_back(requests[i], lease_admitted or b)
end
call('SET', mark, pack('<i8i8i8', a, b, now + MARK_MS), 'PX', MARK_MS)
write()
