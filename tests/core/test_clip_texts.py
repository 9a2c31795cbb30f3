"""Texts through a whole CLIP: exact whatever their neighbours, equal texts once."""

from typing import Any

import torch
from models import TEXT, VISION, shaken

from diptych.core.build import (
    build_open_clip,
    clip_of_open_clip,
    preprocess_of_open_clip,
    tokenizer_of_open_clip,
)
from diptych.core.clip import CLIP, batches
from diptych.core.text import ENSEMBLE, class_tokens

CFG: dict[str, Any] = {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": TEXT | {"vocab_size": 49408}}
LOOK = {"mean": [0.5] * 3, "std": [0.5] * 3}


def tiny(**text: Any) -> tuple[Any, Any, CLIP]:
    import open_clip

    config = CFG | {"text_cfg": CFG["text_cfg"] | text, "custom_text": bool(text)}
    model = shaken(build_open_clip(config, "tiny"))
    tokenizer = open_clip.SimpleTokenizer(context_length=16)
    look = preprocess_of_open_clip(LOOK, 32, "tiny")
    ours = tokenizer_of_open_clip(tokenizer, 16)
    return model, tokenizer, clip_of_open_clip(model, config, ours, look, name="tiny", source="tiny")


def test_texts_of_all_lengths_are_open_clips() -> None:
    names = ["cat", "black-capped chickadee", "a very long name of a thing that is cut off in the end", "cat"]
    texts = [template.replace("{}", name) for name in names for template in ENSEMBLE]
    for options in ({}, {"no_causal_mask": True, "pool_type": "last"}):
        model, tokenizer, clip = tiny(**options)
        expected = model.encode_text(tokenizer(texts))
        for batch in (128, 3):
            torch.testing.assert_close(clip.encode_text(texts, batch=batch), expected, rtol=0, atol=1e-5)
    assert clip.encode_text([]).shape == (0, 16)


def test_batches_cover_all_texts_and_waste_little() -> None:
    lengths = sorted([7] * 50 + [8] * 3 + [9] * 200 + [30, 40])
    sizes = batches(lengths, 128)
    assert sum(sizes) == len(lengths)
    assert max(sizes) <= 128
    assert sizes[0] == 50  # texts of 7 tokens are not padded to 8
    ends = [sum(sizes[: i + 1]) - 1 for i in range(len(sizes))]
    padded = sum(size * lengths[end] for size, end in zip(sizes, ends, strict=True))
    assert padded < 1.05 * sum(lengths)
    assert batches([5], 128) == [1]


def test_equal_texts_are_encoded_once() -> None:
    _, _, clip = tiny()
    seen = []
    hook = clip.text.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    rows = clip.encode_text(["a cat", "a dog", "a cat"])
    hook.remove()
    assert sum(seen) == 2
    assert torch.equal(rows[0], rows[2])


def test_class_tokens_mark_the_name() -> None:
    _, tokenizer, clip = tiny()
    tokens = class_tokens(clip, ["cat", "sea otter"], "a photo of a {}.")
    assert tokens.name_end is not None
    words = [tokenizer.decode(row[:end].tolist()) for row, end in zip(tokens.ids, tokens.name_end, strict=True)]
    assert [w.split()[-1] for w in words] == ["cat", "otter"]
    assert torch.equal(tokens.name_end, tokens.end - 1)
