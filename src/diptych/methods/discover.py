"""Finding systems: a file in a family's folder is a system, its name is the system's name."""

import importlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from diptych.errors import DiptychError, nearest

if TYPE_CHECKING:
    from diptych.methods.adapt.parts.adapter import Adapter

FAMILIES = Path(__file__).parent


def systems(family: str) -> list[str]:
    """Names of a family's systems, sorted; imports nothing."""
    return sorted(p.stem for p in (FAMILIES / family).glob("*.py") if not p.stem.startswith("_"))


@cache
def find(family: str, name: str) -> "type[Adapter]":
    """The class that a system's file declares. Raises DiptychError with the nearest name for an unknown one."""
    from diptych.methods.adapt.parts.adapter import Adapter

    if name not in systems(family):
        raise DiptychError(f'no system "{name}"{nearest(name, systems(family))}')
    module = importlib.import_module(f"diptych.methods.{family}.{name}")
    declared = [
        v
        for v in vars(module).values()
        if isinstance(v, type) and issubclass(v, Adapter) and v.__module__ == module.__name__
    ]
    if len(declared) != 1:
        raise DiptychError(f"{module.__file__} must declare exactly one Adapter, it declares {len(declared)}")
    return declared[0]
