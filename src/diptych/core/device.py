"""Where to compute. Asking must not start CUDA: a process that did cannot be forked."""

import os

from diptych.errors import DiptychError

os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # counts devices without starting CUDA


def choose_device(name: str | None = None) -> str:
    """The device asked for, or the accelerator where there is one, or the CPU.

    Raises DiptychError for a device that this machine or this torch does not have.
    """
    import torch

    kinds = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name is None:
        return next((kind for kind in ("cuda", "mps") if kinds[kind]), "cpu")
    kind, _, number = name.partition(":")
    there = ", ".join(k for k, here in kinds.items() if here)
    if kind not in kinds or (number and not number.isdecimal()):
        raise DiptychError(f'no device "{name}"; this machine has {there}')
    if not kinds[kind] or (kind == "cuda" and int(number or 0) >= torch.cuda.device_count()):
        raise DiptychError(f"this machine or this torch has no {name}; it has {there}")
    return name
