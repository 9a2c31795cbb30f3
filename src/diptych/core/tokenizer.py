"""Texts to ids, with the end of the class name marked; each tokenizer is saved with its CLIP."""

import hashlib
import html
import json
import string
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from diptych.core.tower import Tokens
from diptych.errors import DiptychError

NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
OPTIONS = "diptych_tokenizer.json"


def cleaning(kind: str) -> Callable[[str], str]:
    """What open_clip does to a text before its tokenizer: "", "whitespace", "lower" or "canonicalize"."""
    if not kind:
        return str
    import ftfy

    def basic(text: str) -> str:
        return html.unescape(html.unescape(ftfy.fix_text(text))).strip()

    def whitespace(text: str) -> str:
        return " ".join(basic(text).split())

    def canonicalize(text: str) -> str:
        words = basic(text).replace("_", " ").translate(NO_PUNCTUATION).lower()
        return " ".join(words.split())

    return {"whitespace": whitespace, "lower": lambda t: whitespace(t).lower(), "canonicalize": canonicalize}[kind]


def cleaning_name(function: Callable[[str], str]) -> str:
    """Our word for a cleaning function of open_clip."""
    return function.__name__.removeprefix("_clean_")


class _Tokenizer:
    """Cleaning, marking the name and padding, shared by both kinds."""

    context_length: int
    pad_id: int
    end_id: int
    clean: str

    def __call__(self, texts: Sequence[str], names: Sequence[str] | None = None) -> Tokens:
        """Texts -> Tokens, cut to `context_length` and padded to the longest.

        With `names`, name_end is the index after the last token of each text's last occurrence of its name.
        Raises DiptychError where a name is not in its text.
        """
        clean = cleaning(self.clean)
        cleaned = [clean(text) for text in texts]
        rows = self.encode(cleaned)
        length = max(len(ids) for ids, _ in rows)
        ids = torch.full((len(rows), length), self.pad_id)
        mask = torch.zeros(len(rows), length, dtype=torch.bool)
        for i, (row, _) in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = True
        end = torch.tensor([row.index(self.end_id) if self.end_id in row else len(row) - 1 for row, _ in rows])
        name_end = None
        if names is not None:
            marks = [
                self.mark(text, clean(name), spans) for text, name, (_, spans) in zip(cleaned, names, rows, strict=True)
            ]
            name_end = torch.minimum(torch.tensor(marks), end)  # a name may be cut off by the context length
        return Tokens(ids, mask, end, name_end)

    def mark(self, text: str, name: str, spans: Sequence[tuple[int, int]]) -> int:
        """Index after the last token that covers the name; spans: first character and end of each token."""
        at = text.rfind(name)
        if at < 0:
            at = text.lower().rfind(name.lower())
        if at < 0:
            raise DiptychError(f"the class name {name!r} is not in its text {text!r}")
        covering = [i for i, (first, last) in enumerate(spans) if last > first and first < at + len(name)]
        return covering[-1] + 1 if covering else 1

    def encode(self, texts: Sequence[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """Clean texts -> ids with start and end, cut to the context length, and the characters of each token."""
        raise NotImplementedError


class FastTokenizer(_Tokenizer):
    """A Hugging Face fast tokenizer (`tokenizers.Tokenizer`), cut on the right.

    clean: what is done to a text first, in open_clip's words ("", "whitespace", "lower", "canonicalize").
    end_id: the id whose first place is `end`; none: the last token. drop_id: an id to be replaced by 0
    (open_clip's strip_sep_token).
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        context_length: int,
        pad_id: int = 0,
        end_id: int | None = None,
        clean: str = "",
        drop_id: int | None = None,
    ) -> None:
        tokenizer.no_padding()
        tokenizer.enable_truncation(context_length)
        self.tokenizer = tokenizer
        self.context_length, self.pad_id, self.clean, self.drop_id = context_length, pad_id, clean, drop_id
        self.end_id = -1 if end_id is None else end_id

    @classmethod
    def from_file(cls, path: Path, **options: Any) -> "FastTokenizer":
        """Read a tokenizer.json; options as for the class. Raises DiptychError for a file that is none."""
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the only type that tokenizers raises
            raise DiptychError(f"{path} is no tokenizer.json of Hugging Face: {error}") from error
        return cls(tokenizer, **options)

    def encode(self, texts: Sequence[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        rows = []
        for encoding in self.tokenizer.encode_batch(list(texts)):
            ids = [0 if i == self.drop_id else i for i in encoding.ids]
            spans = [
                (0, 0) if special else span
                for span, special in zip(encoding.offsets, encoding.special_tokens_mask, strict=True)
            ]
            rows.append((ids, spans))
        return rows

    def words(self) -> list[str]:
        """The vocabulary, a word for each id."""
        return [self.tokenizer.id_to_token(i) or "" for i in range(self.tokenizer.get_vocab_size())]

    def length(self, text: str) -> int:
        encoding = self.tokenizer.encode(cleaning(self.clean)(text))
        added = self.tokenizer.num_special_tokens_to_add(False)
        return sum(len(part) - added for part in (encoding, *encoding.overflowing)) + added

    def with_context(self, length: int) -> "FastTokenizer":
        """The same for texts of up to `length` tokens."""
        from tokenizers import Tokenizer

        copy = Tokenizer.from_str(self.tokenizer.to_str())
        options: dict[str, Any] = self.options() | {"context_length": length}
        return FastTokenizer(copy, **options)

    def options(self) -> dict[str, Any]:
        end_id = None if self.end_id < 0 else self.end_id
        return {
            "context_length": self.context_length,
            "pad_id": self.pad_id,
            "end_id": end_id,
            "clean": self.clean,
            "drop_id": self.drop_id,
        }

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and our options beside it."""
        self.tokenizer.save(str(folder / "tokenizer.json"))
        (folder / OPTIONS).write_text(json.dumps({"kind": "fast", **self.options()}, indent=2))

    @cached_property
    def vocabulary(self) -> str:
        return hashlib.sha256(self.tokenizer.to_str().encode()).hexdigest()[:16]

    def spec(self) -> dict[str, Any]:
        return {"kind": "fast", **self.options(), "vocabulary": self.vocabulary}


class SimpleTokenizer(_Tokenizer):
    """open_clip's byte-pair tokenizer: exactly its ids and its cleaning. tokenizer: open_clip.SimpleTokenizer."""

    pad_id = 0

    def __init__(self, tokenizer: Any, *, context_length: int | None = None) -> None:
        self.tokenizer = tokenizer
        self.context_length = context_length or tokenizer.context_length
        self.end_id = tokenizer.eot_token_id
        self.clean = cleaning_name(tokenizer.clean_fn)

    def encode(self, texts: Sequence[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        return [self.encode_one(text, cut=True) for text in texts]

    def encode_one(self, text: str, cut: bool) -> tuple[list[int], list[tuple[int, int]]]:
        source = self.tokenizer
        ids, spans = [source.sot_token_id], [(0, 0)]
        for match in source.pat.finditer(text):
            symbols = "".join(source.byte_encoder[byte] for byte in match.group().encode())
            pieces = [source.encoder[piece] for piece in source.bpe(symbols).split(" ")]
            ids += pieces
            spans += [match.span()] * len(pieces)
        if cut and len(ids) >= self.context_length:
            ids, spans = ids[: self.context_length - 1], spans[: self.context_length - 1]
        return [*ids, source.eot_token_id], [*spans, (0, 0)]

    def words(self) -> list[str]:
        """The vocabulary, a word for each id."""
        return [word.removesuffix("</w>") for word in self.tokenizer.encoder]

    def length(self, text: str) -> int:
        return len(self.encode_one(cleaning(self.clean)(text), cut=False)[0])

    def with_context(self, length: int) -> "SimpleTokenizer":
        """The same for texts of up to `length` tokens."""
        return SimpleTokenizer(self.tokenizer, context_length=length)

    def options(self) -> dict[str, Any]:
        return {"context_length": self.context_length, "clean": self.clean}

    def save(self, folder: Path) -> None:
        """Write our options; the vocabulary is the one that open_clip ships."""
        (folder / OPTIONS).write_text(json.dumps({"kind": "open_clip", **self.options()}, indent=2))

    @cached_property
    def vocabulary(self) -> str:
        return hashlib.sha256("\n".join(self.tokenizer.encoder).encode()).hexdigest()[:16]

    def spec(self) -> dict[str, Any]:
        return {"kind": "open_clip", **self.options(), "vocabulary": self.vocabulary}


def read_tokenizer(folder: Path) -> FastTokenizer | SimpleTokenizer:
    """The inverse of `save`. Raises DiptychError where the folder holds no tokenizer of ours."""
    path = folder / OPTIONS
    try:
        options = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DiptychError(f"{path} cannot be read: {error}") from error
    kind = options.pop("kind")
    if kind == "fast":
        return FastTokenizer.from_file(folder / "tokenizer.json", **options)
    from open_clip.tokenizer import SimpleTokenizer as Source

    return SimpleTokenizer(Source(**options))
