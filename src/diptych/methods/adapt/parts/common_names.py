"""The prompts of `real_prompt` and `real_linear`: the templates, filled with the names that captions use most."""

from diptych.core.text import TextRecipe
from diptych.data.concepts import common_names, read_concepts
from diptych.data.descriptions import key
from diptych.data.support import Support
from diptych.errors import DiptychError, nearest
from diptych.methods.adapt.parts.adapter import recipe_of

RULES = ("relaxed", "strict")


def check_rule(rule: str, system: str) -> None:
    if rule not in RULES:
        raise DiptychError(f'{system}.rule cannot be "{rule}"{nearest(rule, RULES)}')


def unfit(concepts: str, system: str, support: Support | None) -> str | None:
    """Why the file of counted names does not serve; None where it does."""
    if not concepts:
        return (
            "needs to know how often the captions of the model's training set say each name of your classes; count "
            f"them with `diptych curate real` and give the file: --set {system}.concepts=concepts.json"
        )
    if support is None:
        return None
    known = {key(name) for name in read_concepts(concepts)}
    if not known & {key(name) for name in support.names}:
        return f"finds none of these classes ({', '.join(support.names[:3])}, ...) in {concepts}"
    return None


def recipe_for(concepts: str, rule: str, support: Support) -> TextRecipe:
    """The templates under other names. It knows the other classes of the file too, should they be named later."""
    plain = recipe_of(support)
    counted = read_concepts(concepts)
    every = common_names([*counted], counted, strict=rule == "strict")
    own = common_names(support.names, counted, strict=rule == "strict")
    said = {name.casefold(): found for name, found in every.items()} | own
    # a class of the task that keeps its name stands there too, lest another one's rule be found for it
    return TextRecipe(plain.templates, {name: plain.texts(found) for name, found in said.items()})
