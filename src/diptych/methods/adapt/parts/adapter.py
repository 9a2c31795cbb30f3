"""The protocol of the `adapt` family, and the one place where anything is chosen on validation.

A system's file declares an `Adapter`: a `Config` with the published defaults, what it needs, what it trains, and
`path`, the algorithm itself. Every hyper-parameter with several values is chosen here, out of fold, inside the shots.
"""

import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from operator import attrgetter
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from diptych.core.classifier import Base, Classifier, temperature_of, threshold_of
from diptych.core.clip import CLIP
from diptych.core.edits import Edits
from diptych.core.heads import Head
from diptych.core.text import ENSEMBLE, TextRecipe
from diptych.data.support import CROP, Support
from diptych.errors import DiptychError, Unsupported, nearest
from diptych.methods.settings import parse

FEW = 16  # shots a class: the most that the few-shot papers publish
LOGITS = 2**27  # of all settings together that a choice holds in memory


@dataclass(frozen=True)
class Needs:
    """What a system asks of the model and the data. `refusal` turns it into a reason."""

    labels: bool = True
    shots: int = 1  # at least so many a class
    transformers: tuple[str, ...] = ()  # towers that must be transformers
    pool: bool = False  # unlabelled pictures
    package: tuple[str, str] | None = None  # (import name, extra)
    videos: bool = False  # shots that are clips of frames


@dataclass(frozen=True)
class Work:
    """What one fit costs, for the forecast: pictures and text tokens through the towers, and the rest in seconds.

    `backward` counts those that also go backwards. views: augmented pictures to encode once a shot, with their crop.
    """

    images: int = 0
    images_backward: int = 0
    tokens: int = 0
    tokens_backward: int = 0
    seconds: float = 0.02


class Adapter:
    """One system. Subclasses set the class attributes and write `path`.

    cost: "features" (works on cached embeddings), "text tower" or "both towers" (gradients through them).
    swept: fields of Config of which one `path` serves all values. fallback: their values where nothing is left to
    validate on. many: settings whose default is another beyond 16 shots a class. folds: out-of-fold splits for choices
    and for the validation figure; of many shots half as many do.
    """

    Config: ClassVar[type]
    needs: ClassVar[Needs] = Needs()
    trains: ClassVar[tuple[str, ...]] = ()
    cost: ClassVar[Literal["features", "text tower", "both towers"]] = "features"
    names_new_classes: ClassVar[bool] = False
    swept: ClassVar[tuple[str, ...]] = ()
    fallback: ClassVar[dict[str, Any]] = {}
    many: ClassVar[dict[str, Any]] = {}
    folds: ClassVar[int] = 8

    def __init__(self, config: Any = None) -> None:
        self.config = self.Config() if config is None else config

    @classmethod
    def system(cls) -> str:
        """Its name: that of its file."""
        return cls.__module__.rpartition(".")[2]

    @classmethod
    def requirements(cls) -> dict[str, Any]:
        """What the tables of systems show."""
        needs = cls.needs
        words = [f"{needs.shots}+ shots a class" if needs.labels else "no labels"]
        words += [f"transformer {' and '.join(needs.transformers)} towers"] if needs.transformers else []
        words += ["unlabelled pictures"] if needs.pool else []
        words += [needs.package[0]] if needs.package else []
        words += ["videos"] if needs.videos else []
        trains = ", ".join(cls.trains) or "nothing"
        names_new_classes = cls.names_new_classes
        return {"needs": ", ".join(words), "trains": trains, "cost": cls.cost, "names_new_classes": names_new_classes}

    def path(self, clip: CLIP, support: Support) -> Iterator[tuple[Any, Classifier]]:
        """Fit for every value of the swept fields: yields (config with single values, classifier)."""
        raise NotImplementedError

    def work(self, classes: int, shots: int) -> Work:
        """What one `path` on `classes` x `shots` pictures costs."""
        return Work()

    def views(self) -> tuple[int, tuple[float, float]]:
        """Augmented views of each shot that it reads, and their crop. 0: the plain picture alone."""
        return 0, CROP

    def folds_of(self, shots: float) -> int:
        """Out-of-fold splits for so many shots a class."""
        return self.folds if shots <= FEW else max(2, self.folds // 2)

    def suited(self, shots: float) -> "Adapter":
        """Itself for so many shots a class: what is declared as `many` holds beyond few, unless it was set."""
        default = self.Config()
        unset = {k: v for k, v in self.many.items() if getattr(self.config, k) == getattr(default, k)}
        return type(self)(replace(self.config, **unset)) if unset and shots > FEW else self

    def singles(self) -> "list[Adapter]":
        """Itself with each combination of the values that one `path` cannot serve together."""
        return [type(self)(config) for config in grid(self)]

    def fit(self, clip: CLIP, support: Support) -> Classifier:
        """The fitted classifier, its hyper-parameters chosen out of fold inside the shots."""
        return select(self, clip, support).classifier

    def refusal(self, clip: CLIP, support: Support | None = None) -> str | None:
        """Why this model or these shots cannot have it; None where they can."""
        import importlib.util

        for name in self.needs.transformers:
            tower = getattr(clip, name)
            if not tower.transformer:
                return f"needs a transformer {name} tower; that of {clip.name} is a {tower.kind}"
        if self.needs.package and importlib.util.find_spec(self.needs.package[0]) is None:
            return f'needs {self.needs.package[0]}: python -m pip install "diptych[{self.needs.package[1]}]"'
        if support is not None and self.needs.videos and not support.frames:
            return "needs videos, and these are pictures"
        if support is not None and self.needs.pool and not len(support.unlabelled):
            return "needs a folder of unlabelled pictures beside the classes, called unlabelled/"
        if support is not None and self.needs.labels and int(support.counts.min()) < self.needs.shots:
            return f"needs at least {self.needs.shots} labelled pictures a class"
        return None

    def classifier(
        self,
        clip: CLIP,
        support: Support,
        head: Head,
        config: Any,
        *,
        recipe: TextRecipe | None = None,
        edits: Edits | None = None,
        trainable: int = 0,
    ) -> Classifier:
        """Wrap a head as a Classifier of these classes."""
        return Classifier(
            system=self.system(),
            config=asdict(config),
            classes=support.names,
            names=support.names,
            head=head.to("cpu"),
            base=Base.of(clip),
            edits=(edits or Edits()).detached(),
            recipe=recipe,
            trainable=trainable,
            frames=support.frames,
        )


def recipe_of(support: Support, templates: tuple[str, ...] = ENSEMBLE) -> TextRecipe:
    """The user's templates, or these."""
    return TextRecipe(support.templates or templates)


@dataclass(frozen=True)
class Selection:
    """What `select` found: the classifier fitted on all shots, its config with single values, and the evidence.

    validation: out-of-fold accuracy of that config; None where the shots leave nothing to hold out.
    held: pictures behind that figure.
    """

    classifier: Classifier
    config: Any
    validation: float | None
    held: int = 0


def select(adapter: Adapter, clip: CLIP, support: Support) -> Selection:
    """Choose every open hyper-parameter out of fold, refit on all shots, calibrate on the out-of-fold logits.

    Ties in accuracy, which are many with few pictures, go to the lower calibrated log-loss. Of very many pictures, a
    part is held out that memory can bear (`held` says how many). Raises Unsupported with the reason of `refusal`.
    """
    per_class = len(support) / len(support.names)
    adapter = adapter.suited(per_class)
    if reason := adapter.refusal(clip, support):
        raise Unsupported(reason)
    folds = support.folds(adapter.folds_of(per_class))
    if not adapter.needs.labels:  # nothing is fitted on labels: all shots are held out
        folds = [([], list(range(len(support))))]
    folds = [(shots, some(held, memory_for(adapter, support) // len(folds), support)) for shots, held in folds]
    if not folds:
        config = settle(adapter)
        return Selection(last(fit_path(adapter, config, clip, support)), config, None)

    logits: dict[Any, list[Tensor]] = {}
    labels = torch.cat([support.labels[held] for _, held in folds])
    for shots, held in folds:
        part, rest = support.only(shots) if shots else support, support.only(held)
        for config in grid(adapter):
            for chosen, found in judge_path(fit_path(adapter, config, clip, part), clip, rest):
                logits.setdefault(chosen, []).append(found)
    joined = {chosen: torch.cat(parts) for chosen, parts in logits.items()}
    right = {chosen: int((rows.argmax(1) == labels).sum()) for chosen, rows in joined.items()}
    ties = [chosen for chosen in joined if right[chosen] == max(right.values())]
    unsure = 1 / (len(labels) + 2)  # Laplace's rule: so many pictures say no more, even if all of them are right
    best = min(ties, key=lambda chosen: smoothed_loss(joined[chosen], labels, unsure))
    temperature = temperature_of(joined[best], labels, unsure if right[best] == len(labels) else 0.0)
    probabilities = (joined[best] / temperature).softmax(1)
    classifier = replace(
        last(fit_path(adapter, best, clip, support)),
        temperature=temperature,
        threshold=threshold_of(probabilities, labels),
    )
    return Selection(classifier, best, right[best] / len(labels), len(labels))


def memory_for(adapter: Adapter, support: Support) -> int:
    """How many held-out pictures, at most, all settings may be judged on."""
    settings = math.prod(len(values(adapter.config, f.name)) for f in fields(adapter.config))
    return max(512, LOGITS // (settings * len(support.names)))


def some(held: list[int], most: int, support: Support) -> list[int]:
    """At most so many of them, drawn by the seed."""
    if len(held) <= most:
        return held
    return sorted(held[i] for i in torch.randperm(len(held), generator=support.generator(0x501))[:most].tolist())


def smoothed_loss(logits: Tensor, labels: Tensor, smoothing: float) -> float:
    """Cross-entropy at the best temperature, with smoothed labels: where all is right, the clearest margins win."""
    temperature = temperature_of(logits, labels, smoothing)
    return float(F.cross_entropy(logits / temperature, labels, label_smoothing=smoothing))


def judge_path(path: Iterator[tuple[Any, Classifier]], clip: CLIP, support: Support) -> Iterator[tuple[Any, Tensor]]:
    """(config, logits [N, C] on the CPU) of each; consecutive heads of one kind on cached features share their work."""
    kind = attrgetter("on_base_features", "head.__class__")
    for (cached, _), group in itertools.groupby(path, key=lambda found: kind(found[1])):
        if not cached:
            yield from ((config, judge(classifier, clip, support)) for config, classifier in group)
            continue
        features = F.normalize(support.features(clip).cpu().float(), dim=-1)
        configs, classifiers = zip(*group, strict=True)
        heads = [classifier.head for classifier in classifiers]  # on the CPU
        yield from zip(configs, type(heads[0]).logits_each(heads, features), strict=True)


def judge(classifier: Classifier, clip: CLIP, support: Support, batch: int = 64) -> Tensor:
    """Logits [N, C] of a support's pictures, on the CPU; from the cache where the towers are the base's."""
    if classifier.on_base_features:
        return classifier.logits(support.features(clip).cpu())
    edited = classifier.clip(clip)
    batch = max(1, batch // max(1, support.frames))
    parts = []
    with torch.inference_mode():
        for start in range(0, len(support), batch):
            pixels = support.pixels(clip, range(start, min(start + batch, len(support))))
            parts.append(classifier.logits(edited.encode_image(pixels)).cpu())
    return torch.cat(parts)


def fit_path(adapter: Adapter, config: Any, clip: CLIP, support: Support) -> Iterator[tuple[Any, Classifier]]:
    torch.manual_seed(support.seed)
    return type(adapter)(config).path(clip, support)


def last(path: Iterator[tuple[Any, Classifier]]) -> Classifier:
    """The one classifier of a path with a settled config."""
    ((_, classifier),) = path
    return classifier


def values(config: Any, name: str) -> tuple[Any, ...]:
    """The values of a field: a tuple is a grid, anything else is one value."""
    value = getattr(config, name)
    return value if isinstance(value, tuple) else (value,)


def sweep(config: Any, *names: str) -> Iterator[Any]:
    """The configs of all values of these fields, each with single values; for use inside `path`."""
    for choice in itertools.product(*(values(config, name) for name in names)):
        yield replace(config, **dict(zip(names, choice, strict=True)))


def grid(adapter: Adapter) -> Iterator[Any]:
    """One config a fit: all values of the fields that `path` does not sweep by itself."""
    names = [f.name for f in fields(adapter.config) if f.name not in adapter.swept]
    return sweep(adapter.config, *names)


def settle(adapter: Adapter) -> Any:
    """The config where nothing can be validated: the declared fallback, else a field's first value."""
    config = adapter.config
    chosen = {f.name: values(config, f.name)[0] for f in fields(config)}
    chosen |= {k: v for k, v in adapter.fallback.items() if len(values(config, k)) > 1}
    return replace(config, **chosen)


def config_hash(config: Any) -> str:
    return hashlib.sha256(json.dumps(asdict(config), sort_keys=True, default=list).encode()).hexdigest()[:10]


def configure(adapter: type[Adapter], settings: Mapping[str, str | Sequence[str]]) -> Adapter:
    """`--set system.field=value` -> an adapter. A list of values is a grid.

    Raises DiptychError naming the field, its type, and the nearest valid one.
    """
    config: Any = adapter.Config()
    known = {f.name: getattr(config, f.name) for f in fields(config)}
    changed: dict[str, Any] = {}
    for name, given in settings.items():
        if name not in known:
            raise DiptychError(f'{adapter.system()} has no setting "{name}"{nearest(name, known)}')
        example = known[name][0] if isinstance(known[name], tuple) else known[name]
        words = given.split(",") if isinstance(given, str) else list(given)
        parsed = tuple(parse(word, example, f"{adapter.system()}.{name}") for word in words)
        changed[name] = parsed[0] if len(parsed) == 1 else parsed
    return adapter(replace(config, **changed))
