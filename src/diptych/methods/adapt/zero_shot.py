"""Zero-shot: a picture belongs to the class whose name it is nearest to.

Use it first: it needs no labels, and every other method must beat it. Not when the class names mean nothing to the
text tower (ids, product codes).

Radford et al., Learning Transferable Visual Models From Natural Language Supervision, arXiv 2103.00020, section 3.1.4:
the texts of several templates are embedded, normalised, averaged and normalised again.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from diptych.core.classifier import Classifier
from diptych.core.clip import CLIP
from diptych.core.heads import TextRows
from diptych.data.support import Support
from diptych.methods.adapt.parts.adapter import Adapter, Needs, recipe_of


@dataclass(frozen=True)
class Config:
    """Nothing to set: templates are the user's (`--templates`) or the built-in ensemble."""


class ZeroShot(Adapter):
    Config = Config
    needs = Needs(labels=False)
    names_new_classes = True

    def path(self, clip: CLIP, support: Support) -> Iterator[tuple[Any, Classifier]]:
        recipe = recipe_of(support)
        head = TextRows(support.rows(clip, recipe), float(clip.logit_scale))
        yield self.config, self.classifier(clip, support, head, self.config, recipe=recipe)
