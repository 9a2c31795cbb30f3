"""The model that a run starts from."""

from pathlib import Path

from diptych.core.clip import CLIP


def open_model(model: str | CLIP, seed: int) -> CLIP:
    """Fresh weights for an architecture; what is there otherwise."""
    from diptych.core.fresh import fresh
    from diptych.core.load import load

    if isinstance(model, CLIP):
        return model
    return fresh(model, seed) if is_architecture(model) else load(model, device="cpu")


def is_architecture(model: str) -> bool:
    """Whether it names an architecture, whose weights are fresh, and not a model."""
    from diptych.core.load import EMBEDDED

    path = Path(model).expanduser()
    return path.suffix == ".json" or not (path.exists() or ":" in model or model in EMBEDDED)
