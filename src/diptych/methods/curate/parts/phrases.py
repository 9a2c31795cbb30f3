"""Which of many phrases a text holds, as whole words in their order: all of them in one pass over the words."""

from collections.abc import Sequence


class Phrases:
    """Phrases by number; two may be the same words, and one may lie in another: both are found."""

    def __init__(self, phrases: Sequence[Sequence[str]]) -> None:
        self.by_first: dict[str, list[tuple[list[str], int]]] = {}  # first word -> the words after it, the number
        for number, phrase in enumerate(phrases):
            if not phrase:
                raise ValueError(f"phrase {number} has no word")
            self.by_first.setdefault(phrase[0], []).append((list(phrase[1:]), number))
        self.first = frozenset(self.by_first)

    def find(self, words: Sequence[str]) -> set[int]:
        """The numbers of the phrases among these words."""
        found: set[int] = set()
        if self.first.isdisjoint(words):  # most captions name nothing: they are through at the speed of C
            return found
        for i, word in enumerate(words):
            for rest, number in self.by_first.get(word, ()):
                if not rest or list(words[i + 1 : i + 1 + len(rest)]) == rest:
                    found.add(number)
        return found
