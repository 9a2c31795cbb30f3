"""A matplotlib figure as SVG that belongs to the page: text in the page's fonts, colours in the page's theme."""

import io
import re
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Paul Tol's "bright" and "muted" (told apart by colour-blind eyes), ordered so that neighbours differ most;
# page.css holds the lighter ones of a dark page under the same numbers.
COLOURS = (
    "#3366bb", "#dd6622", "#228866", "#aa3377", "#b89000", "#2299bb",
    "#cc3344", "#6655bb", "#6b8e23", "#995533", "#dd77aa", "#557799",
)  # fmt: skip
MARKERS = "osD^vPX*<>ph"
INK, SOFT, LINE, PAGE = "#1f2328", "#5d6570", "#d5d9df", "#fefefe"
_VARIABLES = {c: f"var(--c{i})" for i, c in enumerate(COLOURS)} | {
    INK: "var(--ink)", SOFT: "var(--soft)", LINE: "var(--line)", PAGE: "var(--page)",
}  # fmt: skip

_STYLE = {
    "svg.fonttype": "none",  # text stays text: the reader's fonts draw every script and emoji
    "text.parse_math": False,  # "$" in a class name is a dollar
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": SOFT,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.fontsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "lines.solid_capstyle": "round",
}


@contextmanager
def house_style() -> Iterator[None]:
    """The style of every plot; matplotlib's own settings come back afterwards."""
    import matplotlib

    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():  # pyright: ignore[reportArgumentType]
        # the reader's browser has the glyphs that the measuring font lacks
        warnings.filterwarnings("ignore", message=r".*Glyph .* missing from font")
        yield


def to_png(figure: "Figure", dpi: int = 144) -> bytes:
    buffer = io.BytesIO()
    with house_style():
        # a bitmap cannot follow the page's theme: it keeps a light ground
        figure.savefig(buffer, format="png", dpi=dpi, facecolor=PAGE, metadata={"Software": None})
    return buffer.getvalue()


def to_svg(figure: "Figure", alt: str) -> str:
    """An <svg> element to put into HTML; `alt` is HTML already."""
    buffer = io.BytesIO()
    salt = f"{zlib.crc32(alt.encode()):x}"
    with house_style():
        import matplotlib

        matplotlib.rcParams["svg.hashsalt"] = salt  # ids of clips and markers must differ between plots of a page
        nothing = {"Creator": None, "Date": None, "Format": None, "Type": None}
        figure.savefig(buffer, format="svg", metadata=nothing, bbox_inches="tight", pad_inches=0.03)
    root = ElementTree.fromstring(buffer.getvalue())
    used = set(re.findall(r"#([\w-]+)", " ".join(v for e in root.iter() for v in e.attrib.values())))
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        for name, value in list(element.attrib.items()):
            del element.attrib[name]
            name = name.rpartition("}")[2]  # xlink:href is href in HTML
            if name == "id" and value not in used:
                continue  # figure_1, text_7: every plot has them
            if name in ("style", "fill", "stroke"):
                value = re.sub(r"#[0-9a-f]{6}", lambda m: _VARIABLES.get(m[0], m[0]), value)
                value = re.sub(r"font: ([\d.]+px)[^;]*", r"font-size: \1", value)
            element.set(name, value)
    for metadata in root.findall("metadata"):
        root.remove(metadata)
    width = float(root.attrib["viewBox"].split()[2])  # points; all plots of a page keep their letters about one size
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "style": f"max-width: {width * 1.35:.0f}px"}
    svg = ElementTree.tostring(root, encoding="unicode")
    opening, rest = svg.split(">", 1)
    return f'{opening} aria-label="{alt}">{rest}'
