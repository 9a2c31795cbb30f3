"""clip4dm: its gradients against finite differences, its scores against plain loops, its effect on micro."""

import math
import random

import pytest
import torch
from PIL import Image
from tiny import NAMES, bert_clip, tiny_clip
from torch import Tensor

import diptych
from diptych.core.clip import CLIP
from diptych.core.edits import Edits, LowRank, TowerEdits
from diptych.core.micro import CONFIG, TOKENIZER, fresh_micro
from diptych.core.tokenizer import FastTokenizer
from diptych.core.tower import Prompt
from diptych.core.towers import huggingface, open_clip
from diptych.data.scenes import Scenes
from diptych.errors import DiptychError, Unsupported
from diptych.methods.explain.clip4dm import Clip4DM, Config, attribute, f_clip_score, judge, places
from diptych.methods.explain.parts.explainer import unit
from diptych.metrics.words import localisation_accuracy, paired_accuracy

TEXTS = ["a photo of old oak tree", "the very long name of polar bear ."]


def two_layers() -> CLIP:
    """micro's architecture with two text blocks, fresh weights, float64."""
    config = CONFIG | {"text_cfg": CONFIG["text_cfg"] | {"layers": 2, "width": 24, "heads": 2}}
    tokenizer = FastTokenizer.from_file(TOKENIZER, context_length=77, end_id=config["text_cfg"]["vocab_size"] - 1)
    clip = fresh_micro(tokenizer, config, seed=3).double()
    with torch.no_grad():
        for parameter in clip.text.parameters():
            parameter.mul_(3)  # attention that is not even, so that a mistake shows
    return clip


def target(clip: CLIP, seed: int = 0) -> Tensor:
    made = torch.randn(clip.embed_dim, generator=torch.Generator().manual_seed(seed))
    return unit(made.to(next(clip.text.parameters()).dtype))


def picture(side: int = 64, seed: int = 0) -> Image.Image:
    values = torch.rand(side, side, 3, generator=torch.Generator().manual_seed(seed))
    return Image.fromarray((255 * values).byte().numpy())


def naive(gradients: list[Tensor], attention: list[Tensor], rows: list[int]) -> list[float]:
    """The published formula, entry by entry: one text, [heads, N, N] each."""
    heads, length, _ = attention[0].shape
    found = []
    for column in range(length):
        total = 0.0
        for row in rows:
            for g, a in zip(gradients, attention, strict=True):
                total += sum(float(g[h, row, column] * a[h, row, column]) for h in range(heads)) / heads
        found.append(total / len(attention) / len(rows))
    return found


@pytest.mark.parametrize("layer", [0, 1])
def test_the_gradient_is_that_of_finite_differences(layer: int, monkeypatch: pytest.MonkeyPatch):
    """Attention probabilities, one by one, moved past the softmax: how the cosine changes is what is multiplied."""
    clip = two_layers()
    tokens, aim = clip.tokenize(["a red circle left of a blue star"]), target(clip)
    seen: list[Tensor] = []
    step, where, calls = 1e-6, (0, 0, 0), [0]
    plain = open_clip.attend

    def moved(q: Tensor, k: Tensor, v: Tensor, **options: object) -> tuple[Tensor, Tensor | None]:
        mixed, probs = plain(q, k, v, **options)  # type: ignore[arg-type]
        assert probs is not None
        if calls[0] == layer:
            seen[:] = [probs.detach()]
            change = torch.zeros_like(probs)
            change[0][where] = step
            probs = probs + change
            mixed = probs @ v
        calls[0] += 1
        return mixed, probs

    def cosine() -> float:
        calls[0] = 0
        return attribute(clip.text, tokens, aim[None], 2)[0].item()

    step = 0.0
    with monkeypatch.context() as patch:
        patch.setattr(open_clip, "attend", moved)
        cosine()
    attention = seen[0][0]
    [end] = tokens.end.tolist()
    expected = torch.zeros(end + 1, dtype=torch.float64)
    step = 1e-6
    heads = len(attention)
    with monkeypatch.context() as patch:
        patch.setattr(open_clip, "attend", moved)
        for column in range(end + 1):
            for head in range(heads):
                where, step = (head, end, column), 1e-6
                above = cosine()
                step = -1e-6
                expected[column] += (above - cosine()) / 2e-6 * attention[where] / heads
    # one layer of two: the other's share is that of a tower in which only it is read
    both = attribute(clip.text, tokens, aim[None], 2)[1][0]
    last = attribute(clip.text, tokens, aim[None], 1)[1][0]
    found = last if layer else 2 * both - last
    torch.testing.assert_close(found[: end + 1], expected, rtol=1e-3, atol=1e-9)
    assert expected.abs().max() > 1e-5


@pytest.mark.parametrize("make", [tiny_clip, bert_clip])
def test_it_is_the_published_formula_on_the_rows_that_are_pooled(make, monkeypatch: pytest.MonkeyPatch):
    """The end token's row of a causal tower; all real rows of a mean-pooled one, where padding counts for nothing."""
    clip = make().double()
    aim = target(clip)
    tokens = clip.tokenize(TEXTS)
    plain, kept = huggingface.attend, []

    def keep(*given: Tensor, **options: object) -> tuple[Tensor, Tensor | None]:
        mixed, probs = plain(*given, **options)  # type: ignore[arg-type]
        if probs is not None:
            probs.retain_grad()
            kept.append(probs)
        return mixed, probs

    monkeypatch.setattr(huggingface, "attend", keep)
    cosines, scores = attribute(clip.text, tokens, aim.expand(2, -1), 2)
    monkeypatch.undo()
    depth = len(kept)
    assert depth == 2
    for text in range(2):
        kept.clear()
        monkeypatch.setattr(huggingface, "attend", keep)
        one = clip.tokenize([TEXTS[text]])
        alone, row = attribute(clip.text, one, aim[None], 2)
        attention = [probs[0] for probs in kept]
        gradients = gradients_of(clip, one, aim, keep, kept, monkeypatch)
        end = int(one.end[0])
        rows = [end] if clip.text.causal else list(range(end + 1))
        expected = naive(gradients, [probs.detach() for probs in attention], rows)
        torch.testing.assert_close(row[0], torch.tensor(expected, dtype=torch.float64))
        torch.testing.assert_close(scores[text, : end + 1], row[0])
        torch.testing.assert_close(cosines[text], alone[0])
        monkeypatch.undo()


def gradients_of(clip: CLIP, tokens, aim: Tensor, keep, kept: list, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """By backward through an ordinary forward whose word embeddings have a gradient."""
    kept.clear()
    from diptych.core.tower import Tap

    start = Prompt(torch.zeros(0, clip.text.width, dtype=torch.float64, requires_grad=True))
    taps = [Tap(i, "attention") for i in range(clip.text.depth - 2, clip.text.depth)]
    out = clip.text(tokens, prompts=[start], taps=taps)
    (unit(out.embedding)[0] @ aim).backward()
    return [probs.grad[0] for probs in kept]


def test_the_last_blocks_alone_need_a_graph_and_weights_stay_as_they_are():
    clip = tiny_clip()
    before = {name: weight.clone() for name, weight in clip.state_dict().items()}
    tokens, aim = clip.tokenize(TEXTS[:1]), target(clip)
    with torch.no_grad():
        cosine, scores = attribute(clip.text, tokens, aim[None], 3)
    assert scores.abs().max() > 0 and not any(p.requires_grad or p.grad is not None for p in clip.parameters())
    with torch.inference_mode():
        assert Clip4DM(clip).explain(picture(), TEXTS[0]).words
    clip.requires_grad_(True)
    again, trained = attribute(clip.text, tokens, aim[None], 3)
    torch.testing.assert_close((cosine, scores), (again, trained))
    assert all(torch.equal(before[name], weight) for name, weight in clip.state_dict().items())
    assert all(p.grad is None for p in clip.parameters())


def test_half_precision_is_summed_in_single():
    clip = tiny_clip()
    tokens, aim = clip.tokenize(TEXTS), target(clip)
    single = attribute(clip.text, tokens, aim.expand(2, -1), 3)[1]
    half = attribute(clip.text.bfloat16(), tokens, aim.expand(2, -1), 3)[1]
    assert half.dtype == torch.float32
    assert torch.corrcoef(torch.stack([single.flatten(), half.flatten()]))[0, 1] > 0.99


def test_edited_towers():
    """A low-rank change counts, and learned prompts move the words' tokens without changing which are whose."""
    clip = tiny_clip()
    plain = Clip4DM(clip).explain(picture(), TEXTS[0])
    width, projection = clip.text.width, clip.text.projections()[-1]
    generator = torch.Generator().manual_seed(0)
    change = LowRank(
        projection, torch.randn(2, width, generator=generator), torch.randn(width, 2, generator=generator), 0.3
    )
    lora = clip.edited(Edits({"text": TowerEdits(low_rank=(change,))}))
    assert Clip4DM(lora).explain(picture(), TEXTS[0]).words[0].score != plain.words[0].score

    prompts = (
        Prompt(torch.randn(3, width, generator=generator)),
        Prompt(torch.randn(3, width, generator=generator), 1, replace=True),
    )
    coop = clip.edited(Edits({"text": TowerEdits(prompts=prompts)}))
    tokens = coop.tokenize(TEXTS[:1])
    assert places(coop.text, tokens).tolist() == [0, *range(4, 4 + tokens.ids.shape[1] - 1)]
    found = Clip4DM(coop).explain(picture(), TEXTS[0])
    row = attribute(
        coop.text, coop.tokenize([f"A photo depicts {TEXTS[0]}"]), Clip4DM(coop).embedding(picture())[None], 3
    )[1][0]
    # start, 3 prompts, "A photo depicts", then the words, one token each
    assert [word.score for word in found.words] == pytest.approx(row[7 : 7 + len(found.words)].tolist())

    deep = clip.edited(Edits({"text": TowerEdits(prompts=(Prompt(torch.zeros(2, width), block=1),))}))
    with pytest.raises(Unsupported, match="between blocks"):
        Clip4DM(deep).explain(picture(), TEXTS[0])


def test_decisions():
    scores = [0.2, -0.3, -0.1, 0.1, math.inf, -0.4]
    assert judge(scores, "threshold", -0.05) == ([[1, 2], [5]], pytest.approx(-0.8))
    assert judge(scores, "phrase", -0.05) == ([[1, 2], [5]], pytest.approx(-0.4))
    assert judge(scores, "most_negative", -0.05) == ([[5]], -0.4)
    assert judge([0.2, 0.1], "most_negative", 0.0) == ([[1]], 0.1), "of a text without fault n is above 0, as published"
    assert judge([0.2, 0.1], "threshold", 0.0) == judge([0.2, 0.1], "phrase", 0.0) == ([], 0)
    assert judge([math.inf], "most_negative", 0.0) == ([], 0.0)
    assert f_clip_score(-0.5, 0.3) == pytest.approx(-0.35) and f_clip_score(-0.5, -0.3) == -0.5


def test_words_are_means_of_their_pieces_and_the_template_is_none_of_them():
    clip = diptych.load("micro", "cpu")
    explainer = Clip4DM(clip, Config(eps=0.0))
    text = "a red circle, a zebra and a red star."
    found = explainer.explain(picture(), text)
    assert [word.word for word in found.words] == [
        "a",
        "red",
        "circle",
        ",",
        "a",
        "zebra",
        "and",
        "a",
        "red",
        "star",
        ".",
    ]
    assert all(text[word.start : word.end] == word.word for word in found.words)
    given = f"A photo depicts {text}"
    [(_, spans)] = clip.tokenizer.encode([given])  # type: ignore[attr-defined]
    row = attribute(clip.text, clip.tokenize([given]), explainer.embedding(picture())[None], 3)[1][0]
    start = given.index("zebra")
    pieces = [i for i, (first, end) in enumerate(spans) if first < start + 5 and end > start and end > first]
    assert len(pieces) > 1, "spelled by several tokens"
    assert found.words[5].score == pytest.approx(row[pieces].mean().item())
    assert found.words[1].score != found.words[8].score, "a repeated word is known by its place"
    assert not any(word.flagged for word in found.words if word.word in ",.")
    assert found.score == pytest.approx(
        sum(w.score for w in found.words if w.flagged and w.score) * (1 - max(found.cosine, 0))
    )


def test_a_text_that_is_cut_says_which_words_were_not_read():
    clip = tiny_clip()  # reads 24 tokens
    found = Clip4DM(clip).explain(picture(), " ".join(["cat"] * 30))
    read = [word.score is not None for word in found.words]
    assert read == [True] * 19 + [False] * 11, "24 less start, end and three words of the template"
    assert found.unread == ("cat",) * 11 and math.isfinite(found.score)


def test_calibration_keeps_its_promise_on_the_pairs_it_saw():
    clip = diptych.load("micro", "cpu")
    pairs = [(record.image(), record.text()) for record in Scenes(count=20, seed=5)]
    for share in (0.0, 0.1, 0.5):
        explainer = Clip4DM(clip).calibrated(pairs, share)
        flagged = sum(bool(explainer.explain(*pair).phrases) for pair in pairs)
        assert share * len(pairs) - 1 <= flagged <= share * len(pairs)
    with pytest.raises(DiptychError, match="pairs that match"):
        Clip4DM(clip).calibrated([])
    with pytest.raises(DiptychError, match="below 1"):
        Clip4DM(clip).calibrated(pairs, 1.0)


def test_maps_of_towers_with_and_without_attention():
    """micro's map of a thing is strongest inside the thing; a ConvNet without stages has none and says so."""
    clip = diptych.load("micro", "cpu")
    records = [record for record in Scenes(count=60, seed=8) if len(record.regions) == 2][:12]
    hits, share = 0, 0.0
    for record in records:
        thing, (x0, y0, x1, y1) = record.scene.things[0], record.regions[0].box
        heat = Clip4DM(clip).heat(record.image(), f"a {thing.colour} {thing.shape}")
        assert heat.shape == (8, 8)
        row, column = divmod(int(heat.argmax()), 8)
        hits += x0 <= 8 * column + 4 <= x1 and y0 <= 8 * row + 4 <= y1
        share += (x1 - x0) * (y1 - y0) / 64**2 / len(records)
    assert hits / len(records) > 0.5 > 2 * share
    assert Clip4DM(tiny_clip()).heat(picture(), "cat").shape == (2, 2)
    with pytest.raises(Unsupported, match="neither attention nor stages"):
        Clip4DM(bert_clip()).heat(picture(), "cat")


def test_a_picture_towers_prompts_are_no_part_of_the_map():
    clip = tiny_clip()
    prompts = tuple(Prompt(torch.randn(2, clip.image.width), at=at) for at in ("start", "end"))
    edited = clip.edited(Edits({"image": TowerEdits(prompts=prompts)}))  # type: ignore[arg-type]
    target_row = unit(edited.encode_text(["A photo depicts cat"]))
    row = attribute(edited.image, Clip4DM(edited).pixels(picture()), target_row, 3)[1][0]
    assert len(row) == 1 + 2 + 4 + 2
    torch.testing.assert_close(Clip4DM(edited).heat(picture(), "cat"), row[3:7].reshape(2, 2))


def test_convnet_maps_sum_to_what_the_last_stage_gives():
    """Gradient times activation, where the cosine's numerator is linear in the stage: a sum with a known answer."""
    from diptych.core.tower import Tap, Tower, TowerOutput
    from diptych.methods.explain.parts.activation import activation_map

    class Stage(Tower):
        modality, kind, transformer, depth, embed_dim = "image", "one stage", False, 1, 2

        def forward(self, inputs, *, prompts=(), taps=(), tokens=False) -> TowerOutput:
            stage = inputs[:, :2]  # [B, 2, H, W]
            return TowerOutput(stage.mean((2, 3)), None, {Tap(0): stage})

    pixels = torch.rand(1, 3, 4, 4, dtype=torch.float64) + 0.1
    mean = pixels[0, :2].mean((1, 2))
    aim = torch.tensor([[0.6, 0.8]], dtype=torch.float64)
    cosine = (mean @ aim[0]) / mean.norm()
    direction = (aim[0] - cosine * mean / mean.norm()) / mean.norm() / 16  # derivative of the cosine, a pixel
    expected = (pixels[0, :2] * direction[:, None, None]).sum(0)
    torch.testing.assert_close(activation_map(Stage(), pixels, aim), expected.float())


def test_what_cannot_be_explained_is_refused_with_the_reason():
    from fakes import colour_clip

    with pytest.raises(Unsupported, match="has none"):
        Clip4DM(colour_clip())
    with pytest.raises(DiptychError, match="most_negative"):
        Clip4DM(tiny_clip(), Config(mode="most_negativ"))
    with pytest.raises(DiptychError, match="at least the last block"):
        Clip4DM(tiny_clip(), Config(layers=0))
    with pytest.raises(DiptychError, match="without a word"):
        Clip4DM(tiny_clip()).explain(picture(), "  ")


def test_it_finds_the_false_word_of_a_caption():
    """Colours and shapes of micro's scenes, one word changed: against chance, and against evidence cut off at 0."""
    clip, config = diptych.load("micro", "cpu"), Config(mode="most_negative")
    explainer, rng = Clip4DM(clip, config), random.Random(0)
    scores, wrong, chance, pairs = [], [], 0.0, []
    for record in Scenes(count=80, seed=6):
        image = record.image()
        foils = [foil for foil in record.foils if foil.kind in ("colour", "shape")]
        if not foils:
            continue
        foil = rng.choice(foils)
        found = explainer.explain(image, foil.text)
        said = [i for i, word in enumerate(found.words) if word.word not in ("a", "an", "and", "of", "on")]
        scores.append([found.words[i].score or 0.0 for i in said])
        wrong.append([said.index(foil.words[0])])
        chance += 1 / len(said)
        pairs.append((explainer.explain(image, foil.caption).score, found.score))
    found_right, chance = localisation_accuracy(scores, wrong), chance / len(scores)
    assert found_right > 2 * chance and found_right > 0.5, (found_right, chance)
    cut = localisation_accuracy([[max(s, 0.0) for s in row] for row in scores], wrong)
    assert found_right > cut + 0.1, "what is cut off at 0 cannot tell which word speaks against the picture"
    true, false = zip(*pairs, strict=True)
    assert paired_accuracy(true, false) > 0.65


def test_names_of_the_tiny_model_are_words():
    assert all(len(Clip4DM(tiny_clip()).explain(picture(), name).words) == len(name.split()) for name in NAMES)
