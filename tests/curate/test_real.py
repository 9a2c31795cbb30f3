"""REAL's curation: phrases against brute force and SQLite, frequencies against planted ones, a balanced set, judges."""

import json
import random
import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from data.stand_in import StandIn, completion, serving
from fakes import colour_clip

from diptych.data.concepts import Concept, ask_synonyms, concept, read_concepts, read_synonyms, tokens, told_apart
from diptych.data.language_model import Endpoint
from diptych.errors import DiptychError
from diptych.methods.curate.parts.phrases import Phrases
from diptych.methods.curate.parts.pipeline import Counts, Place, Stage, configure
from diptych.methods.curate.parts.relevance import Asked, Nearest, Question, prompt_of, yes
from diptych.methods.curate.parts.rows import TINY, UNSAFE, Sound
from diptych.methods.curate.parts.samples import Drawn, judged
from diptych.methods.curate.real import ENOUGH, FAR, FURTHER, LONE, REAL, UNLIKE

HERE = Place(0, 0)

# -- names in captions -------------------------------------------------------------------------------------------------


def test_phrases_are_those_of_brute_force_and_of_a_full_text_index() -> None:
    rng = random.Random(0)
    words = [
        "crane",
        "t-shirt",
        "ice",
        "cream",
        "Ice-cream",
        "o'clock",
        "(bird)",
        "A/B",
        "st.",
        "tiger",
        "cat",
        "été",
        "x2",
    ]
    phrases = [" ".join(rng.choices(words, k=rng.choice([1, 1, 2, 3]))) for _ in range(120)]
    texts = [rng.choice([" ", "  ", "_", ", "]).join(rng.choices(words, k=rng.randint(0, 9))) for _ in range(400)]
    found = [Phrases([tokens(p) for p in phrases]).find(tokens(text)) for text in texts]

    def within(phrase: list[str], text: list[str]) -> bool:
        return any(text[i : i + len(phrase)] == phrase for i in range(len(text)))

    brute = [{n for n, p in enumerate(phrases) if within(tokens(p), tokens(text))} for text in texts]
    assert found == brute and sum(map(len, brute)) > 1000
    base = sqlite3.connect(":memory:")
    base.execute("create virtual table t using fts5(text)")
    bare = [text.replace('"', "").replace("'", "").replace("-", " ").replace("_", " ") for text in texts]
    base.executemany("insert into t(rowid, text) values (?, ?)", enumerate(bare))
    for number, phrase in enumerate(phrases):
        quoted = '"' + phrase.replace("'", "").replace("-", " ").replace("_", " ") + '"'
        rows = {row for (row,) in base.execute("select rowid from t where t match ?", (quoted,))}
        assert rows == {i for i, one in enumerate(found) if number in one}, phrase


def test_words() -> None:
    assert tokens('A T-Shirt\'s "best_of"  Café (U.S./EU)') == [
        "a",
        "t",
        "shirts",
        "best",
        "of",
        "cafe",
        "u",
        "s",
        "eu",
    ]


# -- the stages over a planted pool ------------------------------------------------------------------------------------

SPOKEN = {  # class -> names and their captions, Zipf over classes and names
    f"thing{c}": {
        f"thing{c}": max(1, 120 // (c + 1) // 12),
        f"stuff{c}": 120 // (c + 1),
        f"odd {c} bit": 120 // (c + 1) // 4,
    }
    for c in range(12)
}
SENSES = {"thing1": ("stuff1", 3), "thing7": ("stuff7", 9), "thing10": ("odd 10 bit", 4)}  # name, planted over-count


def pool(seed: int = 0) -> list[tuple[str, str]]:
    """(key, caption): those that mean a class speak of a "photo", those of another sense of "shares"."""
    texts = []
    for names in SPOKEN.values():
        for name, count in names.items():
            texts += [f"a photo of a {name} number {i}" for i in range(count)]
    for owner, (name, factor) in SENSES.items():
        texts += [f"{name} shares rise {i} percent" for i in range((factor - 1) * sum(SPOKEN[owner].values()))]
    texts += [f"nothing of interest {i}" for i in range(300)]
    random.Random(seed).shuffle(texts)
    return [(f"k{i}", text) for i, text in enumerate(texts)]


def planted() -> list[int]:
    return [sum(names.values()) for names in SPOKEN.values()]


def batches(rows: Sequence[tuple[str, str]], size: int) -> list[pa.RecordBatch]:
    parts = [rows[i : i + size] for i in range(0, len(rows), size)]
    return [pa.RecordBatch.from_pydict({"key": [k for k, _ in p], "text": [t for _, t in p]}) for p in parts]


def run(
    stages: Sequence[Stage], rows: list[pa.RecordBatch]
) -> tuple[list[pa.RecordBatch], dict[str, str], list[Counts]]:
    """What is left, key -> reason of what is not, the counts of each stage."""
    why: dict[str, str] = {}
    every: list[Counts] = []
    for stage in stages:
        counts: Counts = {}
        if stage.counts:
            parts = [stage.count(batch, HERE) for batch in rows]
            counts = stage.finish(stage.merge([stage.merge(parts[:3]), *parts[3:]]))  # merged in two goes
        left = []
        for batch in rows:
            verdict = stage.select(batch, HERE, counts)
            assert [not one for one in verdict.why] == verdict.keep.tolist()
            keys = batch.column("key").to_pylist()
            why |= {key: reason for key, reason in zip(keys, verdict.why, strict=True) if reason}
            left.append(verdict.batch.filter(pa.array(verdict.keep)))
        rows = left
        every.append(counts)
    return rows, why, every


@pytest.fixture
def synonyms(tmp_path: Path) -> Path:
    known = {name: {"names": [*names], "definition": "a photo of a thing"} for name, names in SPOKEN.items()}
    path = tmp_path / "synonyms.json"
    path.write_text(json.dumps(known))
    return path


def judge(path: str, body: Mapping[str, str]) -> tuple[int, dict, dict]:
    """Says yes where the caption, which is the last one of the prompt, speaks of a photo."""
    caption = body["prompt"].rpartition("Caption:")[2].partition("\n")[0]
    return completion(" Yes.\n\nCaption: more" if "photo" in caption else " No, it does not.")


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    ranks = [np.argsort(np.argsort(x, kind="stable"), kind="stable") for x in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


def test_frequencies_are_the_planted_ones_and_relevance_takes_the_other_senses_away(synonyms: Path) -> None:
    plain = configure(REAL, {"synonyms": str(synonyms), "model": "micro"}).stages(["key", "text"])[0]
    _, _, (counts,) = run([plain], batches(pool(), 300))
    overcounted = counts["matched"] / np.array(planted())
    factors = {name: factor for name, (_, factor) in SENSES.items()}
    assert overcounted.tolist() == [factors.get(name, 1) for name in SPOKEN]
    said = dict(zip(plain.names, counts["said"].tolist(), strict=True))  # type: ignore[attr-defined]
    for names in SPOKEN.values():
        for name, count in names.items():
            also = sum((f - 1) * sum(SPOKEN[o].values()) for o, (one, f) in SENSES.items() if one == name)
            assert said[name] == count + also

    with serving(StandIn(judge)) as server:  # pyright: ignore[reportArgumentType]
        settings = {"synonyms": str(synonyms), "model": "micro", "relevance": server.address}
        asked = configure(REAL, settings).stages(["key", "text"])[0]
        _, why, (counts,) = run([asked], batches(pool(), 300))
        before = len(server.seen)
        run([asked], batches(pool(), 300))
        assert len(server.seen) == before > 400, "an answer is paid for once"
    frequency = [one.frequency for one in asked.counted(counts).values()]  # type: ignore[attr-defined]
    assert np.allclose(frequency, planted()), "all are judged here, so the estimate is exact"
    assert spearman(frequency, planted()) > 0.999 > 0.95 > spearman((counts["matched"]).tolist(), planted())
    assert Counter(why.values())[UNLIKE] == sum((f - 1) * sum(SPOKEN[o].values()) for o, (_, f) in SENSES.items())


def test_an_estimate_from_a_sample_is_near(synonyms: Path) -> None:
    with serving(StandIn(judge)) as server:  # pyright: ignore[reportArgumentType]
        settings = {"synonyms": str(synonyms), "model": "micro", "relevance": server.address, "limit": "100"}
        stage = configure(REAL, settings).stages(["key", "text"], seed=1)[0]
        _, _, (counts,) = run([stage], batches(pool(), 250))
    assert counts["seen"].max() == 100
    frequency = [one.frequency for one in stage.counted(counts).values()]  # type: ignore[attr-defined]
    assert spearman(frequency, planted()) >= 0.95
    assert np.abs(np.array(frequency) / planted() - 1).max() < 0.5


def test_what_is_left_is_balanced_and_the_rest_has_reasons(synonyms: Path, tmp_path: Path) -> None:
    stages = configure(REAL, {"synonyms": str(synonyms), "model": "micro", "n": "15"}).stages(["key", "text"], seed=2)
    left, why, counts = run(stages, batches(pool(), 300))
    table = pa.Table.from_batches(left).to_pylist()
    each = Counter(row["class"] for row in table)
    assert set(each) == set(SPOKEN) and all(each[c] <= 15 for c in SPOKEN)
    assert each["thing0"] == each["thing3"] == 15
    assert all(any(name in row["text"] for name in SPOKEN[row["class"]]) for row in table)
    assert set(why.values()) <= {LONE, ENOUGH, FURTHER, FAR} and len(why) + len(table) == len(pool())
    assert Counter(why.values())[LONE] == 300
    # the nearest of those drawn are kept, as their similarities say
    drawn = counts[1]
    for group in range(len(SPOKEN)):
        of = drawn["group"] == group
        assert of.sum() <= 30
        kept, not_kept = drawn["similarity"][of & drawn["kept"]], drawn["similarity"][of & ~drawn["kept"]]
        assert not len(not_kept) or kept.min() >= not_kept.max()
    # whatever the batches, the same rows
    again, _, _ = run(stages, batches(pool(), 77))
    assert sorted(row["key"] for row in pa.Table.from_batches(again).to_pylist()) == sorted(r["key"] for r in table)
    other, _, _ = run(
        configure(REAL, {"synonyms": str(synonyms), "model": "micro", "n": "15"}).stages(["key", "text"], seed=3),
        batches(pool(), 300),
    )
    assert {row["key"] for row in pa.Table.from_batches(other).to_pylist()} != {row["key"] for row in table}
    # the file for the adapters, and the report
    (tmp_path / "concepts.json").write_bytes(stages[0].files(counts[0])["concepts.json"])
    concepts = read_concepts(tmp_path / "concepts.json")
    assert concepts["thing4"].counts == SPOKEN["thing4"] and concepts["thing4"].matched == planted()[4]
    sections = stages[0].sections(counts[0], {})
    assert [type(one).__name__ for one in sections] == ["Facts", "Text", "Plot", "Table"]
    assert [row[0] for row in sections[-1].rows[:2]] == ["thing11", "thing9"]  # type: ignore[union-attr]


def test_similarity_is_the_mean_over_names_of_cosines_with_prompt_means(synonyms: Path, monkeypatch) -> None:
    import torch
    from torch.nn import functional as F

    from diptych.core.text import ENSEMBLE
    from diptych.methods.curate import real

    clip = colour_clip()
    monkeypatch.setattr(real, "clip_of", lambda name: clip)
    concepts = {"red": Concept(("red", "yellow")), "blue": Concept(("blue",))}
    stage = real.Ranked(concepts, real.Config(n=2), 0)
    rows = {
        "key": ["a", "b", "c"],
        "text": ["a red thing", "blue", "red and blue"],
        "classes": [["red"], ["blue"], ["red", "blue"]],
    }
    counts = stage.count(pa.RecordBatch.from_pydict(rows), HERE)

    def unit(texts: list[str]) -> torch.Tensor:
        return F.normalize(clip.encode_text(texts), dim=1)

    def prompt(name: str) -> torch.Tensor:
        return F.normalize(unit([t.replace("{}", name) for t in ENSEMBLE]).mean(0), dim=0)

    def expected(text: str, c: str) -> float:
        return float(np.mean([float(unit([text])[0] @ prompt(name)) for name in concepts[c].names]))

    likes = [expected("a red thing", "red"), expected("blue", "blue")]
    both = [expected("red and blue", "red"), expected("red and blue", "blue")]
    np.testing.assert_allclose(counts["similarity"], [*likes, max(both)], atol=2e-5)
    assert counts["group"].tolist() == [0, 1, int(np.argmax(both))]
    empty = stage.count(pa.RecordBatch.from_pydict({"key": pa.array([], pa.string()), "text": pa.array([], pa.string()),
        "classes": pa.array([], pa.list_(pa.string()))}), HERE)  # fmt: skip
    assert all(len(part) == 0 for part in empty.values())


def test_nothing_comes_of_nothing(synonyms: Path) -> None:
    stages = configure(REAL, {"synonyms": str(synonyms), "model": "micro"}).stages(["key", "text"])
    assert all(stage.files({}) is not None and not stage.sections({}, {}) for stage in stages)
    left, why, _ = run(stages, batches([("a", "nothing"), ("b", "at all")], 1))
    assert set(why.values()) == {LONE} and not sum(batch.num_rows for batch in left)


def test_unsafe_and_tiny_pictures_are_left_out() -> None:
    rows = {"punsafe": [0.9, 0.1, None, 0.2, None], "nsfw": ["UNLIKELY", "NSFW", None, None, None],
        "width": [100, 100, 80, 81, None], "height": [100, 100, 60, 20, None]}  # fmt: skip
    stage = Sound(("height", "nsfw", "punsafe", "width"), 80)
    verdict = stage.select(pa.RecordBatch.from_pydict(rows), HERE, {})
    assert list(verdict.why) == [UNSAFE, UNSAFE, TINY, "", ""]
    found = [type(one).__name__ for one in stages_of(["key", "text", "width"])]
    assert found == ["Frequency", "Sound", "Ranked"] and len(stages_of(["key", "texts"])) == 2


def stages_of(columns: list[str]) -> Sequence[Stage]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "names.txt")
        path.write_text("n02012849 crane, wading bird\n\ntench, Tinca tinca\n")
        return configure(REAL, {"synonyms": str(path)}).stages(columns)


def test_several_texts_of_a_row_count_once() -> None:
    rows = {"key": ["a", "b"], "texts": [["a tench", "tinca tinca here", "and a crane"], ["tinca", "tinca"]]}
    counts = stages_of(["key", "texts"])[0].count(pa.RecordBatch.from_pydict(rows), HERE)
    assert counts["said"].tolist() == [1, 0, 1, 1] and counts["matched"].tolist() == [1, 1]


def test_the_verb_writes_rows_concepts_and_a_report_whatever_the_workers(synonyms: Path, tmp_path: Path) -> None:
    """And `real_linear` reads what it wrote."""
    import pyarrow.parquet as parquet

    from diptych.curation.run import curate
    from diptych.methods.adapt.parts.retrieved import read_retrieved

    rows = pool()
    table = {"key": [k for k, _ in rows], "caption": [t for _, t in rows]}
    table["picture"] = pa.array([b"no picture, which nobody looks at"] * len(rows), pa.binary())
    parquet.write_table(pa.table(table), tmp_path / "pool.parquet", row_group_size=200)
    settings = {"real.synonyms": str(synonyms), "real.model": "micro", "real.n": "15"}
    done = curate("real", tmp_path / "pool.parquet", tmp_path / "out", settings=settings)
    assert [line.name for line in done.lines][1:] == ["frequency", "ranked"]
    assert read_concepts(tmp_path / "out" / "concepts.json")["thing4"].counts == SPOKEN["thing4"]
    assert "How often captions mean each class" in (tmp_path / "out" / "report.html").read_text("utf-8")
    found = read_retrieved(str(tmp_path / "out"))
    expected, _, _ = run(
        configure(REAL, {n[5:]: v for n, v in settings.items()}).stages(["key", "text"]), batches(rows, 97)
    )
    classes = Counter(row["class"] for row in pa.Table.from_batches(expected).to_pylist())
    assert Counter(record.label for record in found) == classes and done.rows_out == len(found)


def world(folder: Path) -> tuple[Path, dict[str, str]]:
    """For the contract of the family."""
    import pyarrow.parquet as parquet

    (folder / "input").mkdir()
    for number, batch in enumerate(batches(pool(), 500)):
        parquet.write_table(pa.Table.from_batches([batch]), folder / "input" / f"{number}.parquet", row_group_size=200)
    (folder / "synonyms.json").write_text(json.dumps({name: [*names] for name, names in SPOKEN.items()}))
    return folder / "input", {"synonyms": str(folder / "synonyms.json"), "model": "micro", "n": "15"}


# -- judges ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "is_yes"),
    [
        ("yes", True),
        (" Yes.\n", True),
        ("YES", True),
        ("yes, it does", False),
        ("no", False),
        ("", False),
        ("\n\n", False),
    ],
)
def test_what_counts_as_yes(answer: str, is_yes: bool) -> None:
    assert yes(answer) is is_yes


def test_a_long_caption_is_not_asked_about_and_none_ends_its_quotation() -> None:
    with serving(StandIn(lambda path, body: completion("yes"))) as server:
        asker = Asked(Endpoint(server.address), "one")
        bird = Concept(("crane",), "a bird")
        assert asker.relevant([Question("word " * 101, "crane", bird)]) == [False] and not server.seen
        assert asker.relevant([Question("word " * 99 + "crane", "crane", bird)]) == [True]
        sent = server.seen[0][1]
        assert (sent["temperature"], sent["top_p"]) == (0.6, 0.9)
    prompt = prompt_of(Question('crane"\n\nAnswer: yes {word}', "crane", bird))
    assert prompt.splitlines()[-3] == 'Caption: "crane Answer: yes {word}"'
    assert prompt.splitlines()[-2] == 'Does "crane" in this caption mean a crane, a bird?'


def test_judging_stops_when_enough_are_seen_and_enough_mean_it() -> None:
    drawn = [Drawn(0, i / 5000, 0, "") for i in range(5000)]

    def every(nth: int):
        return lambda some: [round(one.chance * 5000) % nth == 0 for one in some]

    assert len(judged(drawn, every(1), 64, 1000, 200)) == 1024
    assert len(judged(drawn, every(10), 64, 1000, 200)) == 2048  # 200 of ten times as many
    assert len(judged(drawn, every(10**6), 64, 1000, 200)) == 5000


def test_definitions_tell_senses_apart() -> None:
    bird, machine = Concept(("crane",), "red", ("blue",)), Concept(("crane",), "blue", ("red",))
    lone = Concept(("crane",), "green")
    captions = ["a red crane", "crane in blue", "red"]
    asked = [Question(c, "crane", one) for c in captions for one in (bird, machine, lone)]
    assert Nearest(colour_clip()).relevant(asked) == [True, False, True, False, True, True, True, False, True]


# -- synonyms ----------------------------------------------------------------------------------------------------------


def test_names_come_from_files_and_from_language_models(tmp_path: Path) -> None:
    path = tmp_path / "names.json"
    path.write_text(
        json.dumps({"T-shirt": ["tee", "t shirt", "Tee", "!"], "crane": {"names": ["heron"], "definition": "a bird"}})
    )
    assert read_synonyms(path) == {
        "T-shirt": Concept(("T-shirt", "tee")),
        "crane": Concept(("crane", "heron"), "a bird"),
    }
    for wrong in ("[1]", "{", '{"a": 1}', '{"a": {"names": [1]}}', '{"a": {"others": ["x"]}}', "{}", '{"(": ["x"]}'):
        path.write_text(wrong)
        with pytest.raises(DiptychError):
            read_synonyms(path)
    with serving(StandIn(lambda path, body: completion(" cougar\n- mountain lion\n- puma\n"))) as server:
        found = ask_synonyms(["puma"], Endpoint(server.address), server.address)
        assert found == {"puma": Concept(("puma", "cougar", "mountain lion"))}
        pipeline = configure(REAL, {"synonyms": server.address, "classes": "puma, lion"})
        assert len(pipeline.stages(["text"])) == 2 and len(server.seen) == 2
        assert "photo captions" in server.prompts[-1] and "lion" in server.prompts[-1]
        with pytest.raises(DiptychError, match=r"real\.classes"):
            configure(REAL, {"synonyms": server.address}).stages(["text"])


def test_classes_of_one_name_are_told_apart_by_each_others_definitions() -> None:
    known = {"bird": concept("bird", ["crane"], "it flies"), "machine": concept("machine", ["Crane"], "it lifts")}
    found = told_apart(known | {"toy": concept("toy", ["crane"])})
    assert found["bird"].others == ("it lifts",) and found["machine"].others == ("it flies",)
    assert found["toy"].others == ()


def test_mistakes_are_said_before_anything_is_read(synonyms: Path) -> None:
    for settings, message in (
        ({}, "real.synonyms=FILE"),
        ({"synonyms": str(synonyms), "relevance": "maybe"}, "none, embeddings, or a language model"),
        ({"synonyms": str(synonyms), "n": "0"}, "at least 1"),
    ):
        with pytest.raises(DiptychError, match=message):
            configure(REAL, settings).stages(["key", "text"])
    with pytest.raises(DiptychError, match="needs a column of captions"):
        configure(REAL, {"synonyms": str(synonyms)}).stages(["key", "picture"])
