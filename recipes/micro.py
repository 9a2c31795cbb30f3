"""micro, the small ViT-CLIP that comes with diptych: three kinds of drawn scenes in turn, plain CLIP.

    python recipes/micro.py --out run
    36 minutes of one core; the large thing of held-out scenes, among 140 classes: 96%

    python recipes/micro.py --tiny
    2 minutes of one core; the same, of a model that has hardly begun: 1%

    python benchmarks/micro.py run/subjects/model       # what it reaches
    python recipes/micro.py --pack FOLDER               # writes the files that diptych ships, too

First close-ups, called by their shape, since shapes are hardest to learn; then whole scenes; then scenes of one large
thing among small ones. Each is drawn once. A fifth of the colour-shape combinations is in none. Method: Radford et al.,
Learning Transferable Visual Models From Natural Language Supervision, arXiv 2103.00020. A stopped run continues.
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
from diptych.training.recipes import say

SPEC = SceneSpec(
    textures=("solid",) * 6 + ("striped", "dotted", "checked"),
    held_out=0.2,
    combinations="seen",
)
STAGES = ((0.1, (1,)), (0.3, (1, 2)), (1.0, (1, 2, 2, 3, 3)))  # until this share of the run: things in a scene
WINDOW, JITTER = 32, 5  # pixels of a close-up, and by how much the thing is off its middle
TEMPLATES = ("{}", "{}.", "a photo of {}.", "a picture of {}", "a drawing of {}", "here is {}")
EASY = 0.7  # share of the close-ups that are plain, not small and called by their shape alone
SUBJECT = replace(SPEC, counts=(1, 2, 2, 3, 3), sizes=("large", "small", "small"))
SUBJECTS = 0.6  # share of the last stage that is scenes of one large thing; the rest are any scenes
STEPS, BATCH = {"close-ups": 450, "scenes": 900, "subjects": 1300}, 128
FEW, MANY = 300, 8000  # scenes whose captions make the tokenizer
PLACES = "towers.image.visual.positional_embedding"
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


def subjects(count: int, seed: int) -> Pairs:
    """Scenes with one large thing among small ones, called by that thing; between them any scenes, as before."""
    return Pairs(f"subjects (seed {seed})", count, partial(subject_or_scene, seed), digest=f"subjects {seed} {count}")


def subject_or_scene(seed: int, index: int) -> Pair:
    if stream(seed, index, "which").random() < SUBJECTS:
        return subject(3000 + seed, index)
    record = SceneRecord(SPEC, 2000 + seed, index)
    return Pair(record.id, record.image, (caption(record, SHARES["scenes"]),), {"scene": record})


def subject(seed: int, index: int) -> Pair:
    """The first scene of 64 that has exactly one large thing."""
    records = (SceneRecord(SUBJECT, seed, 64 * index + i) for i in range(64))
    record = next(r for r in records if sum(thing.size == "large" for thing in r.scene.things) == 1)
    shown = next(thing for thing in record.scene.things if thing.size == "large")
    rng = stream(seed, index, "subject")
    aspects = {"colour"} | ({"size"} if rng.random() < 0.3 else set())
    aspects |= {"texture"} if shown.texture != "solid" and rng.random() < 0.5 else set()
    aspects -= {"colour"} if rng.random() < 0.1 else set()
    said = say_phrase(replace(phrase_of(record.scene, shown, aspects), count=1))
    if rng.random() < 0.2:
        said = said.split(" ", 1)[1]  # no article
    return Pair(record.id, record.image, (rng.choice(TEMPLATES).format(said),), {"scene": record})


def make_tokenizer(scenes: int, seed: int = 1) -> FastTokenizer:
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


def stages(tiny: bool = False, seed: int = 0) -> dict[str, dict[str, Any]]:
    """What `diptych.train` is called with for each stage; each goes on from the one before."""
    steps = dict.fromkeys(STEPS, 40) if tiny else STEPS
    made = {"close-ups": close_ups, "scenes": scenes, "subjects": subjects}
    settings = {"recipe.weight_decay": 0.1, "recipe.warmup": 50, "recipe.clip": 1.0, "recipe.crop": 1.0}
    found: dict[str, dict[str, Any]] = {
        name: {
            "system": "clip", "data": made[name](BATCH * count, seed), "settings": dict(settings), "steps": count,
            "batch": BATCH, "rate": 1e-3, "save_every": 50, "workers": 1, "seed": seed, "device": "cpu",
        }
        for name, count in steps.items()
    }  # fmt: skip
    found["close-ups"]["settings"]["recipe.freeze"] = PLACES  # they are those of the middle of a scene
    return found


def arguments(tiny: bool) -> dict[str, Any]:
    """Those of the last and longest stage, from the start."""
    return stages(tiny)["subjects"] | {"model": fresh_micro(make_tokenizer(FEW if tiny else MANY))}


def grown(small: CLIP) -> CLIP:
    """The same weights for whole scenes: only the position codes of the patches are new."""
    clip = fresh_micro(small.tokenizer)  # type: ignore[arg-type]
    tensors = small.state_dict()
    codes = torch.cat([tensors[PLACES][:1], clip.state_dict()[PLACES][1:]])
    clip.load_state_dict(tensors | {PLACES: codes})
    return clip


def train(out: Path, tiny: bool = False, seed: int = 0) -> CLIP:
    """All stages; what is done already is not done again."""
    small = CONFIG | {"vision_cfg": CONFIG["vision_cfg"] | {"image_size": WINDOW}}
    clip = fresh_micro(make_tokenizer(FEW if tiny else MANY), small, seed)
    for name, given in stages(tiny, seed).items():
        clip = diptych.train(
            **given, model=grown(clip) if name == "scenes" else clip, out=out / name, progress=say
        ).clip
    return clip


def pack(clip: CLIP, folder: Path) -> None:
    """The files that `diptych.load("micro")` reads: half precision, but for the temperature."""
    folder.mkdir(parents=True, exist_ok=True)
    half = {name: t if t.dim() == 0 else t.half() for name, t in clip.state_dict().items()}
    save_file(half, folder / WEIGHTS.name)
    clip.tokenizer.tokenizer.save(str(folder / TOKENIZER.name), pretty=False)  # type: ignore[attr-defined]


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder of the run (runs/micro, runs/micro-tiny)")
    parser.add_argument("--tiny", action="store_true", help="a few steps of each stage")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pack", type=Path, metavar="FOLDER", help="where to write the packed model too")
    given = parser.parse_args()
    torch.set_num_threads(1)  # the weights of a run do not depend on what the machine has
    clip = train(given.out or Path("runs", "micro-tiny" if given.tiny else "micro"), given.tiny, given.seed)
    if given.pack:
        pack(clip, given.pack)


if __name__ == "__main__":
    run()
