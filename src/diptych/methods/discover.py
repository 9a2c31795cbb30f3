"""Finding systems: a file in a family's folder is a system, its name is the system's name."""

import importlib
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from diptych.errors import DiptychError, nearest

if TYPE_CHECKING:
    from diptych.methods.adapt.parts.adapter import Adapter
    from diptych.methods.dense.parts.segmenter import Segmenter
    from diptych.methods.pretrain.parts.objective import Objective

FAMILIES = Path(__file__).parent
PROTOCOLS = {  # family -> the module below methods/ and the class in it
    "adapt": ("adapt.parts.adapter", "Adapter"),
    "pretrain": ("pretrain.parts.objective", "Objective"),
    "distill": ("pretrain.parts.objective", "Objective"),
    "continual": ("continual.parts.learner", "Learner"),
    "explain": ("explain.parts.explainer", "Explainer"),
    "dense": ("dense.parts.segmenter", "Segmenter"),
    "video": ("adapt.parts.adapter", "Adapter"),
    "probe": ("probe.parts.probe", "Probe"),
    "curate": ("curate.parts.pipeline", "Pipeline"),
}


def systems(family: str) -> list[str]:
    """Names of a family's systems, sorted; imports nothing."""
    return sorted(p.stem for p in (FAMILIES / family).glob("*.py") if not p.stem.startswith("_"))


@overload
def find(family: Literal["adapt"], name: str) -> "type[Adapter]": ...
@overload
def find(family: Literal["pretrain", "distill"], name: str) -> "type[Objective]": ...
@overload
def find(family: Literal["dense"], name: str) -> "type[Segmenter]": ...
@overload
def find(family: str, name: str) -> Any: ...
@cache
def find(family: str, name: str) -> Any:
    """The class that a system's file declares. Raises DiptychError with the nearest name for an unknown one."""
    if name not in systems(family):
        raise DiptychError(f'no system "{name}"{nearest(name, systems(family))}')
    file, protocol = PROTOCOLS[family]
    base = getattr(importlib.import_module(f"diptych.methods.{file}"), protocol)
    module = importlib.import_module(f"diptych.methods.{family}.{name}")
    declared = [
        v
        for v in vars(module).values()
        if isinstance(v, type) and issubclass(v, base) and v.__module__ == module.__name__
    ]
    if len(declared) != 1:
        raise DiptychError(f"{module.__file__} must declare exactly one {protocol}, it declares {len(declared)}")
    return declared[0]


@dataclass(frozen=True)
class System:
    """What a system's file declares, for tables and docs."""

    name: str
    family: str
    summary: str  # the docstring's first line
    needs: str
    trains: str
    cost: str
    names_new_classes: bool
    settings: dict[str, Any]  # field -> published default; a tuple is a grid
    per_process: str = ""  # why several processes are not as one; empty where they are


def describe(family: str = "adapt") -> list[System]:
    """Every system of a family, from its file's own declarations."""
    return [describe_one(family, name) for name in systems(family)]


def describe_one(family: str, name: str) -> System:
    declared = find(family, name)
    about = importlib.import_module(declared.__module__).__doc__ or ""
    return System(
        name=name,
        family=family,
        summary=about.strip().partition("\n")[0],
        settings=asdict(declared.Config()),
        **declared.requirements(),
    )
