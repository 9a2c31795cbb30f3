"""The list of entries that captions are matched against, from sources that a user has: WordNet, Wikipedia.

    from diptych.methods.curate.parts.metadata import build_metadata, write_entries
    entries = build_metadata(wordnet="/usr/share/wordnet", wiki="enwiki-latest-pages-articles.xml.bz2", titles="views/")
    print(write_entries(entries, "entries.txt"))

Counts lie on disk, so that a whole Wikipedia takes the memory of a small one; a file that was counted is not counted
again when the work is taken up after a stop.

Xu et al., Demystifying CLIP Data, ICLR 2024, arXiv 2309.16671, section 3.1.
"""

import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from diptych.errors import DiptychError
from diptych.files import write_atomically
from diptych.methods.curate.parts.entries import digest
from diptych.methods.curate.parts.pipeline import Progress
from diptych.methods.curate.parts.tally import SCHEMA, Tally, summed
from diptych.methods.curate.parts.wikipedia import Told, articles, lines, runs_of_words, without_markup

pc: Any = pyarrow.compute  # its functions are made when it is loaded
LIMIT = 500_000
WORD, TITLE = 60, 255  # characters; what is longer is none
PUNCTUATION = frozenset("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")


def build_metadata(
    *,
    wordnet: str | Path = "",
    wiki: str | Path = "",
    titles: str | Path = "",
    least_count: int = 100,
    least_pmi: float = 30.0,
    least_views: int = 70,
    limit: int = LIMIT,
    work: Path | None = None,
    progress: Progress = lambda what, done, of: None,
) -> list[str]:
    """Numbers 0 to 99, names of synsets, frequent words, bound pairs, viewed titles; the first `limit`, each once.

    wordnet: its `dict` folder, or a text file with a synset a line (`hot_dog.n.01`). wiki: an XML dump, or plain text,
    .bz2 and .gz or not; or a folder of such files. titles: Wikipedia's page views, or tables of a title, a tab and a
    count; a file or a folder of them, which are summed. work: a folder where counts are kept until all is counted.

    Within Wikipedia's sources the most frequent come first and equals in the order of the alphabet, so that the cut is
    the same everywhere. Pairs are words side by side, with no sign between them, whose PMI, log2 of n(ab) N / (n(a)
    n(b)), is at least `least_pmi`. Titles with a ":" are pages about pages. Raises DiptychError.
    """
    found = dict.fromkeys(map(str, range(100)))
    sources: list[Iterable[str]] = []
    with ExitStack() as stack:
        work = work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="diptych-metadata-")))
        if wordnet:  # the quick one first: what is wrong with it is said now
            sources.append(list(synset_names(Path(wordnet).expanduser())))
        if titles:
            count(read_views, files_of(titles), work / "titles", ("titles",), progress)
        if wiki:
            count(read_words, files_of(wiki), work / "wiki", ("words", "pairs"), progress)
            sources += words_and_pairs(work / "wiki", least_count, least_pmi, limit)
        if titles:
            sources.append(frequent(work / "titles", "titles", least_views, limit))
    found.update(dict.fromkeys(e for source in sources for e in source if e and e not in PUNCTUATION))
    return list(found)[:limit]


def write_entries(entries: Sequence[str], path: str | Path) -> str:
    """An entry a line; -> the hash of the list, to publish beside it."""
    write_atomically(path, "".join(f"{entry}\n" for entry in entries).encode())
    return digest(entries)


# -- WordNet -----------------------------------------------------------------------------------------------------------


def synset_names(source: Path) -> Iterator[str]:
    """The first word of every synset up to a ".", in small letters, in the order of the data files."""
    listed = source.is_file()
    for path in [source] if listed else [source / f"data.{part}" for part in ("noun", "verb", "adj", "adv")]:
        if not path.is_file():
            raise DiptychError(f"{path}: no such file; give WordNet's dict folder, with data.noun, data.verb, ...")
        for number, line in enumerate(lines(path, lambda done: None), 1):
            parts = line.split() if listed else line.split(" ", 5)
            if line.startswith(" ") or not parts:  # the licence
                continue
            if not listed and (len(parts) < 6 or not parts[0].isdigit()):
                raise DiptychError(f"{path}, line {number}: no synset; give WordNet's dict folder, version 3")
            word = parts[0 if listed else 4].partition("(")[0]  # adjectives may say where they stand: "out(p)"
            yield word.lower().partition(".")[0].replace("_", " ")


# -- counting ----------------------------------------------------------------------------------------------------------


def files_of(source: str | Path) -> list[Path]:
    path = Path(source).expanduser()
    found = sorted(one for one in path.iterdir() if one.is_file() and one.name[0] != ".") if path.is_dir() else [path]
    if not found or not all(one.is_file() for one in found):
        raise DiptychError(f"{path}: no such file or folder, or nothing in it")
    return found


def count(
    read: Callable[[Path, Sequence[Tally], Told], None],
    files: Sequence[Path],
    folder: Path,
    kinds: Sequence[str],
    progress: Progress,
) -> None:
    """Each file into tallies of its own: `folder`/number/kind. A file is counted whole or not at all."""
    of = sum(path.stat().st_size for path in files) >> 20
    before = 0
    for n, path in enumerate(files):
        place = folder / f"{n:05d}"
        if not (place / "done").exists():
            shutil.rmtree(place, ignore_errors=True)
            tallies = [Tally(place / kind) for kind in kinds]
            begin = before
            read(path, tallies, lambda done, begin=begin: progress(f"count {folder.name}, MB", begin + done >> 20, of))
            for tally in tallies:
                tally.flush()
            write_atomically(place / "done", b"")
        before += path.stat().st_size
        progress(f"count {folder.name}, MB", before >> 20, of)


def read_words(path: Path, tallies: Sequence[Tally], told: Told) -> None:
    words, pairs = tallies
    none = True
    for text in articles(path, told):
        runs = [[word for word in run if len(word) <= WORD] for run in runs_of_words(without_markup(text))]
        words.add(itertools.chain.from_iterable(runs))
        pairs.add(" ".join(pair) for run in runs for pair in itertools.pairwise(run))
        none = none and not runs
    if none:
        raise DiptychError(f"{path} holds no article: give a dump such as enwiki-latest-pages-articles.xml.bz2")


def read_views(path: Path, tallies: Sequence[Tally], told: Told) -> None:
    """A line that says nothing is left out, as Wikipedia's own files have some; a file that begins so is another."""
    (titles,) = tallies
    views: dict[str, int] = {}
    for number, line in enumerate(lines(path, told), 1):
        title, count = views_of(line.rstrip("\r"))
        if count is None and number == 1:
            raise DiptychError(
                f"{path}, line 1: neither page views (`en Title 12 0`) nor a title, a tab and a count; a list of "
                "titles alone does not say how often they are viewed"
            )
        if title and count and len(title) <= TITLE and ":" not in title:
            views[title] = views.get(title, 0) + count
        if len(views) > 100_000:
            titles.add(views)
            views = {}
    titles.add(views)


def views_of(line: str) -> tuple[str, int | None]:
    """(title, its views); "" for a page of another language; None where it says nothing."""
    word, tab, count = line.rpartition("\t")
    if tab and count.isdecimal():
        return " ".join(word.split()), int(count[:18])
    parts = line.split(" ")
    number = parts[2 if len(parts) < 5 else 4] if len(parts) > 2 else ""
    if not number.isdecimal():
        return "", None
    english = parts[0] in ("en", "en.m", "en.wikipedia")
    return " ".join(parts[1].replace("_", " ").split()) if english else "", int(number[:18])


# -- choosing ----------------------------------------------------------------------------------------------------------


class Most:
    """The most frequent of many words, equals in the order of the alphabet: no more than can ever be in the list."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.table = SCHEMA.empty_table()

    def add(self, words: pa.Array, counts: np.ndarray, at: np.ndarray) -> None:
        """Those at some places [M] of words [N] with counts [N]."""
        some = pa.table([words.take(pa.array(at)), counts[at]], schema=SCHEMA)
        table = pa.concat_tables([self.table, some])
        if len(table) > self.limit:
            table = table.sort_by([("count", "descending"), ("word", "ascending")]).slice(0, self.limit)
        self.table = table.combine_chunks()

    def listed(self) -> list[str]:
        return self.table.sort_by([("count", "descending"), ("word", "ascending")]).column("word").to_pylist()


def frequent(folder: Path, kind: str, least: int, limit: int) -> list[str]:
    """What was counted at least so often, the most frequent first."""
    most = Most(limit)
    for words, counts in summed(sorted(folder.glob(f"*/{kind}"))):
        most.add(words, counts, np.flatnonzero(counts >= least))
    return most.listed()


def words_and_pairs(folder: Path, least_count: int, least_pmi: float, limit: int) -> list[list[str]]:
    """Frequent words, and pairs that are bound. No word of a pair with that PMI is said more than N / 2^PMI times,
    since n(ab) is at most n(a) and n(b)."""
    places = sorted(folder.glob("*/words"))
    total = sum(int(counts.sum()) for _, counts in summed(places))
    rare_words, rare_counts = [pa.array([], pa.string())], [np.zeros(0, np.int64)]
    for words, counts in summed(places):
        at = np.flatnonzero(counts <= total / 2.0**least_pmi)
        rare_words.append(words.take(pa.array(at)))
        rare_counts.append(counts[at])
    words, alone = pa.concat_arrays(rare_words), np.concatenate(rare_counts)
    bound = Most(limit)
    for pairs, counts in summed(sorted(folder.glob("*/pairs"))) if len(words) else ():
        sides = pc.split_pattern(pairs, " ").flatten()
        both = pc.index_in(sides, value_set=words).fill_null(-1).to_numpy().reshape(-1, 2)
        at = np.flatnonzero((both >= 0).all(1))
        n = alone[both[at]].astype(np.float64)
        at = at[np.log2(counts[at] * float(total) / (n[:, 0] * n[:, 1])) >= least_pmi]
        bound.add(pairs, counts, at)
    return [frequent(folder, "words", least_count, limit), bound.listed()]
