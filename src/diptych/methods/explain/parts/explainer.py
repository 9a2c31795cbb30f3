"""The protocol of the `explain` family: how well a text fits a picture, word by word. Shapes: D the joint size."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from diptych.core.clip import CLIP
from diptych.errors import Unsupported


@dataclass(frozen=True)
class WordScore:
    """One word of a text. start, end: its characters in the text; score: above 0 it speaks for the pair, below 0
    against it, None where the model never read the word; flagged: it does not fit the picture."""

    word: str
    start: int
    end: int
    score: float | None
    flagged: bool = False


@dataclass(frozen=True)
class WordScores:
    """One text against one picture. words: in order, a repeated word by its place; cosine: of the two embeddings;
    score: the system's own measure of the pair, larger for a better fit; phrases: flagged words, neighbours together.
    """

    text: str
    words: tuple[WordScore, ...]
    cosine: float
    score: float
    phrases: tuple[str, ...] = ()

    @property
    def clip_score(self) -> float:
        """CLIPScore (Hessel et al. 2021, arXiv 2104.08718, equation 1): 2.5 max(cosine, 0)."""
        return 2.5 * max(self.cosine, 0.0)

    @property
    def unread(self) -> tuple[str, ...]:
        """Words that the model never saw: the text is longer than it reads."""
        return tuple(word.word for word in self.words if word.score is None)


class Explainer:
    """One system on one CLIP. A subclass in `methods/explain/<system>.py`, named by its file, with a frozen Config.

    measure: what its `score` is called; needs, cost: in words. The CLIP stays as it is.
    """

    Config: ClassVar[type]
    measure: ClassVar[str]
    needs: ClassVar[str] = "a picture and a text"
    cost: ClassVar[str] = "both towers"

    def __init__(self, clip: CLIP, config: Any = None) -> None:
        """Raises Unsupported, with the reason, for a CLIP that the system cannot explain."""
        self.clip = clip
        self.config = self.Config() if config is None else config
        self.seen: tuple[Image.Image, Tensor] | None = None

    @classmethod
    def system(cls) -> str:
        """Its name: that of its file."""
        return cls.__module__.rpartition(".")[2]

    def explain(self, image: Image.Image, text: str) -> WordScores:
        """An RGB picture and a text -> the scores. Raises DiptychError for a text without a word."""
        raise NotImplementedError

    def heat(self, image: Image.Image, text: str) -> Tensor:
        """Where in the picture the text is found: [h, w] float32 over what the model sees of the picture (its centre
        crop, for most), above 0 for, below 0 against. Raises Unsupported, with the reason, where there is no map."""
        raise Unsupported(f"no map of the picture: {self.system()} draws none")

    def calibrated(self, pairs: Iterable[tuple[Image.Image, str]], share: float = 0.05) -> "Explainer":
        """The same system with its threshold set on pairs that match, so that at most `share` of them get a flag."""
        raise Unsupported(f"{self.system()} has no threshold to calibrate")

    def pixels(self, image: Image.Image) -> Tensor:
        """[1, 3, H, W], as the picture tower reads it."""
        return self.clip.preprocess(image)[None].to(self.clip.device)

    def embedding(self, image: Image.Image) -> Tensor:
        """The picture's unit embedding [D], at least float32; that of the last picture is kept for its next text."""
        if self.seen is None or self.seen[0] is not image:
            with torch.no_grad():
                self.seen = image, unit(self.clip.encode_image(self.pixels(image)))[0]
        return self.seen[1]

    @classmethod
    def config_for(cls, clip: CLIP) -> Any:
        """The settings to begin with: the published ones, changed where a model is known to need others."""
        return cls.Config()

    @classmethod
    def requirements(cls) -> dict[str, Any]:
        """What the tables of systems show."""
        return {"needs": cls.needs, "trains": "nothing", "cost": cls.cost, "names_new_classes": True}


def unit(embedding: Tensor) -> Tensor:
    """[..., D] -> norm 1, at least float32: half precision would lose what small scores are made of."""
    return F.normalize(embedding.to(torch.promote_types(embedding.dtype, torch.float32)), dim=-1)
