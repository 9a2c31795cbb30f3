"""Where a ConvNet finds a text in a picture, for explainers whose own way needs attention."""

import torch
from torch import Tensor

from diptych.core.tower import Tap, Tower
from diptych.errors import Unsupported
from diptych.methods.explain.parts.explainer import unit


def activation_map(tower: Tower, pixels: Tensor, target: Tensor) -> Tensor:
    """pixels [1, 3, H, W] and a unit text [1, D] -> [h, w]: gradient of the cosine times activation, summed over the
    channels of the last stage (HiResCAM, Draelos and Carin 2020, arXiv 2011.08891, equation 3).

    Raises Unsupported for a tower that shows no stage.
    """
    tap = Tap(tower.depth - 1)
    with torch.enable_grad():
        out = tower(pixels.clone().requires_grad_(), taps=[tap])
        stage = out.taps.get(tap)
        if stage is None or stage.dim() != 4:
            raise Unsupported(f"no map of the picture: its tower ({tower.kind}) shows neither attention nor stages")
        cosine = (unit(out.embedding) * target).sum()
        [gradient] = torch.autograd.grad(cosine, [stage])
    return (gradient * stage.detach())[0].float().sum(0)
