"""Which shard a key belongs to: Kafka's own partitioner (murmur2), so that any Kafka client agrees with us.

Written from the description of MurmurHash2 (Austin Appleby, public domain) with Kafka's seed; a test holds it against
aiokafka's.
"""

from __future__ import annotations

_SEED = 0x9747B28C
_M = 0x5BD1E995
_MASK = 0xFFFFFFFF


def murmur2(data: bytes) -> int:
    """The 32-bit MurmurHash2 of `data` with Kafka's seed."""
    length = len(data)
    h = _SEED ^ length
    whole = length & ~3
    for i in range(0, whole, 4):
        k = int.from_bytes(data[i : i + 4], "little") * _M & _MASK
        k = (k ^ k >> 24) * _M & _MASK
        h = (h * _M & _MASK) ^ k
    if whole < length:
        h = (h ^ int.from_bytes(data[whole:], "little")) * _M & _MASK
    h = (h ^ h >> 13) * _M & _MASK
    return h ^ h >> 15


def shard_of(key: str, shards: int) -> int:
    """The shard of an entity's key: Kafka's positive murmur2 modulo the number of partitions."""
    return (murmur2(key.encode()) & 0x7FFFFFFF) % shards
