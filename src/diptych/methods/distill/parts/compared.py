"""A smaller CLIP beside the one that it was made of: size, speed, and what it lost on pairs that neither was shown."""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from diptych.core.clip import CLIP
from diptych.losses.matrix import matrix_distillation
from diptych.methods.pretrain.parts.objective import HeldLike

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
def losses(teacher: CLIP, student: CLIP, held: HeldLike, scale: float) -> Facts:
    """First hits of pictures and texts among the pairs, and how far the affinities are from the teacher's, in nats."""
    rows = [held.embed(clip) for clip in (teacher, student)]
    before, after = (scale * one.image @ one.text.T for one in rows)
    found: Facts = []
    for what in ("image to text", "text to image"):
        was, now = (100 * one.recalls()[what][1] for one in rows)
        found.append((f"{what}, R@1", f"{now:.1f}%", f"{was:.1f}% before, of {len(before)} held-out pictures"))
    apart = float(matrix_distillation(after, [before], divergence=True))
    return [*found, ("affinities apart", f"{apart:.3f}", "nats, of the same pictures and texts")]
