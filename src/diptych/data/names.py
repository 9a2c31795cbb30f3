"""From folder names to words that a text tower understands."""

import csv
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path

from diptych.errors import DiptychError, nearest


def class_words(classes: Sequence[str], file: str | Path | None = None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(the words for each class, warnings): from the `--names` file, else from the class's own name."""
    if file is not None:
        return _from_file(classes, Path(file).expanduser()), ()
    words = tuple(plain_words(name) for name in classes)
    odd = [name for name in classes if is_meaningless(name)]
    if not odd:
        return words, ()
    some = ", ".join(odd[:5]) + (", ..." if len(odd) > 5 else "")
    return words, (
        f"{len(odd)} of {len(classes)} class names say nothing to a text tower ({some}): zero-shot results are "
        "meaningless with them. Give their words with --names FILE (a CSV: folder,words)",
    )


def plain_words(name: str) -> str:
    """A folder name as words: "golden_retriever" -> "golden retriever"."""
    return " ".join(name.replace("_", " ").split()) or name


def is_meaningless(name: str) -> bool:
    """True for ids rather than words: n01440764, class_3, 0, cat7x9f, 3f9a2c41."""
    word = re.sub(r"[\s_.\-#]+", "", name).lower()
    if not re.search(r"[^\W\d]", word):
        return not re.search(r"[^\w]", word)  # only digits; an emoji alone may mean something
    if re.fullmatch(r"(class|cls|label|category|cat|id|group|type|folder|c|n|k)\d+|[a-z]\d{3,}", word):
        return True
    if re.fullmatch(r"[0-9a-f]{6,}", word) and re.search(r"\d", word):
        return True
    # Letters and digits in turn, as in keys: x7f9, cat7x9f; but not "boeing 737" or "mp3 player".
    return any(re.search(r"[a-z]+\d+[a-z]+\d|\d+[a-z]+\d+[a-z]", part) for part in re.split(r"[\s_\-.]+", name.lower()))


def _from_file(classes: Sequence[str], path: Path) -> tuple[str, ...]:
    pairs = _json_pairs(path) if path.suffix.lower() == ".json" else _table_pairs(path)
    known = set(classes)
    words: dict[str, str] = {}
    for place, folder, said in pairs:
        if folder not in known:
            raise DiptychError(f'{path}, {place}: there is no class "{folder}"{nearest(folder, classes)}')
        if not said:
            raise DiptychError(f'{path}, {place}: no words for "{folder}"')
        if folder in words:
            raise DiptychError(f'{path}, {place}: "{folder}" is named twice')
        words[folder] = said
    missing = [name for name in classes if name not in words]
    if missing:
        more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
        raise DiptychError(f"{path} has no words for {', '.join(missing[:10])}{more}")
    twice = {said for said in words.values() if list(words.values()).count(said) > 1}
    if twice:
        both = [name for name in classes if words[name] in twice]
        raise DiptychError(
            f"{path} gives the same words to {', '.join(both[:5])}: a text tower could not tell them apart"
        )
    return tuple(words[name] for name in classes)


def _text(path: Path, right: str = "--names takes a CSV, TSV or JSON") -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DiptychError(f"{path} is not UTF-8 text; {right}") from error
    except OSError as error:
        raise DiptychError(f"{path}: {(error.strerror or str(error)).lower()}; {right}") from error


def _json_pairs(path: Path) -> list[tuple[str, str, str]]:
    try:
        found = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise DiptychError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from error
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise DiptychError(f'{path} should be one object, {{"folder": "words", ...}}')
    return [(f'"{folder}"', folder, said.strip()) for folder, said in found.items()]


def _table_pairs(path: Path) -> list[tuple[str, str, str]]:
    """(place, folder, words) a line; a heading such as "folder,words" or "class,name" is passed over."""
    text = _text(path)
    first = text.split("\n", 1)[0]
    delimiter = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=first.count)
    lines = list(csv.reader(io.StringIO(text), delimiter=delimiter))
    if lines and [cell.strip().lower() for cell in lines[0][:1]] in (["folder"], ["class"], ["label"], ["id"]):
        lines[0] = []
    pairs = []
    for number, line in enumerate(lines, 1):
        if not any(line):
            continue
        if len(line) != 2:
            raise DiptychError(f'{path}, line {number}: {len(line)} cells where two belong, "folder,words"')
        pairs.append((f"line {number}", line[0].strip(), line[1].strip()))
    return pairs


def read_templates(given: str | Path | Sequence[str]) -> tuple[str, ...]:
    """Sentences with {} for the class: given as such, or a text file with one a line."""
    if isinstance(given, str) and "{}" in given:
        lines, where = [given], "templates"
    elif isinstance(given, (str, Path)):
        path = Path(given).expanduser()
        lines, where = _text(path, "--templates takes a text file, one sentence a line").splitlines(), str(path)
    else:
        lines, where = list(given), "templates"
    templates = tuple(line.strip() for line in lines if line.strip())
    if not templates:
        raise DiptychError(f"{where}: there is no template; one is a sentence such as a photo of a {{}}.")
    for number, template in enumerate(templates, 1):
        if template.count("{}") != 1:
            raise DiptychError(f'{where}, {number}: "{template}" should hold {{}} once, where the class goes')
    return templates
