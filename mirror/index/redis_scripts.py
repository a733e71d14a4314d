"""The operations of the index in Redis, as Lua scripts. `redis.py` describes the keys; each script gets all that it
uses, as a Cluster demands.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import MovedError, NoScriptError, ReadOnlyError

from mirror.index.redis_primary import RedisPool, understood


async def run(client: Redis, script: str, keys: Sequence[str], arguments: Sequence[str | int]) -> Any:
    """Run a script, which the server may not know yet, and at another server if this one has not the keys, or is no
    primary any more: none of these has begun it. Raises `RedisError`, `OSError`.
    """
    pool = client.connection_pool
    with understood():
        try:
            return await _run_here(client, script, keys, arguments)
        except (MovedError, ReadOnlyError):
            if not isinstance(pool, RedisPool) or pool.primary is None:
                raise
            # where it must go is known, or found, now
            return await _run_here(client, script, keys, arguments)


async def _run_here(client: Redis, script: str, keys: Sequence[str], arguments: Sequence[str | int]) -> Any:
    try:
        return await client.evalsha(_name(script), len(keys), *keys, *arguments)
    except NoScriptError:
        return await client.eval(script, len(keys), *keys, *arguments)


@cache
def _name(script: str) -> str:
    """As Redis names scripts: no secret is in it."""
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()


_LOCALS: Final = """
local loose, root, named, sizes, names, parents, indexes, bytes, marker, rebuild, rebuilt, repos, links = unpack(KEYS)
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
RECORDS: Final = (
    _ROLES
    + """
local answer = {}
for i, digest in ipairs(ARGV) do
    answer[i] = {redis.call('HGET', sizes, digest), redis.call('ZSCORE', order_of(digest), digest)}
end
return answer
"""
)
# Must work when Redis is out of memory: otherwise eviction would find the same records again and again. ARGV: after how
# many references the rest is left; the digests. Returns how many of these are dropped.
DROP: Final = (
    "#!lua flags=allow-oom\n"
    + _ROLES
    + """
local shrunk, count, done = 0, 0, 1
while done < #ARGV and count < tonumber(ARGV[1]) do
    done = done + 1
    local digest = ARGV[done]
    shrunk = shrunk + (tonumber(redis.call('HGET', sizes, digest) or 0) or 0)
    redis.call('HDEL', sizes, digest)
    for _, order in ipairs({loose, root, named}) do redis.call('ZREM', order, digest) end
    local below = redis.call('HGET', names, digest)
    redis.call('HDEL', names, digest)
    for child in string.gmatch(below or '', '%S+') do
        count = count + 1
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
return done - 1
"""
)
# Also touches every index above a manifest, once each: what is in Redis may name itself.
TOUCH: Final = (
    _LOCALS
    + """
local function touch(seen, digest, met)
    if met[digest] then return end
    met[digest] = true
    for _, order in ipairs({named, root, loose}) do redis.call('ZADD', order, 'XX', 'GT', seen, digest) end
    for index in string.gmatch(redis.call('HGET', indexes, digest) or '', '%S+') do touch(seen, index, met) end
end
for i = 1, #ARGV, 2 do touch(ARGV[i], ARGV[i + 1], {}) end
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
# ARGV: after how many references the rest is left; the manifests. Returns how many of these were looked at.
SUCCESSORS: Final = (
    _ROLES
    + """
local answer, count, done = {}, 0, 1
while done < #ARGV and count < tonumber(ARGV[1]) do
    done = done + 1
    local digest = ARGV[done]
    local below = redis.call('HGET', names, digest)
    if below then
        local children = {}
        for child in string.gmatch(below, '%S+') do
            count = count + 1
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
return {done - 1, answer}
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
REPOS: Final = (
    _LOCALS
    + """
return redis.call('SRANDMEMBER', repos, ARGV[1])
"""
)
# ARGV: a cursor, and how many names are wanted.
REPOS_PAGE: Final = (
    _LOCALS
    + """
return redis.call('SSCAN', repos, ARGV[1], 'COUNT', ARGV[2])
"""
)
# ARGV: a cursor, and how many links are wanted.
LOOSE_LINKS: Final = (
    _LOCALS
    + """
local cursor, fields = unpack(redis.call('HSCAN', links, ARGV[1], 'COUNT', ARGV[2]))
local found = {}
for i = 1, #fields, 2 do
    local digest = fields[i]
    if redis.call('HEXISTS', sizes, digest) == 0 and redis.call('HEXISTS', parents, digest) == 0 then
        found[#found + 1] = digest
    end
end
return {cursor, found}
"""
)
# KEYS: the links of some repositories. Returns the numbers of those that have the blob.
WHO_LINKS: Final = """
local found = {}
for number, links in ipairs(KEYS) do
    -- a key of another type has no links
    if redis.pcall('HEXISTS', links, ARGV[1]) == 1 then found[#found + 1] = number end
end
return found
"""
UNLINK: Final = (
    _LOCALS
    + """
redis.call('HDEL', links, unpack(ARGV, 2))
if redis.call('EXISTS', links) == 0 then redis.call('SREM', repos, ARGV[1]) end
"""
)
_FORGET_RECORDS: Final = (
    "redis.call('UNLINK', marker, rebuild, rebuilt, loose, root, named, sizes, names, parents, indexes, bytes)\n"
)
# A rebuild only adds records, so inconsistent records must be deleted before it. After a fail-over nothing is
# inconsistent, but something may be missing. ARGV: the server.
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
    local mark = redis.call('GET', marker)
    if mark and ARGV[1] ~= '' then
        if string.sub(mark, -#ARGV[1]) ~= ARGV[1] then
            redis.call('UNLINK', marker)
            return false
        end
        return string.sub(mark, 1, -#ARGV[1] - 1)
    end
    return mark
end
{_FORGET_RECORDS}
return false
"""
)
BEGIN_REBUILD: Final = (
    _LOCALS
    + """
redis.call('UNLINK', rebuilt)
redis.call('SET', rebuild, ARGV[1])
"""
)
# ARGV: the mark, the server, and the token of the rebuild, if it is one.
SET_MARKER: Final = (
    _LOCALS
    + """
if ARGV[3] ~= '' and redis.call('GET', rebuild) ~= ARGV[3] then return 0 end
redis.call('SET', marker, ARGV[1] .. ARGV[2])
redis.call('UNLINK', rebuild, rebuilt)
return 1
"""
)
REBUILD_STATE: Final = (
    _LOCALS
    + """
local cursor, done = '0', {}
repeat
    local page = redis.call('HSCAN', rebuilt, cursor, 'COUNT', 1000)
    cursor = page[1]
    for _, each in ipairs(page[2]) do done[#done + 1] = each end
until cursor == '0'
return {redis.call('GET', rebuild), done}
"""
)
# ARGV: the part, its blobs, and the token.
NOTE_REBUILT: Final = (
    _LOCALS
    + """
if redis.call('GET', rebuild) ~= ARGV[3] then return 0 end
redis.call('HSET', rebuilt, ARGV[1], ARGV[2])
return 1
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
# Also when Redis is out of memory: a store that is in use must not be taken for one that is gone.
SHOW_ALIVE: Final = """#!lua flags=allow-oom
redis.call('SET', KEYS[1], '1', 'PX', ARGV[1])
"""
IS_ALIVE: Final = """
return redis.call('EXISTS', KEYS[1])
"""
# KEYS: the list. ARGV: a store, and how many of the list are wanted.
ENTER_STORE: Final = """#!lua flags=allow-oom
redis.call('SADD', KEYS[1], ARGV[1])
return redis.call('SRANDMEMBER', KEYS[1], ARGV[2])
"""
STRIKE_STORE: Final = """
redis.call('SREM', KEYS[1], ARGV[1])
"""
