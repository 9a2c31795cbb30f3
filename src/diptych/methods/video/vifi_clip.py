"""ViFi-CLIP: an image CLIP becomes a classifier of videos: the mean over frames, fine-tuned or prompted, nothing added.

It fine-tunes one or both towers on labelled videos ("bridge"), or, on a few videos a class, learns prompts alone,
best on towers that were bridged on a larger set before. Use it where classes show in what frames show, together or
alone, and where new class names will come. Not where the order of frames tells the classes apart (left from right,
opening from closing): a mean has no order. And not on a CPU for more than a few hundred short videos.

Rasheed et al., Fine-tuned CLIP Models are Efficient Video Learners, CVPR 2023, arXiv 2212.03640. ViT-B/16 on HMDB-51:
zero-shot 51.3 after Kinetics-400; at 16 shots 66.8 fine-tuned, 72.0 bridged there and prompted. The release looks at 32
frames (`--frames 32`), 16 where there are many videos, and scales its crops in four steps.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from diptych.core.classifier import Classifier
from diptych.core.clip import CLIP
from diptych.core.edits import Edits, TowerEdits
from diptych.core.heads import TextRows
from diptych.core.text import TextRecipe, class_tokens
from diptych.core.tower import Prompt, Tokens, Tower
from diptych.data.support import Support
from diptych.engine.loop import Cosine, Optimiser, train
from diptych.errors import DiptychError, nearest
from diptych.losses.soft import smoothed, soft_cross_entropy
from diptych.methods.adapt.parts.adapter import Adapter, Needs, Work
from diptych.methods.adapt.parts.prompts import check_length, random_words, words_of
from diptych.methods.adapt.parts.sampling import Batches, steps_of
from diptych.methods.video.parts.augment import mix, recolour

CROP = (0.66**2, 1.0)
RATES = {"both": 2e-6, "image": 2e-6, "text": 2e-6, "prompts": 8e-3}  # published for few shots
TOWERS = {"both": ("image", "text"), "image": ("image",), "text": ("text",), "prompts": ("image", "text")}


@dataclass(frozen=True)
class Config:
    """The released defaults for few shots (Kinetics-400 as a whole: rate 8e-6, epochs 10, batch 256).

    tune: "both" towers and the temperature, the "image" or the "text" tower, or "prompts" alone. bridge: a file of an
    earlier fit whose weights are the start ("" is the model itself). rate: 0 is 2e-6, for prompts 8e-3. warmup: epochs.
    text_tokens, image_tokens, depth: of the prompts, `depth` blocks deep, at most as many as a tower has. words: where
    text prompts of up to 4 tokens start from, "" is noise. mixup, cutmix: their Betas, 0 is none; switch: the share of
    CutMix. smoothing: of labels. jitter, grey: shares of videos with other colours and with none.
    """

    tune: str = "both"
    bridge: str = ""
    template: str = "a photo of a {}."
    epochs: int = 50
    rate: float = 0.0
    weight_decay: float = 0.001
    batch: int = 64
    warmup: int = 5
    text_tokens: int = 10
    image_tokens: int = 10
    depth: int = 12
    words: str = ""
    mixup: float = 0.8
    cutmix: float = 1.0
    switch: float = 0.5
    smoothing: float = 0.1
    jitter: float = 0.8
    grey: float = 0.2


class ViFiCLIP(Adapter):
    Config = Config
    needs = Needs(videos=True)
    trains = ("both towers and temperature", "or prompts")
    cost = "both towers"
    names_new_classes = True
    folds = 2

    def refusal(self, clip: CLIP, support: Support | None = None) -> str | None:
        if self.config.tune == "prompts":
            for tower in (clip.image, clip.text):
                if not tower.transformer:
                    return f"learns prompts in transformer towers; the {tower.modality} tower is a {tower.kind}"
        return super().refusal(clip, support)

    def path(self, clip: CLIP, support: Support) -> Iterator[tuple[Any, Classifier]]:
        config: Config = self.config
        if config.tune not in TOWERS:
            raise DiptychError(f'vifi_clip.tune has no "{config.tune}"{nearest(config.tune, TOWERS)}')
        template = support.templates[0] if support.templates else config.template
        recipe = TextRecipe((template_of(template, config),))
        if config.tune == "prompts":
            check_length(clip, support.names, recipe.templates[0], config.text_tokens)
        bridge, log_scale = bridged(clip, config.bridge)
        learned = start(clip, bridge, log_scale, config, support.seed)
        tokens = class_tokens(clip, support.names, recipe.templates[0]).to(clip.device)
        learned = reached(clip, bridge, learned, tokens.take(slice(1)), support.pixels(clip, [0]))
        classes, labels = len(support.names), support.labels.to(clip.device)
        batches = Batches(support, config.batch)
        fixed = None if "text" in TOWERS[config.tune] else text_rows(clip, bridge, tokens)
        look = clip.preprocess

        def loss(step: int) -> Tensor:
            batch, rng = batches[step], batches.crops(step)
            videos = support.pixels(clip, batch.tolist(), rng, CROP)  # [B, T, 3, H, W]
            videos = recolour(videos, rng, config.jitter, config.grey, look.mean, look.std)
            shares = smoothed(labels[batch.to(labels.device)], classes, config.smoothing)
            videos, shares = mix(videos, shares, rng, config.mixup, config.cutmix, config.switch)
            tuned = clip.edited(edits_of(bridge, learned))
            texts = fixed if fixed is not None else F.normalize(tuned.encode_tokens(tokens), dim=-1)
            pictures = F.normalize(tuned.encode_image(videos), dim=-1)  # the mean over frames first
            return soft_cross_entropy(scale_of(learned, log_scale) * pictures @ texts.T, shares)

        rate = config.rate or RATES[config.tune]
        train(
            learned,
            loss,
            Optimiser("adamw", rate, config.weight_decay, beta2=0.98),
            steps_of(len(support), config.batch, config.epochs),
            schedule=Cosine(warmup=config.warmup * batches.per_epoch, least=rate / 100),
        )
        learned = {name: tensor.detach() for name, tensor in learned.items()}
        edits = edits_of(bridge, learned)
        yield (
            config,
            self.classifier(
                clip,
                support,
                TextRows(text_rows(clip, edits, tokens), float(scale_of(learned, log_scale))),
                config,
                recipe=recipe,
                edits=edits,
                trainable=sum(t.numel() for t in learned.values()),
            ),
        )

    def work(self, classes: int, shots: int) -> Work:
        videos = classes * shots
        steps = steps_of(videos, self.config.batch, self.config.epochs)
        length = 8 + (self.config.text_tokens if self.config.tune == "prompts" else 0)
        return Work(images_backward=steps * min(self.config.batch, videos), tokens_backward=steps * classes * length)


def bridged(clip: CLIP, file: str) -> tuple[Edits, Tensor]:
    """The edits of an earlier fit, its prompts left out, and the logarithm of its temperature's multiplier."""
    if not file:
        return Edits(), clip.log_scale.detach().clone()
    fitted = Classifier.load(file)
    fitted.clip(clip)  # of the same base model
    if not isinstance(fitted.head, TextRows) or not fitted.edits:
        raise DiptychError(f"vifi_clip.bridge: {file} is a fit of {fitted.system}, which changed no tower's weights")
    edits = Edits({name: replace(tower, prompts=()) for name, tower in fitted.edits.towers.items()})
    return edits.to(clip.device), torch.tensor(fitted.head.scale).log().to(clip.device)


def start(clip: CLIP, bridge: Edits, log_scale: Tensor, config: Config, seed: int) -> dict[str, Tensor]:
    """What is learned, by name: copies of the towers' weights and the temperature, or prompts of each block."""
    learned: dict[str, Tensor] = {}
    if config.tune == "prompts":
        first = words_of(clip, config.words)[: config.text_tokens]
        lengths = {"text": config.text_tokens, "image": config.image_tokens}
        for name in TOWERS["prompts"]:
            tower = getattr(clip, name)
            for block in range(min(config.depth, tower.depth) if lengths[name] else 0):
                noise = random_words(clip, lengths[name], seed, f"{name} {block}", tower.width)
                given = name == "text" and not block and len(first) == lengths[name] <= 4
                learned[f"{name} prompt {block}"] = first.clone() if given else noise
    else:
        for name in TOWERS[config.tune]:
            tower: Tower = getattr(clip, name)
            weights: dict[str, Tensor] = {**dict(tower.named_parameters()), **bridge.of(name).parameters(tower)}
            frozen = word_table(clip) if name == "text" else None
            for parameter, weight in weights.items():
                if parameter != frozen:
                    learned[f"{name} {parameter}"] = weight.detach().clone()
        if config.tune == "both":
            learned["temperature"] = log_scale.clone()
    return {name: tensor.requires_grad_() for name, tensor in learned.items()}


def reached(clip: CLIP, bridge: Edits, learned: dict[str, Tensor], text: Tokens, video: Tensor) -> dict[str, Tensor]:
    """Without what the embeddings are not made of, such as the pooler of a BERT whose tokens are averaged."""
    tuned = clip.edited(edits_of(bridge, learned))
    embeddings = torch.cat([tuned.encode_tokens(text), tuned.encode_image(video)])
    gradients = torch.autograd.grad(embeddings.sum(), list(learned.values()), allow_unused=True)
    kept = dict(zip(learned, gradients, strict=True))
    return {name: t for name, t in learned.items() if kept[name] is not None or name == "temperature"}


def word_table(clip: CLIP) -> str | None:
    """The parameter whose rows are the words' embeddings: it is never trained, so that unseen words stay."""
    ids = torch.arange(2, 6, device=clip.device)
    rows = clip.text.embed(ids)
    return next((n for n, p in clip.text.named_parameters() if p.dim() == 2 and torch.equal(p[2:6], rows)), None)


def edits_of(bridge: Edits, learned: dict[str, Tensor]) -> Edits:
    """The bridge's edits with what is learned: texts after the start token, pictures at the end, replaced by block."""
    towers = {}
    for name in ("image", "text"):
        own = {key.removeprefix(f"{name} "): t for key, t in learned.items() if key.startswith(f"{name} ")}
        prompts = tuple(
            Prompt(
                tokens,
                block=int(key.removeprefix("prompt ")),
                at="start" if name == "text" else "end",
                replace=key != "prompt 0",
                position=name == "text",
            )
            for key, tokens in own.items()
            if key.startswith("prompt ")
        )
        weights = {key: t for key, t in own.items() if not key.startswith("prompt ")}
        before = bridge.of(name)
        low_rank = () if weights else before.low_rank
        towers[name] = TowerEdits(prompts, low_rank, {**before.weights, **weights})
    return Edits({name: edit for name, edit in towers.items() if edit})


def scale_of(learned: dict[str, Tensor], log_scale: Tensor) -> Tensor:
    return learned.get("temperature", log_scale).exp()


def text_rows(clip: CLIP, edits: Edits, tokens: Tokens) -> Tensor:
    """Unit rows [C, D]."""
    with torch.no_grad():
        return F.normalize(clip.edited(edits).encode_tokens(tokens), dim=-1)


def template_of(template: str, config: Config) -> str:
    """Prompts stand in the place of the words before the name: "{}."."""
    return "{}." if config.tune == "prompts" and config.text_tokens else template
