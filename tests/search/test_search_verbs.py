"""`diptych index` and `diptych search` as a user types them, on `micro`, which comes with diptych."""

import json
import subprocess
import sys

import pytest
from fakes import colour_folder
from PIL import Image

import diptych
from diptych.cli.main import main
from diptych.search import sheet as sheets
from diptych.search.found import Hit


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("verbs")
    photos = colour_folder(root / "photos", each=6, noise=30)
    assert main(["index", str(photos), "--db", str(root / "my.lance"), "--model", "micro", "--device", "cpu"]) == 0
    return root


def run(capsys, *words) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main([str(word) for word in words])
    said = capsys.readouterr()
    return code, said.out, said.err


def found(capsys, *words):
    code, out, err = run(capsys, "search", *words, "--device", "cpu", "--json")
    assert code == 0, err
    return json.loads(out)


def test_again_it_finds_nothing_to_do_and_says_what_it_did(made, capsys):
    code, out, _ = run(capsys, "index", made / "photos", "--db", made / "my.lance", "--device", "cpu")
    assert code == 0 and "24 as before" in out and '24 pictures by "micro"' in out
    (made / "photos" / "red" / "new.png").write_bytes((made / "photos" / "red" / "1.png").read_bytes())
    (made / "photos" / "red" / "bad.png").write_bytes(b"no picture")
    words = ("index", made / "photos", "--db", made / "my.lance", "--device", "cpu", "--json")
    _, out, _ = run(capsys, *words)
    report = json.loads(out)
    (one,) = report["sources"]
    assert (one["new"], one["copies"], one["same"]) == (1, 1, 24) and one["set_aside"][0]["id"] == "red/bad.png"
    assert {"read", "infer", "write"} <= set(one["seconds"]) and report["index"]["measured"]["recall10"] == 1
    (made / "photos" / "red" / "new.png").unlink()
    (made / "photos" / "red" / "bad.png").unlink()
    code, out, _ = run(capsys, *words[:-1])
    assert "1 gone" in out


def test_by_text_by_picture_and_by_both(made, capsys):
    db, blue = made / "my.lance", made / "photos" / "blue" / "3.png"
    rows = found(capsys, db, "--like", blue, "--k", 4)
    assert rows[0]["id"] == "blue/3.png" and rows[0]["score"] == pytest.approx(1, abs=1e-3)
    assert [row["label"] for row in rows].count("blue") >= 3
    by_id = found(capsys, db, "--like", "blue/3.png", "--k", 4)
    assert [row["id"] for row in by_id] == [row["id"] for row in rows]
    plain = found(capsys, db, "a green circle", "--k", 24)
    both = found(capsys, db, "a green circle", "--like", blue, "--k", 24)
    place = [[row["id"] for row in some].index("blue/3.png") for some in (plain, both)]
    assert place[1] < place[0]


def test_negative_text_moves_what_it_names_down(made, capsys):
    plain = found(capsys, made / "my.lance", "a green circle", "--k", 24)
    without = found(capsys, made / "my.lance", "a green circle", "--not", "a yellow circle", "--k", 24)

    def mean_place(rows, label):
        places = [i for i, row in enumerate(rows) if row["label"] == label]
        return sum(places) / len(places)

    assert mean_place(without, "yellow") > mean_place(plain, "yellow")


def test_filters_and_columns(made, capsys):
    rows = found(capsys, made / "my.lance", "a circle", "--where", "label in ('red', 'blue') and width = 16")
    assert len(rows) == 12 and {row["label"] for row in rows} == {"red", "blue"}
    assert found(capsys, made / "my.lance", "a circle", "--where", "width > 500") == []
    code, out, _ = run(capsys, "search", made / "my.lance", "--columns")
    assert code == 0 and "punsafe" in out and "number" in out
    code, _, err = run(capsys, "search", made / "my.lance", "x", "--where", "widht > 500")
    assert code == 2 and 'no column "widht"; did you mean "width"' in err
    code, _, err = run(capsys, "search", made / "my.lance", "x", "--where", "width > 1; drop table pictures")
    assert code == 2 and "does not read" in err


def test_captions_are_embedded_when_asked_and_then_kept_up_to_date(tmp_path, capsys):
    photos, db = colour_folder(tmp_path / "photos", each=3, noise=30), tmp_path / "c.lance"
    for i, words in enumerate(("a green circle on black", "a red square", "a blue triangle")):
        (photos / "red" / f"{i}.txt").write_text(words)
    words = ("index", photos, "--db", db, "--device", "cpu")
    code, out, _ = run(capsys, *words, "--model", "micro")
    assert code == 0 and '12 pictures by "micro"' in out
    code, _, err = run(capsys, "search", db, "a green circle", "--in", "captions")
    assert code == 2 and f"`diptych index ... --db {db} --captions`" in err
    code, out, _ = run(capsys, *words, "--captions")
    assert code == 0 and "12 as before; 3 captions in " in out and '12 pictures and 3 captions by "micro"' in out
    rows = found(capsys, db, "a green circle", "--in", "captions")
    assert rows[0]["id"] == "red/0.png" and len(rows) == 3 and not {"vector", "text_vector"} & set(rows[0])
    assert len(found(capsys, db, "--like", photos / "red" / "1.png", "--in", "captions")) == 3
    same = found(capsys, db, "a green circle on black", "--in", "captions", "--where", "text like '%circle%'")
    assert [row["id"] for row in same] == ["red/0.png"] and same[0]["score"] == pytest.approx(1, abs=1e-4)
    (photos / "blue" / "0.txt").write_text("a yellow circle")
    _, out, _ = run(capsys, *words, "--json")  # the index knows that it holds them
    report = json.loads(out)
    (one,) = report["sources"]
    assert (one["changed"], one["copies"], one["captions"], report["index"]["captions"]) == (1, 1, 1, 4)
    assert found(capsys, db, "a yellow circle", "--in", "captions")[0]["id"] == "blue/0.png"
    _, out, _ = run(capsys, "search", db, "--columns")
    assert "vector" not in out


def test_a_contact_sheet(made, capsys, tmp_path):
    out = tmp_path / "sheet.png"
    code, _, _ = run(capsys, "search", made / "my.lance", "a circle", "--k", 7, "--out", out, "--device", "cpu")
    image = Image.open(out)
    assert code == 0 and image.width > 4 * sheets.SIDE and image.height > 2 * sheets.SIDE
    code, _, err = run(capsys, "search", made / "my.lance", "a circle", "--out", tmp_path / "sheet.gif")
    assert code == 2 and "--out takes" in err
    lost = Hit("lost", 0.5, {"path": str(tmp_path / "none.png"), "text": "words " * 50})
    sheets.sheet([lost], tmp_path / "lost.jpg", "a title")
    assert Image.open(tmp_path / "lost.jpg").format == "JPEG"
    sheets.sheet([], tmp_path / "none.png")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["search", "none.lance", "x"], "no index at none.lance"),
        (["search", "{db}"], "search for what"),
        (["search", "{db}", "--not", "x"], "search for what"),
        (["search", "{db}", "--like", "none.jpg"], 'no picture with the id "none.jpg"'),
        (["search", "{db}", "x", "--k", "0"], "--k takes"),
        (["index", "none", "--db", "{db}"], "no such folder"),
        (["index", "{empty}", "--db", "{db}"], "holds no pictures"),
        (["index", "{empty}"], "--db"),
        (["index", "{photos}", "--db", "{db}", "--base", "mini"], "--base belongs to"),
        (["index", "{photos}", "--db", "{db}", "--model", "minni"], 'did you mean "mini"'),
    ],
)
def test_mistakes_are_said(made, capsys, words, said):
    empty = made / "empty"
    empty.mkdir(exist_ok=True)
    names = {"db": made / "my.lance", "empty": empty, "photos": made / "photos"}
    code, _, err = run(capsys, *(word.format(**names) for word in words))
    assert code == 2 and said in err


def test_a_winner_file_brings_its_tower_edits(made, tmp_path, capsys):
    """An index by a tuned tower is not the base model's, and is asked by its own."""
    from dataclasses import replace

    import torch

    from diptych.core.classifier import Base, Classifier
    from diptych.core.edits import Edits, TowerEdits
    from diptych.core.heads import TextRows

    clip = diptych.load("micro", device="cpu")
    name, weight = next((n, p) for n, p in clip.image.named_parameters() if p.dim() > 1)
    edits = Edits({"image": TowerEdits(weights={name: weight.detach() * 0.5})})
    head = TextRows(torch.eye(2, clip.embed_dim), 10.0)
    classifier = Classifier("wise_ft", {}, ("a", "b"), ("a", "b"), head, Base.of(clip))
    path = replace(classifier, edits=edits).save(tmp_path / "winner.safetensors")
    photos = colour_folder(tmp_path / "photos", each=3)
    db = tmp_path / "tuned.lance"
    code, out, err = run(capsys, "index", photos, "--db", db, "--model", path, "--device", "cpu")
    assert code == 0 and "winner.safetensors" in out, err
    rows = found(capsys, db, "--like", photos / "red" / "0.png", "--k", 3)
    assert rows[0]["id"] == "red/0.png" and rows[0]["score"] == pytest.approx(1, abs=1e-3)
    code, _, err = run(capsys, "search", db, "x", "--model", "micro")
    assert code == 2 and "winner.safetensors" in err
    code, _, err = run(capsys, "index", photos, "--db", made / "my.lance", "--model", path)
    assert code == 2 and 'by the model "micro"' in err and "asked with" in err and "winner.safetensors" in err
    path.unlink()
    code, _, err = run(capsys, "search", db, "x")
    assert code == 2 and "could not be opened" in err


def test_an_interrupted_run_says_how_to_go_on_and_help_is_quick():
    from diptych.cli.main import continues, load

    assert continues(load("index"), ["index"])
    words = [sys.executable, "-X", "importtime", "-m", "diptych", "search", "--help"]
    said = subprocess.run(words, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip() for line in said.stderr.splitlines()}
    assert "--where" in said.stdout and "argparse" in imported and not imported & {"torch", "lancedb", "numpy"}


def test_the_verbs_are_functions_though_a_package_has_the_name_of_one(made):
    index, outcomes = diptych.index(made / "photos", made / "my.lance", device="cpu")
    assert len(index) == 24 and [outcome.same for outcome in outcomes.values()] == [24]
    for _ in range(2):
        hits = diptych.search(index, "a circle", where="label = 'red'", k=3, device="cpu")
        assert [hit.row["label"] for hit in hits] == ["red"] * 3
    with pytest.raises(diptych.DiptychError, match="search for what"):
        diptych.search(index)
