"""From class names to one row a class: templates, descriptions, learned context."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from diptych.core.clip import CLIP
from diptych.core.edits import EditedTower
from diptych.core.tower import Tokens

PHOTO = ("a photo of a {}.",)
# Words under which pictures of any kind are found; one row a class is the normalised mean of them.
ENSEMBLE = (
    "a photo of a {}.",
    "a picture of a {}.",
    "a close-up photo of a {}.",
    "a photo of the small {}.",
    "a photo of the large {}.",
    "a drawing of a {}.",
    "{}.",
)


@dataclass(frozen=True)
class TextRecipe:
    """How the text row of a class is made, so that new names get theirs the same way.

    templates: with one `{}` each. sentences: per class name, sentences to use in place of the templates.
    renormalise: whether the mean of several normalised rows is normalised again.
    """

    templates: tuple[str, ...] = PHOTO
    sentences: dict[str, tuple[str, ...]] = field(default_factory=dict)
    renormalise: bool = True

    def texts(self, name: str) -> tuple[str, ...]:
        known = self.sentences.get(name) or self.sentences.get(name.casefold())
        return known or tuple(t.replace("{}", name) for t in self.templates)


def class_tokens(clip: CLIP, names: Sequence[str], template: str) -> Tokens:
    """One text a class with the end of its name marked: what a learned context is put into."""
    return clip.tokenize([template.replace("{}", name) for name in names], names)


def class_rows(
    clip: CLIP,
    names: Sequence[str],
    recipe: TextRecipe,
    encode: Callable[[Sequence[str]], Tensor] | None = None,
) -> Tensor:
    """Names -> [C, D]: normalise each text's embedding, average a class, normalise again (or not)."""
    texts = [recipe.texts(name) for name in names]
    if (
        isinstance(clip.text, EditedTower) and clip.text.edits.prompts
    ):  # a learned context may stand at the name, or differ by class: one marked text a class
        tokens = class_tokens(clip, names, recipe.templates[0])
        with torch.no_grad():
            return F.normalize(clip.encode_tokens(tokens), dim=-1)
    flat = F.normalize((encode or clip.encode_text)([t for group in texts for t in group]), dim=-1)
    rows = torch.stack([part.mean(0) for part in flat.split([len(group) for group in texts])])
    return F.normalize(rows, dim=-1) if recipe.renormalise else rows
