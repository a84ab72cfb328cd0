"""A key's shard is the partition that any Kafka client would choose: held against aiokafka's own partitioner."""

import pytest
from aiokafka.partitioner import murmur2 as theirs  # pyright: ignore[reportUnknownVariableType]
from hypothesis import example, given
from hypothesis import strategies as st

from rekindle.events import shard_of
from rekindle.events.partitioner import murmur2


@given(st.binary(max_size=200))
@example(b"")
@example(b"\xff\xff\xff\xff")
@example(b"\x80" * 7)
def test_the_hash_is_theirs(key: bytes) -> None:
    assert murmur2(key) & 0xFFFFFFFF == theirs(key) & 0xFFFFFFFF


def test_many_keys() -> None:
    keys = [f"sku-{number}" for number in range(20_000)]
    assert [murmur2(key.encode()) for key in keys] == [theirs(key.encode()) & 0xFFFFFFFF for key in keys]


@given(st.text(), st.integers(1, 10_000))
def test_a_shard_is_theirs_too(key: str, shards: int) -> None:
    assert shard_of(key, shards) == (theirs(key.encode()) & 0x7FFFFFFF) % shards
    assert 0 <= shard_of(key, shards) < shards


@pytest.mark.parametrize("shards", [1, 2, 7, 32, 1_000])
def test_keys_spread_over_all_shards(shards: int) -> None:
    counts = [0] * shards
    for number in range(100 * shards):
        counts[shard_of(f"key-{number}", shards)] += 1
    assert min(counts) > 50
    assert max(counts) < 200
