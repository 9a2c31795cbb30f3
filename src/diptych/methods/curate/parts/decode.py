"""Are these bytes a picture, the one that was meant, and of a useful size? And its pixels brought to one size.

What the file's head tells is looked at first: a picture that claims more pixels than may be is never decoded.
"""

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from diptych.data.pictures import BadPicture, decode, opened
from diptych.errors import DiptychError
from diptych.methods.curate.parts.download import UNUSABLE, with_status
from diptych.methods.curate.parts.pipeline import Counts, Place, Stage, Verdict
from diptych.methods.curate.parts.resize import checked_mode, exif_of, is_touched, jpeg, resized
from diptych.methods.curate.parts.vectors import with_column
from diptych.methods.curate.parts.web_rules import by_reason

HASHES = ("sha256", "md5")
COLUMNS: Mapping[str, pa.DataType] = {
    "picture": pa.binary(),
    "width": pa.int32(),
    "height": pa.int32(),
    "original_width": pa.int32(),
    "original_height": pa.int32(),
    "exif": pa.string(),
}


class Unfit(Exception):
    """why: the kind of the fault, one of few; the message says more."""

    def __init__(self, why: str, more: str = "") -> None:
        super().__init__(f"{why}: {more}" if more else why)
        self.why = why


class Digest(Stage):
    """Adds the hash of the bytes as they came, in a column of its name; with `verify` removes those whose hash is not
    the one that the input names there (about 15 % of LAION's in 2023: addresses outlive their pictures)."""

    name = "digest"
    about = "not the file that was meant, by its hash"
    needs = ("picture",)

    def __init__(self, kind: str = "sha256", verify: bool = False) -> None:
        if kind not in HASHES:
            raise DiptychError(f'hashes are {" or ".join(HASHES)}, not "{kind}"')
        self.kind, self.verify = kind, verify
        self.needs = ("picture", kind) if verify else ("picture",)
        self.adds = (kind,)

    def select(self, batch: pa.RecordBatch, place: Place, counts: Counts) -> Verdict:
        files = batch.column("picture").to_pylist()
        found = [hashlib.new(self.kind, one or b"", usedforsecurity=False).hexdigest() for one in files]
        meant = batch.column(self.kind).to_pylist() if self.verify else found
        why = [
            "" if not given or given.lower() == one else "another hash" for one, given in zip(found, meant, strict=True)
        ]
        return by_reason(with_column(batch, self.kind, pa.array(found, pa.string())), why)


class Decode(Stage):
    """Removes what cannot be decoded or is too small, too large, too long; adds width, height, original_width,
    original_height, exif, and the picture as JPEG, resized as `mode` says (see `resize`). skip_reencode: a JPEG that is
    not resized stays as it is, to the byte."""

    name = "decode"
    about = "no picture, or none of a useful size"
    needs = ("picture",)
    adds = (*COLUMNS, "status", "error_message")

    def __init__(
        self,
        *,
        min_bytes: int = 5120,
        min_side: int = 0,
        max_area: float = math.inf,
        max_aspect: float = math.inf,
        mode: str = "keep_ratio",
        size: int = 384,
        only_if_bigger: bool = True,
        quality: int = 95,
        skip_reencode: bool = True,
        exif: bool = True,
    ) -> None:
        self.min_bytes, self.min_side, self.max_area, self.max_aspect = min_bytes, min_side, max_area, max_aspect
        self.mode, self.size, self.only_if_bigger = checked_mode(mode), size, only_if_bigger
        self.quality, self.skip_reencode, self.exif = quality, skip_reencode, exif

    def select(self, batch: pa.RecordBatch, place: Place, counts: Counts) -> Verdict:
        found: list[dict[str, Any]] = []
        faults: list[Unfit | None] = []
        for data in batch.column("picture").to_pylist():
            try:
                found.append(self.made(data))
                faults.append(None)
            except Unfit as error:
                found.append({"picture": data})
                faults.append(error)
        for name, kind in COLUMNS.items():
            batch = with_column(batch, name, pa.array([one.get(name) for one in found], kind))
        return by_reason(with_status(batch, faults, UNUSABLE), [one.why if one else "" for one in faults])

    def made(self, data: bytes | None) -> dict[str, Any]:
        """The columns of one picture. Raises Unfit."""
        if not data or len(data) < self.min_bytes:
            raise Unfit(f"fewer than {self.min_bytes} bytes", f"{len(data or b'')}")
        try:
            head = opened(data)
            self.check(*head.size)
            exif = exif_of(head) if self.exif else None
            # Twice the size that is wanted is enough to decode a JPEG to.
            image, (width, height) = decode(data, None if self.mode == "no" else 2 * self.size)
        except BadPicture as error:
            raise Unfit(*kind_of(str(error))) from error
        touched = is_touched(width, height, self.size, self.mode, self.only_if_bigger)
        if touched:
            image = resized(image, self.size, self.mode, only_if_bigger=False)
        if touched or head.format != "JPEG" or not self.skip_reencode:
            data = jpeg(image, self.quality)
            after = image.size
        else:
            after = width, height
        return {
            "picture": data,
            "width": after[0],
            "height": after[1],
            "original_width": width,
            "original_height": height,
            "exif": exif,
        }

    def check(self, width: int, height: int) -> None:
        if min(width, height) < max(self.min_side, 1):
            raise Unfit(f"a side of fewer than {self.min_side} pixels", f"{width} x {height}")
        if width * height > self.max_area:
            raise Unfit(f"more than {self.max_area:.0f} pixels", f"{width} x {height}")
        if max(width, height) / min(width, height) > self.max_aspect:
            raise Unfit(f"longer than {self.max_aspect:g} times its width", f"{width} x {height}")


def kind_of(message: str) -> tuple[str, str]:
    """A decoder's words -> one of four kinds, and the words."""
    kinds = {"truncated": "truncated", "corrupt (": "corrupt"}
    if "more than the limit" in message or "pixels than the limit" in message:
        return "a decompression bomb", message
    return next((kind for sign, kind in kinds.items() if message.startswith(sign)), "not a picture"), message
