"""What does not belong together, and what must not be there at all, as a CLIP sees it."""

from collections.abc import Sequence

import pyarrow as pa

from diptych.methods.curate.parts.pipeline import Counts, Place, Stage, Verdict


class ClipFilter(Stage):
    """Keeps a row whose `similarity` reaches the value of its language (`language`, where there is such a column)."""

    name = "clip_filter"
    about = "removes pictures that their text does not describe"
    needs = ("similarity",)

    def __init__(self, english: float = 0.28, others: float = 0.26) -> None:
        self.english, self.others = english, others

    def select(self, batch: pa.RecordBatch, place: Place, counts: Counts) -> Verdict:
        raise NotImplementedError


class ClipShare(ClipFilter):
    """Keeps the given share of each stream (en, other, nolang): for models whose similarities have another scale."""

    counts = True

    def __init__(self, keep: float = 0.1) -> None:
        self.keep = keep


class Screen(Stage):
    """Removes a row whose picture is nearest to a forbidden prompt among all prompts."""

    name = "screen"
    about = "removes pictures of forbidden categories"
    needs = ("embedding",)

    def __init__(self, forbidden: Sequence[str] = (), allowed: Sequence[str] = (), model: str = "") -> None:
        """Without prompts, the built-in ones. model: of the embeddings, where the column does not say."""

    def select(self, batch: pa.RecordBatch, place: Place, counts: Counts) -> Verdict:
        raise NotImplementedError
