"""The streaming executor: inputs of every kind, several processes, kills, refusals, what is written."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from curate_world import Bright, Half, Recipe, Seen, Short, captions, contents, killed, picture, shard, table

from diptych.cli.main import main
from diptych.curation import inputs
from diptych.curation.inputs import open_input
from diptych.curation.piece import Segment, shown
from diptych.curation.read import read
from diptych.curation.run import curate
from diptych.data.pairs import read_pairs
from diptych.errors import DiptychError
from diptych.methods.curate.parts.pipeline import Source


@pytest.fixture
def tables(tmp_path):
    table(tmp_path / "in" / "a.parquet", 900, 0, 300)
    table(tmp_path / "in" / "b.parquet", 500, 1, 300)
    return tmp_path / "in"


def rows_of(source, size=100, **asked):
    opened = open_input(str(source), **asked)
    aside = []
    rows = [row for piece in opened.pieces for batch in read(piece, opened, size, aside) for row in batch.to_pylist()]
    return opened, rows, aside


# -- inputs ------------------------------------------------------------------------------------------------------------


def test_pieces_of_a_table_hold_every_row_once(tables, monkeypatch):
    monkeypatch.setattr(inputs, "ROWS", 128)
    opened, rows, _ = rows_of(tables)
    assert len(opened.pieces) == 3 * 3 + 3 + 2
    assert [row["text"] for row in rows] == captions(900, 0) + captions(500, 1)
    assert [row["key"] for row in rows[:2]] == ["a-0", "a-1"]
    assert opened.columns == ["key", "text", "width"]


def test_laions_names_and_keys_that_are_missing(tmp_path):
    parquet.write_table(pa.table({"URL": ["u", "v"], "TEXT": ["one", "two"], "WIDTH": [1, 2]}), tmp_path / "p.parquet")
    _, rows, _ = rows_of(tmp_path / "p.parquet")
    assert rows[1] == {"key": "p-000000001", "url": "v", "text": "two", "width": 2}


def test_csv_with_lines_in_cells_is_read_from_the_middle(tmp_path, monkeypatch):
    lines = [f'"{text}\nand more",{n}' for n, text in enumerate(captions(50))]
    (tmp_path / "t.csv").write_text("caption,n\n" + "\n".join(lines))
    monkeypatch.setattr(inputs, "ROWS", 8)
    done = curate(Recipe(), tmp_path / "t.csv", tmp_path / "out", stages=("half",))
    left = parquet.read_table(tmp_path / "out" / "00000.parquet").to_pylist()
    assert done.rows_in == 50 and len(left) == done.rows_out
    assert all(row["text"] == f"{captions(50)[row['n']]}\nand more" for row in left)


def test_shards_and_folders_of_pictures(tmp_path):
    shard(tmp_path / "s" / "00000.tar", 5, broken=(2,))
    opened, rows, aside = rows_of(tmp_path / "s")
    assert [row["key"] for row in rows] == ["000000000", "000000001", "000000003", "000000004"]
    assert aside == [("000000002", "the text is empty")] and opened.columns[-1] == "picture"
    folder = tmp_path / "f" / "deep"
    folder.mkdir(parents=True)
    for n in range(3):
        (folder / f"{n}.jpg").write_bytes(picture(n))
    (folder / "0.txt").write_text("one\ntwo\n")
    (folder / "1.txt").write_text("three")
    _, rows, aside = rows_of(tmp_path / "f")
    assert [row["texts"] for row in rows] == [["one", "two"], ["three"]]
    assert aside == [("deep_2_jpg", "no text beside it")]


def test_sources_have_names_and_keys_do_not_meet(tmp_path):
    table(tmp_path / "a" / "x.parquet", 3)
    (tmp_path / "y.csv").write_text("TEXT\nhello\n")
    both = f"web={tmp_path / 'a'},books={tmp_path / 'y.csv'}"
    done = curate(Recipe(), both, tmp_path / "out", stages=("half",), seed=1)
    left = parquet.read_table(tmp_path / "out" / "00000.parquet").to_pylist()
    gone = parquet.read_table(tmp_path / "out" / "removed.parquet").column("key").to_pylist()
    assert sorted([row["key"] for row in left] + gone) == ["books-y-000000000", "web-x-0", "web-x-1", "web-x-2"]
    assert done.rows_in == 4 and {row["source"] for row in left} <= {"web", "books"}


def test_paths_of_pictures_are_one_column_whatever_they_were_called(tmp_path):
    """A stage that wants the picture gets its bytes; an address, or what is no picture, stays as it is."""
    for name, column in (("a", "picture"), ("b", "File_Name")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").write_bytes(picture(9))
        cells = ["1.jpg", "http://a.example/1.jpg", "/etc/passwd"]
        rows = pa.table({column: cells, "caption": [f"a red {name}{n}" for n in range(3)]})
        parquet.write_table(rows, tmp_path / name / "t.parquet")
    sources = ",".join(f"{name}={tmp_path / name / 't.parquet'}" for name in "ab")
    curate(Everything(), sources, tmp_path / "out")
    pairs = read_pairs(tmp_path / "out")
    assert [row["image"] for row in parquet.read_table(tmp_path / "out" / "00000.parquet").to_pylist()] == [
        str(tmp_path / "a" / "1.jpg"), "http://a.example/1.jpg", "/etc/passwd",
        str(tmp_path / "b" / "1.jpg"), "http://a.example/1.jpg", "/etc/passwd",
    ]  # fmt: skip
    assert [pairs[n].picture().size for n in (0, 3)] == [(16, 16)] * 2
    opened = open_input(str(tmp_path / "a" / "t.parquet"))
    segment = Segment(0, tmp_path, opened, None, (), None, True)
    (batch,) = read(opened.pieces[0], opened, 9, [])
    assert shown(batch, segment, Bright()).column("picture").to_pylist() == [picture(9), None, None]


@pytest.mark.parametrize("source", ["nothing", "http://a.example/x", "a=x,y", "empty"])
def test_inputs_that_are_none(tmp_path, source):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DiptychError):
        open_input(source if ":" in source or "=" in source else str(tmp_path / source))


class Links(Source):
    name, about = "links", "rows of archives"
    adds = ("text", "url")

    def create(self, batch):
        for path in batch.column("archive").to_pylist():
            texts = captions(300, len(path))
            yield pa.record_batch({"text": texts, "url": [f"http://a.example/{n}" for n in range(300)]})


class FromArchives(Recipe):
    def stages(self, columns, seed=0):
        return [Links(), Short(), Seen(), Half(seed)]


def test_a_source_makes_rows(tmp_path):
    for name in ("a", "bb"):
        (tmp_path / f"{name}.warc.gz").write_bytes(b"x")
    done = curate(FromArchives(), tmp_path, tmp_path / "out")
    assert [line.name for line in done.lines] == ["links", "short", "seen", "half"] and done.rows_in == 600
    assert len(parquet.read_table(tmp_path / "out" / "00000.parquet")) == done.rows_out > 50


# -- one result --------------------------------------------------------------------------------------------------------


def test_the_result_is_that_of_a_plain_loop(tables, tmp_path):
    from diptych.methods.curate.parts.pipeline import chance_of

    expected, seen = [], set()
    for name, rows, seed in (("a", 900, 0), ("b", 500, 1)):
        for n, text in enumerate(captions(rows, seed)):
            if len(text.split()) >= 3 and text not in seen:
                seen.add(text)
                if chance_of([f"{name}-{n}"], 5, "half")[0] < 0.5:
                    expected.append((f"{name}-{n}", text))
    curate(Recipe(), tables, tmp_path / "out", seed=5)
    found = parquet.read_table(tmp_path / "out" / "00000.parquet")
    assert list(zip(found.column("key").to_pylist(), found.column("text").to_pylist(), strict=True)) == expected


def test_killed_anywhere_and_started_again_the_bytes_are_the_same(tmp_path):
    for n in range(2):
        shard(tmp_path / "in" / f"{n:05d}.tar", 120, 120 * n, broken=(5,))
    curate(Recipe(), tmp_path / "in", tmp_path / "whole")
    whole = contents(tmp_path / "whole")
    assert "00000.tar" in whole
    out, after = tmp_path / "killed", 1
    while killed(lambda progress: curate(Recipe(), tmp_path / "in", out, progress=progress), after):
        after += 1
    assert after > 4
    assert contents(out) == whole
    assert not any(path.name.startswith(".") for path in out.iterdir())


@pytest.mark.parametrize("stage", [Short, Seen, Half])
def test_killed_inside_a_stage(tables, tmp_path, monkeypatch, stage):
    curate(Recipe(), tables, tmp_path / "whole")
    calls, select = [], stage.select

    def dies(self, batch, place, counts):
        calls.append(place)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return select(self, batch, place, counts)

    monkeypatch.setattr(stage, "select", dies)
    assert killed(lambda progress: curate(Recipe(), tables, tmp_path / "k"), 10**9)
    assert not (tmp_path / "k" / "report.json").exists()
    monkeypatch.undo()
    curate(Recipe(), tables, tmp_path / "k")
    assert contents(tmp_path / "k") == contents(tmp_path / "whole")


def test_two_processes_and_one(tables, tmp_path):
    curate(Recipe(), tables, tmp_path / "one")
    curate(Recipe(), tables, tmp_path / "two", workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_result_that_is_not_finished_is_no_data_to_train_on(tmp_path, monkeypatch):
    monkeypatch.setattr("diptych.curation.output.SHARD", 20)
    shard(tmp_path / "in" / "00000.tar", 200)
    out, after = tmp_path / "out", 1
    while not (out / "00001.tar").exists():
        assert killed(lambda progress: curate(Everything(), tmp_path / "in", out, progress=progress), after)
        after += 1
    for read_it in (read_pairs, open_input):
        with pytest.raises(DiptychError, match="not finished"):
            read_it(str(out))
    done = curate(Everything(), tmp_path / "in", out)
    assert len(read_pairs(out)) == done.rows_out


def test_what_a_finished_piece_left_is_not_done_again(tables, tmp_path, monkeypatch):
    assert killed(lambda progress: curate(Recipe(), tables, tmp_path / "out", progress=progress), 4)
    again = []
    select = Short.select
    monkeypatch.setattr(Short, "select", lambda *words: again.append(1) or select(*words))
    curate(Recipe(), tables, tmp_path / "out")
    assert 0 < len(again) < 5


# -- what it says and writes -------------------------------------------------------------------------------------------


def test_shards_are_those_that_the_library_reads(tmp_path, monkeypatch):
    monkeypatch.setattr("diptych.curation.output.SHARD", 50)
    shard(tmp_path / "00000.tar", 200)
    done = curate(Recipe(), tmp_path / "00000.tar", tmp_path / "out")
    pairs = read_pairs(tmp_path / "out")
    assert len(pairs) == done.rows_out and not pairs.set_aside
    stats = json.loads((tmp_path / "out" / "00000_stats.json").read_text())
    assert stats["count"] == stats["successes"] == 50
    first = parquet.read_table(tmp_path / "out" / "00000.parquet").to_pylist()[0]
    assert {"key", "caption", "url", "brightness"} <= set(first)
    assert pairs[0].extra["key"] == first["key"] and pairs[0].texts == (first["caption"],)
    assert np.asarray(pairs[0].picture()).mean() > 60
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:image/jpeg") >= 4 and "one word" in page and "dark" in page


def test_another_run_is_refused_and_says_what_differs(tables, tmp_path):
    curate(Recipe(), tables, tmp_path / "out")
    with pytest.raises(DiptychError, match="seed: 0 there, 1 now"):
        curate(Recipe(), tables, tmp_path / "out", seed=1)
    table(tables / "c.parquet", 10)
    with pytest.raises(DiptychError, match=r"input differ \(c.parquet is new\)"):
        curate(Recipe(), tables, tmp_path / "out")
    with pytest.raises(DiptychError, match="not a run"):
        curate(Recipe(), tables, tables)


def test_a_file_changed_in_place_is_another_input_and_a_moved_one_the_same(tables, tmp_path):
    """Of the same size; what differs is said, and how to say that nothing does."""
    first = curate(Recipe(), tables, tmp_path / "out")
    path = tables / "a.parquet"
    data, before = path.read_bytes(), path.stat()
    path.write_bytes(data.replace(b"house", b"hause"))
    assert path.read_bytes() != data and path.stat().st_size == before.st_size
    with pytest.raises(
        DiptychError, match=r"a\.parquet has changed: [\d,]+ bytes of 20\d\d-.* there, .* now; .* cp -p"
    ):
        curate(Recipe(), tables, tmp_path / "out")
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    moved = tables.rename(tmp_path / "moved")
    assert curate(Recipe(), moved, tmp_path / "out").rows_out == first.rows_out
    (moved / "b.parquet").unlink()
    with pytest.raises(DiptychError, match=r"b\.parquet is gone"):
        curate(Recipe(), moved, tmp_path / "out")


def test_another_text_beside_a_picture_is_another_input(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for n in range(2):
        (folder / f"{n}.jpg").write_bytes(picture(n))
        (folder / f"{n}.txt").write_text("a red house")
    curate(Recipe(), folder, tmp_path / "out", stages=("short",))
    (folder / "1.txt").write_text("a big house")
    with pytest.raises(DiptychError, match=r"1\.txt has changed"):
        curate(Recipe(), folder, tmp_path / "out", stages=("short",))


class Everything(Recipe):
    def stages(self, columns, seed=0):
        return [Short()]


def test_keys_stay_as_they_are_when_a_result_is_curated_again(tmp_path, monkeypatch):
    """Through shards of another size each time, and with keys that no member of a shard can have."""
    monkeypatch.setattr("diptych.curation.output.SHARD", 7)
    texts = ["a red house"] * 30
    keys = [f"deep/{n}.jpg" for n in range(15)] + [f"deep_{n}_jpg" for n in range(15)]
    pictures = pa.array([picture(n) for n in range(30)], pa.binary())
    columns = {"key": keys, "caption": texts, "picture": pictures}
    parquet.write_table(pa.table(columns), tmp_path / "cc12m.parquet", row_group_size=10)
    (tmp_path / "a").mkdir()
    for n in range(30):
        (tmp_path / "a" / f"{n}.jpg").write_bytes(picture(n))
        (tmp_path / "a" / f"{n}.txt").write_text(texts[n])
    shard(tmp_path / "b" / "cc12m.tar", 30)
    for source in (tmp_path / "a", tmp_path / "b"):
        known, found = None, source
        for again in range(3):
            monkeypatch.setattr("diptych.curation.output.SHARD", 7 + 4 * again)
            out = tmp_path / f"{source.name}{again}"
            curate(Everything(), found, out)
            _, rows, aside = rows_of(out)
            known, found = known or sorted(row["key"] for row in rows), out
            assert sorted(row["key"] for row in rows) == known and not aside
            assert len(set(known)) == len(known) > 10


def test_columns_and_stages_that_are_not_there(tmp_path):
    (tmp_path / "t.csv").write_text("number\n1\n")
    with pytest.raises(DiptychError, match='needs the column "text"'):
        curate(Recipe(), tmp_path / "t.csv", tmp_path / "out")
    table(tmp_path / "t.parquet", 5)
    with pytest.raises(DiptychError, match='did you mean "half"'):
        curate(Recipe(), tmp_path / "t.parquet", tmp_path / "out", stages=("halve",))
    assert not (tmp_path / "out").exists()


def test_only_so_many_rows(tables, tmp_path):
    assert curate(Recipe(), tables, dry_run=True, rows=350).rows_in == 350
    shard(tmp_path / "s.tar", 30)
    assert curate(Recipe(), tmp_path / "s.tar", dry_run=True, rows=7).rows_in == 7


def test_ctrl_c_ends_the_workers_too(tmp_path):
    """Every process of the group is gone soon after."""
    program = (
        f"import signal, sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
        "import curate_slow, diptych.curation.run as run\n"
        "if __name__ == '__main__':\n"
        "    signal.signal(signal.SIGINT, signal.default_int_handler)  # deaf in a shell's background\n"
        f"    run.curate(curate_slow.Slow(), {str(tmp_path / 'in')!r}, {str(tmp_path / 'out')!r}, workers=2)\n"
    )
    for n in range(3):
        table(tmp_path / "in" / f"{n}.parquet", 10)
    path = tmp_path / "program.py"
    path.write_text(program)
    environment = {**os.environ, "CURATE_BEGUN": str(tmp_path / "begun")}
    process = subprocess.Popen(
        [sys.executable, str(path)], start_new_session=True, stderr=subprocess.DEVNULL, env=environment
    )
    for _ in range(600):
        if (tmp_path / "begun").exists():
            break
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(30) != 0
    for _ in range(50):
        if not (left := alive(process.pid)):
            break
        time.sleep(0.2)
    assert not left


def alive(group):
    """Processes of a group that run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, of = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(of) == group and state != "Z":
            found.append(stat.parent.name)
    return found


def test_the_verb(tables, tmp_path, capsys, monkeypatch):
    (tmp_path / "entries.txt").write_text("cat\ndog\n")
    metadata = f"metaclip.metadata={tmp_path / 'entries.txt'}"
    words = ["curate", "metaclip", str(tables), "--set", metadata, "--set", "metaclip.t=30"]
    monkeypatch.setenv("COLUMNS", "50")
    assert main([*words, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "A dry run: nothing was written." in said and max(map(len, said.splitlines())) <= 50
    assert "names only frequent entries, and was not drawn" in " ".join(said.split())
    assert main([*words, str(tmp_path / "out"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["rows_in"] == 1400 and [line["name"] for line in said["stages"]] == ["input", "match", "balance"]
    assert main(["curate"]) == 0 and "metaclip" in capsys.readouterr().out
    assert main(["curate", "metaklip", "x", "y"]) == 2
    assert 'did you mean "metaclip"' in capsys.readouterr().err
