"""Conditions: what they say, what they refuse, and that Lance and Arrow find the same rows."""

from random import Random

import lancedb
import numpy as np
import pyarrow as pa
import pytest

from diptych.errors import DiptychError
from diptych.search.filters import Filter, both, names_in, parse

COLUMNS = {"width": "number", "score": "number", "text": "text", "label": "text", "flag": "yes/no"}
ROWS = pa.table(
    {
        "width": pa.array([100, 500, 501, None, 2000, 0, -3, 2**40], pa.int64()),
        "score": pa.array([0.5, 0.1, None, 0.5, 1e9, 0.0, -1.5, 0.30000000000000004], pa.float64()),
        "text": ["a dog", "it's a 'cat'", None, "", "a % sign_", "DOG; DROP TABLE", 'say "hi"', "née\nnewline dog"],
        "label": ["dog", "cat", "cat", None, "x", "dog", "a b", "dog"],
        "flag": [True, False, None, True, False, None, True, False],
    }
)


@pytest.fixture(scope="module")
def lance(tmp_path_factory):
    numbered = ROWS.append_column("n", pa.array(range(len(ROWS))))
    return lancedb.connect(tmp_path_factory.mktemp("filters")).create_table("rows", numbered)


def by_lance(table, found: Filter) -> list[int]:
    return sorted(table.search().where(found.sql()).select(["n"]).limit(None).to_arrow()["n"].to_pylist())


def by_mask(found: Filter) -> list[int]:
    return np.flatnonzero(found.mask(ROWS)).tolist()


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        ("width > 500", [2, 4, 7]),
        ("width >= 500 and score < 0.5", [1, 7]),
        ("width > 500 or label = 'cat'", [1, 2, 4, 7]),
        ("label = 'dog' and not flag = true", [7]),
        ("not (label = 'dog')", [1, 2, 4, 6]),  # an empty cell is neither
        ("score is null", [2]),
        ("text is not null and width is null", [3]),
        ("label in ('cat', \"x\")", [1, 2, 4]),
        ("label not in ('cat', 'x')", [0, 5, 6, 7]),
        ("text like '%dog%'", [0, 7]),
        ("text like 'a ___'", [0]),
        ("text not like '%a%'", [3, 5, 7]),
        ("text = 'it''s a ''cat'''", [1]),
        ("text = \"it's a 'cat'\"", [1]),
        ('text = "say ""hi"""', [6]),
        ("WIDTH > 1 OR flag = TRUE", None),
        ("score = .5 and width == 100", [0]),
        ("score <> 0.5 AND score < 1e3", [1, 5, 6, 7]),
        ("width > 500.5", [2, 4, 7]),
        ("score > 0", [0, 1, 3, 4, 7]),
        ("width < -2", [6]),
        ("`width` = 0", [5]),
        ("width in (0, 0.5, 100)", [0, 5]),
        ("width > 99999999999999999999999", []),
    ],
)
def test_what_conditions_find(lance, where, rows):
    if rows is None:
        with pytest.raises(DiptychError, match='no column "WIDTH"; did you mean "width"'):
            parse(where, COLUMNS)
        return
    found = parse(where, COLUMNS)
    assert by_mask(found) == rows
    assert by_lance(lance, found) == rows


def expression(rng: Random, depth: int = 0) -> str:
    kind = rng.choice(["and", "or", "not", "paren", *["test"] * 4]) if depth < 4 else "test"
    if kind in ("and", "or"):
        return f"{expression(rng, depth + 1)} {kind} {expression(rng, depth + 1)}"
    if kind == "not":
        return f"not {expression(rng, depth + 1)}"
    if kind == "paren":
        return f"({expression(rng, depth + 1)})"
    column = rng.choice(list(COLUMNS))
    if rng.random() < 0.15:
        return f"{column} is {rng.choice(['', 'not '])}null"
    if column == "flag":
        return f"flag {rng.choice(['=', '!='])} {rng.choice(['true', 'false'])}"
    numbers = ["0", "-3", "500", "500.5", "0.5", "0.3", "1e3", "-0.0", "1099511627776", "9223372036854775807", "1e300"]
    words = ["dog", "a %", "%o%", "_ dog", "", "it's", "née", "' or 1=1 --", "%\n%", "DOG%"]
    values = [repr_of(w) for w in words] if COLUMNS[column] == "text" else numbers
    if rng.random() < 0.3:
        some = ", ".join(rng.sample(values, rng.randint(1, 4)))
        return f"{column} {rng.choice(['', 'not '])}in ({some})"
    if COLUMNS[column] == "text" and rng.random() < 0.5:
        return f"{column} {rng.choice(['', 'not '])}like {rng.choice(values)}"
    return f"{column} {rng.choice(['=', '!=', '<', '<=', '>', '>='])} {rng.choice(values)}"


def repr_of(word: str) -> str:
    return "'" + word.replace("'", "''") + "'"


def test_lance_and_arrow_agree_on_random_conditions(lance):
    rng, sizes = Random(0), set()
    for _ in range(300):
        where = expression(rng)
        found = parse(where, COLUMNS)
        rows = by_mask(found)
        sizes.add(len(rows))
        assert by_lance(lance, found) == rows, where
    assert len(sizes) > 5  # they do not all find the same


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("", "it is empty"),
        ("widht > 5", 'no column "widht"; did you mean "width"'),
        ("width > ", "a value is missing"),
        ("width > 'big'", '"width" is a number, .* is a text'),
        ("text > 5", '"text" is a text, 5 is a number'),
        ("text = dog", 'a text stands in quotes, "dog"'),
        ("width like '1%'", "like is for texts"),
        ("flag > true", "yes or no: = or !="),
        ("(width > 5", r'"\)" is missing'),
        ("width > 5 width < 6", "one thing too many"),
        ("width", 'what of "width"'),
        ("width not > 5", "after not comes in or like"),
        ("text = 'open", "a quote that is not closed"),
        ("and width > 5", "a column is missing before 'and'"),
        ("text like 'a\\%'", "means different things"),
        ("(" * 60 + "width > 5" + ")" * 60, "more than 50"),
        ("width > 1 or " * 2000 + "width > 1", "the limit is 10000"),
    ],
)
def test_what_does_not_read_is_refused_with_the_place(where, said):
    with pytest.raises(DiptychError, match=said):
        parse(where, COLUMNS)


@pytest.mark.parametrize(
    "attempt",
    [
        "width > 0; DROP TABLE rows",
        "width > 0 -- and score < 0",
        "width > 0 /* */",
        "width > (select 1)",
        "1 = 1",
        "width > 0 union select 1",
        "length(text) > 0",
        "text = 'a' || 'b'",
        "`width` > 0 or `1=1` is null",
        "`x` OR 1=1 OR `y` > 0",
        "text = CAST(1 AS string)",
        "width > 0x10",
        "width > 5or",
        "vector is null",
        "_rowid > 0",
    ],
)
def test_nothing_but_the_grammar_gets_through(attempt):
    with pytest.raises(DiptychError):
        parse(attempt, COLUMNS)


@pytest.mark.parametrize("word", ["' OR 1=1 --", "'; DROP TABLE rows; --", "\\' OR TRUE OR '", "x' IS NOT NULL OR 'x"])
def test_a_text_stays_a_text_whatever_is_in_it(lance, word):
    for found in (parse(f"text = {repr_of(word)}", COLUMNS), parse(f"label in ({repr_of(word)})", COLUMNS)):
        assert by_lance(lance, found) == by_mask(found) == []
    everything = parse(f"not text = {repr_of(word)}", COLUMNS)
    assert by_lance(lance, everything) == by_mask(everything) == [0, 1, 3, 4, 5, 6, 7]


def test_two_filters_as_one(lance):
    first, second = parse("width > 0 or score > 0", COLUMNS), parse("label = 'dog'", COLUMNS)
    one = both(first, second)
    assert one is not None and by_mask(one) == by_lance(lance, one) == [0, 7]
    assert both(None, first) is first and both(first, None) is first and both(None, None) is None
    assert parse(one.where, COLUMNS).sql() == one.sql()
    assert one.columns == {"width", "score", "label"}


def test_the_columns_of_a_condition_before_it_is_known_what_there_is():
    found = names_in("width > 500 and (`a b` like 'or%' or not Label in ('and', \"x\")) and width is not null")
    assert found == ["width", "a b", "Label"]
    with pytest.raises(DiptychError, match="quote"):
        names_in("width > 'open")
