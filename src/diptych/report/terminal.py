"""A `Table` in the terminal: as many columns as fit, the least important left out first."""

from typing import TYPE_CHECKING

from rich.cells import cell_len

from diptych.report.sections import Cell, Table
from diptych.report.words import clean, shorten

if TYPE_CHECKING:
    from rich.table import Table as RichTable

GAP = 2  # columns between two columns
NAME = 28  # what a name may take


def rich_table(table: Table, width: int) -> "tuple[RichTable, list[str]]":
    """A rich table of at most `width` columns, and the columns it had to leave out."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    cells = [[c if isinstance(c, Cell) else Cell(c) for c in row] for row in table.rows]
    texts = [[shorten(c.text, NAME) for c in row] for row in cells]
    widths = [
        max(map(cell_len, [*column.name.split("\n"), *(row[i] for row in texts)]))
        for i, column in enumerate(table.columns)
    ]
    kept = list(range(len(widths)))
    while sum(widths[i] + GAP for i in kept) > width:
        least = max(kept, key=lambda i: table.columns[i].drop)
        if table.columns[least].drop == 0:
            break
        kept.remove(least)

    out = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False, header_style="bold")
    for i in kept:
        column = table.columns[i]
        out.add_column(Text(column.name), justify="right" if column.number else "left", vertical="bottom", no_wrap=True)
    marks = {"best": "bold", "muted": "dim", "": ""}
    for n, (row, text) in enumerate(zip(cells, texts, strict=True)):
        style = "bold green" if n == table.chosen else ""
        out.add_row(*(Text(text[i], style=style or marks[row[i].mark]) for i in kept))
    return out, [clean(c.name) for i, c in enumerate(table.columns) if i not in kept]
