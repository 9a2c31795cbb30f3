"""A `Report` is sections: every family of methods says what it measured through the same one."""

from diptych.report.html import write_html
from diptych.report.sections import Cell, Column, Facts, Gallery, Picture, Plot, Report, Section, Table, Text, Words

__all__ = [
    "Cell",
    "Column",
    "Facts",
    "Gallery",
    "Picture",
    "Plot",
    "Report",
    "Section",
    "Table",
    "Text",
    "Words",
    "write_html",
]
