"""Settings from words: `--set system.field=value` into a system's frozen Config."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from diptych.errors import DiptychError, nearest


def changed(config: Any, settings: Mapping[str, Any], where: str) -> Any:
    """A Config with some fields set from words. Raises DiptychError naming the field and the nearest valid one."""
    known = asdict(config)
    found: dict[str, Any] = {}
    for name, given in settings.items():
        if name not in known:
            raise DiptychError(f'{where} has no setting "{name}"{nearest(name, known)}')
        example = known[name]
        if isinstance(example, (tuple, list)):
            words: Sequence[Any] = given.split(",") if isinstance(given, str) else list(given)
            found[name] = tuple(parse(word, example[0], f"{where}.{name}") for word in words)
        else:
            found[name] = parse(given, example, f"{where}.{name}")
    return replace(config, **found)


def parse(word: Any, example: Any, where: str) -> Any:
    """A word as the type of the field's default. Raises DiptychError saying what would be right."""
    if not isinstance(word, str):
        word = str(word)
    word = word.strip()
    try:
        if isinstance(example, bool):
            return {"true": True, "false": False}[word.lower()]
        return type(example)(word)
    except (KeyError, ValueError) as error:
        wanted = {bool: "true or false", int: "a whole number", float: "a number"}[type(example)]
        raise DiptychError(f'{where} takes {wanted}, not "{word}"') from error
