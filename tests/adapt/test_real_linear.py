"""REAL-Linear: its loss and steps against plain loops, its effect on rare classes, copies left out, what it reads."""

import inspect
import io
import json
import math
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import adapt.test_contract as contract
import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from adapt_world import NAMES, drawing
from torch import Tensor
from torch.nn import functional as F

from diptych.core.classifier import Classifier
from diptych.core.clip import CLIP
from diptych.curation.run import curate
from diptych.data.concepts import Counted, written
from diptych.data.pairs import read_pairs
from diptych.data.records import Records
from diptych.data.support import Support
from diptych.engine.loop import Cosine
from diptych.errors import DiptychError, Unsupported
from diptych.methods.adapt.parts.adapter import Adapter, configure, fit_path
from diptych.methods.adapt.parts.retrieved import are_copies, read_retrieved, retrieve
from diptych.methods.adapt.real_linear import Config, REALLinear, cross_modal_loss, drawn, probe
from diptych.methods.adapt.real_prompt import REALPrompt
from diptych.methods.curate.parts.pipeline import Counts, Pipeline, Place, Stage, Verdict


def png(name: str, number: int) -> bytes:
    buffer = io.BytesIO()
    drawing(name, number).save(buffer, "PNG")
    return buffer.getvalue()


def table(path: Path, counts: dict[str, int], first: int = 200) -> Path:
    """Retrieved pictures, as curation writes them."""
    rows = [(name, first + i) for name, count in counts.items() for i in range(count)]
    columns = {
        "key": [f"{name}{i}" for name, i in rows],
        "class": [name for name, _ in rows],
        "picture": pa.array([png(name, i) for name, i in rows], pa.binary()),
        "class_similarity": [0.5 for _ in rows],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table(columns), path)
    return path


@pytest.fixture(scope="session")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of curation: Parquet and concepts.json."""
    folder = tmp_path_factory.mktemp("curated")
    table(folder / "00000.parquet", dict.fromkeys(NAMES, 24))
    concepts = {name: Counted({name: 9, f"fine {name}": 20}, 29) for name in NAMES}
    (folder / "concepts.json").write_bytes(written(concepts, 100))
    return folder


# -- the algorithm -----------------------------------------------------------------------------------------------------


def test_loss_is_that_of_a_plain_loop() -> None:
    torch.manual_seed(0)
    weight, features = (
        torch.randn(5, 7, dtype=torch.float64),
        F.normalize(torch.randn(9, 7, dtype=torch.float64), dim=1),
    )
    labels = torch.tensor([0, 4, 2, 2, 1, 3, 0, 1, 4])
    total = 0.0
    for x, label in zip(features.tolist(), labels.tolist(), strict=True):
        logits = [100.0 * sum(a * b for a, b in zip(x, row, strict=True)) for row in weight.tolist()]
        total += math.log(sum(math.exp(logit - max(logits)) for logit in logits)) + max(logits) - logits[label]
    assert abs(float(cross_modal_loss(weight, features, labels)) - total / 9) < 1e-6


def test_steps_are_those_of_torch() -> None:
    """Batches by a loop of its own, AdamW by torch's class, the schedule by hand."""
    torch.manual_seed(1)
    features, texts = F.normalize(torch.randn(50, 6), dim=1), F.normalize(torch.randn(9, 6), dim=1)
    labels, own, start = torch.randint(3, (50,)), torch.arange(3).repeat_interleave(3), F.normalize(torch.randn(3, 6))
    config = Config(batch=8, epochs=40)
    steps = 50 * 40 // 8
    weight = start.clone().requires_grad_()
    optimiser = torch.optim.AdamW([weight], 1e-4, weight_decay=0.01)
    for step in range(steps):
        late = (1 + math.cos(math.pi * (step - 50) / (steps - 50))) / 2
        optimiser.param_groups[0]["lr"] = 1e-5 + 9e-5 * step / 50 if step < 50 else 1e-4 * late
        i, j = drawn(50, 8, step, (7, 0)), drawn(9, 8, step, (7, 1))
        logits = 100 * torch.cat([features[i], texts[j]]) @ weight.T
        loss = F.cross_entropy(logits, torch.cat([labels[i], own[j]]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    torch.testing.assert_close(
        probe(features, labels, texts, own, start, config, 7), weight.detach(), atol=1e-6, rtol=0
    )
    assert Cosine(warmup=50, start=1e-5).rate(1e-4, 0, steps) == 1e-5


def test_passes_hold_everything_once() -> None:
    seen = torch.cat([drawn(20, 6, step, (0,)) for step in range(3)])
    assert len(set(seen.tolist())) == 18
    assert sorted(drawn(4, 32, 5, (0,)).tolist()) == [0, 1, 2, 3]  # fewer than a batch starve nobody


def pictures(centres: Tensor, counts: Sequence[int], seed: int) -> tuple[Tensor, Tensor]:
    labels = torch.cat([torch.full((count,), c) for c, count in enumerate(counts)])
    noise = torch.randn(len(labels), 24, generator=torch.Generator().manual_seed(seed))
    return F.normalize(centres[labels] + 0.2 * noise, dim=1), labels


def test_rare_classes_gain_from_a_balanced_set_and_less_from_one_that_is_not() -> None:
    """Eight classes; of two the text tower knows little, and gives both much the same row."""
    for seed in (0,):
        generator = torch.Generator().manual_seed(seed)
        centres = F.normalize(torch.randn(8, 24, generator=generator), dim=1)
        shared = F.normalize(torch.randn(24, generator=generator), dim=0)
        rows = F.normalize(centres + 0.1 * torch.randn(8, 24, generator=generator), dim=1)
        rows[6:] = F.normalize(0.7 * shared + 0.3 * centres[6:], dim=1)
        texts, own = rows.repeat_interleave(4, 0), torch.arange(8).repeat_interleave(4)
        test, truth = pictures(centres, [200] * 8, 99 + seed)

        def accuracy(weight: Tensor, test: Tensor = test, truth: Tensor = truth) -> tuple[float, float]:
            right = ((test @ weight.T).argmax(1) == truth).float()
            return float(right[truth >= 6].mean()), float(right.mean())

        def mixed(counts: Sequence[int], centres=centres, rows=rows, texts=texts, own=own, seed=seed) -> Tensor:
            return rows.lerp(probe(*pictures(centres, counts, 50 + seed), texts, own, rows, Config(), seed), 0.5)

        before, balanced, skewed = accuracy(rows), accuracy(mixed([500] * 8)), accuracy(mixed([640] * 6 + [80] * 2))
        assert balanced[0] >= before[0] + 0.05 and balanced[1] >= before[1]
        assert balanced[0] > skewed[0] + 0.02


# -- the system --------------------------------------------------------------------------------------------------------


def test_alpha_zero_is_real_prompt_to_the_bit_and_one_is_what_was_trained(
    found: Path, clip: CLIP, support: Support
) -> None:
    adapter = configure(REALLinear, {"retrieved": str(found), "alpha": ["0", "0.5", "1"], "copies": "2"})
    heads = {config.alpha: fitted.head.rows for config, fitted in fit_path(adapter, adapter.config, clip, support)}  # type: ignore[attr-defined]
    prompt = configure(REALPrompt, {"concepts": str(found / "concepts.json")}).fit(clip, support)
    assert torch.equal(heads[0.0], prompt.head.rows)  # type: ignore[attr-defined]
    assert not torch.equal(heads[1.0], heads[0.0])
    torch.testing.assert_close(heads[0.5], (heads[0.0] + heads[1.0]) / 2)
    assert "fine apple" in prompt.recipe.texts("apple")[0]  # type: ignore[union-attr]


def test_copies_of_what_it_is_shown_are_left_out(clip: CLIP, support: Support, tmp_path: Path) -> None:
    """The shots are the drawings 0 to 2, the unlabelled ones begin at 500, those apart are 900 to 903."""
    apart = tmp_path / "test"
    apart.mkdir()
    for i in range(4):
        (apart / f"{i}.png").write_bytes(png("apple", 900 + i))
    for what, first, left in (("shots", 0, 12), ("unlabelled", 506, 24), ("apart", 900, 4), ("none", 200, 0)):
        source = table(tmp_path / f"{what}.parquet", dict.fromkeys(NAMES, 10), first)
        found = retrieve(clip, support, str(source), 500, 0.99999, str(apart))
        assert found.left_out == left and len(found.labels) == 40 - left, what
    assert retrieve(clip, support, str(source), 3, 2.0).labels.bincount().tolist() == [3] * 4  # at most so many a class
    with pytest.raises(Unsupported, match="as copies"):
        retrieve(clip, support, str(source), 500, -1.0)


def test_copies_by_a_plain_loop() -> None:
    rows, known = F.normalize(torch.randn(30, 3), dim=1), F.normalize(torch.randn(5, 3), dim=1)
    expected = [max(sum(a * b for a, b in zip(x, y, strict=True)) for y in known.tolist()) > 0.9 for x in rows.tolist()]
    assert are_copies(rows, known, 0.9).tolist() == expected
    assert not are_copies(rows, known[:0], 0.9).any()


def test_it_reads_what_curation_writes_and_folders(clip: CLIP, support: Support, tmp_path: Path) -> None:
    rows = {(name, 200 + i) for name in NAMES for i in range(3)}
    source = table(tmp_path / "table" / "part.parquet", dict.fromkeys(NAMES, 3))
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards" / "00000.tar", "w") as tar:
        for name, i in sorted(rows):
            about = json.dumps({"caption": f"one {name}", "class": name}).encode()
            for ending, data in (("png", png(name, i)), ("json", about)):
                member = tarfile.TarInfo(f"{name}{i}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    for name, i in rows:
        path = tmp_path / "folders" / name / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(name, i))
    (tmp_path / "folders" / "apple" / "broken.png").write_bytes(b"no picture")
    (tmp_path / "folders" / "another").mkdir()
    (tmp_path / "folders" / "another" / "1.png").write_bytes(png("bowl", 1))
    features = [
        retrieve(clip, support, str(path), 500, 2.0)
        for path in (source, source.parent, tmp_path / "shards", tmp_path / "folders")
    ]
    for one in features:
        assert torch.equal(one.labels, features[0].labels)
        torch.testing.assert_close(one.features, features[0].features, atol=1e-5, rtol=0)
    with pytest.raises(Unsupported, match="no picture of these classes"):
        retrieve(clip, replace(support, names=("a", "b", "c", "d")), str(source), 500, 2.0)
    parquet.write_table(pa.table({"url": ["http://x/1.jpg"], "class": ["apple"]}), tmp_path / "urls.parquet")
    with pytest.raises(DiptychError, match="download them first"):
        read_retrieved(str(tmp_path / "urls.parquet"))


def test_it_says_what_it_needs(clip: CLIP, support: Support, found: Path, tmp_path: Path) -> None:
    assert "real_linear.retrieved=FOLDER" in str(REALLinear().refusal(clip, support))
    plain = table(tmp_path / "plain" / "x.parquet", dict.fromkeys(NAMES, 3))
    fitted = configure(REALLinear, {"retrieved": str(plain), "alpha": "0", "copies": "2"}).fit(clip, support)
    from diptych.methods.adapt.zero_shot import ZeroShot

    assert torch.equal(fitted.head.rows, ZeroShot().fit(clip, support).head.rows)  # type: ignore[attr-defined]


# -- the contract of the family, with something to fit on --------------------------------------------------------------

TESTS = [
    getattr(contract, name)
    for name in dir(contract)
    if name.startswith("test_") and "adapter" in inspect.signature(getattr(contract, name)).parameters
]


@pytest.fixture(params=["real_prompt", "real_linear"])
def adapter(request: pytest.FixtureRequest, found: Path) -> Adapter:
    if request.param == "real_prompt":
        return configure(REALPrompt, {"concepts": str(found / "concepts.json")})
    return configure(REALLinear, {"retrieved": str(found), "copies": "2"})


@pytest.mark.parametrize("test", TESTS, ids=lambda test: test.__name__)
def test_contract(
    test: Callable[..., None],
    adapter: Adapter,
    clip: CLIP,
    support: Support,
    queries: Records,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values: dict[str, Any] = {"adapter": adapter, "clip": clip, "support": support, "queries": queries}
    values |= {"monkeypatch": monkeypatch, "fitted": adapter.fit(clip, support)}
    assert isinstance(values["fitted"], Classifier)
    test(**{name: values[name] for name in inspect.signature(test).parameters})


class Kept(Stage):
    name, about = "kept", "nothing"
    needs = ("text",)

    def select(self, batch: pa.RecordBatch, place: Place, counts: Counts) -> Verdict:
        return Verdict(batch, np.ones(batch.num_rows, bool), [""] * batch.num_rows)


class Everything(Pipeline):
    Config = Config

    def stages(self, columns: Sequence[str], seed: int = 0) -> Sequence[Stage]:
        return [Kept()]


@pytest.mark.parametrize("kind", ["csv", "named", "struct", "bytes", "tar"])
def test_curated_pictures_are_found_whether_they_lie_in_files_or_not(
    kind: str, tmp_path: Path, clip: CLIP, support: Support
) -> None:
    """Curated from a table of relative paths, as `compare` and `train` then read it from anywhere."""
    rows = [(name, number) for name in NAMES for number in range(200, 206)]
    (tmp_path / "in" / "deep").mkdir(parents=True)
    paths = [f"deep/{name}{number}.png" for name, number in rows]
    for (name, number), path in zip(rows, paths, strict=True):
        (tmp_path / "in" / path).write_bytes(png(name, number))
    columns: dict[str, Any] = {"class": [name for name, _ in rows], "caption": [f"a {name}" for name, _ in rows]}
    source = tmp_path / "in" / "t.parquet"
    data = [png(name, number) for name, number in rows]
    if kind == "csv":
        source = tmp_path / "in" / "t.csv"
        lines = [f"{path},{name},a {name}" for path, (name, _) in zip(paths, rows, strict=True)]
        source.write_text("\n".join(["Image_Path,class,caption", *lines]))
    elif kind == "tar":
        source = shard_of(tmp_path / "in" / "s" / "00000.tar", rows)
    else:
        half = [{"bytes": None if n % 2 else data[n], "path": path if n % 2 else None} for n, path in enumerate(paths)]
        columns["where"] = {"named": paths, "struct": half, "bytes": pa.array(data, pa.binary())}[kind]
        parquet.write_table(pa.table(columns), source)
    asked = {"image": "where"} if source.suffix == ".parquet" else {}
    curate(Everything(Config()), source, tmp_path / "out", **asked)
    found = retrieve(clip, support, str(tmp_path / "out"), 100, 2.0)
    (tmp_path / "plain").mkdir()
    whole = retrieve(clip, support, str(table(tmp_path / "plain" / "p.parquet", dict.fromkeys(NAMES, 6))), 100, 2.0)
    assert torch.equal(found.features, whole.features) and torch.equal(found.labels, whole.labels)
    pairs = read_pairs(tmp_path / "out")
    assert len(pairs) == len(rows) and not pairs.set_aside
    assert {pair.texts for pair in pairs} == {(f"a {name}",) for name in NAMES}
    assert pairs[3].picture().size == drawing("apple", 203).size


def shard_of(path: Path, rows: Sequence[tuple[str, int]]) -> Path:
    path.parent.mkdir()
    with tarfile.open(path, "w") as archive:
        for n, (name, number) in enumerate(rows):
            about = json.dumps({"class": name}).encode()
            for end, content in (("png", png(name, number)), ("txt", f"a {name}".encode()), ("json", about)):
                member = tarfile.TarInfo(f"{n:09d}.{end}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path
