"""Texts longer than a CLIP reads: counted, and named in a warning."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from diptych.core.tower import Tokens, Tower
from diptych.errors import TextCut

SHOWN = 60  # characters of a text in the warning


@dataclass
class Cuts:
    """read: texts that a CLIP was given so far; cut: those of them that it could not read to their end; said: those
    that a warning has named."""

    read: int = 0
    cut: int = 0
    said: set[str] = field(default_factory=set)

    def look(self, texts: Sequence[str], tokens: Tokens, tokenizer: Any, tower: Tower, name: str, warn: bool) -> None:
        """Count texts and warn of the first that was cut. Only those that fill the context are measured again."""
        limit = tokenizer.context_length
        full: list[int] = (tokens.mask.sum(1) >= limit).nonzero()[:, 0].tolist()
        long = [(texts[i], length) for i in full if (length := tokenizer.length(texts[i])) > limit]
        self.read += len(texts)
        self.cut += len(long)
        if long and warn and long[0][0] not in self.said:
            text, length = long[0]
            self.said.add(text)
            shown = text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
            others = f" (and {len(long) - 1} more of {len(texts)} texts)" if len(long) > 1 else ""
            more = ""
            if tower.positions and tower.causal:
                more = f"; `diptych make long_clip --from {name} --tokens N` makes one that reads N"
            message = f'"{shown}" has {length} tokens, of which {name} reads {limit}{others}{more}'
            warnings.warn(message, TextCut, stacklevel=3)
