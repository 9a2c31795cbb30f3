"""Training steps of diptych against open_clip's own loop: the same tiny ViT, the same batches, interleaved.

    python benchmarks/train_step.py --out docs/results/train_step.json      about 2 minutes on one core

Both start from the same weights and see the same 50 batches of pictures (already pixels) and texts. Ours runs the
project's loop with its logging figures; theirs is the step of `open_clip_train.train.train_one_epoch` at the same
precision (forward of the model, ClipLoss, AdamW, schedule, clamp), which pads every text to its context length.
Seconds are processor time of this process, so that other work on the machine does not count.
"""

import argparse
import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from diptych.core.build import build_open_clip, clip_of_open_clip, tokenizer_of_open_clip
from diptych.core.preprocess import Preprocess
from diptych.data.pairs import Pair
from diptych.engine.provenance import provenance
from diptych.files import write_atomically
from diptych.training.plan import make_plan
from diptych.training.run import Run

SIDE, BATCH, STEPS, CONTEXT = 64, 64, 50, 77
CONFIG: dict[str, Any] = {
    "embed_dim": 64,
    "vision_cfg": {"layers": 4, "width": 128, "head_width": 32, "patch_size": 8, "image_size": SIDE},
    "text_cfg": {"context_length": CONTEXT, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 4},
}
WORDS = "red green blue small large old new wooden shiny round photo drawing of a the on near cat dog boat tree".split()  # noqa: SIM905


@dataclass(frozen=True)
class Noise:
    """Pictures of noise with captions of 4 to 14 words."""

    source: str = "noise"

    def __len__(self) -> int:
        return BATCH * 10

    def __getitem__(self, index: int) -> Pair:
        rng = np.random.default_rng([1, index])
        pixels = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        text = " ".join(rng.choice(WORDS, rng.integers(4, 15)))
        return Pair(str(index), lambda: Image.fromarray(pixels), (text,))


def ours() -> Run:
    import open_clip

    torch.manual_seed(0)
    model = build_open_clip(CONFIG, "here")
    tokenizer = tokenizer_of_open_clip(open_clip.SimpleTokenizer(context_length=CONTEXT), CONTEXT)
    look = Preprocess(SIDE, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    clip = clip_of_open_clip(model, CONFIG, tokenizer, look, name="tiny", source="tiny")
    plan = make_plan(
        "clip",
        len(Noise()),
        {"recipe.crop": "1"},
        steps=STEPS,
        epochs=None,
        batch=BATCH,
        rate=5e-4,
        seed=0,
        save_every=None,
        eval_every=None,
    )
    return Run(plan, clip.train(), Noise(), None)


class Theirs:
    """open_clip's loop around its own model."""

    def __init__(self, run: Run) -> None:
        import open_clip
        from open_clip.loss import ClipLoss
        from open_clip_train.scheduler import cosine_lr

        torch.manual_seed(0)
        self.model: Any = open_clip.CLIP(**CONFIG, output_dict=True).train()
        named = list(self.model.named_parameters())

        def plain(name: str, p: Any) -> bool:
            return p.ndim < 2 or "bn" in name or "ln" in name or "bias" in name or "logit_scale" in name

        groups = [
            {"params": [p for n, p in named if plain(n, p)], "weight_decay": 0.0},
            {"params": [p for n, p in named if not plain(n, p)], "weight_decay": run.plan.recipe.weight_decay},
        ]
        recipe = run.plan.recipe
        self.optimizer = torch.optim.AdamW(groups, lr=5e-4, betas=(recipe.beta1, recipe.beta2), eps=recipe.eps)
        self.schedule = cosine_lr(self.optimizer, 5e-4, run.plan.warmup, STEPS)
        self.loss = ClipLoss()

    def step(self, step: int, pixels: torch.Tensor, texts: torch.Tensor) -> float:
        self.schedule(step)
        self.optimizer.zero_grad()
        loss = self.loss(**self.model(pixels, texts), output_dict=False)
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, float(np.log(100)))
        return float(loss.detach())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    torch.set_num_threads(1)
    given = parser.parse_args()
    import open_clip

    tokenize = open_clip.SimpleTokenizer(context_length=CONTEXT)
    run = ours()
    rival = Theirs(run)
    state = rival.model.state_dict()
    assert all(torch.equal(state[f"visual.{n.removeprefix('towers.image.visual.')}"], t)
               for n, t in run.clip.state_dict().items() if "image" in n), "the same start"  # fmt: skip
    seconds: dict[str, list[float]] = {"diptych": [], "open_clip": []}
    losses: dict[str, list[float]] = {"diptych": [], "open_clip": []}
    for step in range(STEPS):
        batch, ids = run.batches[step]
        texts = tokenize([run.pairs[int(i)].texts[0] for i in batch.index])
        turns = ("diptych", "open_clip") if step % 2 else ("open_clip", "diptych")
        for name in turns:
            start = time.process_time()
            if name == "diptych":
                losses[name].append(run.step(step, batch, ids).loss)
            else:
                losses[name].append(rival.step(step, batch.pixels, texts))
            seconds[name].append(time.process_time() - start)
    apart = max(abs(a - b) for a, b in zip(losses["diptych"], losses["open_clip"], strict=True))
    speed = {name: BATCH / statistics.median(found[5:]) for name, found in seconds.items()}
    result = {
        "largest_difference_of_losses": apart,
        "steps": STEPS,
        "batch": BATCH,
        "samples_per_cpu_second": speed,
        "ratio": speed["diptych"] / speed["open_clip"],
        "losses": losses,
        "provenance": provenance(),
    }
    print(json.dumps({k: v for k, v in result.items() if k not in ("losses", "provenance")}, indent=1))
    if given.out:
        write_atomically(given.out, json.dumps(result, indent=1).encode())


if __name__ == "__main__":
    main()
