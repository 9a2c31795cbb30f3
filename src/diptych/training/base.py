"""The model that a run starts from."""

from pathlib import Path

from diptych.core.clip import CLIP


def open_model(model: str | CLIP, seed: int) -> CLIP:
    """Fresh weights for an architecture; what is there otherwise."""
    from diptych.core.fresh import fresh
    from diptych.core.load import EMBEDDED, load

    if isinstance(model, CLIP):
        return model
    path = Path(model).expanduser()
    is_architecture = path.suffix == ".json" or not (path.exists() or ":" in model or model in EMBEDDED)
    return fresh(model, seed) if is_architecture else load(model, device="cpu")
