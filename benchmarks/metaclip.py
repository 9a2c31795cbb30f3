"""What matching and balancing cost: against substring search and pyahocorasick, and a million captions end to end.

    python benchmarks/metaclip.py docs/results/metaclip.json [--captions 1000000]

Captions are drawn from the 33,000 whole words of CLIP's vocabulary by Zipf's law; the entries are those words and the
most frequent runs of two and three, 100,000 together. Ratios are of CPU time, the three interleaved, on equal matches.
"""

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import ahocorasick
import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as parquet

from diptych.engine.provenance import provenance
from diptych.files import write_atomically
from diptych.methods.curate.parts.entries import Matcher, spaced

MATCHED, BRUTE, ROUNDS, BATCH = 20_000, 40, 3, 4096


def vocabulary() -> np.ndarray:
    words = [word[:-4] for word in open_clip.SimpleTokenizer().encoder if word.endswith("</w>")]
    return np.array([word for word in words if word.isalpha()])


def captions(words: np.ndarray, count: int, seed: int) -> list[str]:
    drawn = np.random.default_rng(seed)
    chance = 1 / np.arange(1, len(words) + 1)
    lengths = drawn.integers(3, 18, count)
    chosen = words[drawn.choice(len(words), lengths.sum(), p=chance / chance.sum())].tolist()
    ends = np.array([" ", " ", " ", " ", " ", ", ", ". "])[drawn.integers(0, 7, lengths.sum())].tolist()
    parts = [word + end for word, end in zip(chosen, ends, strict=True)]
    stops = np.cumsum(lengths).tolist()
    return ["".join(parts[a:b]) for a, b in zip([0, *stops], stops, strict=False)]


def entries_of(words: np.ndarray) -> list[str]:
    runs: Counter[str] = Counter()
    for text in captions(words, 60_000, 9):
        found = text.split(" ")
        runs.update(map(" ".join, itertools.pairwise(found)))
        runs.update(map(" ".join, zip(found, found[1:], found[2:], strict=False)))
    return list(dict.fromkeys([*words.tolist(), *(run for run, _ in runs.most_common(100_000))]))[:100_000]


def matching(words: np.ndarray, entries: list[str]) -> dict[str, object]:
    texts = captions(words, MATCHED, 1)
    matcher, automaton = Matcher(entries), ahocorasick.Automaton()
    for number, entry in enumerate(entries):
        automaton.add_word(f" {entry} ", number)
    automaton.make_automaton()
    plain = [f" {entry} " for entry in entries]
    matcher.match(pa.array(texts[:BATCH]))  # the first call loads what the others find loaded
    rounds = []
    for _ in range(ROUNDS):
        seconds = {}
        begun = time.process_time()
        found = [matcher.match(pa.array(texts[at : at + BATCH])) for at in range(0, MATCHED, BATCH)]
        seconds["diptych"] = (time.process_time() - begun) / MATCHED
        begun = time.process_time()
        theirs = [{number for _, number in automaton.iter(spaced(text))} for text in texts]
        seconds["pyahocorasick"] = (time.process_time() - begun) / MATCHED
        begun = time.process_time()
        brute = [{n for n, e in enumerate(plain) if e in text} for text in map(spaced, texts[:BRUTE])]
        seconds["substring search"] = (time.process_time() - begun) / BRUTE
        rounds.append({name: value * 1e6 for name, value in seconds.items()})
    ours = {(int(r) + BATCH * n, int(e)) for n, one in enumerate(found) for r, e in zip(*one, strict=True)}
    assert ours == {(n, e) for n, one in enumerate(theirs) for e in one}
    assert brute == theirs[:BRUTE]
    ratios = {name: [one[name] / one["diptych"] for one in rounds] for name in ("substring search", "pyahocorasick")}
    return {"entries": len(entries), "microseconds a caption": rounds, "times as fast as": ratios, "equal": True}


def end_to_end(words: np.ndarray, entries: list[str], count: int) -> dict[str, object]:
    """The command itself, in processes of its own; their memory is looked at five times a second."""
    folder = Path(tempfile.mkdtemp())
    try:
        schema = pa.schema([("text", pa.string())])
        with parquet.ParquetWriter(folder / "pool.parquet", schema) as writer:
            for n, at in enumerate(range(0, count, 50_000)):
                writer.write_table(pa.table({"text": captions(words, min(50_000, count - at), 100 + n)}))
        (folder / "entries.txt").write_text("\n".join(entries))
        call = [
            sys.executable,
            "-m",
            "diptych",
            "curate",
            "metaclip",
            str(folder / "pool.parquet"),
            str(folder / "out"),
        ]
        call += ["--set", f"metaclip.metadata={folder / 'entries.txt'}", "--set", "metaclip.t=20", "--workers", "2"]
        begun, most = time.perf_counter(), 0.0
        process = subprocess.Popen([*call, "--json"], stdout=subprocess.PIPE, text=True)
        while process.poll() is None:
            most = max(most, sum(map(resident, tree(process.pid))))
            time.sleep(0.2)
        seconds = time.perf_counter() - begun
        said = json.loads(process.stdout.read() if process.stdout else "")
        stages = {line["name"]: {name: line[name] for name in ("rows", "kept", "seconds")} for line in said["stages"]}
        return {
            "captions": count, "workers": 2, "seconds": seconds, "most memory of all processes, MB": most,
            "kept": said["rows_out"], "stages": stages, "load of the machine": os.getloadavg()[0],
        }  # fmt: skip
    finally:
        shutil.rmtree(folder)


def tree(root: int) -> list[int]:
    """A process and all below it."""
    found = [root]
    for pid in found:
        try:
            found += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        except OSError:
            continue
    return found


def resident(pid: int) -> float:
    """MB."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except (OSError, IndexError):
        return 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--captions", type=int, default=1_000_000)
    given = parser.parse_args()
    words = vocabulary()
    entries = entries_of(words)
    found = {"end to end": end_to_end(words, entries, given.captions), "matching": matching(words, entries)}
    write_atomically(given.out, json.dumps({**found, "provenance": provenance()}, indent=1).encode())
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
