"""Pictures found for the classes of a task elsewhere: read, encoded once, without copies of the task's own."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from diptych.core.clip import CLIP
from diptych.data.dataset_folder import dataset_tables, is_dataset_folder
from diptych.data.descriptions import key
from diptych.data.pictures import EXTENSIONS, BadPicture, picture_bytes
from diptych.data.read import read_records
from diptych.data.records import Record, Records
from diptych.data.scan import scan
from diptych.data.shards import PICTURE, expand, index_of, read_member
from diptych.data.support import Support
from diptych.data.tables import Table, open_table, records_of
from diptych.engine.store import FeatureStore
from diptych.errors import DiptychError, Unsupported

ROWS = 4096  # pictures at a time that are compared with the task's


@dataclass(frozen=True)
class Retrieved:
    """features [N, D] unit; labels [N]: numbers of the task's classes; left_out: copies of pictures of the task."""

    features: Tensor
    labels: Tensor
    left_out: int


def state_of(source: str) -> str:
    """Changes with the files: what was read of them is kept in memory under it."""
    paths = [file for path in expand(source) for file in ([*path.rglob("*")] if path.is_dir() else [path])]
    stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(paths) if path.exists()]
    return hashlib.sha256(repr(stats).encode()).hexdigest()


@lru_cache(maxsize=2)
def read_retrieved(source: str, state: str = "") -> Records:
    """What `diptych curate real` wrote (Parquet or shards, with a class a row), or any folder or table with classes."""
    path = expand(source)[0]
    shards = expand(source) if path.suffix == ".tar" else sorted(path.glob("*.tar")) if path.is_dir() else []
    if shards:
        return read_shards(shards, source)
    if path.is_dir() and is_dataset_folder(path):
        return from_tables(dataset_tables(path), source)
    if path.suffix.lower() == ".parquet" and path.is_file():
        return from_tables([open_table(path)], source)
    return read_records(source)


def from_tables(tables: list[Table], source: str) -> Records:
    """By the columns that curation writes, where they are there."""
    names = set.intersection(*(set(table.names) for table in tables))
    image, label = ("picture" if "picture" in names else None), ("class" if "class" in names else None)
    if image is None and "url" in names:
        raise DiptychError(f"{source} has addresses and no pictures: download them first")
    return records_of(tables, {"image": image, "label": label, "split": None, "group": None}, source)


def read_shards(paths: Sequence[Path], source: str) -> Records:
    """The class is that of each pair's .json."""
    items = []
    for path in paths:
        if not path.is_file():
            raise DiptychError(f"{source}: no such shard, {path}")
        shard = index_of(path)
        for row in range(len(shard)):
            pair = shard.pair(row)
            if not isinstance(label := pair.extra.get("class"), str):
                raise DiptychError(f'{source}: {pair.id} has no "class" in its .json, as `diptych curate real` writes')
            members = shard.members[shard.starts[row] : shard.starts[row + 1]].tolist()
            offset, size = next((offset, size) for kind, offset, size in members if kind == PICTURE)
            items.append(Record(pair.id, None, label, read=partial(read_member, path, offset, size)))
    return Records(tuple(items), source)


@lru_cache(maxsize=2)
def read_pictures(source: str, state: str = "") -> Records:
    """All pictures below a folder, whatever folders it has; of anything else, its records."""
    root = Path(source).expanduser()
    if not root.is_dir() or is_dataset_folder(root) or list(root.glob("*.tar")):
        return read_retrieved(source, state)
    paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file())
    if not paths:
        raise DiptychError(f"there are no pictures below {source}")
    return Records(tuple(Record(str(path.relative_to(root)), path, None) for path in paths), source)


@lru_cache(maxsize=4)
def digests_of(read: Callable[[str, str], Records], source: str, state: str) -> dict[str, str]:
    """Hashes of the pictures' bytes, by id; those that cannot be read are left out."""
    found = {}
    for record in read(source, state):
        try:
            found[record.id] = hashlib.sha256(picture_bytes(record)).hexdigest()
        except BadPicture:
            continue
    return found


def encoded(clip: CLIP, records: Records, digests: dict[str, str]) -> tuple[Records, Tensor]:
    """Unit embeddings [N, D] on the CPU, from the cache; pictures that cannot be decoded are left out."""
    store = FeatureStore(digests)
    records = records.filter(lambda record: record.id in digests)
    sound, _, aside = scan(replace(records, items=tuple(store.missing(clip, records))))
    bad = {digests[one.id] for one in aside}
    records = replace(records.filter(lambda record: digests[record.id] not in bad), warnings=sound.warnings)
    if not len(records):
        return records, torch.empty(0, clip.embed_dim)
    return records, F.normalize(store.images(clip, records).cpu().float(), dim=1)


def balanced(records: Records, digests: dict[str, str], most: int) -> Records:
    """At most so many a class, by chance (their digests), in an order that depends on the pictures alone."""
    by_class: dict[str, list[Record]] = defaultdict(list)
    for record in sorted(records, key=lambda record: (digests[record.id], record.id)):
        if record.label is not None and len(by_class[record.label]) < most:
            by_class[record.label].append(record)
    kept = sorted((one for some in by_class.values() for one in some), key=lambda one: (digests[one.id], one.id))
    return replace(records, items=tuple(kept))


def retrieve(clip: CLIP, support: Support, source: str, most: int, copies: float, apart: str = "") -> Retrieved:
    """At most `most` pictures a class, none with a cosine above `copies` to the shots, to the task's unlabelled
    pictures, or to those of `apart`. Raises Unsupported where none is of the task's classes."""
    places = {key(name): c for c, name in enumerate(support.names)}
    state = state_of(source)
    digests = digests_of(read_retrieved, source, state)
    ours = read_retrieved(source, state).filter(lambda one: key(one.label or "") in places and one.id in digests)
    if not len(ours):
        raise Unsupported(f"finds no picture of these classes ({', '.join(support.names[:3])}, ...) in {source}")
    records, features = encoded(clip, balanced(ours, digests, most), digests)
    known = [support.features(clip).cpu().float()]
    if len(support.unlabelled):
        known.append(support.source.images(clip, support.unlabelled).cpu().float())
    if apart:
        state = state_of(apart)
        known.append(encoded(clip, read_pictures(apart, state), digests_of(read_pictures, apart, state))[1])
    alike = are_copies(features, F.normalize(torch.cat(known), dim=1), copies)
    if bool(alike.all()):
        raise Unsupported(f"leaves out all pictures in {source} as copies of the task's own; raise `copies`")
    labels = torch.tensor([places[key(record.label or "")] for record in records])
    return Retrieved(features[~alike], labels[~alike], int(alike.sum()))


def are_copies(features: Tensor, known: Tensor, most: float) -> Tensor:
    """Which of unit features [N, D] have a cosine above `most` to any of known [M, D]: bool [N]."""
    if not len(known):
        return torch.zeros(len(features), dtype=torch.bool)
    return torch.cat([(part @ known.T).amax(1) > most for part in features.split(ROWS)])
