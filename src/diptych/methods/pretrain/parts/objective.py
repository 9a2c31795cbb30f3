"""The protocol of the `pretrain` family: what a system does with a batch of pairs. The loop around it is the engine's.

`embed` and `loss` are apart so that rows can be gathered from several processes, and embedded in chunks, in between.
Shapes: B pairs of a batch, D the joint embedding size.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Protocol

import numpy as np
from PIL import Image
from torch import Tensor, nn

from diptych.core.clip import CLIP
from diptych.core.tower import Tokens

Embeddings = dict[str, Tensor]  # each [B, ...]: row i belongs to pair i


class PairLike(Protocol):
    """One picture with its texts; `data.pairs.Pair` is one."""

    @property
    def id(self) -> str: ...
    @property
    def picture(self) -> Callable[[], Image.Image]: ...
    @property
    def texts(self) -> tuple[str, ...]: ...
    @property
    def extra(self) -> dict[str, Any]: ...


class PairsLike(Protocol):
    """Pairs by number. `data.pairs.Pairs` is one; procedural scenes are another."""

    @property
    def source(self) -> str: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> PairLike: ...


class HeldLike(Protocol):
    """Pairs that were held out. `training.held_out.HeldOut` is one."""

    def embed(self, clip: CLIP, /, *, said: Callable[[str], str] = ...) -> Any:
        """Their pictures, their texts and which belong together (`training.held_out.Embedded`); said: what is read of
        a text."""
        ...


@dataclass(frozen=True)
class Batch:
    """What a step sees. index [B] int64, numbers of the pairs in the data; pixels [B, 3, H, W]; texts by role;
    extra: tensors [B, ...] that the objective made of its pairs (`extra_of`); text_ids [B] int64, equal where the texts
    of the first role are.

    For the loss, which is given the rows of all processes: own, those of this process; same [B] int64, equal where two
    rows are one pair or have one text, None where none are.
    """

    index: Tensor
    pixels: Tensor
    texts: dict[str, Tokens]
    extra: dict[str, Tensor] = field(default_factory=dict)
    step: int = 0
    text_ids: Tensor | None = None
    own: slice = field(default_factory=lambda: slice(None))
    same: Tensor | None = None

    def __len__(self) -> int:
        return len(self.index)

    def rows(self, rows: slice) -> "Batch":
        """Some of its pairs: a chunk, or one process's share."""
        texts = {role: tokens.take(rows, trim=False) for role, tokens in self.texts.items()}
        extra = {name: tensor[rows] for name, tensor in self.extra.items()}
        ids = None if self.text_ids is None else self.text_ids[rows]
        return replace(self, index=self.index[rows], pixels=self.pixels[rows], texts=texts, extra=extra, text_ids=ids)


@dataclass(frozen=True)
class Recipe:
    """How a system is trained; its defaults are the published ones. `--set recipe.<field>=...` reaches each.

    batch: published are 16 to 32 thousand, which one machine reaches with `chunk`;
    rate: the peak, reached after `warmup` steps (at most a tenth of the run), then down a cosine, `cycles` times;
    weight_decay: on matrices only, never on biases, norms and scales; clip: the largest norm of the gradient, 0 for
    none; crop: the least share of a picture's area that a training crop keeps (1: the plain picture);
    freeze: patterns of parameter names that stay as they are, such as towers.image.* ; slow: patterns of those that
    learn at `slow_rate` times the rate; chunk: pairs embedded at once (0: the whole batch), for batches beyond memory,
    with equal gradients; checkpoint: activations inside the towers' blocks are computed again in the backward pass, for
    less memory and equal gradients; patch_dropout: the share of each picture's patches that the tower is not shown;
    repeats: pairs of a batch that share a text belong together, where a system asks; ema: decay of an average of the
    weights, which is what is saved then (0: none).
    """

    batch: int = 256
    rate: float = 5e-4
    weight_decay: float = 0.2
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-6
    warmup: int = 2000
    cycles: int = 1
    clip: float = 0.0
    crop: float = 0.9
    freeze: str = ""
    slow: str = ""
    slow_rate: float = 0.1
    chunk: int = 0
    checkpoint: bool = False
    patch_dropout: float = 0.0
    repeats: bool = True
    ema: float = 0.0


@dataclass(frozen=True)
class Phase:
    """A stage of the training. trains: patterns of the names of parameters that move in it ("*": all that the recipe
    does not freeze); terms: the loss's terms that count, None for all."""

    trains: tuple[str, ...] = ("*",)
    terms: tuple[str, ...] | None = None


class Objective:
    """One system. A subclass in `methods/pretrain/<system>.py`, named by its file, with a frozen Config.

    texts: the roles whose tokens a batch holds; `words` fills them. needs: in words, what it asks of the data.
    heads: what it trains beside the CLIP; in checkpoints, not in the final model.
    per_process: why its loss is of each process's own rows, where a paper has it so; empty: of those of all, and
    several processes are as one. reshapes: whether it changes the CLIP's parameters in the middle of a run.
    epochs: how long it is trained where nothing is said.
    untrained: in words, what `prepare` alone makes of a CLIP, where that is of use without data; its pairs are none.
    held_out: how many pictures `facts` wants to judge by; they are not trained on, and are then in `held`.
    """

    Config: ClassVar[type]
    recipe: ClassVar[Recipe] = Recipe()
    texts: ClassVar[tuple[str, ...]] = ("text",)
    needs: ClassVar[str] = "pairs"
    trains: ClassVar[tuple[str, ...]] = ("both towers", "temperature")

    per_process: ClassVar[str] = ""
    reshapes: ClassVar[bool] = False
    epochs: ClassVar[float] = 32
    untrained: ClassVar[str] = ""
    held_out: ClassVar[int] = 0

    heads: nn.Module | None = None
    held: "HeldLike | None" = None

    def __init__(self, config: Any = None) -> None:
        self.config = self.Config() if config is None else config

    @classmethod
    def system(cls) -> str:
        """Its name: that of its file."""
        return cls.__module__.rpartition(".")[2]

    def prepare(self, clip: CLIP, pairs: PairsLike, seed: int) -> None:
        """Once, before the first step and again before a resumed one: heads, banks, teachers, a changed CLIP."""

    def words(self, pair: PairLike, rng: np.random.Generator) -> dict[str, str]:
        """Which of a pair's texts are read, by role. `rng` depends on (seed, epoch, pair) alone."""
        return {"text": pair.texts[0]}

    def extra_of(self, pair: PairLike, index: int) -> dict[str, np.ndarray]:
        """Further arrays of one pair, stacked into `Batch.extra`."""
        return {}

    def embed(self, clip: CLIP, batch: Batch) -> Embeddings:
        """What the loss needs of each pair: rows [B, ...], not normalised."""
        return {"image": clip.image(batch.pixels).embedding, "text": clip.text(batch.texts["text"]).embedding}

    def loss(self, embeddings: Embeddings, clip: CLIP, batch: Batch) -> dict[str, Tensor]:
        """Named scalars, whose sum is minimised. The rows, `batch.index` and `batch.extra` are those of all processes;
        pixels and texts are this process's. A scalar is the mean over all rows or over `batch.own` alone."""
        raise NotImplementedError

    def state(self) -> dict[str, Tensor]:
        """Running means and banks, for the checkpoint."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take up what `state` gave."""

    def phase(self, step: int, steps: int) -> Phase:
        """The stage that a step belongs to."""
        return Phase()

    def after_step(self, clip: CLIP) -> None:
        """After each update: clamps."""

    def reshape(self, clip: CLIP, step: int, steps: int) -> bool:
        """Before each step: whether the CLIP or the heads now have other parameters. The optimiser then starts afresh
        on them, while the schedule goes on. A function of the step, the weights and the heads alone."""
        return False

    def rebuild(self, clip: CLIP, state: dict[str, Tensor]) -> bool:
        """In a resumed run, before any weights are loaded: give the CLIP and the heads the structure that they had when
        `state` was saved; whether it is another than `prepare` makes."""
        return False

    def rates(self, steps: int) -> dict[str, float]:
        """Learning rates of parameters by pattern of their names (`heads.<name>`) in a run of so many steps, which no
        schedule changes; a negative one maximises."""
        return {}

    def facts(self, clip: CLIP) -> list[tuple[str, str, str]]:
        """What was gained and lost, of the finished CLIP: (what, its value, small print such as the value before)."""
        return []

    @classmethod
    def requirements(cls) -> dict[str, Any]:
        """What the tables of systems show."""
        return {
            "needs": cls.needs,
            "trains": ", ".join(cls.trains),
            "cost": "both towers",
            "names_new_classes": True,
            "per_process": cls.per_process,
        }


def settings_of(config: Any) -> dict[str, Any]:
    """The fields of a Config or Recipe with their values."""
    return {f.name: getattr(config, f.name) for f in fields(config)}
