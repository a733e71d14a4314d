"""The operations of the index in Redis, as Lua scripts. `redis.py` describes the keys; each script gets all of them."""

from __future__ import annotations

from typing import Final

_LOCALS: Final = """
local loose, root, named, sizes, names, parents, indexes, bytes, marker, repos, links = unpack(KEYS)
"""
# A blob is in exactly one of the three sorted sets; `parents` and `names` alone determine which one.
_ROLES: Final = (
    _LOCALS
    + """
local function order_of(digest)
    if redis.call('HEXISTS', parents, digest) == 1 then return named end
    return redis.call('HEXISTS', names, digest) == 1 and root or loose
end
local function settle(digest)
    local order = order_of(digest)
    for _, other in ipairs({loose, root, named}) do
        local seen = other ~= order and redis.call('ZSCORE', other, digest)
        if seen then
            redis.call('ZREM', other, digest)
            redis.call('ZADD', order, 'GT', seen, digest)
        end
    end
end
"""
)

PUT: Final = (
    _ROLES
    + """
local grown = 0
for i = 1, #ARGV, 3 do
    local digest, size, seen = ARGV[i], ARGV[i + 1], ARGV[i + 2]
    grown = grown + tonumber(size) - (tonumber(redis.call('HGET', sizes, digest) or 0) or 0)
    redis.call('HSET', sizes, digest, size)
    redis.call('ZADD', order_of(digest), 'GT', seen, digest)
end
redis.call('INCRBY', bytes, string.format('%.0f', grown))
"""
)
GET: Final = (
    _ROLES
    + """
return {redis.call('HGET', sizes, ARGV[1]), redis.call('ZSCORE', order_of(ARGV[1]), ARGV[1])}
"""
)
# Must work when Redis is out of memory: otherwise eviction would find the same records again and again.
DROP: Final = (
    "#!lua flags=allow-oom\n"
    + _ROLES
    + """
local shrunk = 0
for _, digest in ipairs(ARGV) do
    shrunk = shrunk + (tonumber(redis.call('HGET', sizes, digest) or 0) or 0)
    redis.call('HDEL', sizes, digest)
    for _, order in ipairs({loose, root, named}) do redis.call('ZREM', order, digest) end
    local below = redis.call('HGET', names, digest)
    redis.call('HDEL', names, digest)
    for child in string.gmatch(below or '', '%S+') do
        if redis.call('HINCRBY', parents, child, -1) <= 0 then redis.call('HDEL', parents, child) end
        local above, rest = redis.call('HGET', indexes, child), {}
        if above then
            for index in string.gmatch(above, '%S+') do
                if index ~= digest then rest[#rest + 1] = index end
            end
            if #rest == 0 then
                redis.call('HDEL', indexes, child)
            else
                redis.call('HSET', indexes, child, table.concat(rest, ' '))
            end
        end
        settle(child)
    end
end
if shrunk ~= 0 then redis.call('DECRBY', bytes, string.format('%.0f', shrunk)) end
"""
)
# Also touches every index above a manifest.
TOUCH: Final = (
    _LOCALS
    + """
local function touch(seen, digest)
    for _, order in ipairs({named, root, loose}) do redis.call('ZADD', order, 'XX', 'GT', seen, digest) end
    for index in string.gmatch(redis.call('HGET', indexes, digest) or '', '%S+') do touch(seen, index) end
end
for i = 1, #ARGV, 2 do touch(ARGV[i], ARGV[i + 1]) end
"""
)
# ARGV: for each manifest its digest, the number of manifests and of all digests it references, and these digests.
RECORD_REFERENCES: Final = (
    _ROLES
    + """
local i = 1
while i <= #ARGV do
    local digest, manifests, count = ARGV[i], tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2])
    local first, last = i + 3, i + 2 + count
    if redis.call('HEXISTS', sizes, digest) == 1 and redis.call('HEXISTS', names, digest) == 0 then
        redis.call('HSET', names, digest, table.concat(ARGV, ' ', first, last))
        settle(digest)
        for j = first, last do
            local child = ARGV[j]
            redis.call('HINCRBY', parents, child, 1)
            if j < first + manifests then
                local above = redis.call('HGET', indexes, child)
                redis.call('HSET', indexes, child, above and above .. ' ' .. digest or digest)
            end
            settle(child)
        end
    end
    i = last + 1
end
"""
)
OLDEST: Final = (
    _LOCALS
    + """
local order = ({loose = loose, root = root, named = named})[ARGV[1]]
local members, page = redis.call('ZRANGE', order, ARGV[2], ARGV[3], 'WITHSCORES'), {}
for i = 1, #members, 2 do
    page[#page + 1] = {members[i], redis.call('HGET', sizes, members[i]), members[i + 1]}
end
return page
"""
)
SUCCESSORS: Final = (
    _ROLES
    + """
local answer = {}
for _, digest in ipairs(ARGV) do
    local below = redis.call('HGET', names, digest)
    if below then
        local children = {}
        for child in string.gmatch(below, '%S+') do
            local size = redis.call('HGET', sizes, child)
            if size then
                children[#children + 1] = {
                    child, size, redis.call('ZSCORE', order_of(child), child),
                    redis.call('HGET', parents, child), redis.call('HEXISTS', names, child),
                }
            end
        end
        answer[#answer + 1] = {digest, children}
    end
end
return answer
"""
)
DIGESTS: Final = (
    _LOCALS
    + """
local cursor, fields = unpack(redis.call('HSCAN', sizes, ARGV[1], 'COUNT', ARGV[2]))
local digests = {}
for i = 1, #fields, 2 do digests[#digests + 1] = fields[i] end
return {cursor, digests}
"""
)
USAGE: Final = (
    _LOCALS
    + """
return {redis.call('HLEN', sizes), redis.call('GET', bytes)}
"""
)
LINK: Final = (
    _LOCALS
    + """
redis.call('SADD', repos, ARGV[1])
for i = 2, #ARGV, 2 do
    local write = tonumber(ARGV[i + 1]) >= 0 and 'HSET' or 'HSETNX'
    redis.call(write, links, ARGV[i], ARGV[i + 1])
end
"""
)
LINKED: Final = (
    _LOCALS
    + """
return redis.call('HGET', links, ARGV[1])
"""
)
# The keys of other repositories' links are made here, which is possible because Cluster is refused.
HOLDERS: Final = (
    _LOCALS
    + """
local found = {}
for _, repo in ipairs(redis.call('SRANDMEMBER', repos, ARGV[4])) do
    if redis.call('HEXISTS', ARGV[3] .. repo, ARGV[1]) == 1 then
        found[#found + 1] = repo
        if #found >= tonumber(ARGV[2]) then break end
    end
end
return found
"""
)
UNLINK: Final = (
    _LOCALS
    + """
redis.call('HDEL', links, unpack(ARGV, 2))
if redis.call('EXISTS', links) == 0 then redis.call('SREM', repos, ARGV[1]) end
"""
)
_FORGET_RECORDS: Final = "redis.call('UNLINK', marker, loose, root, named, sizes, names, parents, indexes, bytes)\n"
# A rebuild only adds records, so inconsistent records must be deleted before it.
MARKER: Final = (
    _LOCALS
    + f"""
local blobs = redis.call('HLEN', sizes)
local roots, children = redis.call('ZCARD', root), redis.call('ZCARD', named)
if blobs == redis.call('ZCARD', loose) + roots + children
    and (blobs == 0 or redis.call('EXISTS', bytes) == 1)
    and redis.call('HLEN', names) >= roots
    and redis.call('HLEN', parents) >= children
then
    return redis.call('GET', marker)
end
{_FORGET_RECORDS}
return false
"""
)
SET_MARKER: Final = (
    _LOCALS
    + """
redis.call('SET', marker, ARGV[1])
"""
)
MEND: Final = (
    _LOCALS
    + _FORGET_RECORDS
    + """
if redis.call('TYPE', repos).ok ~= 'set' then redis.call('UNLINK', repos) end
if links and redis.call('TYPE', links).ok ~= 'hash' then redis.call('UNLINK', links) end
"""
)
CLEAR: Final = (
    _LOCALS
    + _FORGET_RECORDS
    + """
return redis.call('SRANDMEMBER', repos, ARGV[1])
"""
)
CLEAR_LINKS: Final = (
    _LOCALS
    + """
redis.call('UNLINK', links)
redis.call('SREM', repos, ARGV[1])
"""
)
