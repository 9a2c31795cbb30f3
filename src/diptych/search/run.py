"""`diptych.index` and `diptych.search`: what the two verbs do, as functions."""

from collections.abc import Callable, Sequence
from pathlib import Path

from diptych.errors import DiptychError
from diptych.search.embed import Outcome, Progress, update, update_captions
from diptych.search.encoder import Encoder, combined
from diptych.search.found import Hit
from diptych.search.index import Index
from diptych.search.sources import file_bytes, open_source
from diptych.search.storage import Exists


def index(
    sources: str | Path | Sequence[str | Path],
    db: str | Path,
    *,
    model: str | None = None,
    base: str | None = None,
    device: str | None = None,
    captions: bool = False,
    progress: Callable[[str], Progress] | None = None,
) -> tuple[Index, dict[str, Outcome]]:
    """Bring the index at `db` up to what is in the sources; -> it, and what was done with each.

    sources: folders, shards, tables, as `open_source` reads them. model: of a new index `mini` unless named; of one
    that is there its own. base: where the base model of a winner file is. captions: embed the rows' texts too, now and
    in later updates, to be searched in. progress(name) gives what is called as (done, total) for a source, and for
    "captions". Raises DiptychError for a source without pictures, and for another model.
    """
    given = [sources] if isinstance(sources, str | Path) else sources
    found = [open_source(str(one)) for one in given]  # what is not there is said before a model is opened
    for source in found:
        if not source.items:
            first = f"; the first: {source.set_aside[0].reason}" if source.set_aside else ""
            raise DiptychError(f"{source.name} holds no pictures ({len(source.set_aside)} set aside{first})")
    there = Index.open(db) if Index.exists(db) else None
    if there is not None and not model:
        encoder = Encoder.of(there.model, device)
    else:
        encoder = Encoder.open(model or "mini", device, base)
    made = there or created(db, encoder)
    made.check(encoder.model)
    if captions:
        made.hold_captions()
    outcomes = {}
    for source in found:
        tell = progress(source.name) if progress else None
        outcomes[source.name] = outcome = update(made, encoder, source, progress=tell)
        if made.holds_captions:
            update_captions(made, encoder, outcome, progress)
    if any(one.done or one.gone or one.captions for one in outcomes.values()) or made.info.measured is None:
        made.tidy()
    return made, outcomes


def created(db: str | Path, encoder: Encoder) -> Index:
    try:
        return Index.create(db, encoder.model, encoder.dim)
    except Exists:  # another process has, since we looked
        return Index.open(db)


def search(
    db: str | Path | Index,
    text: str | None = None,
    *,
    like: Sequence[str | Path] = (),
    unwanted: Sequence[str] = (),
    where: str | None = None,
    words: str | None = None,
    space: str = "pictures",
    k: int = 20,
    model: str | None = None,
    device: str | None = None,
) -> list[Hit]:
    """The k pictures nearest to what is asked, or those whose captions are, the best first.

    text, like: what to find, in words and by pictures (files, or ids of the index); unwanted: texts of what not to
    find; where: a condition on the columns; words: rank rows higher whose text holds them. space: "pictures"
    or "captions", what is compared. Raises DiptychError where nothing is asked for, for a condition that does not read,
    for captions that the index does not hold, and for another model than the index's.
    """
    there = db if isinstance(db, Index) else Index.open(db)
    if not text and not like:
        raise DiptychError("search for what? give a TEXT, or --like PICTURE; --not alone says only what not to find")
    condition = there.filter(where)  # said before a model is opened
    there.column(space)
    paths = [Path(one).expanduser() for one in like]
    ids = [str(one) for one, path in zip(like, paths, strict=True) if not path.is_file()]
    files = [path for path in paths if path.is_file()]
    wanted, without = list(there.vectors(ids)), []
    if text or unwanted or files:
        encoder = Encoder.of(there.model, device, model)
        there.check(encoder.model)
        wanted += [encoder.picture(file_bytes(path)) for path in files]
        wanted += list(encoder.texts([text])) if text else []
        without = list(encoder.texts(unwanted)) if unwanted else []
    return there.search(combined(wanted, without), k, where=condition, text=words, space=space)
