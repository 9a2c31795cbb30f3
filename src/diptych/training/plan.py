"""From what was asked for to what a run is: the objective, the recipe, the steps. Mistakes are found here, at once."""

import fnmatch
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor

from diptych.engine.loop import Cosine, Group, Optimiser
from diptych.errors import DiptychError, nearest
from diptych.methods.discover import find, systems
from diptych.methods.pretrain.parts.objective import Objective, Recipe
from diptych.methods.settings import changed
from diptych.training.batches import Order


@dataclass(frozen=True)
class Plan:
    """One run. steps: in all; save: steps between checkpoints; look: steps between zero-shot evaluations."""

    objective: Objective
    recipe: Recipe
    order: Order
    steps: int
    save: int
    look: int

    @property
    def warmup(self) -> int:
        """Of the recipe, but at most a tenth of the run."""
        return min(self.recipe.warmup, self.steps // 10)

    def optimiser(self) -> Optimiser:
        r = self.recipe
        return Optimiser("adamw", r.rate, beta1=r.beta1, beta2=r.beta2, eps=r.eps)

    def schedule(self) -> Cosine:
        return Cosine(warmup=self.warmup, cycles=self.recipe.cycles)

    def groups(self, trainable: Mapping[str, Tensor]) -> list[Group]:
        """Matrices decay; biases, norms and scales (fewer than two dimensions) do not. Slow ones have their own.

        What the objective has rates for keeps to those, without decay.
        """
        slow = set(matching(trainable, self.recipe.slow, "slow"))
        own = self.objective.rates(self.steps)
        found: dict[tuple[float, float, bool], list[str]] = {}
        for name, tensor in trainable.items():
            decay = self.recipe.weight_decay if tensor.dim() >= 2 else 0.0
            share = self.recipe.slow_rate if name in slow else 1.0
            fixed = next((rate for pattern, rate in own.items() if fnmatch.fnmatchcase(name, pattern)), None)
            key = (share, decay, False) if fixed is None else (fixed, 0.0, True)
            found.setdefault(key, []).append(name)
        return [Group(tuple(names), *about) for about, names in found.items()]

    def identity(self) -> dict[str, Any]:
        """All that the weights depend on, but model and data."""
        return {
            "system": self.objective.system(),
            "config": asdict(self.objective.config),
            "recipe": asdict(self.recipe),
            "steps": self.steps,
            "seed": self.order.seed,
            "pairs": self.order.pairs,
        }


def find_objective(system: str) -> type[Objective]:
    """The class of a system that trains on pairs, of whichever family. Raises DiptychError for an unknown one."""
    return find("distill" if system in systems("distill") else "pretrain", system)


def make_plan(
    system: str,
    pairs: int,
    settings: Mapping[str, Any],
    *,
    steps: int | None,
    epochs: float | None,
    batch: int | None,
    rate: float | None,
    seed: int,
    save_every: int | None,
    eval_every: int | None,
) -> Plan:
    """settings: "<system>.<field>" or "recipe.<field>" -> value. Raises DiptychError for what cannot be."""
    declared = find_objective(system)
    objective: dict[str, Any] = {}
    recipe: dict[str, Any] = {}
    for key, value in settings.items():
        name, dot, field = key.partition(".")
        if not dot or name not in (system, "recipe"):
            raise DiptychError(f"--set {key}: this run has the settings {system}.FIELD and recipe.FIELD")
        (recipe if name == "recipe" else objective)[field] = value
    recipe |= {k: v for k, v in (("batch", batch), ("rate", rate)) if v is not None}
    chosen = changed(declared.recipe, recipe, "recipe")
    if batch is None and "batch" not in recipe:
        chosen = replace(chosen, batch=min(chosen.batch, pairs))
    if chosen.batch > pairs:
        raise DiptychError(f"--batch {chosen.batch} is more than the {pairs} pairs that there are")
    if chosen.batch < 2:
        raise DiptychError("--batch must be at least 2: a pair is told from the others of its batch")
    order = Order(pairs, chosen.batch, seed)
    if steps is None:
        steps = max(1, round((declared.epochs if epochs is None else epochs) * order.steps_per_epoch))
    elif epochs is not None:
        raise DiptychError("--steps and --epochs both say how long; give one")
    save = save_every or min(1000, max(1, steps // 10))
    return Plan(
        declared(changed(declared.Config(), objective, system)),
        chosen,
        order,
        steps,
        save,
        eval_every or max(1, steps // 10),
    )


def matching(names: Mapping[str, Any], patterns: str, what: str) -> list[str]:
    """Names that any of the comma-separated patterns fits. Raises DiptychError for one that fits none."""
    found: list[str] = []
    for pattern in filter(None, (part.strip() for part in patterns.split(","))):
        fits = fnmatch.filter(names, pattern)
        if not fits:
            raise DiptychError(f'recipe.{what}: no parameter is called "{pattern}"{nearest(pattern, names)}')
        found += fits
    return found
