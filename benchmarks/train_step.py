"""Training steps of diptych against open_clip's own loop: the same tiny ViT, the same batches, interleaved.

    python benchmarks/train_step.py --out docs/results/train_step.json      about 2 minutes on one core

Both start from the same weights and see the same 50 batches of pictures (already pixels) and texts. Ours runs the
project's loop with its logging figures; theirs is the step of `open_clip_train.train.train_one_epoch` at the same
precision (forward of the model, ClipLoss, AdamW, schedule, clamp), which pads every text to its context length.
"diptych, padded" is ours on texts padded likewise, all of whose positions are computed: what is left of the difference
is not the trimming of texts. Seconds are processor time of this process, so that other work on the machine does not
count.
"""

import argparse
import json
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from diptych.core.build import build_open_clip, clip_of_open_clip, tokenizer_of_open_clip
from diptych.core.preprocess import Preprocess
from diptych.core.tower import Tokens
from diptych.data.pairs import Pair
from diptych.engine.provenance import provenance
from diptych.files import write_atomically
from diptych.methods.pretrain.parts.objective import Batch
from diptych.training.plan import make_plan
from diptych.training.run import Run

SIDE, BATCH, STEPS, CONTEXT = 64, 64, 50, 77
SIDES = ("diptych", "diptych, padded", "open_clip")
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


def padded(batch: Batch) -> Batch:
    """The same batch with texts as long as the context, the padding being read; a causal tower's result is the same."""
    text = batch.texts["text"]
    ids = F.pad(text.ids, (0, CONTEXT - text.ids.shape[1]))
    return replace(batch, texts={"text": Tokens(ids, torch.ones_like(ids, dtype=torch.bool), text.end)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    torch.set_num_threads(1)
    given = parser.parse_args()
    import open_clip

    tokenize = open_clip.SimpleTokenizer(context_length=CONTEXT)
    run, long = ours(), ours()
    rival = Theirs(run)
    state = rival.model.state_dict()
    assert all(torch.equal(state[f"visual.{n.removeprefix('towers.image.visual.')}"], t)
               for n, t in run.clip.state_dict().items() if "image" in n), "the same start"  # fmt: skip
    seconds: dict[str, list[float]] = {name: [] for name in SIDES}
    losses: dict[str, list[float]] = {name: [] for name in SIDES}
    most = 0  # tokens of a batch's longest text
    for step in range(STEPS):
        batch, ids = run.batches[step]
        texts = tokenize([run.pairs[int(i)].texts[0] for i in batch.index])
        most = max(most, batch.texts["text"].ids.shape[1])
        for name in [*SIDES][:: 1 if step % 2 else -1]:
            whole = padded(batch)
            start = time.process_time()
            if name == "diptych":
                losses[name].append(run.step(step, batch, ids).loss)
            elif name == "diptych, padded":
                losses[name].append(long.step(step, whole, ids).loss)
            else:
                losses[name].append(rival.step(step, batch.pixels, texts))
            seconds[name].append(time.process_time() - start)
    apart = max(abs(a - b) for name in SIDES[:2] for a, b in zip(losses[name], losses["open_clip"], strict=True))
    speed = {name: BATCH / statistics.median(found[5:]) for name, found in seconds.items()}
    result = {
        "largest_difference_of_losses": apart,
        "steps": STEPS,
        "batch": BATCH,
        "tokens_of_the_longest_text": most,
        "samples_per_cpu_second": speed,
        "ratio": speed["diptych"] / speed["open_clip"],
        "ratio_padded": speed["diptych, padded"] / speed["open_clip"],
        "asked": {"difference": 1e-4, "ratio": 1.0},
        "reached": apart <= 1e-4 and speed["diptych"] >= speed["open_clip"],
        "losses": losses,
        "provenance": provenance(),
    }
    print(json.dumps({k: v for k, v in result.items() if k not in ("losses", "provenance")}, indent=1))
    if given.out:
        write_atomically(given.out, json.dumps(result, indent=1).encode())


if __name__ == "__main__":
    main()
