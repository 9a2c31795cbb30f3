"""What classes look like, in words: banks of descriptors from JSON, from a language model, or built in.

A bank is a JSON object {"class": ["descriptor", ...]}; a word in place of the list means "as that other class". Names
match whatever their case, spaces and underscores. The built-in bank is written for diptych.
"""

import hashlib
import json
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from diptych.data.language_model import LanguageModel
from diptych.errors import DiptychError
from diptych.files import atomic
from diptych.paths import cache_dir

Bank = dict[str, tuple[str, ...]]
BUILT_IN = Path(__file__).with_suffix(".json")

# Two worked examples and an open question, as the paper asks (arXiv 2210.07183, section 2); the words are ours.
PROMPT = """\
Q: Which visual features tell an otter in a photo?
A: An otter in a photo can be told by these visual features:
- a swimming mammal
- dense brown fur, often wet
- a broad flat head
- small round ears
- long whiskers
- webbed feet
- a thick tail that ends in a point

Q: Which visual features tell a kettle in a photo?
A: A kettle in a photo can be told by these visual features:
- a kitchen device
- a round body of steel or plastic
- a spout
- a large handle
- a lid on top
- a switch or a light
- steam
- a base with a cable

Q: Which visual features tell a {} in a photo?
A: A {} in a photo can be told by these visual features:
-"""


def key(name: str) -> str:
    """What names are compared by: their letters and digits, without case."""
    return "".join(c for c in name.casefold() if c.isalnum())


def read_bank(path: str | Path | None = None) -> Bank:
    """A bank from a JSON file; None for the built-in one. Raises DiptychError saying what is wrong where."""
    path = Path(path or BUILT_IN)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DiptychError(f"cannot read the descriptions at {path}: {error.strerror}") from error
    except ValueError as error:
        raise DiptychError(f'{path} is not JSON ({error}); a bank is {{"class": ["descriptor", ...]}}') from error
    if not isinstance(found, dict):
        raise DiptychError(f'{path} should hold an object {{"class": ["descriptor", ...]}}')
    bank: Bank = {}
    for name, value in found.items():
        listed = found.get(value) if isinstance(value, str) else value
        if not isinstance(listed, list) or not all(isinstance(d, str) for d in listed):
            raise DiptychError(f'"{name}" in {path} should be a list of descriptors, or the name of a class with one')
        bank[name] = tuple(d.strip() for d in listed if d.strip())
    return bank


def lookup(bank: Bank, names: Iterable[str]) -> Bank:
    """The descriptors of these classes, under these names; classes without any are left out."""
    by_key = {key(name): descriptors for name, descriptors in bank.items() if descriptors}
    return {name: by_key[key(name)] for name in names if key(name) in by_key}


def parse(completion: str) -> tuple[str, ...]:
    """The bullets "- ..." of an answer; the first may have been opened by the prompt. What follows a new Q: is cut."""
    answer = completion.split("Q:")[0]
    lines = (answer if answer.lstrip().startswith("- ") else f"- {answer.lstrip(' ')}").split("\n")
    bullets = (line.strip()[2:].strip() for line in lines if line.strip().startswith("- "))
    return tuple(dict.fromkeys(b for b in bullets if b))


def describe(
    names: Sequence[str],
    model: LanguageModel,
    store: Path,
    progress: Callable[[int, int], None] | None = None,
    prompt: str = PROMPT,
) -> Bank:
    """Ask once for each class that `store` does not hold yet; each answer, a list, is kept as it comes."""
    bank = read_bank(store) if store.exists() else {}
    for done, name in enumerate(names):
        if name not in bank:
            bank[name] = parse(model.complete(prompt.replace("{}", name.replace("_", " "))))
            with atomic(store) as path:
                path.write_text(json.dumps(bank, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        if progress:
            progress(done + 1, len(names))
    return {name: bank[name] for name in names}


def answers_file(source: str, model: str = "", prompt: str = PROMPT) -> Path:
    """Where the answers of a language model are kept: one file a model and prompt."""
    name = hashlib.sha256(json.dumps([source, model, prompt]).encode()).hexdigest()[:16]
    return cache_dir() / "descriptions" / f"{name}.json"


def shuffled(bank: Bank, seed: int = 0) -> Bank:
    """A control: every class gets the descriptors of another one."""
    names = sorted(bank)
    random.Random(seed).shuffle(names)
    return {name: bank[other] for name, other in zip(names, names[1:] + names[:1], strict=True)}


def random_words(bank: Bank, seed: int = 0) -> Bank:
    """A control: as many descriptors of as many words, each word drawn from the whole bank."""
    rng = random.Random(seed)
    words = sorted({word for descriptors in bank.values() for d in descriptors for word in d.split()})
    return {name: tuple(" ".join(rng.choice(words) for _ in d.split()) for d in bank[name]) for name in sorted(bank)}
