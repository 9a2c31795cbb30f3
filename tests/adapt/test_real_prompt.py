"""REAL-Prompt: which name is taken, what a model makes of it, and when it does not fit."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fakes import colour_clip
from tiny import MadeUp, support_of

from diptych.core.clip import CLIP
from diptych.data.concepts import Counted, common_name, common_names, read_concepts, tail, written
from diptych.data.support import Support
from diptych.errors import DiptychError, Unsupported
from diptych.methods.adapt.parts.adapter import configure, select
from diptych.methods.adapt.real_linear import REALLinear
from diptych.methods.adapt.real_prompt import REALPrompt
from diptych.methods.adapt.zero_shot import ZeroShot


@pytest.mark.parametrize(
    ("counts", "relaxed", "strict"),
    [
        ({"cash machine": 3, "atm": 90, "cashpoint": 7}, "atm", "atm"),
        ({"honda accord": 5, "honda": 900, "accord sedan": 60}, "accord sedan", "honda"),
        ({"honda accord": 5, "honda": 900, "accord honda": 60}, "accord honda", "honda"),  # the same words are allowed
        ({"atm": 90, "cash machine": 3}, "atm", "atm"),
        ({"sofa": 5, "couch": 5}, "sofa", "sofa"),  # no more frequent, no change
        ({"t-shirt": 5, "T shirt": 9}, "T shirt", "T shirt"),
    ],
)
def test_which_name_is_taken(counts: dict[str, int], relaxed: str, strict: str) -> None:
    own = next(iter(counts))
    assert common_name(own, counts) == relaxed
    assert common_name(own, counts, strict=True) == strict


def test_two_classes_never_get_one_name() -> None:
    concepts = {
        "wading crane": Counted({"wading crane": 1, "crane": 50, "heron": 20}, 60),
        "tower crane": Counted({"tower crane": 2, "Crane": 50}, 51),
        "sofa": Counted({"sofa": 1, "couch": 9}, 9),
    }
    found = common_names(["wading crane", "tower crane", "sofa", "other"], concepts, strict=True)
    assert found == {"wading crane": "wading crane", "tower crane": "tower crane", "sofa": "couch", "other": "other"}
    # a class that is called what another one is renamed to
    pumas = {"cougar": Counted({"cougar": 1, "puma": 9}, 9), "puma": Counted({"puma": 9}, 9)}
    assert common_names(["cougar", "puma"], pumas) == {"cougar": "cougar", "puma": "puma"}


def test_the_tail_is_a_fifth_and_not_one_more() -> None:
    assert tail([5, 1, 4, 3, 2, 9, 8, 7, 6, 10]) == [1, 4]
    assert tail([3.0, 1.0, 2.0, 4.0]) == []


def write(path: Path, concepts: dict[str, Counted]) -> Path:
    path.write_bytes(written(concepts, 1000))
    return path


@pytest.fixture
def nonsense(tmp_path: Path) -> Path:
    """What captions call the four colours; the classes have names that say nothing to the model."""
    counts = {"blicket": {"blicket": 2, "red": 90}, "dax": {"dax": 1, "green": 80}, "wug": {"wug": 4, "blue": 70}}
    concepts = {name: Counted(said, sum(said.values())) for name, said in counts.items()}
    return write(tmp_path / "concepts.json", concepts | {"yellow": Counted({"yellow": 50, "zup": 3}, 53)})


def test_it_reads_pictures_by_the_names_that_captions_use(nonsense: Path) -> None:
    clip, names, colours = colour_clip(), ("blicket", "dax", "wug", "yellow"), ("red", "green", "blue", "yellow")
    torch.manual_seed(0)
    labels = [i % 4 for i in range(80)]
    pictures = clip.encode_text([colours[c] for c in labels])
    source = MadeUp(pictures + 0.3 * torch.randn(pictures.shape))
    shots, truth = support_of(source, labels, names), torch.tensor(labels)

    def right(adapter: REALPrompt | ZeroShot) -> torch.Tensor:
        return adapter.fit(clip, shots).logits(source.features).argmax(1) == truth

    system = configure(REALPrompt, {"concepts": str(nonsense)})
    before, after = right(ZeroShot()).float(), right(system).float()  # pyright: ignore[reportArgumentType]
    assert before[truth != 3].mean() < 0.6 and after[truth != 3].mean() > 0.9
    assert after[truth == 3].mean() >= before[truth == 3].mean()
    # the rows are those of zero-shot under the other names, exactly; a class that keeps its name keeps its row
    rows = select(system, clip, shots).classifier.head.rows  # type: ignore[attr-defined]
    others = ZeroShot().fit(clip, replace(shots, names=colours)).head.rows  # type: ignore[attr-defined]
    assert torch.equal(rows, others)
    fitted = select(system, clip, shots).classifier
    later = fitted.with_names(clip, ["Blicket", "yellow"])  # named later, by a name of the file in another case
    assert torch.equal(later.head.rows, others[[0, 3]])  # type: ignore[attr-defined]


def test_where_it_does_not_fit(nonsense: Path, clip: CLIP, support: Support, tmp_path: Path) -> None:
    assert "diptych curate real" in str(REALPrompt().refusal(clip))
    given = configure(REALPrompt, {"concepts": str(nonsense)})
    assert given.refusal(clip) is None
    assert "none of these classes (apple, banana" in str(given.refusal(clip, support))
    with pytest.raises(Unsupported, match="none of these classes"):
        given.fit(clip, support)
    with pytest.raises(DiptychError, match='did you mean "strict"'):
        configure(REALPrompt, {"concepts": str(nonsense), "rule": "strickt"}).fit(
            clip, replace(support, names=("blicket", "dax", "wug", "yellow"))
        )


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"format": 1}', '{"format": 1, "classes": {"a": {"counts": {}}}}', "[" * 9]
)
def test_damaged_files_are_refused_in_words(text: str, tmp_path: Path) -> None:
    path = tmp_path / "concepts.json"
    path.write_text(text)
    with pytest.raises(DiptychError, match=r"concepts\.json"):
        read_concepts(path)
    with pytest.raises(DiptychError, match="cannot read the concepts"):
        read_concepts(tmp_path / "none.json")


def test_what_is_written_is_read(tmp_path: Path) -> None:
    concepts = {"été": Counted({"été": 3, "summer": 5}, 7, 0.5, 4)}
    path = write(tmp_path / "concepts.json", concepts)
    assert read_concepts(path) == concepts
    assert json.loads(path.read_text("utf-8"))["classes"]["été"]["frequency"] == 3.5
    assert REALLinear.needs == REALPrompt.needs
