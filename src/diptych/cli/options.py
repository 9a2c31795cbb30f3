"""Reading a verb's words: numbers, durations, settings. Mistakes are found here, before anything slow is imported."""

import argparse
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from diptych.errors import DiptychError, nearest
from diptych.files import is_bare
from diptych.methods.discover import systems

DEVICES = ("cpu", "cuda", "mps")
UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


class Parser(argparse.ArgumentParser):
    """One verb's words. The verb's docstring is the description, its first line the summary."""

    def __init__(self, verb: str, about: str, examples: str) -> None:
        indented = "\n".join(f"  {line}" for line in examples.strip().splitlines())
        super().__init__(
            prog=f"diptych {verb}",
            description=about.strip(),
            epilog=f"examples:\n{indented}",
            formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=30, width=100),
            allow_abbrev=False,
            exit_on_error=False,
            add_help=False,
        )
        self.add_argument("-h", "--help", action="store_true", help="show this and stop")

    def read(self, words: Sequence[str]) -> argparse.Namespace | None:
        """The values, or None when help was asked for and printed. Raises DiptychError for all that is not right."""
        if any(word in ("-h", "--help") for word in words):
            self.print_help()
            return None
        try:
            given, unknown = self.parse_known_intermixed_args(words)
        except argparse.ArgumentError as error:
            raise DiptychError(f"{error}; see `{self.prog} --help`") from error
        if unknown:
            self.refuse(unknown[0])
        return given

    def refuse(self, word: str) -> None:
        option = word.partition("=")[0]
        if option.startswith("-"):
            known = [o for action in self._actions for o in action.option_strings]
            raise DiptychError(f'{self.prog} has no option "{option}"{nearest(option, known)}')
        raise DiptychError(f'{self.prog}: one thing too many, "{word}"; see `{self.prog} --help`')

    def error(self, message: str) -> Any:
        raise DiptychError(f"{message}; see `{self.prog} --help`")


# -- values ----------------------------------------------------------------------------------------------------------


def whole(option: str, least: int = 1) -> Callable[[str], int]:
    """A reader of whole numbers from `least`."""

    def read(word: str) -> int:
        try:
            number = int(word)
        except ValueError:
            number = least - 1
        if number < least:
            raise DiptychError(f'{option} takes a whole number from {least}; not "{word}"')
        return number

    return read


def positive(option: str) -> Callable[[str], float]:
    """A reader of numbers above 0."""

    def read(word: str) -> float:
        try:
            number = float(word)
        except ValueError:
            number = math.nan
        if not 0 < number < math.inf:
            raise DiptychError(f'{option} takes a number above 0; not "{word}"')
        return number

    return read


def share(option: str) -> Callable[[str], float]:
    """A reader of numbers from 0 to 1."""

    def read(word: str) -> float:
        try:
            number = float(word)
        except ValueError:
            number = math.nan
        if not 0 <= number <= 1:
            raise DiptychError(f'{option} takes a number from 0 to 1; not "{word}"')
        return number

    return read


def shots(words: str) -> tuple[int | Literal["all"], ...]:
    """`1,4,all`"""
    read = whole("--shots")
    found: list[int | Literal["all"]] = []
    for word in split(words, "--shots", "1,4,16 or all"):
        if word.lower() != "all" and not re.fullmatch(r"0*[1-9][0-9]*", word):
            raise DiptychError(f'--shots takes whole numbers from 1 and "all", such as 1,4,16; not "{word}"')
        found.append("all" if word.lower() == "all" else read(word))
    return tuple(dict.fromkeys(found))


def views(word: str) -> tuple[int, int]:
    """`4x3`"""
    found = re.fullmatch(r"([1-9]\d?)x([1-9]\d?)", word.strip().lower())
    if not found:
        raise DiptychError(f'--views takes draws of frames x crops, such as 4x3; not "{word}"')
    return int(found[1]), int(found[2])


def methods(words: str) -> tuple[str, ...]:
    """`gda,knn` or `all`; names are checked by their files alone."""
    known = [*systems("adapt"), *systems("video")]
    found = split(words, "--methods", "gda,knn or all")
    if "all" in found:
        if len(found) > 1:
            raise DiptychError('--methods takes names or "all", not both')
        return ("all",)
    for name in found:
        if name not in known:
            raise DiptychError(f'no method "{name}"{nearest(name, known)}')
    return found


def setting(word: str) -> tuple[str, str]:
    """`gda.alpha=0.1,1` -> ("gda.alpha", "0.1,1"); the system is checked by its file, the field later by its Config."""
    name, equals, value = word.partition("=")
    system, dot, name_of_field = name.strip().partition(".")
    if not (equals and dot and name_of_field and value.strip()):
        raise DiptychError(
            f'--set takes SYSTEM.FIELD=VALUE, such as knn.k=5 or, to try several, knn.k=1,5; not "{word}"'
        )
    known = [*systems("adapt"), *systems("video")]
    if system not in known:
        raise DiptychError(f'--set {word}: no method "{system}"{nearest(system, known)}')
    return f"{system}.{name_of_field}", value.strip()


def train_setting(word: str) -> tuple[str, str]:
    """`recipe.weight_decay=0.1` or `clip.max_scale=50`; the field is checked later, by its Config."""
    return setting_of(word, "pretrain", "distill")


def teach_setting(word: str) -> tuple[str, str]:
    """`recipe.weight_decay=0.1` or `mod_x.alpha=10`, likewise."""
    return setting_of(word, "continual")


def setting_of(word: str, *families: str) -> tuple[str, str]:
    """Of a system of the families, or of the recipe."""
    name, equals, value = word.partition("=")
    system, dot, field = name.strip().partition(".")
    known = ["recipe", *(name for family in families for name in systems(family))]
    if not (equals and dot and field and value.strip()):
        raise DiptychError(f'--set takes SYSTEM.FIELD=VALUE or recipe.FIELD=VALUE, such as recipe.clip=1; not "{word}"')
    if system not in known:
        raise DiptychError(f'--set {word}: no system "{system}"{nearest(system, known)}')
    return f"{system}.{field}", value.strip()


def seconds(word: str) -> float:
    """`90s`, `10m`, `1h30m` -> seconds."""
    parts = re.findall(r"([0-9]*\.?[0-9]+)\s*([smh])", word.lower())
    if not parts or "".join(f"{n}{unit}" for n, unit in parts) != re.sub(r"\s", "", word.lower()):
        raise DiptychError(f'--budget takes a time such as 90s, 10m or 1.5h; not "{word}"')
    total = sum(float(number) * UNITS[unit] for number, unit in parts)
    if total <= 0:
        raise DiptychError(f'--budget must be longer than nothing; not "{word}"')
    return total


def device(word: str) -> str:
    """cpu, cuda, cuda:1, mps; whether this machine has it, torch says later."""
    if not re.fullmatch(r"(cpu|mps|cuda)(:[0-9]+)?", word):
        raise DiptychError(f'no device "{word}"{nearest(word.partition(":")[0], DEVICES)}')
    return word


def run_folder(word: str) -> Path:
    """A folder to start or to continue a run in."""
    path = Path(word).expanduser()
    if not word.strip():
        raise DiptychError("--out takes a folder; not nothing")
    if path.is_dir():
        if not (is_bare(path) or (path / "run.json").is_file()):
            raise DiptychError(f"--out {path} exists and is not a run of diptych; choose another folder")
    elif path.exists() or path.is_symlink():
        raise DiptychError(f"--out {path} is a file; it takes a folder")
    return path


def split(words: str, option: str, example: str) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(word.strip() for word in words.split(",") if word.strip()))
    if not found:
        raise DiptychError(f'{option} takes {example}; not "{words}"')
    return found


def model(name: str) -> None:
    """Refuse a model that can be seen not to exist: no such path, a misspelt name of ours or open_clip's."""
    path = Path(name).expanduser()
    if not name.strip():
        raise DiptychError("--model takes mini, micro, an open_clip NAME:TAG, or a file or folder; not nothing")
    embedded = ("mini", "micro")
    if name in embedded or name.startswith("hf-hub:") or path.exists():
        return
    architecture, _, tag = name.partition(":")
    if name.startswith((".", "/", "~")) and not tag:
        raise DiptychError(f'model "{name}": there is no such file or folder')
    known = open_clip_names()
    if known and architecture.replace("/", "-") not in known:
        raise DiptychError(f'no model "{name}"{nearest(architecture, [*embedded, *known])}')


def open_clip_names() -> list[str]:
    """open_clip's architectures, read from its files: importing it takes seconds."""
    from importlib.util import find_spec

    spec = find_spec("open_clip")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    return [p.stem for folder in folders for p in (Path(folder) / "model_configs").glob("*.json")]


def classifier(word: str) -> None:
    """Refuse what can be seen not to be a classifier."""
    path = Path(word).expanduser()
    if path.is_dir():
        if (path / "winner.safetensors").is_file():
            raise DiptychError(f"{path} is a run; its winner is {path / 'winner.safetensors'}")
        raise DiptychError(f"{path} is a folder; give a classifier, which compare saves as winner.safetensors")
    if not path.is_file():
        raise DiptychError(f"no classifier at {path}; `diptych compare` writes one as winner.safetensors")


def new_folder(path: Path, option: str) -> None:
    if path.exists() and not path.is_dir():
        raise DiptychError(f"{option} {path} is a file; it takes a folder")
