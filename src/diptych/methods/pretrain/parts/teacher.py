"""What another model says of the texts, as a vector for each pair."""

import torch
from torch import Tensor
from torch.nn import functional as F

from diptych.core.clip import CLIP
from diptych.errors import DiptychError
from diptych.methods.pretrain.parts.objective import PairsLike


@torch.no_grad()
def text_vectors(model: CLIP, pairs: PairsLike, size: int) -> Tensor:
    """Unit rows of each pair's first text in their `size` largest principal components: [pairs, size] on the CPU.

    A pair that cannot be read has the row of an empty text.
    """
    texts = []
    for index in range(len(pairs)):
        try:
            texts.append(pairs[index].texts[0])
        except DiptychError:
            texts.append("")
    return principal(F.normalize(model.encode_text(texts), dim=1), size).cpu()


def principal(rows: Tensor, size: int) -> Tensor:
    """Rows [N, D] less their mean, in their `size` directions of largest variance: [N, min(size, D)]."""
    rows = rows - rows.mean(0)
    _, directions = torch.linalg.eigh(rows.T @ rows)  # of rising variance
    return rows @ directions[:, -size:].flip(1)
