"""CoOp: placement against texts built by hand, what the gradient reaches, effect where templates say nothing."""

import pytest
import torch
from tiny import CONTEXT, NAMES, MadeUp, bert_clip, snapshot, support_of, tiny_clip, unchanged
from torch import Tensor
from torch.nn import functional as F

from diptych.core.clip import CLIP
from diptych.core.text import class_tokens
from diptych.core.tower import Tokens
from diptych.errors import DiptychError, Unsupported
from diptych.methods.adapt.coop import TEMPLATE, Config, CoOp, around, start
from diptych.methods.adapt.parts.adapter import judge
from diptych.methods.adapt.parts.prompts import nearest_words, words_of

CLIPS = {"causal": tiny_clip, "both ways": bert_clip}


@pytest.fixture(params=CLIPS)
def clip(request) -> CLIP:
    return CLIPS[request.param]()


def features(clip: CLIP, each: int = 4, noise: float = 0.1) -> tuple[MadeUp, list[int]]:
    """Pictures whose classes the tower knows by a text that nobody would write: "very <name> long house"."""
    texts = F.normalize(clip.encode_text([f"very {name} long house" for name in NAMES]), dim=-1)
    texts = F.normalize(texts - texts.mean(0), dim=-1)
    labels = [c for _ in range(each) for c in range(len(NAMES))]
    generator = torch.Generator().manual_seed(0)
    drawn = texts[labels] + noise * torch.randn(len(labels), texts.shape[1], generator=generator)
    return MadeUp(drawn, noise=0.05), labels


def by_hand(clip: CLIP, name: str, context: Tensor, position: str) -> Tensor:
    """One class text [1, L] whose word embeddings are laid out by hand, run without any prompt of ours."""
    tokens = clip.tokenize([f"{name}."])
    words = clip.text.embed(tokens.ids)[0]
    begin, name_words, rest = words[:1], words[1:-2], words[-2:]
    half = len(context) // 2
    order = {
        "end": [begin, context, name_words, rest],
        "middle": [begin, context[:half], name_words, context[half:], rest],
        "front": [begin, name_words, context, rest],
    }[position]
    laid = torch.cat(order)[None]
    length = laid.shape[1]
    ids = torch.ones(1, length, dtype=torch.long)
    ids[0, -1] = tokens.ids[0, -1]
    blank = Tokens(ids, torch.ones(1, length, dtype=torch.bool), torch.tensor([length - 1]))
    clip.text.embed = lambda ids: laid  # type: ignore[method-assign]
    try:
        return clip.encode_tokens(blank)
    finally:
        del clip.text.embed


@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_placement_equals_a_build_by_hand(clip, position):
    context = words_of(clip, "a photo of the very")
    ours = clip.encode_tokens(class_tokens(clip, NAMES, TEMPLATE), prompts=around(context, position))
    theirs = torch.cat([by_hand(clip, name, context, position) for name in NAMES])
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_words_without_a_step_are_the_template(clip):
    source, labels = features(clip)
    support = support_of(source, labels)
    context = start(clip, support, Config(words="a photo of a"))
    rows = clip.encode_tokens(class_tokens(clip, NAMES, TEMPLATE), prompts=around(context, "end"))
    template = clip.encode_text([f"a photo of a {name}." for name in NAMES])
    x = support.features(clip)
    assert torch.allclose(clip.score(x, rows), clip.score(x, template), atol=1e-5)


def test_only_the_context_is_trained(clip):
    before = snapshot(clip)
    source, labels = features(clip)
    adapter = CoOp(Config(epochs=10, length=4, views=2))
    classifier = adapter.fit(clip, support_of(source, labels))
    assert unchanged(clip, before)
    assert classifier.trainable == 4 * clip.text.width
    assert [p.tokens.shape for p in classifier.edits.of("text").prompts] == [(4, clip.text.width)]
    assert not classifier.edits.of("image")
    again = adapter.fit(clip, support_of(source, labels))
    assert torch.equal(classifier.head.rows, again.head.rows)
    moved = start(clip, support_of(source, labels), Config(length=4))
    assert not torch.allclose(classifier.edits.of("text").prompts[0].tokens, moved, atol=1e-4)


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("class_specific", [False, True])
def test_rows_come_from_the_saved_prompts(clip, position, class_specific, tmp_path):
    source, labels = features(clip)
    config = Config(position=position, class_specific=class_specific, epochs=3, length=4, views=2)
    classifier = CoOp(config).fit(clip, support_of(source, labels))
    tokens = class_tokens(clip, NAMES, TEMPLATE)
    rows = F.normalize(classifier.clip(clip).encode_tokens(tokens), dim=-1)
    assert torch.allclose(rows, classifier.head.rows, atol=1e-6)
    if class_specific:
        with pytest.raises(Unsupported, match="one context a class"):
            classifier.with_names(clip, ["fish", "house"])
    else:
        same = classifier.with_names(clip, NAMES)
        assert torch.allclose(same.head.rows, classifier.head.rows, atol=1e-6)
        assert classifier.with_names(clip, ["fish", "house"]).head.rows.shape == (2, clip.embed_dim)


def test_sixteen_shots_beat_the_template_by_ten_points_and_one_shot(clip):
    """Classes look as a context says that is no text anyone would write; mean of 3 seeds."""
    generator = torch.Generator().manual_seed(7)
    hidden = around(torch.randn(4, clip.text.width, generator=generator) * 0.3, "end")
    rows = F.normalize(clip.encode_tokens(class_tokens(clip, NAMES, TEMPLATE), prompts=hidden), dim=-1)
    labels = [c for _ in range(36) for c in range(4)]
    spread = 0.6 * (rows - rows.mean(0)).norm(dim=1).mean()
    noise = torch.randn(len(labels), clip.embed_dim, generator=generator)
    source = MadeUp(rows[labels] + spread * noise, noise=0.02)
    test = support_of(source, labels[64:], first=64)

    def accuracy(logits: Tensor) -> float:
        return float((logits.argmax(1) == test.labels).double().mean())

    def mean_of_seeds(shots: int) -> float:
        adapter = CoOp(Config(length=4, epochs=80, rate=0.3, views=2))
        few = [support_of(source, labels[: 4 * shots], seed=seed) for seed in range(3)]
        return sum(accuracy(judge(last_classifier(adapter, clip, s), clip, test)) for s in few) / 3

    template = accuracy(clip.score(test.features(clip), clip.encode_text([f"a photo of a {n}." for n in NAMES])))
    assert mean_of_seeds(16) > max(template + 0.1, mean_of_seeds(1))


def last_classifier(adapter, clip, support):
    torch.manual_seed(0)
    return list(adapter.path(clip, support))[-1][1]


def test_order_of_classes_and_pictures_does_not_matter(clip):
    source, labels = features(clip)
    for class_specific in (False, True):
        config = Config(epochs=5, length=4, views=2, class_specific=class_specific)
        one = last_classifier(CoOp(config), clip, support_of(source, labels))
        turned = [2, 0, 3, 1]  # old class of each new one
        names = [NAMES[c] for c in turned]
        other = last_classifier(CoOp(config), clip, support_of(source, [turned.index(c) for c in labels], names))
        assert torch.allclose(one.head.rows[turned], other.head.rows, atol=1e-5)


def test_a_name_that_does_not_fit_is_named():
    clip = tiny_clip()
    names = ("cat", "very " * (CONTEXT - 10) + "bear")
    source, _ = features(clip)
    with pytest.raises(DiptychError, match=r'"very very .* is too long'):
        CoOp().fit(clip, support_of(source, [0, 1], names))


def test_an_unknown_position_is_named():
    clip = tiny_clip()
    source, labels = features(clip)
    with pytest.raises(DiptychError, match=r'coop\.position cannot be "centre"'):
        CoOp(Config(position="centre")).fit(clip, support_of(source, labels))


def test_words_find_themselves(clip):
    near = nearest_words(clip, words_of(clip, "photo of house") + 0.001, top=2)
    assert [row[0] for row in near] == ["photo", "of", "house"]


def test_published_epochs():
    from diptych.methods.adapt.coop import epochs

    assert [epochs(Config(), shots) for shots in (1, 2, 4, 8, 16)] == [50, 100, 100, 200, 200]
    assert epochs(Config(epochs=7), 16) == 7
