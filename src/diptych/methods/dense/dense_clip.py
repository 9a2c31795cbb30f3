"""Dense CLIP: which pixel is what, by any list of names, from the features of a CLIP as it is; nothing is trained.

Each patch of a ViT, each place of a ConvNet's map, is embedded as if it were the whole picture and compared with the
names. Use it first, on any CLIP: it is what every trained segmenter must beat. Not for outlines (its masks are as
coarse as the patches), not for counting (all things of a class are one segment), and not for "none of these": every
pixel gets one of the names.

Zhou et al., Extract Free Dense Labels from CLIP (MaskCLIP), ECCV 2022, arXiv 2112.01071, section 3.2: the last
attention is left out, and its value path alone is used. Without its key smoothing and prompt denoising. Others report
of it, untrained: mIoU 9.8 on ADE20K, 10.0 on Cityscapes, 20.6 on COCO's things (Papers with Code).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from diptych.core.clip import CLIP
from diptych.core.preprocess import RESAMPLING
from diptych.core.tower import Tower
from diptych.methods.dense.parts.segmenter import Segmentation, Segmenter, SegmentRecordsLike
from diptych.methods.dense.parts.vocabulary import SCENE, Vocabulary

LONGEST = 4  # long over short side, beyond which a picture is squeezed
BATCH = 8  # windows at once
STRIDE = 32  # of a ConvNet's last map: sides are multiples of it, so that places and pixels agree


@dataclass(frozen=True)
class Config:
    """size: the short side that a picture is resized to, in pixels; 0: twice the tower's own. A ConvNet sees all of it
    at once, a ViT in windows of its own size that overlap by half. templates: around names, with {}, split by "|";
    "": ViLD's 14.
    """

    size: int = 0
    templates: str = ""


class DenseCLIP(Segmenter):
    Config = Config
    needs = "no labels"
    known: dict[tuple[str, ...], Vocabulary]

    def fit(self, clip: CLIP, records: SegmentRecordsLike | None = None, **_: object) -> "DenseCLIP":
        """Nothing is learned: records and the rest change nothing. Raises Unsupported for a tower without places."""
        if type(clip.image).dense is Tower.dense:
            clip.image.dense(torch.empty(0))  # raises, saying why
        self.clip, self.known = clip, {}
        return self

    @torch.no_grad()
    def segment(self, image: Image.Image, names: Sequence[str], things: Sequence[str] | None = None) -> Segmentation:
        """One mask a class that wins anywhere: where it does. Its scores are the mean there of the softmax over
        classes, at CLIP's own scale."""
        texts = self.vocabulary(tuple(names))
        logits = F.interpolate(self.logits(image, texts)[None], image.size[::-1], mode="bilinear")[0]
        shares = logits.softmax(0).flatten(1)  # [K, H W]
        winner = shares.argmax(0)
        masks = (winner == winner.unique()[:, None]).float()  # [Q, H W]
        scores = masks @ shares.T / masks.sum(1, keepdim=True)
        counted = tuple(things is None or name in things for name in names)
        return Segmentation(masks.unflatten(1, image.size[::-1]), scores, texts.names, counted)

    def vocabulary(self, names: tuple[str, ...]) -> Vocabulary:
        """The rows of these names; those of the last call are kept."""
        if names not in self.known:
            templates = tuple(self.config.templates.split("|")) if self.config.templates else SCENE
            self.known = {names: Vocabulary.of(self.clip, names, templates)}
        return self.known[names]

    def logits(self, image: Image.Image, texts: Vocabulary) -> Tensor:
        """[K, H', W'] at the size that the tower is shown; the mean where windows overlap."""
        look, windowed = self.clip.preprocess, self.clip.image.transformer
        short = self.config.size or 2 * look.size
        width, height = resized(image.size, short, *((look.size, 1) if windowed else (STRIDE, STRIDE)))
        pixels = look.tensor(image.resize((width, height), RESAMPLING[look.interpolation]))
        if not windowed:
            return self.window(pixels[None], texts)[0]
        side = look.size
        corners = [(y, x) for y in starts(height, side) for x in starts(width, side)]
        total, count = torch.zeros(len(texts.groups), height, width), torch.zeros(height, width)
        for some in (corners[i : i + BATCH] for i in range(0, len(corners), BATCH)):
            shown = torch.stack([pixels[:, y : y + side, x : x + side] for y, x in some])
            for (y, x), found in zip(some, self.window(shown, texts), strict=True):
                total[:, y : y + side, x : x + side] += found
                count[y : y + side, x : x + side] += 1
        return total / count

    def window(self, pixels: Tensor, texts: Vocabulary) -> Tensor:
        """pixels [B, 3, H', W'] -> logits [B, K, H', W'], the best of each class's synonyms."""
        rows = self.clip.image.dense(pixels.to(self.clip.device))  # [B, h, w, D]
        logits = texts.best(self.clip.score(rows.flatten(0, 2), texts.rows)).view(*rows.shape[:3], -1)
        return F.interpolate(logits.permute(0, 3, 1, 2).float().cpu(), pixels.shape[2:], mode="bilinear")


def resized(size: tuple[int, int], short: int, least: int, step: int) -> tuple[int, int]:
    """Width and height with a short side of about `short`, multiples of `step` from `least` on, neither of them beyond
    LONGEST times `short`."""
    scale = short / min(size)
    width, height = (max(least, round(min(side * scale, LONGEST * short) / step) * step) for side in size)
    return width, height


def starts(length: int, side: int) -> list[int]:
    """Where windows begin: every half side, the last one flush with the end."""
    return [*range(0, length - side, max(1, side // 2)), length - side]
