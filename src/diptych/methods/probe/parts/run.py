"""`diptych probe`: from what a user names to figures, a page and a JSON in one folder, continued where it was."""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diptych.core.classifier import Classifier
from diptych.core.clip import CLIP
from diptych.data.pairs import Pairs, read_pairs
from diptych.engine.provenance import provenance
from diptych.errors import DiptychError, nearest
from diptych.files import write_atomically
from diptych.methods.discover import find
from diptych.methods.probe.parts.data import Data, open_data, open_like, open_pictures
from diptych.methods.probe.parts.probe import Model, Pieces, Probe, configure
from diptych.report import Report, write_html

if TYPE_CHECKING:
    from diptych.methods.probe.parts.data import Pictures

Source = Any  # a path, Records, Scenes, or what they become


@dataclass(frozen=True)
class Probed:
    """folder: report.html, results.json and the pieces; figures: what results.json holds."""

    folder: Path | None
    figures: Mapping[str, Any]
    report: Report


def probe(
    system: str,
    models: Sequence[str | Path | CLIP | Classifier | Model],
    data: Source,
    *,
    others: Mapping[str, Source] | None = None,
    names: str | Path | None = None,
    templates: str | Path | Sequence[str] | None = None,
    factors: Sequence[str] = (),
    image: str | None = None,
    label: str | None = None,
    split: str | None = None,
    tags: str | Path | None = None,
    settings: Mapping[str, str] | None = None,
    device: str | None = None,
    out: str | Path | None = None,
    keep: bool = True,
    progress: Callable[[str], None] | None = None,
) -> Probed:
    """What a probe says of models on pictures.

    models: as `diptych.load` takes them, classifiers that `compare` saved, or objects. others: further data by role
    ("ood", "shifted", "conflict", "captions"; see the system), several of a role as {name: data} where the system takes
    many. factors: columns of the table. tags: a table with a
    column "model" and one for each property. settings: {"robustness.bins": "10"}. out: the folder, by default one below
    diptych-runs; keep=False writes none. progress: told what is being measured.
    Raises DiptychError for what the system cannot take.
    """
    kind: type[Probe] = find("probe", system)
    given = {"data": data, **(others or {})}
    kind.check(models, given)
    made = configure(kind, own_settings(system, settings or {}))
    opened = open_models(models, device, read_tags(tags) if tags else {})
    main = open_data(data, names=names, templates=templates, factors=factors, image=image, label=label, split=split)
    datasets = {
        "data": main,
        **{role: open_role(made, role, one, main) for role, one in given.items() if role != "data"},
    }
    identity = {
        "format": 1,
        "system": system,
        "config": {name: list(v) if isinstance(v, tuple) else v for name, v in vars(made.config).items()},
        "models": {m.name: [m.clip.fingerprint, classifier_hash(m.classifier), dict(m.tags)] for m in opened},
        "data": main.hash,
        "others": {role: hash_of_role(one) for role, one in datasets.items() if role != "data"},
    }
    folder = None
    if keep:
        folder = Path(out) if out is not None else default_folder(system, main, identity)
    figures = dict(made.measure(opened, datasets, Pieces(folder, identity, progress)))
    figures["provenance"] = provenance()
    report = made.report(figures)
    if folder is not None:
        write_atomically(folder / "results.json", (json.dumps(plain(figures), indent=1) + "\n").encode())
        write_html(report, folder / "report.html")
    return Probed(folder, figures, report)


def own_settings(system: str, settings: Mapping[str, str]) -> dict[str, str]:
    for name in settings:
        if name.partition(".")[0] != system:
            raise DiptychError(f"--set {name}: this is a probe of {system}; its settings are {system}.FIELD")
    return {name.partition(".")[2]: value for name, value in settings.items()}


def default_folder(system: str, main: Data, identity: Mapping[str, Any]) -> Path:
    import hashlib

    source = Path(main.records.source).name.replace(" ", "-").strip("()") or "data"
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:8]
    return Path("diptych-runs") / f"{system}-{source}-{digest}"


# -- models ------------------------------------------------------------------------------------------------------------


def open_models(
    models: Sequence[str | Path | CLIP | Classifier | Model], device: str | None, tags: Mapping[str, dict[str, str]]
) -> list[Model]:
    """Models with different names, and with the tags that are known of them."""
    opened: list[Model] = []
    bases: dict[str, CLIP] = {}
    for given in models:
        made = open_model(given, device, bases)
        asked = [str(given), made.name]
        own = next((tags[name] for name in asked if name in tags), {})
        count = sum(one.name.partition(" (")[0] == made.name for one in opened)
        name = f"{made.name} ({count + 1})" if count else made.name
        opened.append(replace(made, name=name, tags={**found_tags(made), **made.tags, **own}))
    if unused := [name for name in tags if name not in {*map(str, models), *(m.name for m in opened)}]:
        raise DiptychError(f'--tags names "{unused[0]}", which is no model here{nearest(unused[0], map(str, models))}')
    return opened


def open_model(given: str | Path | CLIP | Classifier | Model, device: str | None, bases: dict[str, CLIP]) -> Model:
    from diptych.core.load import load

    if isinstance(given, Model):
        return given
    if isinstance(given, CLIP):
        return Model(given.name, given)
    if isinstance(given, (str, Path)):
        path = Path(given).expanduser()
        if path.is_dir() and (path / "winner.safetensors").is_file():
            path = path / "winner.safetensors"
        if (run := training_run(path)) is not None:
            return Model(run.name, load(str(run / "model"), device), tags=tags_of_run(run))
        if not (path.is_file() and path.suffix == ".safetensors"):
            clip = load(str(given), device)
            return Model(clip.name, clip)
        given, name = Classifier.load(path), path.parent.name if path.stem == "winner" else path.stem
    else:
        name = given.system
    source = given.base.source
    if source not in bases:
        bases[source] = load(source, device)
    return Model(name, given.base_clip(bases[source]), given)


def training_run(path: Path) -> Path | None:
    """The folder of a training, where the path is that or the model in it."""
    run = path.parent if path.name == "model" else path
    return run if (run / "run.json").is_file() and (run / "model").is_dir() else None


def tags_of_run(run: Path) -> dict[str, str]:
    """What `diptych train` wrote of itself: the pairs, the seed, and of which sources the pairs are."""
    try:
        about = json.loads((run / "run.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DiptychError(f"{run / 'run.json'} is damaged") from error
    names = {"pairs": "n", "seed": "seed", "sources": "source"}
    return {tag: str(about[name]) for name, tag in names.items() if name in about}


def found_tags(model: Model) -> dict[str, str]:
    """What a model says of itself."""
    count = sum(p.numel() for p in model.base.parameters())
    kind = "zero-shot" if model.classifier is None else model.classifier.system
    return {"architecture": model.base.image.kind, "parameters": f"{count:.1e}", "fine-tuning": kind}


def read_tags(path: str | Path) -> dict[str, dict[str, str]]:
    """Model -> {tag: word}, from a CSV with a column "model"."""
    path = Path(path).expanduser()
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DiptychError(f"--tags {path} cannot be read: {error}") from error
    if not rows or "model" not in rows[0]:
        raise DiptychError(f'--tags {path} has no column "model" beside those of the tags')
    return {
        row["model"]: {k: v.strip() for k, v in row.items() if k and k != "model" and isinstance(v, str) and v.strip()}
        for row in rows
    }


def classifier_hash(classifier: Classifier | None) -> str:
    import hashlib

    if classifier is None:
        return ""
    spec, tensors = classifier.head.pack()
    digest = hashlib.sha256(f"{spec} {classifier.classes} {classifier.temperature}".encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode() + tensor.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


# -- data --------------------------------------------------------------------------------------------------------------


def open_role(made: Probe, role: str, source: Source, main: Data) -> Any:
    """`Data`, `Pictures` or `Pairs`; by name where the role takes many."""
    if isinstance(source, Mapping):
        return {name: open_role_of(made, role, one, main) for name, one in source.items()}
    if made.roles[role].many:
        return {short_name(source, role): open_role_of(made, role, source, main)}
    return open_role_of(made, role, source, main)


def short_name(source: Source, role: str) -> str:
    return Path(source).stem if isinstance(source, (str, Path)) else role


def open_role_of(made: Probe, role: str, source: Source, main: Data) -> "Data | Pictures | Pairs":
    match made.roles[role].kind:
        case "classes":
            return open_like(source, main, texture=role == "conflict")
        case "pictures":
            return open_pictures(source)
    return source if isinstance(source, Pairs) else read_pairs(source)


def hash_of_role(given: "Mapping[str, Data] | Data | Pictures | Pairs") -> Any:
    import hashlib

    if isinstance(given, Mapping):
        return {name: hash_of_role(one) for name, one in given.items()}
    if isinstance(given, Data):
        return given.hash
    if isinstance(given, Pairs):
        return f"{given.source} {given.count} {given.digest}"
    return hashlib.sha256("".join(sorted(given.digests.values())).encode()).hexdigest()


def plain(value: Any) -> Any:
    """Without NaN, which JSON has none of."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return None if isinstance(value, float) and value != value else value
