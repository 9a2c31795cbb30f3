"""long_clip: its stretched table, its losses against plain loops, what stays and what moves, and what it is for."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from train_world import CONFIG, World, batch_of, make_clip

import diptych
from diptych.core.clip import CLIP
from diptych.core.positions import lengthen, stretch
from diptych.data.pairs import Pair
from diptych.data.scenes import SceneRecord, Scenes, SceneSpec
from diptych.errors import DiptychError, Unsupported
from diptych.losses.low_rank import Nearest, principal
from diptych.methods.distill.long_clip import Config, LongClip, first_sentence, smoothed_contrastive
from diptych.metrics.retrieval import recall_at
from diptych.training.plan import make_plan
from diptych.training.run import Run

SMALL = Config(tokens=44, first=4, scale=0.0)  # of the test's CLIP, which reads 20 tokens

# -- the table ---------------------------------------------------------------------------------------------------------


def test_77_rows_become_248_by_the_papers_rule():
    table = torch.randn(77, 6, dtype=torch.float64)
    expected = torch.empty(248, 6, dtype=torch.float64)
    expected[:20] = table[:20]
    for i in range(56):
        for r in range(4):
            expected[20 + 4 * i + r] = ((4 - r) * table[20 + i] + r * table[21 + i]) / 4
    for r in range(4):
        expected[244 + r] = table[76] + r / 4 * (table[76] - table[75])
    torch.testing.assert_close(stretch(table, 248), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("rows", "length", "keep"), [(77, 200, 20), (77, 248, 0), (16, 17, 3), (12, 100, 10)])
def test_any_length_goes_evenly_along_the_old_rows(rows: int, length: int, keep: int):
    """Of a table that is a straight line, the stretched one is two straight lines; kept rows are bit-identical."""
    line = torch.arange(rows, dtype=torch.float32)[:, None]
    found = stretch(line, length, keep)
    assert len(found) == length and torch.equal(found[:keep], line[:keep])
    steps = found[keep:].diff(dim=0)
    torch.testing.assert_close(steps, torch.full_like(steps, (rows - keep) / (length - keep)), rtol=1e-4, atol=1e-5)
    assert torch.equal(stretch(line, rows, keep), line)


def test_what_cannot_be_stretched_is_refused():
    with pytest.raises(DiptychError, match="60 positions are fewer than the 77"):
        stretch(torch.zeros(77, 2), 60)
    with pytest.raises(DiptychError, match="76 positions cannot stay"):
        stretch(torch.zeros(77, 2), 248, keep=76)


def test_short_texts_are_what_they_were_and_long_ones_are_read():
    clip = diptych.load("micro", "cpu")
    texts = ["a red circle", "a large blue star left of a small dotted heart on grass", "a star " * 9]
    long, longer = " ".join(["a red circle"] * 13), "here is a red circle " * 20
    assert max(clip.tokenizer.length(text) for text in texts) == 20 and clip.tokenizer.length(long) == 41
    before = clip.encode_text([*texts, long])
    lengthen(clip, 248)
    after = clip.encode_text([*texts, long])
    torch.testing.assert_close(after[:-1], before[:-1], rtol=0, atol=1e-5)
    assert float((after[-1] - before[-1]).abs().max()) > 1e-3
    assert clip.tokenize([longer]).ids.shape[1] == clip.tokenizer.length(longer) > 77
    cut = clip.tokenize(["a star " * 300], warn=False)
    assert cut.ids.shape[1] == 248 and int(cut.end) == 247, "the end stands in the last place"


def test_a_longer_model_is_saved_and_read_by_open_clip(tmp_path: Path):
    import open_clip

    clip = diptych.load("micro", "cpu")
    lengthen(clip, 248)
    folder = diptych.save(clip, tmp_path / "longer")
    back = diptych.load(str(folder), "cpu")
    texts = ["a red circle", "here is a large blue star. " * 20]
    assert back.text.context_length == back.tokenizer.context_length == 248
    assert torch.equal(back.encode_text(texts), clip.encode_text(texts))
    model = open_clip.create_model(f"local-dir:{folder}").eval()
    ids = open_clip.get_tokenizer(f"local-dir:{folder}")(texts)
    assert ids.shape[1] == 248
    with torch.no_grad():
        torch.testing.assert_close(model.encode_text(ids), clip.encode_text(texts), rtol=0, atol=1e-5)  # type: ignore[operator]


def test_the_text_half_of_hugging_faces_clip_too(tmp_path: Path):
    transformers = pytest.importorskip("transformers")

    diptych.save(diptych.load("micro", "cpu"), tmp_path / "old", layout="huggingface")
    clip = diptych.load(str(tmp_path / "old"), "cpu")
    texts = ["a red circle", "here is a large blue star. " * 12]
    before = clip.encode_text(texts[:1])
    lengthen(clip, 100)
    torch.testing.assert_close(clip.encode_text(texts[:1]), before, rtol=0, atol=1e-6)
    folder = diptych.save(clip, tmp_path / "longer", layout="huggingface")
    model = transformers.CLIPModel.from_pretrained(folder, local_files_only=True).eval()
    ids = transformers.AutoTokenizer.from_pretrained(folder)(texts, padding=True, truncation=True, return_tensors="pt")
    assert ids["input_ids"].shape[1] == clip.tokenizer.length(texts[1]) > 77
    with torch.no_grad():
        theirs = model.get_text_features(**ids)
    theirs = getattr(theirs, "pooler_output", theirs)  # a tensor before transformers 5
    torch.testing.assert_close(theirs, clip.encode_text(texts), rtol=0, atol=1e-5)


def test_texts_of_another_kind_are_refused_with_the_reason():
    from tiny import bert_clip

    with pytest.raises(Unsupported, match="no table of learned positions"):
        lengthen(bert_clip(), 100)
    config = CONFIG | {"text_cfg": CONFIG["text_cfg"] | {"no_causal_mask": True}, "custom_text": True}
    with pytest.raises(Unsupported, match="not causal"):
        lengthen(make_clip(config=config), 100)


# -- the losses --------------------------------------------------------------------------------------------------------


def plain_cross_entropy(logits: Tensor, smoothing: float) -> float:
    """Mean over rows, the own column the target; loops alone."""
    count, total = len(logits), 0.0
    for i in range(count):
        normaliser = math.log(sum(math.exp(float(value)) for value in logits[i]))
        for j in range(count):
            target = smoothing / count + (1 - smoothing if i == j else 0)
            total -= target * (float(logits[i, j]) - normaliser)
    return total / count


def rows(count: int, size: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, size, generator=generator, dtype=torch.float64), dim=1)


def test_the_smoothed_loss_is_that_of_a_plain_loop():
    a, b, scale = 0.7 * rows(7, 5, 0), rows(7, 5, 1), torch.tensor(9.0, dtype=torch.float64)
    logits = scale * a @ b.T
    expected = (plain_cross_entropy(logits, 0.1) + plain_cross_entropy(logits.T, 0.1)) / 2
    assert float(smoothed_contrastive(a, b, scale, 0.1)) == pytest.approx(expected, abs=1e-12)
    y = torch.arange(7)
    theirs = (F.cross_entropy(logits, y, label_smoothing=0.1) + F.cross_entropy(logits.T, y, label_smoothing=0.1)) / 2
    assert float(smoothed_contrastive(a, b, scale, 0.1)) == pytest.approx(float(theirs), abs=1e-12)
    parts = [smoothed_contrastive(a, b, scale, 0.1, part) for part in (slice(0, 4), slice(4, 7))]
    assert float(4 * parts[0] + 3 * parts[1]) / 7 == pytest.approx(expected, abs=1e-12), "parts of several processes"


def test_principal_components_are_those_of_the_covariance():
    x = rows(12, 6, 2)
    found = principal(x, 3)
    mean = torch.stack([x[:, j].sum() / 12 for j in range(6)])
    covariance = torch.stack([torch.outer(row - mean, row - mean) for row in x]).sum(0)
    _, vectors = torch.linalg.eigh(covariance)
    for row, ours in zip(x, found, strict=True):
        expected = mean.clone()
        for vector in vectors.T[-3:]:
            expected += (row - mean).dot(vector) * vector
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
    assert int(torch.linalg.matrix_rank(found - found.mean(0))) == 3
    assert bool((found.norm(dim=1) < 1).all()), "not of unit length again"


@pytest.mark.parametrize(("count", "size", "k"), [(8, 5, 3), (5, 8, 3), (6, 6, 4), (5, 8, 32)])
def test_the_gradient_is_the_right_one(count: int, size: int, k: int):
    x = rows(count, size, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: principal(x, k), x)
    vh = torch.linalg.svd(x - x.mean(0), full_matrices=False)[2]
    k = min(k, count - 1, size)
    weight = torch.randn(count, size, dtype=torch.float64)
    through_vectors = x.mean(0) + (x - x.mean(0)) @ vh[:k].T @ vh[:k]
    for constant in (False, True):
        expected = (
            through_vectors if not constant else x.mean(0) + (x - x.mean(0)) @ vh[:k].detach().T @ vh[:k].detach()
        )
        theirs, ours = (
            torch.autograd.grad((y * weight).sum(), x, retain_graph=True)[0]
            for y in (expected, principal(x, k, detach_directions=constant))
        )
        if k < min(count - 1, size) or constant:  # else autograd divides by the last value, which is 0
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


def test_equal_pictures_do_not_break_the_gradient():
    """Where singular values coincide, autograd of the SVD gives no numbers."""
    x = rows(12, 40, 4).float()
    x = torch.cat([x, x, x[:4]]).requires_grad_()
    principal(x, 20).square().sum().backward()
    assert x.grad is not None and bool(x.grad.isfinite().all())
    same = torch.ones(6, 4, requires_grad=True)
    Nearest.apply(same - same.mean(0), 2).sum().backward()  # type: ignore[union-attr]
    assert same.grad is not None and bool(same.grad.isfinite().all())


def test_the_terms_of_a_batch():
    """Against the plain formula; with as many components as the pictures have, both terms have one formula."""
    clip, pairs = make_clip(), World(24)
    objective = LongClip(replace(SMALL, components=3, group=6))
    objective.prepare(clip, pairs, 0)
    batch = batch_of(objective, clip, pairs, list(range(12)))
    made = objective.embed(clip, batch)
    terms = objective.loss(made, clip, batch)
    image, long, short = (F.normalize(made[name].double(), dim=1) for name in ("image", "text", "short"))
    scale = clip.logit_scale.double()
    coarse = []
    for group in (image[:6], image[6:]):
        centred = group - group.mean(0)
        vectors = torch.linalg.svd(centred)[2][:3]
        coarse.append(group.mean(0) + centred @ vectors.T @ vectors)
    for name, pictures, texts in (("long", image, long), ("short", torch.cat(coarse), short)):
        logits = scale * pictures @ texts.T
        expected = (plain_cross_entropy(logits, 0.1) + plain_cross_entropy(logits.T, 0.1)) / 2
        assert float(terms[name].detach()) == pytest.approx(expected, abs=1e-5)
    whole = LongClip(replace(SMALL, components=32, group=12))
    made["text"] = made["short"]
    both = whole.loss(made, clip, batch)
    assert float(both["short"].detach()) == pytest.approx(float(both["long"].detach()), abs=1e-5)


def test_the_short_caption_is_the_first_sentence():
    assert first_sentence("A dog on grass. It is 3.5 m long. Brown.") == "A dog on grass"
    assert first_sentence("a dog") == "a dog"
    pair = World(1, texts=lambda scene: ("one\nline. two",))[0]
    assert LongClip().words(pair, None) == {"long": "one line. two", "short": "one line"}  # type: ignore[arg-type]


# -- training ----------------------------------------------------------------------------------------------------------


def trained(config: Config, steps: int, pairs: World, **recipe: str) -> CLIP:
    clip = make_clip()
    clip.log_scale.data.fill_(math.log(14.0))
    settings = {f"long_clip.{name}": str(value) for name, value in vars(config).items()}
    settings |= {"recipe.warmup": "10", "recipe.freeze": "towers.text.token_embedding.weight"}
    settings |= {f"recipe.{name}": value for name, value in recipe.items()}
    plan = make_plan("long_clip", len(pairs), settings, steps=steps, epochs=None, batch=48, rate=2e-3, seed=0,
        save_every=None, eval_every=None)  # fmt: skip
    run = Run(plan, clip, pairs, None)
    for step in range(steps):
        run.step(step, *run.batches[step])
    return clip.eval().requires_grad_(False)


def test_after_fifty_steps_the_first_positions_are_bit_identical_and_all_else_has_moved():
    start, pairs = make_clip(), World(48, texts=lambda scene: (f"a drawing. {scene.caption()} and so on" * 3,))
    clip = trained(replace(SMALL, scale=30.0), 50, pairs, weight_decay="0.5", freeze="")
    before, after = start.text.positional_embedding, clip.text.positional_embedding  # type: ignore[attr-defined]
    assert len(after) == 44 and torch.equal(after[:4], before[:4])
    read = clip.tokenizer.length(pairs[0].texts[0])
    moved = (after - stretch(before, 44, 4)).abs().amax(1)
    assert bool((moved[4:read] > 1e-4).all())
    others = dict(start.named_parameters())
    for name, parameter in clip.named_parameters():
        if name != "towers.text.positional_embedding":
            assert not torch.equal(parameter, others[name]), f"{name} has not moved"


SCENES = SceneSpec(counts=(1,), sizes=("large",))


def described(record: SceneRecord) -> str:
    """What is drawn is told behind token 30."""
    filler = "this is a drawing of shapes. here is a drawing of things in colours. each shape has one colour. "
    return f"{filler}there is {record.text('short')}."


class Described(list[Pair]):
    def __init__(self, source: str, pairs: list[Pair]) -> None:
        super().__init__(pairs)
        self.source = source


def found_by(clip: CLIP) -> float:
    """R@1 of 100 held-out scenes by their descriptions."""
    records = list(Scenes(SCENES, 100, seed=9))
    pictures = F.normalize(clip.encode_image(torch.stack([clip.preprocess(r.image()) for r in records])), dim=1)
    texts = F.normalize(clip.encode_text([described(r) for r in records]), dim=1)
    return recall_at(texts @ pictures.T)[1]


def of_30_tokens() -> CLIP:
    """micro, whose captions had up to 30 tokens, without the positions that it has beyond."""
    clip = diptych.load("micro", "cpu")
    clip.text.positional_embedding = torch.nn.Parameter(clip.text.positional_embedding[:30].clone())  # type: ignore
    clip.text.context_length, clip.tokenizer = 30, clip.tokenizer.with_context(30)  # type: ignore[attr-defined]
    return clip


@pytest.mark.filterwarnings("ignore::diptych.errors.TextCut")
def test_what_is_said_behind_the_old_end_is_learned():
    """Against the same training of the model that cuts texts, which can know nothing of what is drawn."""
    pairs = Described("scenes", [Pair(r.id, r.image, (described(r),), {}) for r in Scenes(SCENES, 768, seed=8)])
    found: dict[int, float] = {}
    for tokens in (60, 30):
        clip = of_30_tokens()
        settings = {"long_clip.tokens": str(tokens), "long_clip.scale": "0", "recipe.warmup": "5"}
        settings["recipe.freeze"] = "towers.image.*"
        plan = make_plan("long_clip", len(pairs), settings, steps=24, epochs=None, batch=32, rate=1e-3, seed=0,
            save_every=None, eval_every=None)  # fmt: skip
        run = Run(plan, clip, pairs, None)
        for step in range(plan.steps):
            run.step(step, *run.batches[step])
        found[tokens] = found_by(clip.eval().requires_grad_(False))
    assert found[30] < 0.1 and found[60] > found[30] + 0.25, found
