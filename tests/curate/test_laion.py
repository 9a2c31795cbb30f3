"""laion over a small web with known defects: each is removed by its own stage, and kills change nothing."""

import contextlib
import hashlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from planted_web import LINKS, NAMES, SPEC, Planted, heads, jpeg, plant
from web_server import Answer, Web, serving

from diptych.core.micro import micro
from diptych.curation.run import Curated, curate
from diptych.data.scenes import Scenes
from diptych.errors import DiptychError
from diptych.methods.curate.laion import Laion
from diptych.methods.curate.parts.pipeline import Stage, configure

SETTINGS = {
    "model": "micro",
    "english": "0.45",  # micro's cosines have another scale than ViT-B/32's; others it cannot read
    "others": "-1",
    "languages": "en,other",
    "private": "127.0.0.1",
    "timeout": "3",
    "max_bytes": "1000000",
    "min_image_size": "64",
    "max_aspect_ratio": "3",
    "screen": "false",
    "thread_count": "16",
}


def world(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """(input, settings) of a few pictures that are there already, some with a text of others, some repeated."""
    scenes = list(Scenes(SPEC, 24, 9))
    pictures = [jpeg(scene.image()) for scene in scenes]
    texts = [f"a picture of {scene.text('short')}" for scene in scenes]
    pictures[20:] = pictures[:4]
    texts[12:16] = texts[16:20]
    columns = {"caption": texts, "picture": pa.array(pictures, pa.binary())}
    parquet.write_table(pa.table(columns), tmp_path / "pairs.parquet", row_group_size=8)
    settings = {**SETTINGS, "languages": "en,other,nolang", "unsafe": "", "watermark": "", "toxic": ""}
    return tmp_path / "pairs.parquet", {f"laion.{name}": value for name, value in settings.items()}


@pytest.fixture(scope="module")
def planting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Planted, Web, dict[str, str]]]:
    """The plant, its server, and the settings of a run over it."""
    folder = tmp_path_factory.mktemp("planted")
    answers: dict[str, Answer] = {}
    with serving(answers) as web:
        planted = plant(folder / "archives", web.root)
        answers |= planted.answers
        (folder / "blocked.txt").write_text("# hosts\nads.example\n")
        settings = {**SETTINGS, "blocked": str(folder / "blocked.txt"), **heads(micro(), folder)}
        yield planted, web, settings


def run(planting: tuple[Planted, Web, dict[str, str]], out: Path | None, **more: object) -> Curated:
    planted, _, settings = planting
    return curate(configure(Laion, settings), planted.archives, out, **more)  # type: ignore[arg-type]


def outcome(out: Path) -> tuple[set[str], dict[str, tuple[str, str]]]:
    """(keys that are left, {key removed: (stage, why)})"""
    gone = parquet.read_table(out / "removed.parquet").to_pylist()
    tables = [parquet.read_table(path) for path in sorted(out.glob("[0-9]*.parquet"))]
    left = {key for table in tables for key in table.column("key").to_pylist()}
    return left, {row["key"]: (row["stage"], row["why"]) for row in gone}


@pytest.fixture(scope="module")
def done(planting, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Curated]:
    out = tmp_path_factory.mktemp("done") / "out"
    return out, run(planting, out)


def test_every_defect_is_removed_by_its_own_stage(planting, done: tuple[Path, Curated]):
    planted: Planted = planting[0]
    left, removed = outcome(done[0])
    assert removed == planted.removed()
    assert left == planted.left()
    lines = {line.name: line for line in done[1].lines}
    assert {name: dict(line.why) for name, line in lines.items() if line.why} == planted.counts()
    assert lines["archives"].kept == len(planted.rows)
    kinds = {row.kind for row in planted.rows.values()}
    assert len(kinds) == 32  # so many kinds of rows, of which two are good
    seen = {n.removesuffix(" kept"): count for n, count in lines["language"].tallies.items() if n.endswith(" kept")}
    assert seen["de"] == 7 and seen["fr"] == 6 and seen["it"] == 4 and seen["nolang"] == 0


def test_what_is_left_is_what_was_planted(planting, done: tuple[Path, Curated]):
    planted: Planted = planting[0]
    table = parquet.read_table(done[0] / "00000.parquet").to_pylist()
    for row in table:
        truth = planted.rows[row["key"]]
        assert row["caption"] == truth.text and row["url"] == truth.url and row["language"] == truth.language
        assert row["uid"] == hashlib.md5((truth.text + truth.url).encode()).hexdigest()
        if truth.picture:
            assert row["sha256"] == hashlib.sha256(truth.picture).hexdigest()
        assert (row["width"], row["height"], row["status"]) == (256, 256, "success")
        assert row["page_url"].startswith("https://pages.example/") and row["cc_filename"].split(".")[0] in NAMES
        assert {"similarity", "punsafe", "pwatermark", "toxicity", "hash", "embedding"} <= set(row)
    assert {path.name for path in done[0].glob("0*")} == {"00000.tar", "00000.parquet", "00000_stats.json"}
    assert LINKS > 1


def killed(work: Callable[[], object]) -> bool:
    """Do the work in a fork; was it killed?"""
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            work()
            os._exit(0)
        os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def test_a_kill_in_each_stage_changes_nothing(planting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One run that is killed in every method of every stage, each time in its second piece, and goes on each time."""
    out = tmp_path / "out"
    steps = Laion(configure(Laion, planting[2]).config).stages(["key", "archive"])
    places = [(steps[0], "create", 2)]
    for step in steps[1:]:
        assert isinstance(step, Stage)
        places += (
            [(step, "count", 1), (step, "finish", 1), (step, "select", 2)] if step.counts else [(step, "select", 1)]
        )
    kills = []
    for step, method, call in places:
        real, calls = getattr(type(step), method), []

        def once(self, *given, real=real, calls=calls, call=call):
            calls.append(1)
            if len(calls) == call:  # the first of a segment does one piece: the others then die in the second
                os.kill(os.getpid(), signal.SIGKILL)
            return real(self, *given)

        with monkeypatch.context() as patch:
            patch.setattr(type(step), method, once)
            if killed(lambda: run(planting, out)):
                kills.append((step, method, call))
    assert kills == places
    run(planting, out)
    assert outcome(out) == (planting[0].left(), planting[0].removed())


def test_a_table_of_addresses_with_hashes(planting, tmp_path: Path):
    """Wrong hashes are what a table can have and an archive cannot."""
    planted, _, settings = planting
    good = [row for row in planted.rows.values() if row.kind == "good" and row.language == "en"][:12]
    meant = [hashlib.md5(row.picture + b"!" * (n < 5)).hexdigest() for n, row in enumerate(good)]
    columns = {"URL": [row.url for row in good], "TEXT": [row.text for row in good], "md5": meant}
    parquet.write_table(pa.table(columns), tmp_path / "laion.parquet")
    settings = {**settings, "compute_hash": "md5", "verify_hash": "true"}
    found = curate(configure(Laion, settings), tmp_path / "laion.parquet", tmp_path / "out")
    lines = {line.name: line for line in found.lines}
    assert {name: dict(line.why) for name, line in lines.items() if line.why} == {"digest": {"another hash": 5}}
    assert found.rows_out == 7


def test_shards_that_are_there_are_filtered_without_a_download(planting, done: tuple[Path, Curated], tmp_path: Path):
    """What it wrote is read again as img2dataset's shards are, and passes."""
    _, web, settings = planting
    asked = web.asked.total()
    found = curate(configure(Laion, settings), done[0], tmp_path / "out")
    assert found.rows_in == found.rows_out == len(planting[0].left())
    assert web.asked.total() == asked
    assert "download" not in [line.name for line in found.lines]


def test_published_values_and_refusals():
    c = Laion.Config()
    assert (c.english, c.others, c.min_text, c.min_bytes, c.punsafe, c.pwatermark) == (0.28, 0.26, 5, 5120, 0.5, 0.8)
    assert (c.image_size, c.resize_mode, c.timeout, c.retries, c.url_error) == (384, "keep_ratio", 10, 0, 1e-3)
    names = [step.name for step in Laion().stages(["key", "text", "url"])]
    assert names[:6] == ["text", "address", "pair", "language", "url", "download"]
    share = configure(Laion, {"keep": "0.1"}).stages(["key", "archive"])
    assert [type(step).__name__ for step in share if step.name == "clip_filter"] == ["ClipShare"]
    with pytest.raises(DiptychError, match="several a row"):
        Laion().stages(["key", "texts", "picture"])
    with pytest.raises(DiptychError, match="`url`"):
        Laion().stages(["key", "text"])


def test_jpeg_of_a_scene_is_large_enough(planting):
    assert min(len(row.picture) for row in planting[0].rows.values() if row.picture) > 5120 and callable(jpeg)
