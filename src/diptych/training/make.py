"""`diptych.make`: another CLIP out of one, by surgery and, where there is data, a training after it."""

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from diptych.core.clip import CLIP
from diptych.core.load import EMBEDDED, load
from diptych.errors import DiptychError, nearest
from diptych.methods.discover import find, systems
from diptych.methods.pretrain.parts.objective import PairLike, PairsLike
from diptych.methods.settings import changed
from diptych.training.folder import TrainingFolder
from diptych.training.outcome import Trained, write_model
from diptych.training.run import train

NEED_DATA = ("steps", "epochs", "batch", "rate", "evaluate", "check")


class NoPairs:
    """What `Objective.prepare` is given where there is no data."""

    source = "no data"

    def __len__(self) -> int:
        return 0

    def __getitem__(self, index: int, /) -> PairLike:
        raise IndexError(index)


def make(
    system: str,
    model: str | CLIP,
    data: str | Path | PairsLike | None = None,
    *,
    tokens: int | None = None,
    keep: float | str | None = None,
    settings: dict[str, Any] | None = None,
    out: str | Path = "run",
    seed: int = 0,
    **training: Any,
) -> Trained:
    """Make another CLIP out of one with a system of the `distill` family; the one given is changed.

    model: what `diptych.load` opens. tokens, keep: the settings "<system>.tokens" and "<system>.keep". data and
    training: as those of `diptych.train`, which does the rest and continues a run that was stopped. Without data the
    system's surgery is done and nothing trained, where that is of use. Raises DiptychError.
    """
    if system not in systems("distill"):
        raise DiptychError(f'no system "{system}"{nearest(system, systems("distill"))}')
    declared = find("distill", system)
    settings = dict(settings or {})
    known = [field.name for field in fields(declared.Config)]
    for name, value in (("tokens", tokens), ("keep", keep)):
        if value is None:
            continue
        if name not in known:
            raise DiptychError(f"--{name} is nothing that {system} has; its settings: {', '.join(known)}")
        settings[f"{system}.{name}"] = value
    clip = model if isinstance(model, CLIP) else open_trained(model)
    if data is not None:
        return train(system, data, model=clip, settings=settings, out=out, seed=seed, **training)
    if not declared.untrained:
        raise DiptychError(f"{system} needs --data, {declared.needs}: without, there is nothing that it can make")
    if unused := [name for name in NEED_DATA if training.get(name)]:
        raise DiptychError(f"{', '.join(unused)}: of no effect without data to train on")
    own = {key.removeprefix(f"{system}."): value for key, value in settings.items()}
    objective = declared(changed(declared.Config(), own, system))
    identity = {"system": system, "config": asdict(objective.config), "model": clip.fingerprint, "data": None}
    folder = TrainingFolder(Path(out), identity)
    folder.refuse_others()
    objective.prepare(clip, NoPairs(), seed)
    folder.open()
    return write_model(objective, clip, folder.path, [])


def open_trained(model: str) -> CLIP:
    """What `load` opens, on the CPU. Raises DiptychError for an architecture alone, which knows nothing."""
    path = Path(model).expanduser()
    if path.suffix == ".json" or not (path.exists() or ":" in model or model in EMBEDDED):
        raise DiptychError(f'"{model}" is no trained model: give NAME:TAG, NAME:FILE, a folder, or "micro"')
    return load(model, device="cpu")
