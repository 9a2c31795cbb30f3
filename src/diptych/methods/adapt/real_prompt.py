"""REAL-Prompt: zero-shot under the name that the captions of the training set use most for each class.

It needs no labels, and costs nothing once names are counted. Use it where your class names are rare words for common
things: "cash machine" becomes "ATM". Not without the captions, or counts of captions much like those, that the model
was trained on: `diptych curate real` counts them into concepts.json (`--set real_prompt.concepts=concepts.json`).

Parashar et al., The Neglected Tails of Vision-Language Models, CVPR 2024, arXiv 2401.12425, section 4: above hand-made
and language-model prompts on nine data sets. A name that is merely a part of the class's own ("Honda" for "Honda
Accord") is not taken unless `rule=strict`; two classes never get one name.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from diptych.core.classifier import Classifier
from diptych.core.clip import CLIP
from diptych.core.heads import TextRows
from diptych.data.support import Support
from diptych.errors import Unsupported
from diptych.methods.adapt.parts.adapter import Adapter, Needs, Work
from diptych.methods.adapt.parts.common_names import check_rule, recipe_for, unfit


@dataclass(frozen=True)
class Config:
    """concepts: the file of counted names. rule: "relaxed", or "strict" for the most frequent name whatever it is."""

    concepts: str = ""
    rule: str = "relaxed"


class REALPrompt(Adapter):
    Config = Config
    needs = Needs(labels=False)
    names_new_classes = True

    def refusal(self, clip: CLIP, support: Support | None = None) -> str | None:
        return super().refusal(clip, support) or unfit(self.config.concepts, "real_prompt", support)

    def path(self, clip: CLIP, support: Support) -> Iterator[tuple[Any, Classifier]]:
        check_rule(self.config.rule, "real_prompt")
        if reason := self.refusal(clip, support):
            raise Unsupported(reason)
        recipe = recipe_for(self.config.concepts, self.config.rule, support)
        head = TextRows(support.rows(clip, recipe), float(clip.logit_scale))
        yield self.config, self.classifier(clip, support, head, self.config, recipe=recipe)

    def work(self, classes: int, shots: int) -> Work:
        return Work(tokens=classes * 7 * 8)
