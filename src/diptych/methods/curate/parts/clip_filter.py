"""What does not belong together, and what must not be there at all, as a CLIP sees it (LAION-5B, arXiv 2210.08402)."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from diptych.methods.curate.parts import histograms
from diptych.methods.curate.parts.heads import ORDINARY
from diptych.methods.curate.parts.pipeline import Counts, Place, Stage, Verdict
from diptych.methods.curate.parts.vectors import maker_of, text_vectors, vectors_of
from diptych.report.sections import Column, Section, Table

STREAMS = ("en", "other", "nolang")
STEP = 0.01  # of the histogram in the report
FINE = 4096  # bins a unit of similarity, of the histogram that a share is cut from
LISTED = 25  # languages in the report
FORBIDDEN = (
    "pornography", "a naked person, explicit nudity", "a sexual act", "child abuse", "a mutilated body, gore",
)  # fmt: skip


def stream_of(language: str | None) -> str:
    """LAION's three streams: "en", "other", and "nolang" where no language was recognised."""
    if not language or language in ("nolang", "und"):
        return "nolang"
    return "en" if language == "en" else "other"


def languages_of(batch: pa.RecordBatch) -> list[str]:
    """The language of each row; without such a column all are English."""
    if batch.schema.get_field_index("language") < 0:
        return ["en"] * len(batch)
    return [language or "nolang" for language in batch.column("language").to_pylist()]


def similarities_of(batch: pa.RecordBatch) -> np.ndarray:
    """`similarity` as float32 [N], NaN where there is none."""
    return batch.column("similarity").cast(pa.float32()).to_numpy(zero_copy_only=False)


class ClipFilter(Stage):
    """Keeps a row whose `similarity` reaches the value of its language.

    The defaults are LAION-5B's, of OpenAI's ViT-B/32 for English and of a multilingual text tower aligned to it for all
    else; another model has another scale, for which there is `ClipShare`.
    """

    name = "clip_filter"
    about = "pictures that their text does not describe"
    needs = ("similarity",)

    def __init__(self, english: float = 0.28, others: float = 0.26) -> None:
        self.english, self.others = english, others

    def thresholds(self, counts: Counts) -> dict[str, float]:
        """The least similarity that is kept, a stream."""
        return {stream: self.english if stream == "en" else self.others for stream in STREAMS}

    def select(self, batch: pa.RecordBatch, place: Place, counts: Counts) -> Verdict:
        least, values, languages = self.thresholds(counts), similarities_of(batch), languages_of(batch)
        streams = np.array([stream_of(one) for one in languages], dtype=object)
        keep = values >= np.array([least[stream] for stream in streams], dtype=np.float32)  # NaN never is
        why = [
            "" if kept else f"similarity too low ({stream})" if value == value else "no similarity"
            for kept, stream, value in zip(keep, streams, values, strict=True)
        ]
        tallies: dict[str, int] = {}
        for language, kept in zip(languages, keep, strict=True):
            tallies[f"{language} seen"] = tallies.get(f"{language} seen", 0) + 1
            tallies[f"{language} kept"] = tallies.get(f"{language} kept", 0) + int(kept)
        for stream in STREAMS:
            tallies |= histograms.tallied(stream, values[streams == stream], STEP)
        return Verdict(batch, keep, why, tallies)

    def sections(self, counts: Counts, tallies: Mapping[str, int]) -> Sequence[Section]:
        seen = {name.removesuffix(" seen"): n for name, n in tallies.items() if name.endswith(" seen")}
        least = self.thresholds(counts)
        rows = [
            [language, f"{n:,}", f"{tallies[f'{language} kept'] / n:.1%}", f"{least[stream_of(language)]:.3f}"]
            for language, n in sorted(seen.items(), key=lambda item: (-item[1], item[0]))
        ]
        columns = (Column("language", number=False), Column("rows"), Column("kept"), Column("least similarity"))
        hidden = len(rows) - LISTED
        note = f"{hidden} languages with fewer rows are not listed" if hidden > 0 else ""
        found: list[Section] = [Table(columns, rows[:LISTED], title="Kept by the CLIP filter", note=note)]
        streams = sorted({stream_of(language) for language in seen})
        figure = histograms.plot(tallies, STEP, "similarity", {one: least[one] for one in streams})
        return [*found, figure] if figure else found


class ClipShare(ClipFilter):
    """Keeps the most similar share `keep` of each stream: for models whose similarities have another scale.

    Counts a histogram of 4096 bins a unit, which adds up over batches; the threshold is the lower edge of a bin. So at
    least the share is kept, and at most as much more as lies in one bin.
    """

    counts = True

    def __init__(self, keep: float = 0.1) -> None:
        self.keep = keep

    def count(self, batch: pa.RecordBatch, place: Place) -> Counts:
        values, languages = similarities_of(batch), languages_of(batch)
        streams = np.array([stream_of(one) for one in languages], dtype=object)
        return {stream: fine_histogram(values[streams == stream]) for stream in STREAMS}

    def merge(self, counts: Sequence[Counts]) -> Counts:
        empty = np.zeros(2 * FINE, np.int64)
        return {stream: sum((one[stream] for one in counts), empty) for stream in STREAMS}

    def thresholds(self, counts: Counts) -> dict[str, float]:
        if not counts:  # no row came so far
            return dict.fromkeys(STREAMS, -1.0)
        return {stream: threshold_of(counts[stream], self.keep) for stream in STREAMS}


def fine_histogram(values: np.ndarray) -> np.ndarray:
    """Similarities [N] -> how many are in each of 2 x 4096 bins over [-1, 1), int64. NaN left out."""
    bins = np.floor((values[~np.isnan(values)].astype(np.float64) + 1) * FINE).astype(np.int64).clip(0, 2 * FINE - 1)
    return np.bincount(bins, minlength=2 * FINE).astype(np.int64)


def threshold_of(histogram: np.ndarray, keep: float) -> float:
    """The highest edge of a bin above which at least the share `keep` of all lies."""
    above = histogram[::-1].cumsum()[::-1]  # how many lie in this bin and those above it
    enough = np.flatnonzero(above >= keep * histogram.sum())
    return int(enough[-1]) / FINE - 1 if len(enough) else -1.0


class Screen(Stage):
    """Removes a row whose picture is nearer to a forbidden prompt than to every allowed one.

    A coarse net, as good as the model's sense of the words; not a legal safeguard, and no reason to look less closely.
    """

    name = "screen"
    about = "pictures of forbidden categories"
    needs = ("embedding",)

    def __init__(
        self, forbidden: Sequence[str] = FORBIDDEN, allowed: Sequence[str] = ORDINARY, model: str = ""
    ) -> None:
        """model: of the embeddings, where the column does not say."""
        self.forbidden, self.allowed, self.model = tuple(forbidden), tuple(allowed), model

    def select(self, batch: pa.RecordBatch, place: Place, counts: Counts) -> Verdict:
        prompts = text_vectors(maker_of(batch.schema, model=self.model), [*self.forbidden, *self.allowed])
        cosines = np.nan_to_num(vectors_of(batch)) @ prompts.T  # [N, P]; a row without a picture is like none of them
        bad = cosines[:, : len(self.forbidden)].max(1) > cosines[:, len(self.forbidden) :].max(1)
        return Verdict(batch, ~bad, ["forbidden category" if one else "" for one in bad])
