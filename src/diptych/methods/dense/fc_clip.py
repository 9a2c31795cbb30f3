"""FC-CLIP: which pixel is what, by any list of names, from one pass of one frozen convolutional CLIP.

Trained once on pictures with masks of some classes, it finds areas of any kind and names them twice: by what it learned
(in-vocabulary, better for classes like those of its training) and by the CLIP's own embedding of each area
(out-of-vocabulary, better for all others); the two are mixed by whether a class was seen. Use it where some pictures
with masks are at hand, and names beyond theirs matter. Not without masks (take `dense_clip`), and not on a ViT, whose
maps are of one resolution and get noisy on large pictures.

Yu et al., Convolutions Die Hard, NeurIPS 2023, arXiv 2308.02487, on Mask2Former (arXiv 2112.01527). Published, with
ConvNeXt-L trained on COCO: ADE20K PQ 26.8, AP 16.8, mIoU 34.1; Cityscapes PQ 44.0; COCO itself PQ 54.4.
Shapes: B pictures, Q queries, K classes, R rows of text, W hidden width, D the joint embedding size.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.core.clip import CLIP
from diptych.core.regions import hard, mask_pool
from diptych.errors import DiptychError, nearest
from diptych.methods.dense.parts.backbone import Pyramid
from diptych.methods.dense.parts.examples import Examples, Views, digest_of
from diptych.methods.dense.parts.fitting import Schedule, train_module
from diptych.methods.dense.parts.mask_decoder import MaskDecoder, MaskGenerator, Queried, mlp
from diptych.methods.dense.parts.matcher import SetLoss
from diptych.methods.dense.parts.pixel_decoder import PixelDecoder, PyramidDecoder
from diptych.methods.dense.parts.segmenter import Segmentation, Segmenter, SegmentRecordsLike
from diptych.methods.dense.parts.vocabulary import SCENE, Vocabulary

MOST_SCALE = 100.0
DECODERS = ("deformable", "pyramid")


@dataclass(frozen=True)
class Config:
    """alpha, beta: the out-of-vocabulary share of seen and of unseen classes, published for CLIPs with a logit_scale of
    100; where it is smaller, larger ones are better. valid: none where a mask is empty at the last map (needed for
    ResNets). size, longest: of a picture's sides at test; crop, least, most, flip: large-scale jitter in training, crop
    0 for whole pictures at test size, of which the maps are kept. decoder: "deformable" or "pyramid". samples: points a
    mask in the losses. unnamed: what the masks ignore is to be found too, each connected area, and may be any class
    alike; not published, for few classes, of which else no other is found.
    templates: around names, with {}, split by "|"; "": ViLD's 14.
    """

    alpha: float = 0.4
    beta: float = 0.8
    valid: bool = False
    size: int = 1024
    longest: int = 2560
    crop: int = 1024
    least: float = 0.1
    most: float = 2.0
    flip: bool = True
    queries: int = 250
    width: int = 256
    heads: int = 8
    layers: int = 9
    inner: int = 2048
    decoder: str = "deformable"
    encoder_layers: int = 6
    encoder_inner: int = 1024
    points: int = 4
    samples: int = 12544
    class_weight: float = 2.0
    mask_weight: float = 5.0
    dice_weight: float = 5.0
    void_weight: float = 0.1
    unnamed: bool = False
    steps: int = 368_750
    batch: int = 16
    rate: float = 1e-4
    weight_decay: float = 0.05
    clip: float = 0.01
    templates: str = ""


class FCClip(Segmenter):
    Config = Config
    needs = "pictures with masks, ConvNet picture tower"
    trains = ("pixel decoder", "mask decoder", "class head")
    small = {  # noqa: RUF012
        "size": 256, "longest": 512, "crop": 0, "queries": 30, "width": 64, "heads": 4, "layers": 3, "inner": 256,
        "encoder_layers": 1, "encoder_inner": 128, "samples": 512, "steps": 1000, "batch": 2, "rate": 1e-3, "clip": 1.0,
    }  # fmt: skip
    at_test = ("alpha", "beta", "valid", "size", "longest")
    pyramid: Pyramid

    def fit(
        self,
        clip: CLIP,
        records: SegmentRecordsLike | None = None,
        *,
        seed: int = 0,
        keep: Path | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> "FCClip":
        if records is None:
            raise DiptychError("fc_clip learns from pictures with masks; none were given")
        c = self.config
        vocabulary = self.vocabulary(clip.eval(), records.names)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = self.restore(clip, records.names)
        examples = Examples(self.pyramid, records, self.views(), c.batch, seed, c.unnamed)
        criterion = SetLoss(c.class_weight, c.mask_weight, c.dice_weight, c.void_weight, c.samples)

        def loss(step: int) -> dict[str, Tensor]:
            maps, truths = examples(step)
            generator = torch.Generator().manual_seed(seed << 32 | step)
            features, layers = module.masks(maps)
            found = [
                criterion(module.classes(features, layer, vocabulary), layer.masks, truths, generator)
                for layer in layers
            ]
            return {name: torch.stack([terms[name] for terms in found]).sum() for name in found[0]}

        about = [self.system(), asdict(c), seed, clip.fingerprint, list(digest_of(records))]
        schedule = Schedule(c.steps, c.rate, c.weight_decay, c.clip)
        train_module(module, loss, schedule, about=about, keep=keep, progress=progress)
        self.clip, self.names, self.module, self.set_aside = clip, tuple(records.names), module, examples.set_aside
        return self

    @torch.no_grad()
    def segment(self, image: Image.Image, names: Sequence[str], things: Sequence[str] | None = None) -> Segmentation:
        if not isinstance(self.module, FCClipModule):
            raise DiptychError("fc_clip is to be fitted, or read from a file, before it segments")
        c, true = self.config, (image.height, image.width)
        vocabulary = self.vocabulary(self.clip, names)
        size = self.views().whole(true)
        pixels = self.pyramid.pixels(image, size)[None]
        maps, last = self.pyramid(pixels)
        features, layers = self.module.masks(maps)
        inside = self.module.classes(features, layers[-1], vocabulary)[0]  # [Q, K + 1]
        masks = hard(layers[-1].masks, (last.shape[2], last.shape[3]))
        regions = F.normalize(self.clip.image.regions(last, masks)[0], dim=-1)  # type: ignore[operator]
        outside = vocabulary.best(self.clip.logit_scale.clamp(max=MOST_SCALE) * regions @ vocabulary.rows.T)  # [Q, K]
        share = torch.where(vocabulary.seen(self.names), c.alpha, c.beta).expand(len(inside), -1)
        if c.valid:
            share = share * masks[0].flatten(1).any(1)[:, None]
        soft = F.interpolate(layers[-1].masks, pixels.shape[-2:], mode="bilinear", align_corners=False)
        soft = F.interpolate(soft[..., : size[0], : size[1]], true, mode="bilinear", align_corners=False)[0].sigmoid()
        counted = tuple(things is None or name in things for name in names)
        return Segmentation(soft, ensemble(inside, outside, share), vocabulary.names, counted)

    def restore(self, clip: CLIP, names: tuple[str, ...]) -> "FCClipModule":
        self.pyramid = Pyramid.of(clip)
        return FCClipModule(self.config, self.pyramid.channels, clip.embed_dim).to(clip.device)

    def views(self) -> Views:
        c = self.config
        return Views(c.size, c.longest, c.crop, c.least, c.most, c.flip)

    def vocabulary(self, clip: CLIP, names: Sequence[str]) -> Vocabulary:
        """Made once for each list of names."""
        if self._known is None or self._known[:2] != (clip.fingerprint, tuple(names)):
            templates = self.config.templates.split("|") if self.config.templates else SCENE
            self._known = clip.fingerprint, tuple(names), Vocabulary.of(clip, names, templates)
        return self._known[2]

    _known: tuple[str, tuple[str, ...], Vocabulary] | None = None


class FCClipModule(nn.Module):
    """All that is trained: the mask generator, and the head that names its queries by text."""

    def __init__(self, config: Config, channels: Sequence[int], embed_dim: int) -> None:
        super().__init__()
        c = config
        if c.decoder not in DECODERS:
            raise DiptychError(f'fc_clip.decoder cannot be "{c.decoder}"{nearest(c.decoder, DECODERS)}')
        if c.width % c.heads or c.width % 4:
            raise DiptychError(f"fc_clip.width is a multiple of 4 and of fc_clip.heads, not {c.width} with {c.heads}")
        if c.decoder == "pyramid":
            pixels: nn.Module = PyramidDecoder(channels, c.width)
        else:
            pixels = PixelDecoder(channels, c.width, c.encoder_layers, c.heads, c.points, c.encoder_inner)
        self.masks = MaskGenerator(
            pixels, MaskDecoder(c.queries, c.width, c.layers, c.heads, c.inner, len(channels) - 1)
        )
        self.pooled = nn.Sequential(nn.LayerNorm(c.width), nn.Linear(c.width, c.width))
        self.embed = mlp(c.width, c.width, embed_dim)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.void = nn.Embedding(1, embed_dim)

    def classes(self, features: Tensor, queried: Queried, vocabulary: Vocabulary) -> Tensor:
        """In-vocabulary logits [B, Q, K + 1], the last "nothing", from features of pixels [B, W, h, w].

        No gradient reaches the masks through the pooling.
        """
        inside = self.pooled(mask_pool(features, queried.masks.detach() > 0))
        embeddings = F.normalize(self.embed(queried.queries + inside), dim=-1)  # [B, Q, D]
        scale = self.log_scale.exp().clamp(max=MOST_SCALE)
        named = vocabulary.best(scale * embeddings @ vocabulary.rows.T)
        void = scale * embeddings @ F.normalize(self.void.weight, dim=-1).T
        return torch.cat([named, void], dim=-1)


def ensemble(inside: Tensor, outside: Tensor, share: Tensor) -> Tensor:
    """In-vocabulary logits [Q, K + 1], the last "nothing", out-of-vocabulary logits [Q, K] and their share [Q, K] ->
    probabilities [Q, K]: p_in^(1 - share) p_out^share, made to sum to 1, times 1 - p(nothing)."""
    mixed = (1 - share) * inside[:, :-1].log_softmax(-1) + share * outside.log_softmax(-1)
    return mixed.softmax(-1) * (1 - inside.softmax(-1)[:, -1:])
