import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.cells import cell_len

from diptych.errors import DiptychError
from diptych.files import write_atomically
from diptych.report import Cell, Column, Gallery, Picture, Plot, Report, Table, Text, write_html
from diptych.report.html import picture_uri, render
from diptych.report.plots import Band, _apart, bars, curves, looks, matrix, scatter
from diptych.report.svg import to_svg
from diptych.report.words import clean, shorten


def test_any_family_can_report(tmp_path: Path) -> None:
    figure = matrix(np.eye(3), ["a", "b", "c"], "x", "y", "share (%)")
    report = Report(
        "Segmentation <of> streets",
        [
            Text("**good** <b>", title="First"),
            Table([Column("a"), Column("b", number=False)], [[Cell("1", 1.0), "two"]], fold="One row"),
            Plot(figure, "three classes", kind="png"),
            Gallery([Picture(None, "gone.jpg"), Picture(picture("PNG"), "mask.png", truth="road")]),
        ],
        {"versions": {"torch": "2.6"}},
    )
    text = write_html(report, tmp_path / "r.html").read_text("utf-8")
    assert "<strong>good</strong> &lt;b&gt;" in text
    assert "<summary>One row</summary>" in text
    assert text.count("data:image/png") == 2
    assert "Segmentation &lt;of&gt; streets</h1>" in text


def picture(kind: str) -> bytes:
    image, exif, buffer = Image.new("RGB", (8, 8), "red"), Image.Exif(), io.BytesIO()
    exif[0x010F] = "SecretCamera"
    image.save(buffer, kind, exif=exif, icc_profile=b"SecretProfile" * 20, comment=b"SecretComment")
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_pictures_keep_their_pixels_only(kind: str) -> None:
    import base64

    data = picture(kind)
    assert b"Secret" in data or kind == "PNG"
    bare = base64.b64decode(picture_uri(data).split(",")[1])
    assert b"Secret" not in bare
    with Image.open(io.BytesIO(bare)) as new, Image.open(io.BytesIO(data)) as old:
        assert np.array_equal(np.asarray(new.convert("RGB")), np.asarray(old.convert("RGB")))
        assert not new.getexif()
        assert "icc_profile" not in new.info


def test_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    write_atomically(path, b"old")

    def full(*paths: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(DiptychError, match=r"cannot write .*report.html: No space left on device"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiptychError, match="cannot write"):
        write_atomically(tmp_path / "file" / "report.html", b"new")


def test_plots_leave_no_trace_and_import_late() -> None:
    code = (
        "import sys, diptych.report, diptych.comparison.pages, diptych.comparison.table\n"
        "assert 'matplotlib' not in sys.modules and 'torch' not in sys.modules\n"
        "import matplotlib; before = matplotlib.rcParams.copy()\n"
        "from diptych.report.plots import bars; from diptych.report.svg import to_svg\n"
        "to_svg(bars([('a', .5)], 'x (%)'), 'alt')\n"
        "assert matplotlib.rcParams.copy() == before and 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_method_keeps_its_colour() -> None:
    names = [f"method {i}" for i in range(14)]
    look = looks(names)
    assert look == looks(names[::-1])
    assert len(set(look.values())) == 14
    curve = curves({n: [Band(0, 0.5, 0.4, 0.6)] for n in names}, ["1"], "shots", "accuracy (%)", look)
    cost = scatter({n: Band(3.0, 0.5, 0.4, 0.6) for n in names}, "time", "accuracy (%)", look, seconds=True)
    for figure in (curve, cost):
        drawn = {t.get_text(): t.get_color() for t in figure.axes[0].texts}
        assert drawn == {n: look[n].colour for n in names}
        assert figure.axes[0].get_xlabel()
        assert figure.axes[0].get_ylabel().endswith("(%)")


def test_labels_do_not_overlap() -> None:
    placed = _apart([1, 1, 2, 50, 51, 99, 99.5], 10, 100)
    assert np.diff(placed).min() >= 10 - 1e-9
    assert max(placed) <= 100


@pytest.mark.parametrize("classes", [2, 12, 25, 26, 120, 1000])
def test_matrices_of_any_size(classes: int) -> None:
    figure = matrix(np.eye(classes), ["x" * 200] * classes, "taken for", "truth", "share (%)")
    labels = [t.get_text() for t in figure.axes[0].get_xticklabels()]
    assert len(labels) <= 25
    assert all(len(label) <= 18 for label in labels)
    assert len(to_svg(figure, "alt")) < 400_000


def test_text_in_plots_is_text() -> None:
    svg = to_svg(bars([("犬 $x$ <b> 🐈", 0.5), ("plain", 1.0)], "share (%)"), "alt")
    assert "犬 $x$ &lt;b&gt; 🐈" in svg
    assert "http" not in svg
    assert "var(--c0)" in svg


@pytest.mark.parametrize("name", ["x" * 200, "犬" * 40, "🐈" * 40, "short", "a b\tc\n" * 20, "👩‍👩‍👧‍👦" * 9])
@pytest.mark.parametrize("width", [5, 18, 60])
def test_names_are_shortened_to_their_width(name: str, width: int) -> None:
    short = shorten(name, width)
    assert cell_len(short) <= width
    assert short == clean(name) or "…" in short


def test_folded_text_is_in_the_page() -> None:
    assert "<details><summary>More</summary><p>inside</p></details>" in render(
        Report("t", [Text("inside", fold="More")])
    )
