"""Tokenizers give the source library's ids, and mark where the class name ends."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from diptych.core.tokenizer import FastTokenizer, SimpleTokenizer, read_tokenizer
from diptych.errors import DiptychError

TEXTS = [
    "a photo of a cat.",
    "A Photo  of a BLACK-capped\tChickadee's nest &amp; egg!!",
    "ça coûte 12,50 €, naïve façade, \u201cquoted\u201d",
    "emoji 🦊 and 猫 and _under_score_",
    "",
    "word " * 100,
    "a photo of a <end_of_text> trap",
]


def small_backend(lowercase: bool = True) -> Any:
    """A word-piece tokenizer with start and end, made here."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "photo", "of", "cat", "sea", "##horse", "red", ".", "!", "-"]
    backend = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    if lowercase:
        backend.normalizer = normalizers.Lowercase()  # type: ignore[assignment]
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # type: ignore[assignment]
    backend.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return backend


def small(**options: Any) -> FastTokenizer:
    return FastTokenizer(small_backend(), **{"context_length": 12, **options})


@cache
def simple(clean: str = "lower") -> tuple[Any, SimpleTokenizer]:
    from open_clip.tokenizer import SimpleTokenizer as Source

    source = Source(clean=clean)
    return source, SimpleTokenizer(source)


@pytest.mark.parametrize("clean", ["lower", "whitespace", "canonicalize"])
def test_simple_tokenizer_is_open_clips(clean: str) -> None:
    source, ours = simple(clean)
    tokens, expected = ours(TEXTS), source(TEXTS)
    length = tokens.ids.shape[1]
    assert torch.equal(tokens.ids, expected[:, :length])
    assert not expected[:, length:].any()
    assert torch.equal(tokens.end, expected.argmax(1))
    assert length == 77  # the long one is cut, its end token kept
    short = ours(TEXTS[:2])
    assert short.ids.shape[1] == max(ours.length(t) for t in TEXTS[:2])
    assert torch.equal(short.mask.sum(1), short.end + 1)


def test_length_is_before_the_cut() -> None:
    _, ours = simple()
    assert ours.length("a photo of a cat.") == 8
    assert ours.length("word " * 100) == 102
    assert small().length("cat " * 30) == 32


@pytest.mark.parametrize(
    ("text", "name", "piece"),
    [
        ("a photo of a black-capped chickadee.", "black-capped chickadee", "chick adee"),
        ("a photo of a Cat, a cat.", "Cat", "cat"),  # the last one
        ("a photo of a tom &amp; jerry show.", "tom &amp; jerry", "jerry"),
        ("a photo of a sea_horse.", "sea_horse", "horse"),
    ],
)
def test_end_of_the_name_in_open_clips_tokenizer(text: str, name: str, piece: str) -> None:
    source, ours = simple()
    tokens = ours([text], [name])
    assert tokens.name_end is not None
    at = int(tokens.name_end[0])
    assert source.decode(tokens.ids[0, :at].tolist()).strip().endswith(piece.split()[-1])
    before = source.decode(tokens.ids[0, : at - 1].tolist()).strip()
    assert not before.endswith(piece.split()[-1])
    if name == "Cat":
        assert at == int(tokens.end[0]) - 1


def test_end_of_the_name_in_fast_tokenizers() -> None:
    tokens = small()(["a photo of a red seahorse.", "cat", "a cat of cat !"], ["red seahorse", "cat", "cat"])
    assert tokens.ids[0].tolist() == [2, 4, 5, 6, 4, 10, 8, 9, 11, 3]
    assert tokens.end.tolist() == [9, 2, 6]
    assert tokens.name_end is not None
    assert tokens.name_end.tolist() == [8, 2, 5]
    assert tokens.mask.sum(1).tolist() == [10, 3, 7]


def test_a_name_that_is_cut_off_ends_before_the_end() -> None:
    tokens = small(context_length=6)(["a photo of a red seahorse"], ["red seahorse"])
    assert tokens.ids.tolist() == [[2, 4, 5, 6, 4, 3]]
    assert tokens.name_end is not None
    assert tokens.name_end.tolist() == [5]


def test_a_name_that_is_not_there_is_an_error() -> None:
    with pytest.raises(DiptychError, match="'dog' is not in its text"):
        small()(["a photo of a cat"], ["dog"])


@pytest.mark.parametrize("strip", [False, True])
@pytest.mark.parametrize("clean", ["whitespace", "canonicalize"])
def test_hugging_face_tokenizer_of_open_clip(tmp_path: Path, clean: str, strip: bool) -> None:
    import transformers
    from open_clip.tokenizer import HFTokenizer

    from diptych.core.build import tokenizer_of_open_clip

    transformers.PreTrainedTokenizerFast(
        tokenizer_object=small_backend(), pad_token="[PAD]", sep_token="[SEP]", eos_token="[SEP]"
    ).save_pretrained(tmp_path)
    source = HFTokenizer(str(tmp_path), context_length=9, clean=clean, strip_sep_token=strip)
    ours = tokenizer_of_open_clip(source, 9)
    texts = ["A photo of a  CAT!", "a red seahorse &amp; a cat . a cat . a cat", "cat"]
    tokens, expected = ours(texts), source(texts)
    assert torch.equal(tokens.ids, expected[:, : tokens.ids.shape[1]])
    assert not expected[:, tokens.ids.shape[1] :].any()


def test_saved_tokenizers_are_the_same(tmp_path: Path) -> None:
    for i, ours in enumerate((small(clean="whitespace", end_id=3), simple("canonicalize")[1])):
        folder = tmp_path / str(i)
        folder.mkdir()
        ours.save(folder)
        again = read_tokenizer(folder)
        assert type(again) is type(ours)
        assert again.spec() == ours.spec()
        texts = ["a photo of a cat!", "red"]
        assert torch.equal(again(texts).ids, ours(texts).ids)
    assert small().spec() != small(context_length=5).spec()
    assert small().spec() != FastTokenizer(small_backend(lowercase=False), context_length=12).spec()


def test_a_file_that_is_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DiptychError, match=r"no tokenizer\.json"):
        FastTokenizer.from_file(tmp_path / "tokenizer.json", context_length=5)
    with pytest.raises(DiptychError, match="cannot be read"):
        read_tokenizer(tmp_path)
