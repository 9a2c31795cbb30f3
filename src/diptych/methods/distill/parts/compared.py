"""A smaller CLIP beside the one that it was made of: size, speed, and what it lost on pairs that neither was shown."""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from diptych.core.clip import CLIP
from diptych.losses.matrix import matrix_distillation
from diptych.methods.pretrain.parts.objective import PairsLike
from diptych.metrics.retrieval import recall_at

Facts = list[tuple[str, str, str]]  # what, its value, the value before
PICTURES, ROUNDS = 16, 7
WORDS = "a photo of some small thing on the table beside another one".split()  # noqa: SIM905


def sizes(teacher: CLIP, student: CLIP) -> Facts:
    counts = [sum(p.numel() for p in clip.parameters()) for clip in (student, teacher)]
    return [("parameters", f"{counts[0]:,}", f"{counts[1]:,} before: {counts[0] / counts[1]:.0%}")]


@torch.no_grad()
def speeds(teacher: CLIP, student: CLIP) -> Facts:
    """How many times faster a picture and a text are embedded: both take turns, medians."""
    size = student.preprocess.size
    pixels = torch.randn(PICTURES, 3, size, size, generator=torch.Generator().manual_seed(0)).to(student.device)
    tokens = student.tokenize([" ".join(WORDS[: 4 + i % 8]) for i in range(2 * PICTURES)]).to(student.device)
    found: Facts = []
    for what, work in (
        ("pictures", lambda clip: clip.encode_image(pixels)),
        ("texts", lambda clip: clip.encode_tokens(tokens)),
    ):
        large, small = turns(lambda work=work: work(teacher), lambda work=work: work(student), student.device)
        rates = (len(pixels) if what == "pictures" else len(tokens)) / large
        found.append((f"speed of {what}", f"{large / small:.2f} x", f"{rates:,.0f} a second before"))
    return found


def turns(first: Callable[[], Tensor], second: Callable[[], Tensor], device: torch.device) -> tuple[float, float]:
    """Median seconds of both, taking turns: of the processor, or of the clock where an accelerator works."""

    def now() -> float:
        if device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize() if device.type == "cuda" else None
        return time.perf_counter()

    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS + 1):
        for times, work in zip(taken, (first, second), strict=True):
            start = now()
            work()
            times.append(now() - start)
    return statistics.median(taken[0][1:]), statistics.median(taken[1][1:])


@torch.no_grad()
def losses(teacher: CLIP, student: CLIP, pairs: PairsLike, scale: float) -> Facts:
    """First hits of pictures and texts among the pairs, and how far the affinities are from the teacher's, in nats."""
    rows = [embedded(clip, pairs) for clip in (teacher, student)]
    before, after = (scale * image @ text.T for image, text in rows)
    said = [pairs[i].texts[0] for i in range(len(pairs))]
    own = torch.tensor([[one == other for other in said] for one in said], device=before.device)  # [N, N]
    found: Facts = []
    for what, turn in (("pictures to texts", lambda x: x), ("texts to pictures", lambda x: x.T)):
        was, now = (100 * recall_at(turn(scores), own, ks=(1,))[1] for scores in (before, after))
        found.append((f"{what}, first of {len(pairs)}", f"{now:.1f}%", f"{was:.1f}% before"))
    apart = float(matrix_distillation(after, [before], divergence=True))
    return [*found, ("affinities apart", f"{apart:.3f}", f"nats, on {len(pairs)} held-out pairs")]


def embedded(clip: CLIP, pairs: PairsLike, batch: int = 64) -> tuple[Tensor, Tensor]:
    """Unit rows of all pictures and first texts [N, D] each."""
    items = [pairs[i] for i in range(len(pairs))]
    pictures = torch.cat(
        [
            clip.encode_image(torch.stack([clip.preprocess(item.picture()) for item in items[i : i + batch]]))
            for i in range(0, len(items), batch)
        ]
    )
    texts = clip.encode_text([item.texts[0] for item in items])
    return F.normalize(pictures.float(), dim=-1), F.normalize(texts.float(), dim=-1)
