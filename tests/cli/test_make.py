"""`diptych make`: what it leaves with and without data, what it refuses, and that a stopped run goes on."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pairs_world import draw
from train_world import World, make_clip

import diptych as library
from diptych.errors import DiptychError

Run = Callable[..., Any]  # the fixture `diptych`: words -> exit code, stdout, stderr


def test_without_data_the_model_is_stretched_and_nothing_else(diptych: Run, tmp_path: Path):
    done = diptych("make", "long_clip", "--from", "micro", "--tokens", "120", "--out", "out")
    assert done.code == 0, done
    assert "tokens a text: 120 (77 before)" in done.out and "Nothing was trained" in done.out
    assert done.out.rstrip().endswith("Next: diptych compare ./photos --model out/model")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["model", "run.json"]
    made, micro = library.load("out/model", "cpu"), library.load("micro", "cpu")
    assert made.text.context_length == 120
    for name, tensor in made.state_dict().items():
        if name != "towers.text.positional_embedding":
            assert torch.equal(tensor, micro.state_dict()[name]), f"{name} is another"
    assert (
        "tokens a text: 120" in diptych("make", "long_clip", "--from", "micro", "--tokens", "120", "--out", "out").out
    )
    other = diptych("make", "long_clip", "--from", "micro", "--tokens", "130", "--out", "out")
    assert other.code == 2 and "holds another run" in other.err
    again = diptych("make", "long_clip", "--from", "out/model", "--set", "long_clip.tokens=200", "--out", "longer")
    assert "tokens a text: 200 (120 before)" in again.out


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("--keep is nothing that long_clip has", ["--from", "micro", "--keep", "0.5"]),
        ("no trained model", ["--from", "ViT-B-16"]),
        ("20 positions are fewer than the 77", ["--from", "micro", "--tokens", "20"]),
        ("steps: of no effect without data", ["--from", "micro", "--steps", "20"]),
        ("no table of learned positions", ["--from", "mini"]),
        ("--set clip.max_scale has no effect", ["--from", "micro", "--set", "clip.max_scale=3"]),
        ('no setting "token".*did you mean "tokens"', ["--from", "micro", "--set", "long_clip.token=3"]),
        ("required: --from", []),
    ],
)
def test_what_cannot_be_is_said_and_leaves_nothing(diptych: Run, tmp_path: Path, said: str, words: list[str]):
    import re

    done = diptych("make", "long_clip", *words)
    assert done.code == 2 and re.search(said, done.err), done
    assert not list(tmp_path.iterdir())


def test_an_unknown_system_and_one_that_needs_data(diptych: Run, monkeypatch: pytest.MonkeyPatch):
    from diptych.methods.distill.long_clip import LongClip

    done = diptych("make", "long", "--from", "micro")
    assert done.code == 2 and 'did you mean "long_clip"' in done.err
    monkeypatch.setattr(LongClip, "untrained", "")
    done = diptych("make", "long_clip", "--from", "micro")
    assert done.code == 2 and "long_clip needs --data, pairs with long captions" in done.err


PLAIN: dict[str, Any] = {
    "tokens": 44, "steps": 6, "batch": 12, "rate": 1e-3, "workers": 0, "save_every": 2, "device": "cpu",
    "settings": {"long_clip.first": 4},
}  # fmt: skip


def test_with_data_it_trains_and_goes_on_after_a_stop(tmp_path: Path):
    pairs = World(24, texts=lambda scene: (f"a drawing. {scene.caption()}" * 3,))
    whole = library.make("long_clip", make_clip(), pairs, out=tmp_path / "whole", **PLAIN)

    def stop(row: dict[str, float], plan: Any) -> None:
        if row["step"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        library.make("long_clip", make_clip(), pairs, out=tmp_path / "stopped", progress=stop, **PLAIN)
    taken = library.make("long_clip", make_clip(), pairs, out=tmp_path / "stopped", **PLAIN)
    losses = [row["loss"] for row in whole.rows]
    assert [row["loss"] for row in taken.rows] == pytest.approx(losses, rel=1e-7) and len(losses) == 6
    for name, tensor in whole.clip.state_dict().items():
        assert torch.equal(tensor, taken.clip.state_dict()[name]), name
    report = (tmp_path / "whole" / "report.html").read_text()
    assert "tokens a text" in report and "20 before" in report
    judged = [what for what, _, _ in whole.facts if what.endswith("R@1")]
    assert len(judged) == 4 and "text to image, first sentences, R@1" in judged, "on pairs that were held out"
    config = json.loads((tmp_path / "whole" / "model" / "open_clip_config.json").read_text())
    assert config["model_cfg"]["text_cfg"]["context_length"] == 44
    with pytest.raises(DiptychError, match="another run"):
        library.make("long_clip", make_clip(seed=1), pairs, out=tmp_path / "whole", **PLAIN)


def test_texts_that_are_cut_are_named_once_and_counted(tmp_path: Path):
    """In a training: one warning with an example, and the number in what is said at the end."""
    pairs = World(24, texts=lambda scene: (f"{scene.caption()} and nothing else is in this picture " * 3,))
    options = PLAIN | {"settings": {}, "tokens": None}
    with pytest.warns(UserWarning, match=r"of which tiny reads 20 \(and 11 more of 12 texts\)") as caught:
        made = library.train("clip", pairs, model=make_clip(), out=tmp_path / "run", **without(options, "tokens"))
    assert len([one for one in caught if "of which" in str(one.message)]) == 1
    assert ("texts that were cut", "72", "of 72 that this process read") in made.facts


def without(options: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key != name}


def test_the_command_line_names_the_text_on_stderr(diptych: Run, tmp_path: Path):
    (tmp_path / "pairs").mkdir()
    for number in range(4):
        (tmp_path / "pairs" / f"{number}.png").write_bytes(draw(number, 64))
        (tmp_path / "pairs" / f"{number}.txt").write_text(f"picture {number}: " + "a red circle, " * 60)
    words = ("--data", "pairs", "--model", "micro", "--steps", "2", "--batch", "4", "--device", "cpu", "--workers", "0")
    done = diptych("train", "clip", *words)
    assert done.code == 0, done
    warned = [line for line in done.err.splitlines() if line.startswith("warning: ")]
    assert len(warned) == 1 and "a red circle, a red" in warned[0], done.err
    assert "of which micro reads 77" in warned[0] and "`diptych make long_clip --from micro --tokens N`" in warned[0]
    assert "texts that were cut: 8 (of 8 that this process read)" in done.out
