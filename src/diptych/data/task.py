"""A user's pictures as an honest task: a labelled pool, a test that no method sees, and nothing on both sides."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from diptych.data.duplicates import Duplicate, duplicate_groups
from diptych.data.names import class_words, read_templates
from diptych.data.read import read_records
from diptych.data.records import Record, Records
from diptych.data.scan import SetAside, scan
from diptych.data.split import bundle, cut_test, order_for
from diptych.data.video import FRAMES
from diptych.errors import DiptychError


@dataclass(frozen=True)
class Task:
    """What is to be told apart, and the pictures for it. `pool` and `test` hold labelled records only."""

    classes: tuple[str, ...]  # the labels as found, sorted; a picture's number is its place here
    names: tuple[str, ...]  # the words for each class
    pool: Records
    test: Records
    unlabelled: Records
    templates: tuple[str, ...] | None  # the user's; None for each system's own
    set_aside: list[SetAside]
    duplicates: list[Duplicate]
    warnings: tuple[str, ...]
    name: str
    data_hash: str  # of contents, labels and sides; not of paths
    digests: dict[str, str]  # record id -> SHA-256 of its bytes
    bundles: dict[str, int]  # record id -> number shared by its group and its copies
    shots: int | None = None  # the default of a comparison; None for its own choice
    frames: int = 0  # that are looked at of each video; 0 where the items are pictures

    def labels(self, records: Iterable[Record]) -> list[int]:
        """The class of each record as its place in `classes`."""
        place = {label: i for i, label in enumerate(self.classes)}
        return [place[record.label] for record in records if record.label is not None]

    def groups(self, records: Iterable[Record]) -> list[int]:
        """Equal numbers for records that must not be divided: one burst, patient or product, copies of one picture."""
        return [self.bundles[record.id] for record in records]

    def draw(self, shots: int | None, seed: int) -> Records:
        """`shots` pictures of each class of the pool (all of a smaller class); None for the whole pool.

        Fixed by the seed and the pictures' contents. More shots contain fewer shots of the same seed. Copies of a
        picture already drawn come last.
        """
        if shots is None:
            return self.pool
        if shots < 1:
            raise DiptychError(f"{shots} shots: at least 1 is needed")
        copies = {one: duplicate.ids[0] for duplicate in self.duplicates for one in duplicate.ids}
        by_label: dict[str | None, list[Record]] = defaultdict(list)
        for record in sorted(self.pool, key=lambda r: (order_for(seed, self.digests[r.id]), r.id)):
            by_label[record.label].append(record)
        drawn: list[Record] = []
        for label in self.classes:
            fresh, again, seen = [], [], set()
            for record in by_label[label]:
                picture = copies.get(record.id, record.id)
                (again if picture in seen else fresh).append(record)
                seen.add(picture)
            drawn += (fresh + again)[:shots]
        return replace(self.pool, items=tuple(drawn))


def make_task(
    source: str | Path | Records | None = None,
    *,
    names: str | Path | None = None,
    templates: str | Path | Sequence[str] | None = None,
    group: str | None = None,
    shots: int | None = None,
    test_fraction: float = 0.4,
    image_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
    frames: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Task:
    """The task in a folder, table or dataset folder (None: the built-in pictures). See `read_records` for columns.

    names: a file "folder, words"; templates: sentences with {} or a file of them; group: the column of bursts,
    patients or products. The data set's own test split is kept; else `test_fraction` of each class becomes the test,
    chosen by the pictures' contents alone. frames: how many are looked at of each video (None: 8).
    Raises DiptychError for what cannot be compared on.
    """
    if not 0 < test_fraction < 1:
        raise DiptychError(f"test_fraction is {test_fraction}: it should be between 0 and 1")
    if shots is not None and shots < 1:
        raise DiptychError(f"{shots} shots: at least 1 is needed")
    if frames is not None and frames < 1:
        raise DiptychError(f"{frames} frames: at least 1 of each video is needed")
    user_templates = None if templates is None else read_templates(templates)
    if isinstance(source, Records):
        found = source
    else:
        found = read_records(
            source,
            image_column=image_column,
            label_column=label_column,
            split_column=split_column,
            group_column=group,
        )
    if frames is not None and not found.videos:
        raise DiptychError(f"{found.source} holds pictures, not videos: it has no {frames} frames to look at")
    records, scanned, set_aside = scan(found, progress)
    digests = {record.id: scanned[record.id].digest for record in records}
    classes = _classes(found, records, set_aside)
    words, warnings = class_words(classes, names)
    warnings = [*records.warnings, *_lost_classes(found, classes), *warnings]

    duplicates = duplicate_groups(records, scanned)
    warnings += _contradictions(records, duplicates)
    bundles = bundle(records.items, duplicates)
    pool, test, unlabelled = _sides(records, bundles, digests, test_fraction, warnings)
    _check_sides(classes, pool, test, warnings)
    return Task(
        classes=classes,
        names=words,
        pool=pool,
        test=test,
        unlabelled=unlabelled,
        templates=user_templates,
        set_aside=set_aside,
        duplicates=duplicates,
        warnings=tuple(warnings),
        name=Path(found.source).name or found.source,
        data_hash=_data_hash(digests, pool=pool, test=test, unlabelled=unlabelled),
        digests=digests,
        bundles=bundles,
        shots=shots,
        frames=(frames or FRAMES) if found.videos else 0,
    )


def _classes(found: Records, records: Records, set_aside: list[SetAside]) -> tuple[str, ...]:
    if not len(records):
        first = set_aside[0]
        raise DiptychError(
            f"{found.source}: none of the {len(found)} pictures can be read; the first, {first.id}: {first.reason}"
        )
    classes = records.labels
    counts = Counter(record.label for record in records)
    lonely = [label for label in classes if counts[label] == 1]
    if lonely:
        some = ", ".join(f'"{label}"' for label in lonely[:5]) + (", ..." if len(lonely) > 5 else "")
        bad = Counter(record.label for record in found)
        lost = sum(bad[label] - 1 for label in lonely)
        because = f" ({lost} more could not be read)" if lost else ""
        raise DiptychError(
            f"{found.source}: {some} has one picture{because}; each class needs at least two, one to learn from and "
            "one to test on"
        )
    if len(classes) < 2:
        raise DiptychError(
            f"{found.source}: only pictures of {', '.join(classes) or 'no class'} can be read; two classes are needed. "
            f"The first of the others, {set_aside[0].id}: {set_aside[0].reason}"
        )
    return classes


def _lost_classes(found: Records, classes: Sequence[str]) -> list[str]:
    lost = sorted(set(found.labels) - set(classes))
    return [f"no picture of {', '.join(lost)} can be read: left out"] if lost else []


def _contradictions(records: Records, duplicates: Sequence[Duplicate]) -> list[str]:
    """A warning where copies of one picture have different labels."""
    label = {record.id: record.label for record in records}
    both = [d for d in duplicates if len({label[one] for one in d.ids} - {None}) > 1]
    if not both:
        return []
    shown = "; ".join(", ".join(f"{one} ({label[one]})" for one in d.ids[:3]) for d in both[:5])
    more = f"; and {len(both) - 5} more" if len(both) > 5 else ""
    return [f"{len(both)} pictures have copies with another label: {shown}{more}"]


def _sides(
    records: Records,
    bundles: dict[str, int],
    digests: dict[str, str],
    test_fraction: float,
    warnings: list[str],
) -> tuple[Records, Records, Records]:
    """(pool, test, unlabelled); nothing of a bundle with a test picture is in the other two."""
    labelled = records.filter(lambda record: record.label is not None)
    own = Counter(record.split for record in labelled)
    if own["test"]:
        test_ids = {record.id for record in labelled if record.split == "test"}
        if own["val"]:
            warnings.append(f"the {own['val']} validation pictures join the pool: settings are chosen inside the shots")
    else:
        test_ids = cut_test(labelled.items, bundles, digests, test_fraction)
        if own["train"] or own["val"]:
            warnings.append(
                f"the data set has no test split: {len(test_ids)} of its pictures are set apart as the test"
            )
    closed = {bundles[one] for one in test_ids}
    straddling = [r for r in records if r.id not in test_ids and bundles[r.id] in closed]
    if straddling:
        some = ", ".join(r.id for r in straddling[:5]) + (", ..." if len(straddling) > 5 else "")
        warnings.append(
            f"{len(straddling)} pictures are copies of test pictures, or of a group in the test, and are left out of "
            f"the rest: {some}"
        )
    out = test_ids | {r.id for r in straddling}
    pool = labelled.filter(lambda record: record.id not in out)
    test = labelled.filter(lambda record: record.id in test_ids)
    return pool, test, records.filter(lambda record: record.label is None and record.id not in out)


def _check_sides(classes: Sequence[str], pool: Records, test: Records, warnings: list[str]) -> None:
    untaught = [label for label in classes if label not in pool.labels]
    if untaught:
        raise DiptychError(
            f"{pool.source}: no picture of {', '.join(untaught[:5])} is left outside the test: "
            "each class needs pictures to learn from"
        )
    untested = [label for label in classes if label not in test.labels]
    if len(untested) == len(classes):
        raise DiptychError(
            f"{pool.source}: nothing is left to test on: the pictures of each class are all of one group, or copies "
            "of one picture"
        )
    if untested:
        warnings.append(
            f"no test pictures of {', '.join(untested[:5])}{', ...' if len(untested) > 5 else ''}: "
            "they are of one group, copies of one picture, or not in the test split"
        )


def _data_hash(digests: dict[str, str], **sides: Records) -> str:
    rows = sorted(f"{digests[r.id]} {r.label} {side}" for side, records in sides.items() for r in records)
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()
