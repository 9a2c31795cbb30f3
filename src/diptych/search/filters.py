"""Conditions on columns, `width > 500 and punsafe < 0.5`: read by a small grammar of our own, never handed on as text.

    either  := both ("or" both)*
    both    := no ("and" no)*
    no      := "not" no | "(" either ")" | COLUMN test
    test    := ("=" | "!=" | "<" | "<=" | ">" | ">=") VALUE
             | ["not"] "in" "(" VALUE ("," VALUE)* ")" | ["not"] "like" TEXT | "is" ["not"] "null"

A VALUE is a number, true or false, or a text in quotes ('it''s' or "it's"); in LIKE, % is any text and _ one letter. A
comparison with an empty cell is unknown, as in SQL: neither it nor its `not` finds the row. What Lance gets is written
from the parsed expression, so a text stays a text whatever is in it.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from diptych.errors import DiptychError, nearest
from diptych.search.columns import compute

if TYPE_CHECKING:
    import pyarrow as pa

Value = str | float | int | bool
MOST = 10_000  # characters of a condition
DEEPEST = 50  # parentheses and nots within each other
COMPARE = {"=": "equal", "!=": "not_equal", "<": "less", "<=": "less_equal", ">": "greater", ">=": "greater_equal"}
SAME = {"==": "=", "<>": "!="}
WORDS = frozenset(["and", "or", "not", "in", "like", "is", "null", "true", "false"])
TOKEN = re.compile(
    r"""\s*(?:
    (?P<number>-?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?![\w.]))
    | (?P<text>'(?:[^']|'')*'|"(?:[^"]|"")*")
    | (?P<column>`[^`]+`)
    | (?P<word>[^\W\d]\w*)
    | (?P<mark><=|>=|!=|<>|==|=|<|>|\(|\)|,)
    )""",
    re.VERBOSE,
)


class Filter:
    """A condition on the columns of an index: as SQL for Lance, and as a mask of a table's rows; the two agree."""

    def __init__(self, where: str, root: "Node") -> None:
        self.where, self.root = where, root

    def __repr__(self) -> str:
        return f"Filter({self.where!r})"

    @property
    def columns(self) -> frozenset[str]:
        return frozenset(self.root.columns())

    def sql(self) -> str:
        """For Lance's DataFusion."""
        return self.root.sql()

    def mask(self, rows: "pa.Table") -> np.ndarray:
        """bool [N]: the rows for which it is true."""
        found = self.root.mask(rows)
        return found.fill_null(False).to_numpy(zero_copy_only=False).astype(bool)


def parse(where: str, columns: Mapping[str, str]) -> Filter:
    """columns: name -> "text", "number" or "yes/no". Raises DiptychError saying where it does not read."""
    if len(where) > MOST:
        raise DiptychError(f"a condition of {len(where)} characters: the limit is {MOST}")
    return Filter(where, Parser(where, columns).whole())


def names_in(where: str) -> list[str]:
    """The columns that a condition names, before it is known what there is. Raises DiptychError for what no condition
    can hold."""
    tokens = [(kind, word) for kind, word, _ in Parser(where, {}).tokens if kind in ("column", "word")]
    named = (word.strip("`") for kind, word in tokens if kind == "column" or word.lower() not in WORDS)
    return list(dict.fromkeys(named))


def both(first: Filter | None, second: Filter | None) -> Filter | None:
    """Rows that pass the two; None passes all."""
    if first is None or second is None:
        return first or second
    return Filter(f"({first.where}) and ({second.where})", Many("and", (first.root, second.root)))


# -- the expression ----------------------------------------------------------------------------------------------------


class Node:
    def columns(self) -> set[str]:
        raise NotImplementedError

    def sql(self) -> str:
        raise NotImplementedError

    def mask(self, rows: "pa.Table") -> Any:
        """Arrow booleans [N]; null where it is unknown."""
        raise NotImplementedError


@dataclass(frozen=True)
class Many(Node):
    word: str  # and, or
    parts: tuple[Node, ...]

    def columns(self) -> set[str]:
        return set().union(*(part.columns() for part in self.parts))

    def sql(self) -> str:
        return "(" + f" {self.word.upper()} ".join(part.sql() for part in self.parts) + ")"

    def mask(self, rows: "pa.Table") -> Any:
        pc = compute()
        join = pc.and_kleene if self.word == "and" else pc.or_kleene
        found = self.parts[0].mask(rows)
        for part in self.parts[1:]:
            found = join(found, part.mask(rows))
        return found


@dataclass(frozen=True)
class Not(Node):
    part: Node

    def columns(self) -> set[str]:
        return self.part.columns()

    def sql(self) -> str:
        return f"(NOT {self.part.sql()})"

    def mask(self, rows: "pa.Table") -> Any:
        pc = compute()
        return pc.invert(self.part.mask(rows))


@dataclass(frozen=True)
class Test(Node):
    """One column against values. how: a mark of COMPARE, "in", "like" or "null"."""

    column: str
    how: str
    values: tuple[Value, ...] = ()

    @property
    def real(self) -> bool:
        return any(isinstance(value, float) for value in self.values)

    def columns(self) -> set[str]:
        return {self.column}

    def sql(self) -> str:
        name = "`" + self.column.replace("`", "``") + "`"
        if self.real:  # Lance compares whole numbers with whole numbers alone
            name = f"CAST({name} AS DOUBLE)"
        if self.how == "null":
            return f"({name} IS NULL)"
        if self.how == "in":
            return f"({name} IN ({', '.join(map(literal, self.values))}))"
        if self.how == "like":
            return f"({name} LIKE {literal(self.values[0])})"
        return f"({name} {self.how} {literal(self.values[0])})"

    def mask(self, rows: "pa.Table") -> Any:
        import pyarrow as pa

        pc = compute()
        cells = rows[self.column]
        if self.real:
            cells = cells.cast(pa.float64(), safe=False)
        if self.how == "null":
            return pc.is_null(cells)
        if self.how == "like":
            return pc.match_like(cells, self.values[0])
        number_of = float if pa.types.is_floating(cells.type) else lambda value: value
        values = [pa.scalar(number_of(value)) for value in self.values]
        if self.how != "in":
            return pc.call_function(COMPARE[self.how], [cells, values[0]])
        found = pc.equal(cells, values[0])
        for value in values[1:]:
            found = pc.or_kleene(found, pc.equal(cells, value))
        return found


def literal(value: Value) -> str:
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return repr(value)


def with_ids(ids: Sequence[str], most: int = 500) -> Iterator[str]:
    """The rows of these ids as conditions for Lance, `most` in each: one on very many is slow to read."""
    for start in range(0, len(ids), most):
        yield f"`id` IN ({', '.join(map(literal, ids[start : start + most]))})"


# -- reading it --------------------------------------------------------------------------------------------------------


class Parser:
    def __init__(self, where: str, columns: Mapping[str, str]) -> None:
        self.where, self.known = where, columns
        self.tokens = list(self.split())
        self.at = self.depth = 0

    def split(self) -> Sequence[tuple[str, str, int]]:
        """(kind, word, place) of each token."""
        found, place = [], 0
        while self.where[place:].strip():
            token = TOKEN.match(self.where, place)
            if token is None:
                start = place + len(self.where[place:]) - len(self.where[place:].lstrip())
                rest = self.where[start:]
                what = "a quote that is not closed" if rest[0] in "'\"" else f"what is {rest[:20]!r}?"
                raise self.wrong(what, start)
            kind = token.lastgroup or ""
            found.append((kind, token[kind], token.start(kind)))
            place = token.end()
        return found

    def wrong(self, what: str, place: int | None = None) -> DiptychError:
        if place is None:
            place = self.tokens[self.at][2] if self.at < len(self.tokens) else len(self.where)
        before = self.where[:place].strip()
        where = f" after {before[-40:]!r}" if before else ""
        return DiptychError(f"the condition {self.where[:200]!r} does not read{where}: {what}")

    def fail(self, what: str) -> NoReturn:
        raise self.wrong(what)

    def peek(self, *words: str) -> str:
        """The next token in small letters where it is one of the words or marks; else ""."""
        if self.at < len(self.tokens):
            kind, word, _ = self.tokens[self.at]
            if kind in ("word", "mark") and word.lower() in words:
                return word.lower()
        return ""

    def take(self, *words: str) -> str:
        found = self.peek(*words)
        self.at += bool(found)
        return found

    def need(self, word: str) -> None:
        if not self.take(word):
            self.fail(f'"{word}" is missing')

    def whole(self) -> Node:
        if not self.tokens:
            self.fail("it is empty; such as width > 500 and punsafe < 0.5")
        found = self.either()
        if self.at < len(self.tokens):
            self.fail(f"{self.tokens[self.at][1]!r} is one thing too many; join conditions with and, or")
        return found

    def either(self) -> Node:
        parts = [self.both()]
        while self.take("or"):
            parts.append(self.both())
        return parts[0] if len(parts) == 1 else Many("or", tuple(parts))

    def both(self) -> Node:
        parts = [self.no()]
        while self.take("and"):
            parts.append(self.no())
        return parts[0] if len(parts) == 1 else Many("and", tuple(parts))

    def no(self) -> Node:
        self.depth += 1
        if self.depth > DEEPEST:
            self.fail(f"more than {DEEPEST} conditions within each other")
        if self.take("not"):
            found: Node = Not(self.no())
        elif self.take("("):
            found = self.either()
            self.need(")")
        else:
            found = self.test()
        self.depth -= 1
        return found

    def test(self) -> Node:
        column = self.column()
        kind = self.known[column]
        if self.take("is"):
            negative = bool(self.take("not"))
            self.need("null")
            return Not(Test(column, "null")) if negative else Test(column, "null")
        negative = bool(self.take("not"))
        if self.take("in"):
            self.need("(")
            values = [self.value(column, kind)]
            while self.take(","):
                values.append(self.value(column, kind))
            self.need(")")
            if any(isinstance(value, float) for value in values):
                values = [float(value) for value in values]
            found = Test(column, "in", tuple(values))
        elif self.peek("like"):
            if kind != "text":
                self.fail(f'"{column}" is a {kind}; like is for texts')
            self.at += 1
            value = self.value(column, kind)
            if "\\" in str(value):
                self.fail("a \\ in like means different things to different engines")
            found = Test(column, "like", (value,))
        elif negative:
            self.fail("after not comes in or like")
        else:
            mark = self.take(*COMPARE, *SAME)
            if not mark:
                self.fail(f'what of "{column}"? such as {column} {"=" if kind != "number" else ">"} ...')
            mark = SAME.get(mark, mark)
            if kind == "yes/no" and mark not in ("=", "!="):
                self.fail(f'"{column}" is yes or no: = or !=')
            return Test(column, mark, (self.value(column, kind),))
        return Not(found) if negative else found

    def column(self) -> str:
        if self.at >= len(self.tokens):
            self.fail("a column is missing")
        kind, word, _ = self.tokens[self.at]
        name = word[1:-1] if kind == "column" else word
        if kind not in ("word", "column") or (kind == "word" and word.lower() in WORDS):
            self.fail(f"a column is missing before {word!r}")
        if name not in self.known:
            self.fail(f'no column "{name}"{nearest(name, self.known)}')
        self.at += 1
        return name

    def value(self, column: str, kind: str) -> Value:
        if self.at >= len(self.tokens):
            self.fail(f"{column} against what? a value is missing")
        token, word, _ = self.tokens[self.at]
        found: Value
        if token == "number":
            found, is_a = number(word), "number"
        elif token == "text":
            found, is_a = word[1:-1].replace(word[0] * 2, word[0]), "text"
        elif self.peek("true", "false"):
            found, is_a = word.lower() == "true", "yes/no"
        else:
            self.fail(f'{word!r} is no value; a text stands in quotes, "{word}"')
        if is_a != kind:
            self.fail(f'"{column}" is a {kind}, {word} is a {is_a}')
        self.at += 1
        return found


def number(word: str) -> float | int:
    """Whole numbers beyond 64 bits are taken for the nearest others."""
    if re.fullmatch(r"-?\d+", word) and abs(int(word)) < 2**63:
        return int(word)
    return min(max(float(word), -1e300), 1e300)
