"""Where training broke: the first tensor of a step that is no number, by name."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diptych.engine.sharding import local


def first_broken(
    pixels: Mapping[str, Tensor], parameters: Mapping[str, Tensor], model: nn.Module, embed: Callable[[], Any]
) -> str | None:
    """The pixels, the parameter or else the layer's output that is no number first; None where all are.

    embed: runs the model as the step did, with the same random numbers. A layer is a module of the model, the innermost
    that shows it.
    """
    for kind, tensors in (("pixels of", pixels), ("parameter", parameters)):
        for name, tensor in tensors.items():
            if not finite(tensor):
                return f"{kind} {name}"
    found: list[str] = []

    def look(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, given: Any, result: Any) -> None:
            if not found and not all(map(finite, tensors_of(result))):
                found.append(f"what {name} gives")

        return hook

    hooks = [module.register_forward_hook(look(name)) for name, module in model.named_modules() if name]
    try:
        with torch.no_grad():
            embed()
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None


def finite(tensor: Tensor) -> bool:
    return bool(local(tensor.detach()).isfinite().all())


def tensors_of(value: Any) -> Iterator[Tensor]:
    """The floating tensors in a module's result."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, (tuple, list)):
        for one in value:
            yield from tensors_of(one)
    elif hasattr(value, "embedding"):
        yield from tensors_of(value.embedding)
