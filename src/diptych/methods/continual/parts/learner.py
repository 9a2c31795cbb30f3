"""The protocol of the `continual` family: what a system does with one session of a stream, and what it keeps of it.

A stream is sessions in order; data of an earlier one is gone unless the system keeps some. `observe` reads as the
paper's algorithm: it hands losses (an `Objective`) and data to a `Trainer`, which runs the one training loop with a
fresh optimiser and schedule. The stream around it, and what is measured after each session, is `training/stream.py`.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from torch import Tensor

from diptych.core.clip import CLIP
from diptych.errors import DiptychError
from diptych.methods.pretrain.parts.objective import Batch, Objective, PairsLike, Recipe


@dataclass(frozen=True)
class Session:
    """One part of the stream: its name, its place (from 0) and what may be trained on."""

    name: str
    number: int
    pairs: PairsLike

    def __post_init__(self) -> None:
        if len(self.pairs) < 2:
            raise DiptychError(
                f"session {self.number + 1} ({self.name}) has {len(self.pairs)} pairs to train on; it needs two, for a "
                "pair is told from the others of its batch"
            )


@dataclass(frozen=True)
class SessionRecipe(Recipe):
    """How each session is trained, with an optimiser and a schedule of its own. See `Recipe` for the fields.

    warmup_share: of a session's steps, in place of `warmup`; epochs: times through a session's pairs. The defaults are
    those of Mod-X's published script.
    """

    batch: int = 280
    weight_decay: float = 0.1
    beta2: float = 0.999
    eps: float = 1e-8
    warmup: int = 0
    warmup_share: float = 0.2
    epochs: float = 35


class Trainer(Protocol):
    """What the stream lends to a learner for one session."""

    def train(self, clip: CLIP, objective: Objective, pairs: PairsLike, *, times: float = 1.0) -> None:
        """Train the CLIP in place, for `times` the session's own number of steps; afterwards it is frozen again."""
        ...

    def batches(self, clip: CLIP, objective: Objective, pairs: PairsLike, count: int) -> Iterator[Batch]:
        """The first batches of an epoch, as they are trained on, at most one epoch of them."""
        ...


def snapshot(clip: CLIP) -> CLIP:
    """A frozen copy in evaluation mode."""
    return deepcopy(clip).eval().requires_grad_(False)


class Learner:
    """One system. A subclass in `methods/continual/<system>.py`, named by its file, with a frozen Config.

    needs: in words, what it asks of the data; keeps: what it has between sessions beside the model.
    """

    Config: ClassVar[type]
    recipe: ClassVar[SessionRecipe] = SessionRecipe()
    needs: ClassVar[str] = "a stream of pairs"
    trains: ClassVar[tuple[str, ...]] = ("both towers", "temperature")
    keeps: ClassVar[str] = "nothing"
    cost: ClassVar[str] = "both towers"

    model: CLIP

    def __init__(self, config: Any = None) -> None:
        self.config = self.Config() if config is None else config
        self.seen: list[Session] = []

    @classmethod
    def system(cls) -> str:
        """Its name: that of its file."""
        return cls.__module__.rpartition(".")[2]

    def begin(self, clip: CLIP, *, fresh: bool = False) -> None:
        """Before the first session, and again before a resumed one. clip: its own, to be changed.

        fresh: its weights are random, so that there is nothing in it to be kept.
        """
        self.model, self.fresh, self.seen = clip, fresh, []

    def old(self) -> CLIP | None:
        """A frozen copy of the model as it is; None where it has learned nothing yet."""
        return None if self.fresh and not self.seen else snapshot(self.model)

    def observe(self, session: Session, trainer: Trainer) -> None:
        """Learn one session, and keep what is to be kept of it. The same session again, from the same state, gives the
        same result. Ends with `self.seen.append(session)`."""
        raise NotImplementedError

    def clip(self) -> CLIP:
        """The model so far."""
        return self.model

    def state(self) -> dict[str, Tensor]:
        """What it keeps between sessions beside the model's weights; sessions are named by their numbers."""
        return {}

    def load_state(self, state: dict[str, Tensor], seen: Sequence[Session]) -> None:
        """Take up what `state` gave after the sessions `seen`. The model has its weights already."""
        self.seen = list(seen)

    @classmethod
    def requirements(cls) -> dict[str, Any]:
        """What the tables of systems show."""
        return {
            "needs": cls.needs,
            "trains": ", ".join(cls.trains),
            "cost": f"{cls.cost}; keeps {cls.keeps}",
            "names_new_classes": True,
        }


@dataclass(frozen=True)
class Joined:
    """Pairs of several sources one after the other; `rows` of each."""

    source: str
    parts: tuple[tuple[PairsLike, Sequence[int]], ...]
    starts: tuple[int, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        ends = [0]
        for _, rows in self.parts:
            ends.append(ends[-1] + len(rows))
        object.__setattr__(self, "starts", tuple(ends))

    @property
    def set_aside(self) -> list[Any]:
        """What reading the sources has passed over so far."""
        return list(dict.fromkeys(one for pairs, _ in self.parts for one in getattr(pairs, "set_aside", ())))

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, index: int, /) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = bisect_right(self.starts, index) - 1
        pairs, rows = self.parts[part]
        return pairs[int(rows[index - self.starts[part]])]
