"""What every probe must do: declare its data and its needs, change no weight, draw what it measured, and refuse."""

import json
from dataclasses import replace
from typing import Any

import pytest
from fakes import colour_clip, colour_folder
from tiny import snapshot, unchanged

from diptych.errors import DiptychError
from diptych.methods.discover import describe_one, find, systems
from diptych.methods.probe.parts.data import open_data, open_like, open_pictures
from diptych.methods.probe.parts.probe import Model, Pieces, Probe, configure
from diptych.report import Report
from diptych.report.html import render

QUICK = {  # settings by name of the field: whichever a probe has make it quick
    "changes": "fog", "severities": "3", "pictures": "20", "alphas": "0,0.5,1", "points": "8", "batch": "8",
    "iterations": "2", "layer_points": "8", "sparsities": "0.5", "rhos": "0.1", "draws": "2",
}  # fmt: skip


@pytest.mark.parametrize("name", systems("probe"))
def test_a_probe_keeps_the_contract(name: str, tmp_path) -> None:
    kind = find("probe", name)
    assert issubclass(kind, Probe) and kind.system() == name and describe_one("probe", name).needs
    assert all(role.kind in ("classes", "pictures", "pairs") and role.about for role in kind.roles.values())
    known = vars(kind.Config())
    made = configure(kind, {field: word for field, word in QUICK.items() if field in known})

    data = open_data(colour_folder(tmp_path / "photos", each=16))
    datasets: dict[str, Any] = {"data": data}
    if "ood" in kind.roles:
        other = colour_folder(tmp_path / "other", each=6, noise=140)
        datasets["ood"] = open_like(other, data) if kind.roles["ood"].kind == "classes" else open_pictures(other)
    first, second = colour_clip(), colour_clip("other")
    second.image.scale.data[:6] *= 1.5  # pyright: ignore[reportIndexIssue, reportCallIssue, reportArgumentType]
    least = kind.takes[0]
    models = [Model("first", first), Model("second", second)][: max(least, 1)]
    before = [snapshot(m.clip) for m in models]
    pieces = Pieces(tmp_path / "run", {"of": name})
    figures = made.measure(models, datasets, pieces)
    assert all(unchanged(m.clip, b) for m, b in zip(models, before, strict=True)), "a weight was changed"
    json.dumps(figures)
    report = made.report(figures)
    assert isinstance(report, Report) and report.sections
    assert len(render(report)) > 1000
    again = made.measure(models, datasets, Pieces(tmp_path / "run", {"of": name}))
    assert json.dumps(again) == json.dumps(figures), "the same again, from its pieces"

    with pytest.raises(DiptychError, match="needs data"):
        kind.check(models, {})
    with pytest.raises(DiptychError, match="no data called"):
        kind.check(models, {"data": data, "nonsense": data})
    with pytest.raises(DiptychError, match="no setting"):
        configure(kind, {"nonsense": "1"})
    with pytest.raises(DiptychError, match="not 0"):
        kind.check([], {"data": data})
    assert replace(data) == data
