"""A longer position table for a text tower, which keeps what the first positions have learned.

Zhang et al., Long-CLIP: Unlocking the Long-Text Capability of CLIP, arXiv 2403.15378, section 3.1
(knowledge-preserved stretching): CLIP's texts were short, so its first 20 positions are well trained and stay.
"""

from typing import Any

import torch
from torch import Tensor, nn

from diptych.core.clip import CLIP
from diptych.core.cut import Cuts
from diptych.errors import DiptychError, Unsupported

KEPT = 20


def stretch(table: Tensor, length: int, keep: int = KEPT) -> Tensor:
    """Position codes [L, W] -> [length, W]: the first `keep` rows as they are, the others drawn out evenly.

    A row between two old ones is interpolated linearly; the last ones, which have only one beside them, go on along the
    line of the last two. From 77 rows, 248 make four of each (4 * 77 - 3 * 20). Raises DiptychError for a length
    below L, and for `keep` that leaves fewer than two rows to draw out.
    """
    old = len(table)
    if length < old:
        raise DiptychError(f"{length} positions are fewer than the {old} that there are: stretching makes more")
    if not 0 <= keep <= old - 2:
        raise DiptychError(f"{keep} positions cannot stay: of {old}, two at least must be there to be drawn out")
    rows = torch.arange(keep, length, device=table.device, dtype=torch.float64)
    places = keep + (rows - keep) * (old - keep) / (length - keep)  # in the old table
    first = places.floor().long().clamp(max=old - 2)
    weights = (places - first)[:, None]  # above 1 behind the last row
    source = table.detach().double()
    drawn = torch.lerp(source[first], source[first + 1], weights)
    return torch.cat([table.detach()[:keep], drawn.to(table.dtype)])


def why_not_longer(clip: CLIP) -> str:
    """Why the texts of a CLIP cannot be made longer by stretching; "" where they can."""
    text = clip.text
    if not text.positions:
        return f"its text tower ({text.kind}) has no table of learned positions that is known here"
    if not text.causal:
        return (
            f"its text tower ({text.kind}) is not causal: each token sees all others, or the padding, so that short "
            "texts would not stay what they are"
        )
    return "" if hasattr(clip.tokenizer, "with_context") else f"its tokenizer is a {type(clip.tokenizer).__name__}"


@torch.no_grad()
def lengthen(clip: CLIP, tokens: int, keep: int = KEPT) -> None:
    """Let a CLIP read texts of `tokens` tokens, in place: its position table is stretched, and its tokenizer, its
    context length and the config that it is saved with follow.

    Texts that end within the first `keep` positions keep their embeddings, since no token sees later ones. Raises
    Unsupported with the reason for a text tower without learned positions or causal attention.
    """
    if reason := why_not_longer(clip):
        raise Unsupported(f"{clip.name} cannot read longer texts: {reason}; a CLIP such as ViT-B-16 can")
    text, tokenizer = clip.text, clip.tokenizer
    place, _, name = text.positions.rpartition(".")
    owner: Any = text.get_submodule(place)
    old: nn.Parameter = getattr(owner, name)
    setattr(owner, name, nn.Parameter(stretch(old, tokens, keep), requires_grad=old.requires_grad))
    if isinstance(owner, nn.Embedding):
        owner.num_embeddings = tokens
    text.context_length = tokens
    clip.tokenizer = tokenizer.with_context(tokens)  # type: ignore[attr-defined]
    if clip.origin is not None:
        config = clip.origin.get("model_cfg") or clip.origin["config"]
        if "text_cfg" in config:
            config["text_cfg"]["context_length"] = tokens
        else:
            config["text_config"]["max_position_embeddings"] = tokens
    clip.cuts = Cuts()
    clip.__dict__.pop("fingerprint", None)
