"""CLIP4DM: which words of a caption do not fit the picture, and F-CLIPScore, from one forward and backward of any CLIP.

Use it to find wrong words in captions, by people or by models, and to put the captions of a data set in the order in
which they should be looked at. It needs no labels and trains nothing. Not for what its CLIP does not know: a model that
cannot tell "left of" from "right of" flags neither, and its choice among words says nothing then. Not for the threshold
of one model on another: `calibrated` sets it on pairs that match.

Nam et al., Extract Free Dense Misalignment from CLIP, AAAI 2025, arXiv 2412.18404. Published: best zero-shot method on
FOIL, nocaps-FOIL, HAT, SeeTRUE-Feedback and Rich-HF, with OpenAI's ViT-B/32 and L/14 and LAION's H/14.

The paper's models read a text at its end token, and that row of the attribution is taken. Here it is the mean over the
rows that the embedding is read from, whichever the tower: the end token of a CLIP, the start token of a tower pooled
there, all real tokens (prompts among them) of a mean-pooled one.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from diptych.core.clip import CLIP
from diptych.core.edits import EditedTower
from diptych.core.tower import Prompt, Tap, Tokens, Tower, put_words
from diptych.core.words import ReadText, Word, read_words
from diptych.errors import DiptychError, Unsupported, nearest
from diptych.methods.explain.parts.activation import activation_map
from diptych.methods.explain.parts.explainer import Explainer, WordScore, WordScores, unit

MODES = ("threshold", "most_negative", "phrase")
# eps of models that come with diptych, on captions that match: at most 5 in 100 get a flag (docs/figures/clip4dm.md)
CALIBRATED = {"micro": -1.5e-2, "mini": -7e-5}


@dataclass(frozen=True)
class Config:
    """template: words before the text, as CLIPScore has them; layers: how many last blocks are read;
    eps: a word below it does not fit (mode "threshold" and "phrase"); published for CLIP in half precision.

    mode: what the negative score n of F-CLIPScore is. "threshold": the sum over words below eps, 0 without one (several
    errors a text: HAT, SeeTRUE, Rich-HF); "phrase": the lowest mean of a phrase of them (HAT); "most_negative": the
    lowest word, punctuation included, which alone is flagged, whatever its score (one error a text: FOIL).
    """

    template: str = "A photo depicts "
    layers: int = 3
    eps: float = -5e-5
    mode: str = "threshold"


class Clip4DM(Explainer):
    Config = Config
    measure = "F-CLIPScore"
    needs = "a text transformer"
    cost = "the text tower, forward and backward; the picture tower once"

    def __init__(self, clip: CLIP, config: Any = None) -> None:
        super().__init__(clip, config)
        if self.config.mode not in MODES:
            raise DiptychError(f'clip4dm.mode is "{self.config.mode}"{nearest(self.config.mode, MODES)}')
        if self.config.layers < 1:
            raise DiptychError(f"clip4dm.layers is {self.config.layers}; it reads at least the last block")
        if not clip.text.transformer:
            raise Unsupported(
                f"clip4dm reads the attention of the text tower, and that of {clip.name} ({clip.text.kind}) has none "
                "to be read; mini, micro and the CLIPs of open_clip and Hugging Face have"
            )

    @classmethod
    def config_for(cls, clip: CLIP) -> Any:
        return Config(eps=CALIBRATED.get(clip.source, Config.eps)) if type(clip) is CLIP else Config()

    @torch.inference_mode(mode=False)
    def explain(self, image: Image.Image, text: str) -> WordScores:
        read, cosine, means = self.measured(image, text)
        flagged, negative = judge(self.judged(read.words, means), self.config.mode, self.config.eps)
        marked = {i for phrase in flagged for i in phrase}
        words = tuple(
            WordScore(word.text, word.start, word.end, means[i], i in marked) for i, word in enumerate(read.words)
        )
        phrases = tuple(" ".join(words[i].word for i in phrase) for phrase in flagged)
        return WordScores(read.text, words, cosine, f_clip_score(negative, cosine), phrases)

    def measured(self, image: Image.Image, text: str) -> tuple[ReadText, float, list[float | None]]:
        """The text's words, the cosine, and each word's attribution: the mean over its pieces, None without any."""
        read = read_words(self.clip, text, self.config.template)
        tokens = read.tokens.to(self.clip.device)
        at = places(self.clip.text, tokens)
        cosines, row = attribute(self.clip.text, tokens, self.embedding(image)[None], self.config.layers)
        means = [row[0, at[list(word.tokens)]].mean().item() if word.tokens else None for word in read.words]
        return read, cosines.item(), means

    def judged(self, words: Sequence[Word], means: Sequence[float | None]) -> list[float]:
        """inf for words that are not judged: those not read and, where a threshold decides, punctuation."""
        all_of_them = self.config.mode == "most_negative"
        return [
            math.inf if mean is None or (word.punctuation and not all_of_them) else mean
            for word, mean in zip(words, means, strict=True)
        ]

    @torch.inference_mode(mode=False)
    def heat(self, image: Image.Image, text: str) -> Tensor:
        """The same attribution through the picture tower's attention; for a ConvNet, gradient times activation of its
        last stage. A word's map is that of the word alone behind the template."""
        read = read_words(self.clip, text, self.config.template)
        with torch.no_grad():
            target = unit(self.clip.encode_tokens(read.tokens))
        tower, pixels = self.clip.image, self.pixels(image)
        if not tower.transformer:
            return activation_map(tower, pixels, target)
        before, after = inserted(tower)
        row = attribute(tower, pixels, target, self.config.layers)[1][0]  # [N]
        count = len(row) - before - after
        side = math.isqrt(count)
        start = count - side * side + before  # class and register tokens stand before the prompts, and these before all
        return row[start : start + side * side].unflatten(0, (side, side))

    @torch.inference_mode(mode=False)
    def calibrated(self, pairs: Iterable[tuple[Image.Image, str]], share: float = 0.05) -> "Clip4DM":
        """eps from the lowest word of each pair that matches: at most `share` of these pairs have a word below it."""
        if not 0 <= share < 1:
            raise DiptychError(f"calibration flags a share of the pairs from 0 to below 1; not {share}")
        lowest = []
        for image, text in pairs:
            read, _, means = self.measured(image, text)
            lowest.append(min(self.judged(read.words, means)))
        if not lowest:
            raise DiptychError("calibration needs pairs that match, and there are none")
        eps = min(0.0, sorted(lowest)[int(share * len(lowest))])
        return Clip4DM(self.clip, replace(self.config, eps=eps))


def attribute(tower: Tower, inputs: Tensor | Tokens, target: Tensor, layers: int) -> tuple[Tensor, Tensor]:
    """B inputs and what they are compared with (unit, [B, D]) -> cosines [B], attribution of every token [B, N].

    For each of the last `layers` blocks C = mean over heads of dy/dA * A, y the cosine and A the attention
    probabilities after the softmax, each an input of its own; nothing is clamped, so that evidence against the pair
    stays negative. R = mean of C over the blocks, from zero; of R the rows that the embedding is read from, averaged.
    """
    first = max(0, tower.depth - layers)
    taps, last = [Tap(i, "attention") for i in range(first, tower.depth)], Tap(tower.depth - 1)
    with torch.enable_grad():
        # no token at all, but one with a gradient: the graph begins here, though all weights are frozen
        nothing = Prompt(torch.zeros(0, tower.width, device=target.device, requires_grad=True), block=first)
        out = tower(inputs, prompts=[nothing], taps=[*taps, last])
        cosines = (unit(out.embedding) * target).sum(-1)
        attention = [out.taps[tap] for tap in taps]  # each [B, heads, N, N]
        *gradients, read = torch.autograd.grad(cosines.sum(), [*attention, out.taps[last]])
    relevance = torch.stack([blend(a.detach(), g) for a, g in zip(attention, gradients, strict=True)]).mean(0)
    rows = (read != 0).any(-1).to(relevance.dtype)  # [B, N]: a token that the embedding is read from has a gradient
    return cosines.detach(), torch.einsum("bi,bij->bj", rows, relevance) / rows.sum(-1, keepdim=True).clamp(min=1)


def blend(attention: Tensor, gradient: Tensor) -> Tensor:
    """[B, heads, N, N] twice -> [B, N, N], at least float32: in half precision, 1e-4 and its sums would be coarse."""
    precise = torch.promote_types(attention.dtype, torch.float32)
    return (gradient.to(precise) * attention.to(precise)).mean(1)


def judge(scores: Sequence[float], mode: str, eps: float) -> tuple[list[list[int]], float]:
    """Scores of words (inf: not judged) -> places of the flagged ones, neighbours in one phrase, and n."""
    if mode == "most_negative":
        lowest = min(range(len(scores)), key=lambda i: scores[i])
        return ([[lowest]], scores[lowest]) if scores[lowest] < math.inf else ([], 0.0)
    phrases: list[list[int]] = []
    for i in (i for i, score in enumerate(scores) if score < eps):
        if phrases and phrases[-1][-1] == i - 1:
            phrases[-1].append(i)
        else:
            phrases.append([i])
    sums = [sum(scores[i] for i in phrase) for phrase in phrases]
    if mode == "threshold":
        return phrases, sum(sums)
    return phrases, min((total / len(phrase) for total, phrase in zip(sums, phrases, strict=True)), default=0.0)


def f_clip_score(negative: float, cosine: float) -> float:
    """F-CLIPScore = n (1 - max(y, 0)): 0 where nothing speaks against the pair, more below it the worse it fits."""
    return negative * (1 - max(cosine, 0.0))


def inserted(tower: Tower) -> tuple[int, int]:
    """Tokens that an edited tower's prompts put in at the start and elsewhere, before its first block."""
    prompts = tower.edits.prompts if isinstance(tower, EditedTower) else ()
    if any(prompt.block and not prompt.replace for prompt in prompts):
        raise Unsupported("prompts put in between blocks: the attention maps of two blocks are then of other tokens")
    first = [prompt for prompt in prompts if not prompt.block]
    start = sum(prompt.tokens.shape[-2] for prompt in first if prompt.at == "start")
    return start, sum(prompt.tokens.shape[-2] for prompt in first) - start


def places(tower: Tower, tokens: Tokens) -> Tensor:
    """Where each token of one text stands once an edited tower's prompts are in: [L] int64."""
    length = tokens.ids.shape[1]
    numbers = torch.arange(1, length + 1, device=tokens.ids.device)
    if not sum(inserted(tower)):
        return numbers - 1
    assert isinstance(tower, EditedTower)
    blanks = [replace(p, tokens=torch.zeros(p.tokens.shape[-2], 1)) for p in tower.edits.prompts if not p.block]
    moved = put_words(numbers[None, :, None].float(), tokens, blanks)[0][0, :, 0]  # [N]: 0 where a prompt is
    return (moved[None] == numbers[:, None]).int().argmax(1)
