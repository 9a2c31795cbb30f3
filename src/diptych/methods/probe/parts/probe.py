"""The protocol of the `probe` family: models and data in, figures and a report out. Nothing is fitted to be kept.

A system measures (`measure`: figures that JSON can hold) and draws what it measured (`report`), apart, so that a page
can be drawn again without measuring. Long work goes through `Pieces`: what is finished is never done again.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from diptych.core.classifier import Classifier
from diptych.core.clip import CLIP
from diptych.errors import DiptychError, nearest
from diptych.files import is_bare, write_atomically
from diptych.methods.settings import changed
from diptych.report import Report


@dataclass(frozen=True)
class Model:
    """What is probed: a CLIP, or a classifier on one. tags: what is known of it, such as its source or its fine-tuning,
    by which models are compared; a model tagged baseline=yes is one of those that a line is fitted to."""

    name: str
    base: CLIP
    classifier: Classifier | None = None
    tags: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def clip(self) -> CLIP:
        """With the classifier's edits, where there are some."""
        return self.base if self.classifier is None else self.classifier.clip(self.base)


@dataclass(frozen=True)
class Role:
    """A set of data that a probe may be given. kind: "classes" (labelled pictures), "pictures" (any pictures), "pairs"
    (pictures with texts). many: it may be several, by name."""

    kind: Literal["classes", "pictures", "pairs"]
    about: str
    needed: bool = False
    many: bool = False


class Pieces:
    """Finished figures by name: in memory, and in a folder where there is one, a JSON each, for the same identity.

    tell: called with the name of each piece that is begun.
    """

    def __init__(
        self,
        folder: Path | None = None,
        identity: Mapping[str, Any] | None = None,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self.folder, self.tell = folder, tell
        self.memory: dict[str, Any] = {}
        if folder is None:
            return
        about = folder / "run.json"
        wanted: dict[str, Any] = json.loads(json.dumps(dict(identity or {})))
        if about.exists():
            try:
                found = json.loads(about.read_text())
            except ValueError as error:
                raise DiptychError(f"{about} is damaged; remove the folder or choose another --out") from error
            if differ := [name for name in {**wanted, **found} if wanted.get(name) != found.get(name)]:
                raise DiptychError(f"{folder} holds another probe ({', '.join(differ)} differ); choose another --out")
        elif folder.exists() and not (folder.is_dir() and is_bare(folder)):
            raise DiptychError(f"{folder} exists and is not a probe's; choose another --out")
        else:
            write_atomically(about, json.dumps(wanted, indent=1).encode())

    def __call__(self, name: str, work: Callable[[], Any]) -> Any:
        """What `work` gives, or gave when it was asked for before: plain values, lists and mappings."""
        if name in self.memory:
            return self.memory[name]
        path = None if self.folder is None else self.folder / "pieces" / f"{name.replace('/', '_')}.json"
        if path is not None and path.exists():
            self.memory[name] = json.loads(path.read_text())
            return self.memory[name]
        if self.tell:
            self.tell(name)
        self.memory[name] = json.loads(json.dumps(work()))
        if path is not None:
            write_atomically(path, json.dumps(self.memory[name]).encode())
        return self.memory[name]


class Probe:
    """One system. A subclass in `methods/probe/<system>.py`, named by its file, with a frozen Config.

    roles: the data that it may be given, by name; one without "data" asks for none. takes: the fewest and the most
    models. needs: in words, for tables.
    """

    Config: ClassVar[type]
    roles: ClassVar[Mapping[str, Role]] = {"data": Role("classes", "labelled pictures", needed=True)}
    takes: ClassVar[tuple[int, int | None]] = (1, None)
    needs: ClassVar[str] = "labelled pictures"

    def __init__(self, config: Any = None) -> None:
        self.config = self.Config() if config is None else config

    @classmethod
    def system(cls) -> str:
        """Its name: that of its file."""
        return cls.__module__.rpartition(".")[2]

    @classmethod
    def requirements(cls) -> dict[str, Any]:
        """What the tables of systems show."""
        return {"needs": cls.needs, "trains": "nothing", "cost": "features", "names_new_classes": True}

    @classmethod
    def check(cls, models: Sequence[Any], roles: Mapping[str, Any]) -> None:
        """Raises DiptychError for too few or too many models, and for data that it knows nothing of or lacks."""
        least, most = cls.takes
        if len(models) < least or (most is not None and len(models) > most):
            asked = f"{least}" if least == most else f"{least} or more" if most is None else f"{least} to {most}"
            plural = "" if asked == "1" else "s"
            raise DiptychError(f"{cls.system()} takes {asked} model{plural}, not {len(models)}")
        for role in roles:
            if role not in cls.roles:
                raise DiptychError(f'{cls.system()} has no data called "{role}"{nearest(role, cls.roles)}')
            if isinstance(roles[role], Mapping) and not cls.roles[role].many:
                raise DiptychError(f"{cls.system()} takes one set as {role}, and no name for it")
        for name, role in cls.roles.items():
            if role.needed and name not in roles:
                raise DiptychError(f"{cls.system()} needs {name}: {role.about}")

    def measure(self, models: Sequence[Model], datasets: Mapping[str, Any], pieces: Pieces) -> dict[str, Any]:
        """Figures that JSON can hold. datasets: by role, `Data`, `Pictures` or `Pairs` as the role's kind says; a
        mapping of them by name where the role takes many."""
        raise NotImplementedError

    def report(self, figures: Mapping[str, Any]) -> Report:
        """The figures as tables and plots."""
        raise NotImplementedError

    def run(self, models: Sequence[Model], datasets: Mapping[str, Any], pieces: Pieces | None = None) -> Report:
        """Measure and draw."""
        self.check(models, datasets)
        return self.report(self.measure(models, datasets, pieces or Pieces()))


def configure(probe: type[Probe], settings: Mapping[str, str]) -> Probe:
    """`--set <system>.<field>=value` -> a probe; several values where the field holds several.

    Raises DiptychError naming the field, its type, and the nearest valid one.
    """
    return probe(changed(probe.Config(), settings, probe.system()))
