"""micro, the small ViT-CLIP that comes with diptych: drawn scenes, captions of several kinds, plain CLIP.

    python recipes/micro.py --out run                  TIME on 2 cores; SCORES
    python recipes/micro.py --out run --tiny           a small one in two minutes, to see that all works
    python benchmarks/micro.py run/model               what it reaches

Each scene is drawn once and never again. A fifth of the colour-shape combinations never is. Stopped, it continues.
"""

import argparse
import random
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

import diptych
from diptych.core.clip import CLIP
from diptych.core.micro import CONFIG, TOKENIZER, WEIGHTS, fresh_micro
from diptych.core.tokenizer import FastTokenizer
from diptych.data.pairs import Pair, Pairs
from diptych.data.scenes import SceneRecord, SceneSpec
from diptych.data.scenes.captions import phrase_of, proper_name
from diptych.data.scenes.grammar import say_phrase
from diptych.data.scenes.spec import stream
from diptych.data.scenes.words import DESCRIPTIONS, GROUNDS, SYNONYMS
from diptych.methods.adapt.dclip import clause
from diptych.training.batches import permutation

SPEC = SceneSpec(
    textures=("solid",) * 6 + ("striped", "dotted", "checked"),
    held_out=0.2,
    combinations="seen",
)
STAGES = ((0.1, (1,)), (0.3, (1, 2)), (1.0, (1, 2, 2, 3, 3)))  # until this share of the run: things in a scene
WINDOW, JITTER = 32, 5  # pixels of a close-up, and by how much the thing is off its middle
TEMPLATES = ("{}", "{}.", "a photo of {}.", "a picture of {}", "a drawing of {}", "here is {}")
EASY = 0.7  # share of the close-ups that are
NEAR, FAR, BATCH = 450, 900, 128  # steps of the two stages; pairs of a step in the second
KINDS = ("short", "rewrite 1", "thing", "description", "shape")
SHARES = {"close-ups": (0, 0, 0.3, 0.15, 0.55), "scenes": (0.28, 0.14, 0.4, 0.1, 0.08)}


def caption(record: SceneRecord, shares: Sequence[float]) -> str:
    """The text that a scene is shown with: of all that is there, of one thing, or of what one thing looks like."""
    rng = stream(record.seed, record.index, "caption")
    match kind := rng.choices(KINDS, shares)[0]:
        case "thing":
            return rng.choice(TEMPLATES).format(thing(record, rng))
        case "shape":
            return rng.choice(TEMPLATES).format(thing(record, rng, bare=True))
        case "description":
            return description(record, rng)
    return record.text(kind)


def thing(record: SceneRecord, rng: random.Random, bare: bool = False) -> str:
    """ "a large red circle", "two dotted stars", "blue shape": one kind of thing by some of its words."""
    kind = rng.choice(record.scene.kinds)
    chances = {"colour": 0.9, "size": 0.5, "texture": 0.3 if kind.texture == "solid" else 0.7}
    aspects = () if bare else {aspect for aspect, p in chances.items() if rng.random() < p}
    phrase = phrase_of(record.scene, kind, aspects)
    synonyms = {word: rng.choice((word, *others)) for word, others in SYNONYMS.items()} if rng.random() < 0.2 else {}
    said = say_phrase(phrase, synonyms=synonyms)
    if phrase.count == 1 and rng.random() < 0.15:
        said = said.split(" ", 1)[1]  # no article
    return said + (f" on {GROUNDS['en'][record.scene.background]}" if not bare and rng.random() < 0.1 else "")


def description(record: SceneRecord, rng: random.Random, names: tuple[str, ...] = ()) -> str:
    """ "a red shape, which has four right angles": what one thing looks like, under its name, another or none."""
    kind = rng.choice(record.scene.kinds)
    said = clause(rng.choice(DESCRIPTIONS[kind.shape]))
    names = names or ("shape", "a shape", kind.shape, proper_name(record.index).lower()[:4], "")
    named = rng.choice(names)
    if named.endswith("shape") and rng.random() < 0.5:
        named = named.replace("shape", f"{kind.colour} shape")
    return f"{named}, {said}" if named else said


def close_ups(count: int, seed: int) -> Pairs:
    """One thing each, cut out of its scene; at first plain, not small and called by its shape alone."""
    made = partial(close_up, seed, places(count, seed))
    return Pairs(f"close-ups (seed {seed})", count, made, digest=f"close-ups {seed} {count}")


def close_up(seed: int, progress: np.ndarray, index: int) -> Pair:
    easy = progress[index] < EASY
    plain = {"sizes": ("medium", "large"), "textures": ("solid",)} if easy else {}
    record = SceneRecord(replace(SPEC, counts=(1,), **plain), seed, index)
    (shown,), rng = record.scene.things, stream(seed, index, "window")
    corner = (round(at * SPEC.side - WINDOW / 2 + rng.uniform(-JITTER, JITTER)) for at in (shown.x, shown.y))
    x, y = (min(max(0, place), SPEC.side - WINDOW) for place in corner)

    def picture() -> Image.Image:
        return record.image().crop((x, y, x + WINDOW, y + WINDOW))

    text = f"a {shown.shape}" if easy else caption(record, SHARES["close-ups"])
    return Pair(record.id, picture, (text,), {"scene": record})


def places(count: int, seed: int) -> np.ndarray:
    """When in the run each pair comes, from 0 to 1: `Order` shuffles by the same permutation."""
    return permutation(count, seed, 0).argsort() / count


def scenes(count: int, seed: int) -> Pairs:
    """Whole scenes, the fuller the later in the run."""
    made = partial(scene, seed, places(count, seed))
    return Pairs(f"scenes (seed {seed})", count, made, digest=f"scenes {seed} {count}")


def scene(seed: int, progress: np.ndarray, index: int) -> Pair:
    counts = next(counts for until, counts in STAGES if progress[index] < until)
    record = SceneRecord(replace(SPEC, counts=counts), 1000 + seed, index)  # others than the close-ups are cut from
    return Pair(record.id, record.image, (caption(record, SHARES["scenes"]),), {"scene": record})


def make_tokenizer(scenes: int = 8000, seed: int = 1) -> FastTokenizer:
    """Byte-level pairs, learned from captions in lower case: known words are one token, others are spelled."""
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip(), normalizers.Lowercase()]
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)  # pyright: ignore
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG["text_cfg"]["vocab_size"] - 2,
        special_tokens=["<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    records = (SceneRecord(SPEC, seed, i) for i in range(scenes))
    backend.train_from_iterator((text for r in records for text in words_of(r)), trainer)
    start, end = "<start>", "<end>"
    backend.add_special_tokens([start, end])  # the end has the highest number: open_clip reads there
    ids = [(token, backend.token_to_id(token)) for token in (start, end)]
    backend.post_processor = processors.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [processors.ByteLevel(), processors.TemplateProcessing(single=f"{start} $A {end}", special_tokens=ids)]
    )
    backend.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    return FastTokenizer(backend, context_length=CONFIG["text_cfg"]["context_length"], pad_id=0, end_id=ids[1][1])


def words_of(record: SceneRecord) -> tuple[str, ...]:
    rng = stream(record.seed, record.index, "words")
    some = record.text("short"), record.text("rewrite 1"), record.text("long"), description(record, rng, ("shape", ""))
    return *some, rng.choice(TEMPLATES).format(thing(record, rng))


def arguments(tiny: bool = False, seed: int = 0) -> dict[str, dict[str, Any]]:
    """What `diptych.train` is called with, but `out`; the scenes go on from the close-ups (`grown`)."""
    common: dict[str, Any] = {"system": "clip", "rate": 1e-3, "workers": 1, "seed": seed, "device": "cpu"}
    settings: dict[str, Any] = {"recipe.weight_decay": 0.1, "recipe.warmup": 50, "recipe.clip": 1.0, "recipe.crop": 1.0}
    held = {"recipe.freeze": "towers.image.visual.positional_embedding"}  # they are those of the middle of a scene
    near, far = (60, 40) if tiny else (NEAR, FAR)
    small = CONFIG | {"vision_cfg": CONFIG["vision_cfg"] | {"image_size": WINDOW}}
    model = fresh_micro(make_tokenizer(), small, seed)
    return {
        "close-ups": {
            **common, "data": close_ups(128 * near, seed), "model": model, "settings": settings | held,
            "batch": 128, "steps": near, "save_every": 200,
        },
        "scenes": {
            **common, "data": scenes(BATCH * far, seed), "settings": settings,
            "batch": BATCH, "steps": far, "save_every": 50,
        },
    }  # fmt: skip


def grown(small: CLIP) -> CLIP:
    """The same weights for whole scenes: only the position codes of the patches are new."""
    clip = fresh_micro(small.tokenizer)  # type: ignore[arg-type]
    place = "towers.image.visual.positional_embedding"
    tensors = small.state_dict()
    codes = torch.cat([tensors[place][:1], clip.state_dict()[place][1:]])
    clip.load_state_dict(tensors | {place: codes})
    return clip


def train(out: Path, tiny: bool = False, seed: int = 0) -> CLIP:
    """Both stages; what is done already is not done again."""
    given = arguments(tiny, seed)
    small = diptych.train(**given["close-ups"], out=out / "close-ups", progress=show).clip
    return diptych.train(**given["scenes"], model=grown(small), out=out / "scenes", progress=show).clip


def pack(clip: CLIP, folder: Path) -> None:
    """The files that `diptych.load("micro")` reads: half precision, but for the temperature."""
    folder.mkdir(parents=True, exist_ok=True)
    half = {name: t if t.dim() == 0 else t.half() for name, t in clip.state_dict().items()}
    save_file(half, folder / WEIGHTS.name)
    clip.tokenizer.tokenizer.save(str(folder / TOKENIZER.name), pretty=False)  # type: ignore[attr-defined]


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("run"), help="folder of the run; an unfinished one goes on")
    parser.add_argument("--tiny", action="store_true", help="a small run of two minutes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pack", type=Path, metavar="FOLDER", help="where to write the packed model too")
    given = parser.parse_args()
    clip = train(given.out, given.tiny, given.seed)
    if given.pack:
        pack(clip, given.pack)


def show(row: dict[str, float], plan: Any) -> None:
    if row["step"] % 50 == 0:
        print(f"{row['step']:.0f} of {plan.steps}: loss {row['loss']:.3f}, {row['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    run()
