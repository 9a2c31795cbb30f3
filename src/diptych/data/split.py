"""Which pictures are the test, decided by their contents: the same pictures give the same split in any order."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from diptych.data.duplicates import Duplicate, Sets
from diptych.data.records import Record

SALT = "diptych test split 1"  # another salt is another split of everything that was ever measured


def bundle(records: Sequence[Record], duplicates: Sequence[Duplicate]) -> dict[str, int]:
    """id -> number of its bundle: records of one group, and copies of one picture, belong together."""
    place = {record.id: i for i, record in enumerate(records)}
    sets = Sets(len(records))
    for duplicate in duplicates:
        for one in duplicate.ids[1:]:
            sets.join(place[duplicate.ids[0]], place[one])
    first: dict[str, int] = {}
    for i, record in enumerate(records):
        if record.group is not None:
            sets.join(first.setdefault(record.group, i), i)
    return {record.id: sets.find(i) for i, record in enumerate(records)}


def cut_test(
    records: Sequence[Record], bundles: Mapping[str, int], digests: Mapping[str, str], fraction: float
) -> set[str]:
    """The ids of the test pictures: close to `fraction` of each class, whole bundles, classes on both sides.

    A class whose pictures are all of one bundle cannot be on both sides; it is left out of the test where possible.
    """
    members: dict[int, list[Record]] = defaultdict(list)
    for record in records:
        members[bundles[record.id]].append(record)
    # Bundles in an order that only their contents decide.
    order = sorted(members.values(), key=lambda group: _hash(SALT, min(digests[record.id] for record in group)))
    weights = [Counter(record.label for record in group) for group in order]
    size = Counter(record.label for record in records)
    spread = Counter(label for weight in weights for label in weight)  # bundles a class
    goal = {
        label: min(max(1, round(fraction * count)), count - 1) if spread[label] > 1 else 0
        for label, count in size.items()
    }

    inside: Counter[str | None] = Counter()
    chosen = [False] * len(order)
    for i, weight in enumerate(weights):
        # How much nearer to its goal each class comes, in parts of the class.
        gain = sum(
            (abs(goal[label] - inside[label]) - abs(goal[label] - inside[label] - count)) / size[label]
            for label, count in weight.items()
        )
        if gain > 0:
            chosen[i] = True
            inside += weight

    for label in sorted(size, key=str):  # large bundles may have left a class on one side
        if spread[label] < 2 or 0 < inside[label] < size[label]:
            continue
        to_test = inside[label] == 0
        movable = [i for i, weight in enumerate(weights) if weight[label] and chosen[i] != to_test]
        # The smallest that leaves no other class of several bundles on one side.
        for i in sorted(movable, key=lambda i: sum(weights[i].values())):
            after = inside + weights[i] if to_test else inside - weights[i]
            if all(0 < after[other] < size[other] for other in weights[i] if spread[other] > 1):
                chosen[i], inside = to_test, after
                break
    return {record.id for i, group in enumerate(order) if chosen[i] for record in group}


def order_for(seed: int, digest: str) -> str:
    """The rank of a picture in the draw of a seed."""
    return _hash(f"draw {seed}", digest)


def _hash(salt: str, text: str) -> str:
    return hashlib.sha256(f"{salt}:{text}".encode()).hexdigest()
