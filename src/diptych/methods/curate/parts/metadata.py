"""The list of entries that captions are matched against, from sources that a user has: WordNet, Wikipedia's words.

    from diptych.methods.curate.parts.metadata import build_metadata, count_words, write_entries
    words, pairs = count_words(open("wiki.txt"))
    entries = build_metadata(wordnet="dict", unigrams=words, bigrams=pairs, titles=read_counts("titles.tsv"))
    print(write_entries(entries, "entries.txt"))

Xu et al., Demystifying CLIP Data, ICLR 2024, arXiv 2309.16671, section 3.1.
"""

import gzip
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from diptych.errors import DiptychError
from diptych.files import write_atomically
from diptych.methods.curate.parts.entries import digest

LIMIT = 500_000
PUNCTUATION = frozenset("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
Pair = tuple[str, str]


def build_metadata(
    *,
    wordnet: str | Path | None = None,
    unigrams: Mapping[str, int] | None = None,
    bigrams: Mapping[Pair, int] | None = None,
    titles: Mapping[str, int] | None = None,
    least_count: int = 100,
    least_pmi: float = 30.0,
    least_views: int = 70,
    limit: int = LIMIT,
) -> list[str]:
    """Numbers 0 to 99, names of synsets, frequent words, bound pairs, viewed titles; the first `limit`, each once.

    wordnet: its `dict` folder. Within a source the most frequent come first and equals in the order of the alphabet, so
    that the cut is the same everywhere. bigrams: those whose PMI, log2 of n(ab) N / (n(a) n(b)) with the unigrams'
    counts, is at least `least_pmi`. Titles with a ":" are pages about pages.
    """
    sources: list[Iterable[str]] = [map(str, range(100))]
    if wordnet is not None:
        sources.append(synset_names(Path(wordnet).expanduser()))
    if unigrams is not None:
        sources.append(word for word, count in ordered(unigrams) if count >= least_count)
    if bigrams is not None:
        if unigrams is None:
            raise DiptychError("the PMI of bigrams needs the counts of unigrams")
        total = sum(unigrams.values())
        bound = [pair for pair, count in ordered(bigrams) if pmi(count, pair, unigrams, total) >= least_pmi]
        sources.append(map(" ".join, bound))
    if titles is not None:
        sources.append(title for title, views in ordered(titles) if views >= least_views and ":" not in title)
    found = dict.fromkeys(entry for source in sources for entry in source if entry.strip() and entry not in PUNCTUATION)
    return list(found)[:limit]


def ordered(counts: Mapping[str, int] | Mapping[Pair, int]) -> list[tuple]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def pmi(count: int, pair: Pair, unigrams: Mapping[str, int], total: int) -> float:
    """total: of all unigrams' counts. -inf where a word of the pair was not counted."""
    first, second = (unigrams.get(word, 0) for word in pair)
    if not (count and first and second):
        return -math.inf
    return math.log2(count * total / (first * second))


def synset_names(folder: Path) -> Iterator[str]:
    """The first word of every synset up to a ".", in small letters, in the order of the data files."""
    files = [folder / f"data.{part}" for part in ("noun", "verb", "adj", "adv")]
    for path in files:
        if not path.is_file():
            raise DiptychError(f"{path}: no such file; give WordNet's dict folder, with data.noun, data.verb, ...")
        with open(path, encoding="utf-8") as file:
            for line in file:
                if not line.startswith(" "):  # the licence
                    word = line.split(" ", 5)[4].partition("(")[0]  # adjectives may say where they stand: "out(p)"
                    yield word.lower().partition(".")[0].replace("_", " ")


def count_words(lines: Iterable[str]) -> tuple[Counter[str], Counter[Pair]]:
    """Words and pairs of neighbours in plain text, by its own blanks."""
    words, pairs = Counter[str](), Counter[Pair]()
    for line in lines:
        found = line.split()
        words.update(found)
        pairs.update(itertools.pairwise(found))
    return words, pairs


def read_counts(*paths: str | Path) -> Counter[str]:
    """Tables of a word, a tab and a count, or Wikipedia's page views (`en.wikipedia Title ... views`), summed."""
    total = Counter[str]()
    for path in map(Path, paths):
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                name, count = row_of(line.rstrip("\n"))
                if count is None:
                    raise DiptychError(f"{path}, line {number}: neither a word, a tab and a count nor page views")
                if name:
                    total[name] += count
    return total


def row_of(line: str) -> tuple[str, int | None]:
    """("", 0) for a page of another language."""
    word, tab, count = line.rpartition("\t")
    if tab and count.isdigit():
        return word, int(count)
    parts = line.split(" ")
    if len(parts) < 3 or not parts[2 if len(parts) < 5 else 4].isdigit():
        return "", None
    english = parts[0] in ("en", "en.m", "en.wikipedia")
    views = int(parts[2] if len(parts) < 5 else parts[4])
    return (parts[1].replace("_", " "), views) if english else ("", 0)


def write_entries(entries: Sequence[str], path: str | Path) -> str:
    """An entry a line; -> the hash of the list, to publish beside it."""
    write_atomically(path, "".join(f"{entry}\n" for entry in entries).encode())
    return digest(entries)
