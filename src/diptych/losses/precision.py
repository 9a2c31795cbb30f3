"""Losses in float32: logits reach 100, where a step of bfloat16 is 0.5."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def raised(value: Any) -> Any:
    """Floating tensors below float32 as float32, in sequences too; everything else as it is."""
    if isinstance(value, Tensor):
        return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
    if isinstance(value, (tuple, list)):
        return type(value)(raised(v) for v in value)
    return value


def device_of(values: Sequence[Any]) -> str:
    """The kind of the first tensor's device."""
    flat = (v for value in values for v in (value if isinstance(value, (tuple, list)) else (value,)))
    return next((v.device.type for v in flat if isinstance(v, Tensor)), "cpu")


def in_float32(loss: Callable[P, R]) -> Callable[P, R]:
    """The function in float32 (float64 stays), whatever autocast is around it."""

    @functools.wraps(loss)
    def full(*args: P.args, **kwargs: P.kwargs) -> R:
        with torch.autocast(device_of(args), enabled=False):
            return loss(*raised(args), **{name: raised(value) for name, value in kwargs.items()})  # type: ignore

    return full
