"""The CLIP that a run begins with."""

from diptych.core.clip import CLIP


def open_model(model: str | CLIP, seed: int) -> CLIP:
    """Fresh weights for an architecture; what is there otherwise."""
    from diptych.core.fresh import fresh, is_architecture
    from diptych.core.load import load

    if isinstance(model, CLIP):
        return model
    return fresh(model, seed) if is_architecture(model) else load(model, device="cpu")
