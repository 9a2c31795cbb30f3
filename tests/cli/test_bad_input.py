"""Whatever a user gives by mistake: one clear message, an exit code, no traceback, nothing left behind."""

import importlib.util
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import COLOURS, colour_clip, colour_folder
from PIL import Image

Run = Callable[..., Any]  # the fixture `diptych`: words -> exit code, stdout, stderr
QUICK = ("--methods", "zero_shot", "--shots", "1", "--seeds", "1")
Words = list[object]
Case = tuple[str, str, Callable[[Path], Words]]  # (name, what the message must say, what is typed)
CASES: list[Case] = []


def case(pattern: str, name: str = "") -> Callable[[Callable[[Path], Words]], Callable[[Path], Words]]:
    def keep(make: Callable[[Path], Words]) -> Callable[[Path], Words]:
        CASES.append((name or make.__name__, pattern, make))
        return make

    return keep


def typed(name: str, pattern: str, *words: object) -> None:
    """A case where what is typed is wrong in itself; @photos stands for good pictures."""

    def make(at: Path) -> Words:
        return [str(colour_folder(at / "photos", each=4)) if word == "@photos" else word for word in words]

    CASES.append((name, pattern, make))


def need(package: str) -> None:
    if importlib.util.find_spec(package) is None:  # importing takes seconds
        pytest.skip(f"{package} is not installed")


def picture(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = Image.effect_noise((24, 24), 40 + seed % 50)
    noise.convert("RGB").save(path)
    return path


def table(at: Path, text: str, name: str = "table.csv") -> Path:
    colour_folder(at / "photos", each=4)
    path = at / name
    path.write_text(text, "utf-8")
    return path


def rows(column: str = "label", *more: str) -> str:
    names = [f"photos/{colour}/{i}.png,{colour}" for colour in COLOURS for i in range(4)]
    return "\n".join([f"image,{column}", *names, *more]) + "\n"


# -- folders ---------------------------------------------------------------------------------------------------------

typed("folder that is not there", "no such folder or table", "compare", "nowhere")
typed("source that is an address", "address.*download", "compare", "https://example.org/photos.zip")
typed("path with a newline", "no such folder", "compare", "photos\nof mine")
typed("source of nothing", "empty", "compare", "")
typed("two sources", 'one thing too many, "more"', "compare", "photos", "more")
typed("columns of a folder", "columns.* come from a table", "compare", "@photos", "--group", "patient")
typed("columns of nothing", "no table is given", "compare", "--label", "kind")


@case("is empty")
def empty_folder(at: Path) -> Words:
    (at / "photos").mkdir()
    return ["compare", "photos"]


@case("no picture")
def folders_without_pictures(at: Path) -> Words:
    for name in ("a", "b"):
        (at / "photos" / name).mkdir(parents=True)
        (at / "photos" / name / "notes.txt").write_text("nothing to see")
    return ["compare", "photos"]


@case('one class, "red"')
def one_class(at: Path) -> Words:
    return ["compare", colour_folder(at / "photos", colours=["red"])]


@case("violet.*(one|1) picture|(one|1) picture.*violet")
def class_with_one_picture(at: Path) -> Words:
    colour_folder(at / "photos", each=4)
    picture(at / "photos" / "violet" / "only.png")
    return ["compare", "photos"]


@case("no class folders")
def pictures_without_folders(at: Path) -> Words:
    for i in range(3):
        picture(at / "photos" / f"{i}.png", i)
    return ["compare", "photos"]


@case("differ only by case")
def same_name_but_case(at: Path) -> Words:
    colour_folder(at / "photos", each=4)
    for i in range(4):
        picture(at / "photos" / "Red" / f"{i}.png", i)
    if len(os.listdir(at / "photos")) == 4:
        pytest.skip("this disk does not tell Red from red")
    return ["compare", "photos"]


@case("splits.*classes")
def splits_beside_classes(at: Path) -> Words:
    colour_folder(at / "photos" / "train", each=2)
    colour_folder(at / "photos" / "test", each=2)
    picture(at / "photos" / "red" / "0.png")
    return ["compare", "photos"]


@case("corrupt|could be read|no usable|set aside")
def every_picture_corrupt(at: Path) -> Words:
    for path in colour_folder(at / "photos", each=3).rglob("*.png"):
        path.write_bytes(b"not a picture at all")
    return ["compare", "photos"]


@case("bomb|pixels|could be read|no usable|set aside")
def every_picture_a_bomb(at: Path) -> Words:
    bomb = at / "bomb.png"
    Image.new("1", (20000, 20000)).save(bomb)
    for path in colour_folder(at / "photos", each=2).rglob("*.png"):
        path.write_bytes(bomb.read_bytes())
    bomb.unlink()
    return ["compare", "photos"]


@case("holds no picture|no pictures below|one class")
def link_that_leads_to_itself(at: Path) -> Words:
    (at / "photos" / "red").mkdir(parents=True)
    (at / "photos" / "red" / "again").symlink_to(at / "photos")
    (at / "photos" / "blue").symlink_to("blue")
    return ["compare", "photos"]


@case("archive: unpack it")
def archive(at: Path) -> Words:
    (at / "photos.zip").write_bytes(b"PK")
    return ["compare", "photos.zip"]


@case("one picture: give the folder")
def single_picture(at: Path) -> Words:
    return ["compare", picture(at / "cat.png")]


@case("neither a folder nor a table")
def text_file(at: Path) -> Words:
    (at / "notes.txt").write_text("hello")
    return ["compare", "notes.txt"]


# -- tables ----------------------------------------------------------------------------------------------------------


@case("2 of 18 pictures are not there.*lost.png")
def table_with_missing_files(at: Path) -> Words:
    return ["compare", table(at, rows("label", "photos/lost.png,red", "photos/gone.png,red"))]


@case('no column "patiant"; did you mean "patient"')
def unknown_group(at: Path) -> Words:
    text = rows().replace("label\n", "label,patient\n").replace(".png,", ".png,x,")
    return ["compare", table(at, text), "--group", "patiant"]


@case('no column "kind"')
def unknown_label_column(at: Path) -> Words:
    return ["compare", table(at, rows()), "--label", "kind"]


@case("which column holds the label.*--label")
def no_label_column(at: Path) -> Words:
    return ["compare", table(at, rows("remark"))]


@case("1 rows? have no label|no label in column.*row 17")
def labels_that_are_nan(at: Path) -> Words:
    return ["compare", table(at, rows("label", "photos/red/0.png,NaN"))]


@case("is empty")
def empty_table(at: Path) -> Words:
    return ["compare", table(at, "")]


@case("no rows")
def table_of_a_header(at: Path) -> Words:
    return ["compare", table(at, "image,label\n")]


@case("several labels a picture")
def several_labels(at: Path) -> Words:
    return ["compare", table(at, rows("label", "photos/red/0.png,blue"))]


@case("address: download")
def addresses_in_a_table(at: Path) -> Words:
    return ["compare", table(at, "image,label\nhttps://example.org/a.png,red\n")]


@case("not UTF-8")
def table_in_another_encoding(at: Path) -> Words:
    path = table(at, "")
    path.write_bytes("image,label\nphotos/red/0.png,grün\n".encode("latin-1"))
    return ["compare", path]


@case('two columns called "label"')
def columns_of_one_name(at: Path) -> Words:
    return ["compare", table(at, "image,label,label\nphotos/red/0.png,red,red\n")]


@case("not a Parquet file, or is truncated")
def damaged_parquet(at: Path) -> Words:
    path = at / "table.parquet"
    path.write_bytes(b"PAR1 and then nothing")
    return ["compare", path]


@case("not a complete save_to_disk folder|which column|cannot be read")
def damaged_dataset_folder(at: Path) -> Words:
    need("datasets")
    (at / "set").mkdir()
    (at / "set" / "state.json").write_text("{")
    return ["compare", "set"]


# -- models ----------------------------------------------------------------------------------------------------------

typed("model typo", 'no model "minni"; did you mean "mini"', "compare", "@photos", "--model", "minni")
typed("model file not there", "no such file|there is no file", "compare", "@photos", "--model", "./model.safetensors")
typed("model of nothing", "not nothing", "compare", "@photos", "--model", "")
typed("doctor of a typo", "no model", "doctor", "minnni")


@case('did you mean "ViT-B-32"')
def open_clip_typo(at: Path) -> Words:
    need("open_clip")
    return ["compare", colour_folder(at / "photos", each=4), "--model", "ViT-B32:laion2b_s34b_b79k"]


@case('no pretrained tag|has no .*"laion3b"|laion3b')
def open_clip_tag_typo(at: Path) -> Words:
    need("open_clip")
    return ["compare", colour_folder(at / "photos", each=4), "--model", "ViT-B-32:laion3b"]


def open_clip_layout(at: Path) -> Path:
    folder = at / "model"
    folder.mkdir()
    vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}
    look = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}
    config = {"model_cfg": {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}, "preprocess_cfg": look}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


@case("truncated|damaged|cannot be read|incomplete|not a")
def truncated_checkpoint(at: Path) -> Words:
    need("open_clip")
    folder = open_clip_layout(at)
    (folder / "open_clip_model.safetensors").write_bytes(b"\x40\0\0\0\0\0\0\0{" + b" " * 20)
    return ["compare", colour_folder(at / "photos", each=4), "--model", folder]


@case("pickle|code|weights|safetensors|refused")
def checkpoint_with_code_in_it(at: Path) -> Words:
    need("open_clip")

    class Trap:
        def __reduce__(self):
            return (open, (str(at / "executed"), "w"))

    folder = open_clip_layout(at)
    (folder / "open_clip_pytorch_model.bin").write_bytes(pickle.dumps({"state_dict": Trap()}))
    return ["compare", colour_folder(at / "photos", each=4), "--model", folder]


@case("model")
def empty_model_folder(at: Path) -> Words:
    (at / "model").mkdir()
    return ["compare", colour_folder(at / "photos", each=4), "--model", at / "model"]


@case("notes.txt")
def text_file_as_a_model(at: Path) -> Words:
    (at / "notes.txt").write_text("these are not the weights you are looking for")
    return ["compare", colour_folder(at / "photos", each=4), "--model", "./notes.txt"]


# -- options ---------------------------------------------------------------------------------------------------------

typed("verb typo", 'no verb "comapre"; did you mean "compare"', "comapre", "photos")
typed("option typo", 'no option "--shot"; did you mean "--shots"', "compare", "photos", "--shot", "4")
typed("option before the verb", 'no option "--json"', "--json", "compare")
typed("option without a value", "expected one argument", "compare", "photos", "--shots")
typed("no shots", "--shots takes whole numbers from 1", "compare", "photos", "--shots", "0")
typed("shots below nothing", "--shots takes whole numbers from 1", "compare", "photos", "--shots=-1")
typed("shots in words", '--shots takes .*"abc"', "compare", "photos", "--shots", "1,abc")
typed("shots of nothing", "--shots takes", "compare", "photos", "--shots", ",")
typed("no seeds", "--seeds takes a whole number from 1", "compare", "photos", "--seeds", "0")
typed("seeds in words", "--seeds takes a whole number", "compare", "photos", "--seeds", "many")
typed("budget in words", "--budget takes a time such as 90s", "compare", "photos", "--budget", "soon")
typed("budget without a unit", "--budget takes a time such as 90s", "compare", "photos", "--budget", "10")
typed("budget of nothing", "longer than nothing", "compare", "photos", "--budget", "0m")
typed("setting without a field", "--set takes SYSTEM.FIELD=VALUE", "compare", "photos", "--set", "knn=5")
typed("setting without a value", "--set takes SYSTEM.FIELD=VALUE", "compare", "photos", "--set", "knn.k")
typed("setting of no system", 'no method "kmn"; did you mean "knn"', "compare", "photos", "--set", "kmn.k=5")
typed("setting of no field", 'coop has no setting "epoks"; did you mean "epochs"',
      "compare", "photos", "--set", "coop.epoks=5")  # fmt: skip
typed("setting of another kind", "coop.epochs takes a whole number", "compare", "photos", "--set", "coop.epochs=few")
typed("setting without effect", "has no effect: coop is not among --methods",
      "compare", "photos", "--methods", "zero_shot", "--set", "coop.epochs=5")  # fmt: skip
typed("setting given twice", "is given twice",
      "compare", "photos", "--set", "coop.epochs=5", "--set", "coop.epochs=6")  # fmt: skip
typed("method typo", 'no method "zero-shot"; did you mean "zero_shot"', "compare", "photos", "--methods", "zero-shot")
typed("all methods and one", 'names or "all"', "compare", "photos", "--methods", "all,zero_shot")
typed("methods of nothing", "--methods takes", "compare", "photos", "--methods", "")
typed(
    "template without a place",
    "no such file.*one sentence a line",
    "compare",
    "@photos",
    "--templates",
    "a photo of a {name}.",
)
typed("template with two places", "should hold {} once", "compare", "@photos", "--templates", "a {} of a {}.")
typed("template of words", "no such file.*one sentence a line", "compare", "@photos", "--templates", "a photo of a cat")
typed("names not there", "no such file", "compare", "@photos", "--names", "names.csv")
typed("device typo", 'no device "cuba"; did you mean "cuda"', "compare", "@photos", "--device", "cuba")
typed("device number", 'no device "cpu:x"', "compare", "@photos", "--device", "cpu:x")
typed("device out of range", "no cuda:99", "compare", "@photos", "--device", "cuda:99")


@case("no cuda")
def cuda_without_cuda(at: Path) -> Words:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    return ["compare", colour_folder(at / "photos", each=4), "--device", "cuda"]


@case("there is no template")
def templates_of_an_empty_file(at: Path) -> Words:
    (at / "templates.txt").write_text("\n\n")
    return ["compare", colour_folder(at / "photos", each=4), "--templates", "templates.txt"]


@case("templates.txt, 2: .*should hold {} once")
def templates_file_with_a_bad_line(at: Path) -> Words:
    (at / "templates.txt").write_text("a photo of a {}.\na photo\n")
    return ["compare", colour_folder(at / "photos", each=4), "--templates", "templates.txt"]


def with_names(at: Path, text: str) -> Words:
    (at / "names.csv").write_text(text)
    return ["compare", colour_folder(at / "photos", each=4), "--names", "names.csv"]


@case('"rod"; did you mean "red"')
def names_of_an_unknown_class(at: Path) -> Words:
    return with_names(at, "rod,a rod\ngreen,grass\nblue,sky\nyellow,sun\n")


@case("yellow")
def names_without_a_class(at: Path) -> Words:
    return with_names(at, "red,a rose\ngreen,grass\nblue,sky\n")


@case("names.csv")
def names_that_are_malformed(at: Path) -> Words:
    return with_names(at, "red\n\tgreen\n")


# -- places to write -------------------------------------------------------------------------------------------------


@case("is a file; it takes a folder")
def out_that_is_a_file(at: Path) -> Words:
    (at / "out").write_text("mine")
    return ["compare", colour_folder(at / "photos", each=4), "--out", "out"]


@case("is not a run of diptych")
def out_with_other_things(at: Path) -> Words:
    (at / "out").mkdir()
    (at / "out" / "thesis.tex").write_text("mine")
    return ["compare", colour_folder(at / "photos", each=4), "--out", "out"]


@case("damaged")
def out_with_a_damaged_run(at: Path) -> Words:
    (at / "out").mkdir()
    (at / "out" / "run.json").write_text("{")
    return ["compare", colour_folder(at / "photos", each=4), *QUICK, "--out", "out"]


@case("holds another run: .*shots.*choose another --out")
def out_of_another_run(at: Path) -> Words:
    (at / "out").mkdir()
    (at / "out" / "run.json").write_text('{"format": 1, "shots": [2]}')
    return ["compare", colour_folder(at / "photos", each=4), *QUICK, "--out", "out"]


@case("cannot write.*choose another place with --out|not a directory")
def out_below_a_file(at: Path) -> Words:
    (at / "file").write_text("mine")
    return ["compare", colour_folder(at / "photos", each=4), *QUICK, "--out", "file/out"]


# -- the winner ------------------------------------------------------------------------------------------------------

typed("predict with nothing", "required: CLASSIFIER, PICTURE", "predict")
typed("predict without pictures", "required: PICTURE", "predict", "winner.safetensors")
typed("classifier not there", "no classifier at", "predict", "winner.safetensors", "cat.png")
typed("captions that are not there", "nowhere.txt", "rewrite", "nowhere.txt", "--with", "rules", "--out", "s.jsonl")
typed("a store of another form", r"ends in \.jsonl", "rewrite", "scenes:4", "--with", "rules", "--out", "s.txt")
typed("a rewriter that is none", "rewrites nothing", "rewrite", "scenes:4", "--with", "gpt", "--out", "s.jsonl")
typed("exported classifier not there", "no classifier at", "export", "winner.safetensors", "--onnx", "out")
typed("unknown system", 'no method "zer_shot"; did you mean "zero_shot"', "systems", "zer_shot")
typed("cache both ways", "not both", "cache", "--size", "--clear")


def winner(at: Path, name: str = "mini") -> Path:
    import torch

    from diptych.core.classifier import Base, Classifier
    from diptych.core.heads import TextRows

    head = TextRows(torch.eye(12)[:4], 20.0)
    made = Classifier("zero_shot", {}, tuple(COLOURS), tuple(COLOURS), head, Base.of(colour_clip(name)))
    return made.save(at / "winner.safetensors")


@case("not a classifier saved by diptych, or is damaged")
def damaged_classifier(at: Path) -> Words:
    path = winner(at)
    path.write_bytes(path.read_bytes()[:-100])
    return ["predict", path, picture(at / "a.png")]


@case("not a classifier saved by diptych, or is damaged")
def foreign_classifier(at: Path) -> Words:
    import torch
    from safetensors.torch import save_file

    save_file({"weight": torch.ones(3)}, at / "model.safetensors")
    return ["predict", "model.safetensors", picture(at / "a.png")]


@case("format 99; this diptych reads")
def classifier_of_the_future(at: Path) -> Words:
    path = winner(at)
    content = path.read_bytes()
    path.write_bytes(content.replace(b'\\"format\\": 1', b'\\"format\\":99'))
    return ["predict", path, picture(at / "a.png")]


@case("is a folder; give a classifier")
def folder_as_a_classifier(at: Path) -> Words:
    (at / "run").mkdir()
    return ["predict", "run", picture(at / "a.png")]


@case("cannot read the picture: .*notes.txt")
def text_file_as_a_picture(at: Path) -> Words:
    (at / "notes.txt").write_text("hello")
    return ["predict", winner(at), "notes.txt"]


@case("no such file or folder: cot.png .did you mean .cat.png")
def picture_not_there(at: Path) -> Words:
    picture(at / "cat.png")
    return ["predict", winner(at), "cot.png"]


@case("no pictures in")
def folder_without_a_picture(at: Path) -> Words:
    (at / "new").mkdir()
    return ["predict", winner(at), "new"]


@case('belongs to the model "mini".*opened with "other"')
def another_model(at: Path) -> Words:
    need("open_clip")
    return ["predict", winner(at), picture(at / "a.png"), "--model", "other"]


@case("could not be opened|say where it is with --model")
def base_model_that_is_gone(at: Path) -> Words:
    return ["predict", winner(at, "/models/gone"), picture(at / "a.png")]


@case("--json or --csv, not both")
def two_forms(at: Path) -> Words:
    return ["predict", winner(at), picture(at / "a.png"), "--json", "--csv"]


@case("--top takes a whole number from 1")
def top_of_nothing(at: Path) -> Words:
    return ["predict", winner(at), picture(at / "a.png"), "--top", "0"]


@case("--threshold takes a number from 0 to 1")
def threshold_in_percent(at: Path) -> Words:
    return ["predict", winner(at), picture(at / "a.png"), "--threshold", "50"]


@case("required: --onnx")
def export_to_nowhere(at: Path) -> Words:
    return ["export", winner(at)]


typed(
    "a form that there is none of", 'no such form; did you mean "onnx"', "export", "mini", "--to", "onx", "--out", "x"
)
typed("a form without a place", "required: --onnx DIR, or both", "export", "mini", "--to", "open_clip")
typed("two ways to say onnx", "give one of them", "export", "mini", "--to", "onnx", "--onnx", "out")
typed("model not there", "no such file or folder", "export", "./nowhere", "--to", "onnx", "--out", "out")


@case("a classifier becomes onnx, not huggingface")
def a_classifier_as_a_clip(at: Path) -> Words:
    return ["export", winner(at), "--to", "huggingface", "--out", "out"]


@case("cannot become Hugging Face: it was not made by `load`")
def a_form_that_cannot_be(at: Path) -> Words:
    return ["export", "mini", "--to", "huggingface", "--out", "out"]


@case("holds|not an export|not empty")
def export_to_a_folder_in_use(at: Path) -> Words:
    need("onnx")
    (at / "out").mkdir()
    (at / "out" / "thesis.tex").write_text("mine")
    return ["export", winner(at), "--onnx", "out"]


@case("is a file; it takes a folder")
def export_to_a_file(at: Path) -> Words:
    (at / "out").write_text("mine")
    return ["export", winner(at), "--onnx", "out"]


# -- the check -------------------------------------------------------------------------------------------------------


def everything(root: Path) -> dict[str, int]:
    return {str(path.relative_to(root)): path.lstat().st_size for path in root.rglob("*")}


@pytest.mark.parametrize(("pattern", "make"), [c[1:] for c in CASES], ids=[c[0].replace("_", " ") for c in CASES])
def test_bad_input(
    pattern: str, make: Callable[[Path], Words], diptych: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import re

    import diptych.core.load as loading

    given = loading.load
    monkeypatch.setattr(loading, "load", lambda name="mini", device=None: other_or(given, name, device))
    words = make(tmp_path)
    before = everything(tmp_path)
    done = diptych(*words)
    assert done.code == 2, done
    assert done.err.startswith("error: ") or "\nerror: " in done.err, done
    assert "Traceback" not in done.err + done.out and "bug in diptych" not in done.err, done
    assert re.search(pattern, done.err, re.DOTALL | re.IGNORECASE), done.err
    assert done.err.strip().count("\n") <= 6, done.err
    assert everything(tmp_path) == before, "something was left behind"


def other_or(load: Callable[..., object], name: str, device: str | None) -> object:
    """A model called "other", which has other weights than the fake one."""
    if name != "other":
        return load(name, device)
    clip = colour_clip("other")
    clip.image.scale.data += 1  # type: ignore[operator]
    return clip


def test_there_are_fifty():
    assert len(CASES) >= 50 and len({name for name, _, _ in CASES}) == len(CASES)


# -- what the machine refuses ----------------------------------------------------------------------------------------


def test_unreadable_folder(diptych: Run, photos: Path, monkeypatch: pytest.MonkeyPatch):
    real = os.scandir

    def scandir(path="."):  # chmod stops everybody but root, whom the tests may run as
        if str(path).endswith("green"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    done = diptych("compare", photos)
    assert done.code == 2 and "green" in done.err and "permission" in done.err.lower(), done


def test_no_write_permission(diptych: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import tempfile

    real = tempfile.mkstemp

    def mkstemp(*args, **options):
        if "run.json" in str(options.get("prefix")):
            raise PermissionError(13, "Permission denied")
        return real(*args, **options)

    monkeypatch.setattr(tempfile, "mkstemp", mkstemp)
    done = diptych("compare", photos, *QUICK, "--out", "out")
    assert done.code == 2 and "cannot write" in done.err and "Permission denied" in done.err, done


@pytest.mark.parametrize("full_at", ["run.json", "zero_shot-1-0", "winner", "report.html"])
def test_full_disk(diptych: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_at: str):
    """Wherever the disk is full: a message, no half file; and with room again the same command ends well."""
    real = os.replace

    def replace(source, target, **options):
        if full_at in Path(target).name:
            raise OSError(28, "No space left on device", str(target))
        return real(source, target, **options)

    words = ("compare", photos, *QUICK, "--out", "out")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        done = diptych(*words)
    assert done.code == 2 and "No space left" in done.err.replace("\n", " "), done
    assert not list((tmp_path / "out").rglob(".*")), "a temporary file was left behind"
    assert diptych(*words).code == 0
    assert (tmp_path / "out" / "report.html").is_file()


@pytest.mark.parametrize("room", [200, 60_000])
def test_real_full_disk(photos: Path, tmp_path: Path, room: int):
    """A limit on the size of files stands for a full disk: every write beyond it fails, those of libraries too."""
    resource = pytest.importorskip("resource")
    program = f"""
import resource, signal, sys
import diptych.core.load
from diptych.cli.main import main
from fakes import colour_clip
diptych.core.load.load = lambda name, device: colour_clip()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {resource.RLIM_INFINITY}))
sys.exit(main(sys.argv[1:]))"""
    words = ["compare", str(photos), *QUICK, "--out", "out"]
    paths = {"DIPTYCH_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        cwd=tmp_path,
        env={**os.environ, **paths, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done
    assert "Traceback" not in done.stderr and "bug in diptych" not in done.stderr, done.stderr
    assert "too large" in done.stderr.lower() or "full" in done.stderr.lower(), done.stderr
    assert not list((tmp_path / "out").rglob(".*"))


def test_a_closed_pipe_is_quiet(tmp_path: Path):
    command = f'"{sys.executable}" -m diptych.cli.main systems | true; exit "${{PIPESTATUS[0]}}"'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert done.stderr == "", done
    assert done.returncode in (0, 1, 141)  # 1: rich's own way to end


# -- what looks bad and must work ------------------------------------------------------------------------------------

ODD = ("🦊 fox", "a" * 200, "naïve café", "-rf", "100%", "[red]{}", "تفاحة")


def test_odd_class_names_work(diptych: Run, tmp_path: Path):
    for colour, name in zip(colour_folder(tmp_path / "colours").iterdir(), ODD, strict=False):
        colour.rename(tmp_path / "colours" / name)
    for i, name in enumerate(ODD[4:]):
        for k in range(4):
            picture(tmp_path / "colours" / name / f"{k}.png", 10 * i + k)
    done = diptych("compare", "colours", *QUICK, "--out", "out")
    assert done.code == 0, done
    results = json.loads((tmp_path / "out" / "results.json").read_text("utf-8"))
    assert [row["method"] for row in results["rows"]] == ["zero_shot"]
    assert "🦊 fox" in (tmp_path / "out" / "report.html").read_text("utf-8")
    guess = diptych("predict", "out/winner.safetensors", "colours/-rf", "--json", "--threshold", "0")
    assert guess.code == 0 and json.loads(guess.out)[0]["label"] in ODD


def test_labels_with_slashes_work(diptych: Run, tmp_path: Path):
    text = rows().replace(",red", ",birds/robin red").replace(",blue", ',"..\\blue, dark"')
    done = diptych("compare", table(tmp_path, text), *QUICK, "--out", "out")
    assert done.code == 0, done


def test_odd_paths_work(diptych: Run, photos: Path, tmp_path: Path):
    """A newline in the folder's name, a link that leads to itself, a corrupt picture: said, not fatal."""
    odd = photos.rename(tmp_path / "two\nlines [bold]")
    (odd / "red" / "again").symlink_to(odd)
    (odd / "red" / "zero.png").write_bytes(b"")
    done = diptych("compare", odd, *QUICK, "--out", "out [red]")
    assert done.code == 0, done
    assert "zero.png" in (tmp_path / "out [red]" / "report.html").read_text("utf-8")
