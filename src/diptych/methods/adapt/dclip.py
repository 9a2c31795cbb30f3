"""DCLIP: a picture is checked against several visual descriptors of each class, and each answer can be explained.

It needs no labels and gives reasons. Use it where class names alone say little of what is seen, with descriptors for
your classes: built in for the classes of common data sets, from your own JSON (`--set dclip.bank=file.json`), or asked
of a language model (a folder, a .gguf file or an OpenAI-compatible address as the bank). Not where labels are at hand.

Menon and Vondrick, Visual Classification via Description from Large Language Models, ICLR 2023, arXiv 2210.07183: about
4 points above the bare name on ImageNet with ViT-B/32 (63.0 against 58.5%). Part of such gains is mere averaging over
sentences: compare `descriptors=random`, and `zero_shot`, which averages templates.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from diptych.core.classifier import Classifier
from diptych.core.clip import CLIP
from diptych.core.heads import TextRows
from diptych.core.text import TextRecipe
from diptych.data.descriptions import (
    Bank,
    answers_file,
    describe,
    lookup,
    random_words,
    read_bank,
    shuffled,
)
from diptych.data.language_model import language_model
from diptych.data.support import Support
from diptych.errors import DiptychError, Unsupported, nearest
from diptych.methods.adapt.parts.adapter import Adapter, Needs, Work

PLAIN = "{}"
CHOICES = {
    "clause": ("word", "letter"),
    "name": ("before", "after", "none"),
    "descriptors": ("own", "shuffled", "random"),
}


@dataclass(frozen=True)
class Config:
    """The released defaults, with the clause rule mended.

    bank: a JSON file, a language model (folder, .gguf file, http address), or nothing for the built-in bank. model: the
    name to ask for at an address. clause: descriptors become clauses by their first "word", or by its first "letter" as
    released. name: where the class name stands: "before" the clause, "after", or "none". descriptors: "own", or as a
    control those of another class ("shuffled") or "random" words.
    """

    bank: str = ""
    model: str = ""
    clause: str = "word"
    name: str = "before"
    descriptors: str = "own"


class DCLIP(Adapter):
    Config = Config
    needs = Needs(labels=False)
    names_new_classes = True

    def refusal(self, clip: CLIP, support: Support | None = None) -> str | None:
        reason = super().refusal(clip, support)
        if reason or support is None or language_model(self.config.bank) is not None:
            return reason
        bank = read_bank(self.config.bank or None)
        if not lookup(bank, support.names):
            return (
                f"has no descriptors for these classes ({', '.join(support.names[:3])}, ...); give them with "
                '--set dclip.bank=file.json, {"class": ["descriptor", ...]}, or a language model in its place'
            )
        return None

    def path(self, clip: CLIP, support: Support) -> Iterator[tuple[Any, Classifier]]:
        if reason := self.refusal(clip, support):
            raise Unsupported(reason)
        recipe = recipe_of(bank_of(self.config, support), self.config)
        head = TextRows(support.rows(clip, recipe).cpu(), float(clip.logit_scale))
        yield self.config, self.classifier(clip, support, head, self.config, recipe=recipe)

    def work(self, classes: int, shots: int) -> Work:
        return Work(tokens=classes * 5 * 12)


def bank_of(config: Config, support: Support) -> Bank:
    """The descriptors the config asks for, under the user's class names where these are known."""
    for field, options in CHOICES.items():
        if getattr(config, field) not in options:
            raise DiptychError(
                f'dclip.{field} cannot be "{getattr(config, field)}"{nearest(getattr(config, field), options)}'
            )
    model = language_model(config.bank, config.model)
    if model is None:
        bank = read_bank(config.bank or None)
    else:
        bank = describe(support.names, model, answers_file(config.bank, config.model))
    own = lookup(bank, support.names)
    if config.descriptors == "shuffled":
        own = shuffled(own, support.seed)
    elif config.descriptors == "random":
        own = random_words(own, support.seed)
    return {name.casefold(): found for name, found in bank.items()} | own


def recipe_of(bank: Bank, config: Config) -> TextRecipe:
    """One sentence a descriptor; the plain name where a class has none; the mean is not normalised again."""
    sentences = {name: tuple(sentence(name, d, config) for d in found) for name, found in bank.items() if found}
    return TextRecipe((PLAIN,), sentences, renormalise=False)


def sentence(name: str, descriptor: str, config: Config) -> str:
    """ "dog", "a wagging tail" -> "dog, which is a wagging tail"."""
    said = clause(descriptor, by=config.clause)
    name = name.replace("_", " ")
    return {"before": f"{name}, {said}", "after": f"{said}, {name}", "none": said}[config.name]


def clause(descriptor: str, by: str = "word") -> str:
    """A descriptor as a relative clause, chosen by its first whole word, or by its first letters as released."""

    def starts(*words: str) -> bool:
        return descriptor.startswith(words) if by == "letter" else descriptor.split(" ")[0].lower() in words

    if starts("a", "an", "used"):
        return f"which is {descriptor}"
    if starts("has", "often", "typically", "may", "can"):
        return f"which {descriptor}"
    return f"which has {descriptor}"


def explain(clip: CLIP, classifier: Classifier, embedding: Tensor, name: str) -> list[tuple[str, float]]:
    """The sentences of a class with their cosine to a picture's embedding [D], the best first.

    Their mean is the class's score. To contrast two classes, put both lists side by side.
    """
    if classifier.recipe is None:
        raise Unsupported(f"{classifier.system} keeps no sentences to explain with")
    texts = classifier.recipe.texts(name)
    rows = F.normalize(clip.encode_text(texts).float(), dim=-1)
    cosines = rows @ F.normalize(embedding.float(), dim=-1)
    return sorted(zip(texts, cosines.tolist(), strict=True), key=lambda pair: -pair[1])
