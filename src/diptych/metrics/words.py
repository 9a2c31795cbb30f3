"""Whether the right word of a caption is found, and whether a true caption scores above a false one."""

from collections.abc import Collection, Sequence

from diptych.errors import DiptychError


def localisation_accuracy(scores: Sequence[Sequence[float]], wrong: Sequence[Collection[int]]) -> float:
    """Share of texts whose lowest word is a wrong one: LA of FOIL (Shekhar et al. 2017, arXiv 1705.01359).

    scores: of each text's words; wrong: places of its wrong words. Words that share the lowest score count as so much
    of a hit as there are wrong ones among them. Raises DiptychError where a text has no word or no wrong one.
    """
    if len(scores) != len(wrong) or not scores:
        raise DiptychError(
            f"{len(scores)} texts with scores and {len(wrong)} with wrong words; as many, and at least one"
        )
    total = 0.0
    for i, (row, places) in enumerate(zip(scores, wrong, strict=True)):
        if not places or not all(0 <= place < len(row) for place in places):
            raise DiptychError(f"text {i} has {len(row)} words, and {sorted(places)} as its wrong ones")
        lowest = [j for j, score in enumerate(row) if score == min(row)]
        total += sum(j in places for j in lowest) / len(lowest)
    return total / len(scores)


def paired_accuracy(true: Sequence[float], false: Sequence[float]) -> float:
    """Share of pairs in which the true text scores above the false one; a tie is half a hit."""
    if len(true) != len(false) or not true:
        raise DiptychError(f"{len(true)} true and {len(false)} false texts; as many, and at least one")
    return sum((a > b) + 0.5 * (a == b) for a, b in zip(true, false, strict=True)) / len(true)
