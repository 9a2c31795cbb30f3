import io
from dataclasses import replace

import made_up
import pytest
from rich.console import Console

from diptych.comparison.summary import Summary
from diptych.comparison.table import footnotes, render_table, seconds_words


def printed(summary: Summary, width: int) -> str:
    console = Console(width=width, highlight=False, record=True, file=io.StringIO())
    console.print(render_table(summary, console))
    return console.export_text()


@pytest.mark.parametrize("width", [80, 120, 200])
@pytest.mark.parametrize("make", [made_up.everyday, made_up.extreme])
def test_fits_and_names_what_is_left_out(width: int, make) -> None:
    text = printed(make(), width)
    table, _, rest = text.partition("★ gda is the winner")
    assert max(len(line.rstrip()) for line in table.splitlines()) <= width
    assert "…" not in table
    assert ("report.html has all" in rest) == (width < 200)
    for name in made_up.METHODS:
        assert name in table


def test_one_line_a_method_with_its_winner_and_the_skipped() -> None:
    text = printed(made_up.everyday(), 200)
    rows = [line for line in text.splitlines() if line.split(" ")[0] in made_up.METHODS]
    assert len(rows) == len(made_up.METHODS)
    assert rows[0].startswith("gda ★")
    assert "74.0 → 65.0" in next(row for row in rows if row.startswith("coop"))
    assert "→" not in next(row for row in rows if row.startswith("knn"))
    assert "maple: deep prompts need a transformer" in text


def test_says_when_the_best_on_test_is_another() -> None:
    summary = made_up.everyday()
    assert summary.winner
    notes = footnotes(replace(summary, winner=replace(summary.winner, method="linear_probe")))
    assert any(n.startswith("gda has the best test accuracy") for n in notes)
    assert not any("has the best test accuracy" in n for n in footnotes(summary))


def test_a_reason_with_markup_is_printed_as_it_is() -> None:
    summary = made_up.everyday()
    rows = [*summary.rows, {"method": "coop", "shots": 16, "seed": 0, "skipped": "no [bold]room[/bold] [/]"}]
    assert "coop (16 shots): no [bold]room[/bold] [/]" in printed(replace(summary, rows=rows), 120)


def test_nothing_finished() -> None:
    rows = [{"method": "maple", "shots": 1, "seed": 0, "skipped": "no transformer"}]
    text = printed(replace(made_up.everyday(), rows=rows, probabilities={}, winner=None), 80)
    assert "no method finished" in text
    assert "maple: no transformer" in text


def test_seconds() -> None:
    words = [seconds_words(s) for s in (0.034, 4.26, 42.1, 125, 120, 7805)]
    assert words == ["0.03 s", "4.3 s", "42 s", "2 min 5 s", "2 min", "2 h 10 min"]
