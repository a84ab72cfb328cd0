"""Which instance owns which shard: a pure, deterministic function of what is there.

Orphans first, each to the instance with the fewest shards; then healthy shards move, as few as it takes that no
instance has more than one above any other. Equal inputs give equal answers, on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence


def place(owners: Sequence[str | None], instances: Sequence[str]) -> list[str | None]:
    """The owner of each shard: orphans (owner None or not among `instances`) are given away, nothing else moves."""
    if not instances:
        return [None] * len(owners)
    loads = dict.fromkeys(sorted(instances), 0)
    for owner in owners:
        if owner in loads:
            loads[owner] += 1
    placed: list[str | None] = []
    for owner in owners:
        chosen = owner if owner in loads else min(loads, key=lambda name: (loads[name], name))
        if owner not in loads:
            loads[chosen] += 1
        placed.append(chosen)
    return placed


def balance(owners: Sequence[str | None], instances: Sequence[str], moves_max: int) -> list[str | None]:
    """`place`, then at most `moves_max` healthy shards from the fullest instances to the emptiest."""
    placed = place(owners, instances)
    shards: dict[str, list[int]] = {name: [] for name in sorted(instances)}
    for shard, owner in enumerate(placed):
        if owner is not None:
            shards[owner].append(shard)
    for _ in range(moves_max if shards else 0):
        fullest = max(shards, key=lambda name: (len(shards[name]), name))
        emptiest = min(shards, key=lambda name: (len(shards[name]), name))
        if len(shards[fullest]) - len(shards[emptiest]) <= 1:
            break
        shard = shards[fullest].pop()
        shards[emptiest].append(shard)
        placed[shard] = emptiest
    return placed
