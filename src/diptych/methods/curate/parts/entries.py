"""Which entries of a list a text names: whole words and whole runs of words, as MetaCLIP matches them.

An entry is named where " entry " is a part of the text once signs of punctuation have spaces around them. Both sides
begin and end with a space, so that is the same as a run of the words between single spaces: a tree of words finds all
runs of a batch of texts at once, in numpy, without looking at 500,000 entries for each.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from diptych.errors import DiptychError

pc: Any = pyarrow.compute  # its functions are made when it is loaded
WRAPPED = ",.;:?!`"  # spaces are put around these; no others, as published: "cat)" does not name "cat"
BLANKS = "\t\n\r"  # become spaces


def spaced(text: str) -> str:
    """A text as entries are looked for in it, with a space at each end."""
    for mark in WRAPPED:
        text = text.replace(mark, f" {mark} ")
    for mark in BLANKS:
        text = text.replace(mark, " ")
    return f" {text} "


def read_entries(path: Path | str) -> list[str]:
    """A .txt with an entry a line, or a .json with a list of them. Empty ones and repeats are left out."""
    path = Path(path).expanduser()
    try:
        text = path.read_text("utf-8-sig")
        found = json.loads(text) if path.suffix == ".json" else text.splitlines()
    except OSError as error:
        raise DiptychError(f"{path}: {(error.strerror or str(error)).lower()}") from error
    except ValueError as error:
        raise DiptychError(f"{path} is neither UTF-8 lines nor a JSON list of entries") from error
    if not isinstance(found, list) or not all(isinstance(entry, str) for entry in found):
        raise DiptychError(f"{path} should be a list of words, such as one entry a line")
    entries = list(dict.fromkeys(entry for entry in found if entry.strip()))
    if not entries:
        raise DiptychError(f"{path} holds no entries")
    return entries


def digest(entries: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(entries).encode("utf-8", "replace")).hexdigest()


class Matcher:
    """Entries as a tree of words. case: whether "Dog" differs from "dog"."""

    def __init__(self, entries: Sequence[str], case: bool = True) -> None:
        self.case = case
        self.words: dict[str, int] = {}
        nodes: dict[int, int] = {}  # (node << 32 | word) -> node; node 0 is the root
        ends: list[int] = [-1]
        for number, entry in enumerate(entries):
            node = 0
            for word in (entry if case else entry.lower()).split(" "):
                edge = node << 32 | self.words.setdefault(word, len(self.words))
                node = nodes.setdefault(edge, len(ends))
                if node == len(ends):
                    ends.append(-1)
            if ends[node] < 0:
                ends[node] = number
        edges = np.fromiter(nodes, np.int64, len(nodes))
        order = np.argsort(edges)
        self.edges, self.targets = edges[order], np.fromiter(nodes.values(), np.int64, len(nodes))[order]
        self.ends = np.array(ends, np.int64)
        self.goes_on = np.zeros(len(ends), bool)
        self.goes_on[edges >> 32] = True
        self.first = np.full(len(self.words) + 1, -1, np.int64)  # the last, -1, is for words of no entry
        from_root = self.edges < 1 << 32
        self.first[self.edges[from_root]] = self.targets[from_root]
        self.entries = len(entries)

    def match(self, texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """texts: strings [N] -> (rows [M], entries [M]): each pair once, by row and then by entry."""
        if not self.case:
            texts = pc.utf8_lower(texts)
        texts = pc.replace_substring_regex(texts.fill_null(""), f"[{BLANKS}]", " ")
        texts = pc.replace_substring_regex(texts, f"([{WRAPPED}])", r" \1 ")
        lists = pc.split_pattern(texts, " ")
        starts = lists.offsets.to_numpy().astype(np.int64)
        tokens = lists.flatten().dictionary_encode()
        known = np.array([self.words.get(word, -1) for word in tokens.dictionary.to_pylist()], np.int64)
        words = known[tokens.indices.to_numpy()] if len(known) else known
        lengths = np.diff(starts)
        rows = np.repeat(np.arange(len(texts)), lengths)
        stops = np.repeat(starts[1:], lengths) - starts[0]
        nodes = self.first[words]
        at = np.flatnonzero(nodes >= 0)  # where a run ends that begins an entry
        nodes, rows, stops = nodes[at], rows[at], stops[at]
        found: list[np.ndarray] = []
        while len(at):
            entry = self.ends[nodes]
            whole = entry >= 0
            found.append(rows[whole] * self.entries + entry[whole])
            more = np.flatnonzero(self.goes_on[nodes] & (at + 1 < stops))
            at, rows, stops = at[more] + 1, rows[more], stops[more]
            known_word = words[at] >= 0
            edges = (nodes[more] << 32) | np.maximum(words[at], 0)
            places = np.minimum(np.searchsorted(self.edges, edges), len(self.edges) - 1)
            there = known_word & (self.edges[places] == edges)
            at, rows, stops, nodes = at[there], rows[there], stops[there], self.targets[places[there]]
        # as np.unique, which hashes whole numbers and takes a hundred times as long for these
        pairs = np.sort(np.concatenate([np.zeros(0, np.int64), *found]))
        pairs = pairs[np.diff(pairs, prepend=-1) > 0]
        return pairs // self.entries, pairs % self.entries
