"""Where to compute. Asking must not start CUDA: a process that did cannot be forked."""

import contextlib
import ctypes
import os
import sys

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


def keep_freed_memory() -> None:
    """Let the C library keep freed blocks for the next use, instead of handing each back to the system.

    A picture's maps are freed and asked for again at every layer; having the system clear their pages each time took
    more than half of a forward on a CPU. For processes of our own: it changes the whole process. glibc only.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            for setting in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
                ctypes.CDLL(None).mallopt(setting, 1 << 30)
