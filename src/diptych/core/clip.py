"""A CLIP: two towers, a temperature, a tokenizer and a preprocessing. It knows the name of no method."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.core.cut import Cuts
from diptych.core.edits import EditedTower, Edits, pack
from diptych.core.preprocess import Preprocess
from diptych.core.tower import Prompts, Tokens, Tower


class Tokenizer(Protocol):
    """Texts to Tokens. Saved with its CLIP."""

    context_length: int

    def __call__(self, texts: Sequence[str], names: Sequence[str] | None = None) -> Tokens:
        """Padded to the longest text; with `names`, the end of each text's (last) occurrence of its name is kept."""
        ...

    def length(self, text: str) -> int:
        """Tokens that `text` needs, start and end included, before any cut."""
        ...

    def words(self) -> list[str]:
        """The vocabulary, a word for each id."""
        ...

    def save(self, folder: Path) -> None: ...

    def spec(self) -> dict[str, Any]:
        """JSON-able description that tells two tokenizers apart (vocabulary hash included)."""
        ...


class CLIP(nn.Module):
    """Two towers on one embedding space.

    name: what people call it; source: what `diptych.load` opens again; tokenizer, preprocess: what the towers were
    trained with; logit_scale: the multiplier of the cosine (exp of the stored parameter, e.g. 100).
    origin: the library and config the towers were built from, which `core.save` writes; None where unknown.
    """

    origin: dict[str, Any] | None = None

    def __init__(
        self,
        name: str,
        image: Tower,
        text: Tower,
        tokenizer: Tokenizer,
        preprocess: Preprocess,
        *,
        logit_scale: float = 100.0,
        logit_bias: float | None = None,
        source: str | None = None,
    ) -> None:
        super().__init__()
        self.name, self.source = name, source or name
        self.towers = nn.ModuleDict({"image": image, "text": text})
        self.tokenizer = tokenizer
        self.preprocess = preprocess
        self.cuts = Cuts()
        self.log_scale = nn.Parameter(torch.tensor(float(logit_scale)).log())
        self.logit_bias = None if logit_bias is None else nn.Parameter(torch.tensor(float(logit_bias)))
        self.eval()
        self.requires_grad_(False)

    @property
    def image(self) -> Tower:
        return self.towers["image"]  # type: ignore[return-value]

    @property
    def text(self) -> Tower:
        return self.towers["text"]  # type: ignore[return-value]

    @property
    def logit_scale(self) -> Tensor:
        return self.log_scale.exp()

    @property
    def device(self) -> torch.device:
        return self.log_scale.device

    @property
    def embed_dim(self) -> int:
        return self.image.embed_dim

    def encode_image(self, pixels: Tensor, *, prompts: Prompts = ()) -> Tensor:
        """pixels [B, 3, H, W] -> embeddings [B, D], not normalised; videos [B, T, 3, H, W]: the means over frames."""
        frames = self.encode_frames(pixels if pixels.dim() == 5 else pixels[:, None], prompts=prompts)
        return frames.mean(1) if pixels.dim() == 5 else frames[:, 0]

    def encode_frames(self, pixels: Tensor, *, prompts: Prompts = ()) -> Tensor:
        """Videos [B, T, 3, H, W] -> embeddings of their frames [B, T, D], not normalised, to be pooled."""
        folded = pixels.flatten(0, 1).to(self.device)  # [B * T, 3, H, W]
        return self.image(folded, prompts=prompts).embedding.unflatten(0, pixels.shape[:2])

    def encode_tokens(self, tokens: Tokens, *, prompts: Prompts = ()) -> Tensor:
        """Tokens [B, L] -> embeddings [B, D], not normalised."""
        return self.text(tokens.to(self.device), prompts=prompts).embedding

    def encode_text(self, texts: Sequence[str], *, batch: int = 128) -> Tensor:
        """Texts -> embeddings [len(texts), D], not normalised, without a graph.

        Equal texts are encoded once; texts of a length run together, so that none is padded far beyond its own.
        """
        unique = list(dict.fromkeys(texts))
        if not unique:
            return torch.empty(0, self.embed_dim, device=self.device)
        tokens = self.tokenize(unique)
        lengths = tokens.mask.sum(1)
        order = lengths.argsort()
        rows = []
        with torch.no_grad():
            for part in order.split(batches(lengths[order].tolist(), batch)):
                rows.append(self.encode_tokens(tokens.take(part, trim=not self.text.pads_to)))
        embeddings = torch.cat(rows)[order.argsort().to(self.device)]
        where = {text: i for i, text in enumerate(unique)}
        return embeddings[[where[text] for text in texts]]

    def tokenize(self, texts: Sequence[str], names: Sequence[str] | None = None, *, warn: bool = True) -> Tokens:
        """Texts -> Tokens, padded only where the tower asks for it. `names` marks each text's class name.

        Warns (TextCut) of texts longer than the model reads; `cuts` counts them, `warn` or not.
        """
        tokens = self.tokenizer(texts, names)
        self.cuts.look(texts, tokens, self.tokenizer, self.text, self.source, warn)
        missing = self.text.pads_to - tokens.ids.shape[1]
        if missing > 0:
            pad_id = getattr(self.tokenizer, "pad_id", 0)
            tokens = Tokens(
                F.pad(tokens.ids, (0, missing), value=pad_id),
                F.pad(tokens.mask, (0, missing)),
                tokens.end,
                tokens.name_end,
            )
        return tokens

    def score(self, image: Tensor, text: Tensor) -> Tensor:
        """Embeddings [B, D], [C, D] -> logits [B, C]: the one place that normalises and applies the temperature."""
        logits = self.logit_scale * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
        return logits if self.logit_bias is None else logits + self.logit_bias

    def edited(self, edits: Edits) -> "CLIP":
        """This CLIP with edits; shares the weights, and the original stays as it is."""
        if not edits:
            return self
        towers = {
            name: EditedTower(tower, edits.of(name)) if edits.of(name) else tower  # type: ignore[arg-type]
            for name, tower in self.towers.items()
        }
        return EditedCLIP(self, towers, edits)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all weights, the tokenizer and the preprocessing: equal for models that compute the same."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        kinds = {name: tower.kind for name, tower in self.towers.items()}
        about = [kinds, asdict(self.preprocess), self.tokenizer.spec()]
        digest.update(json.dumps(about, sort_keys=True).encode())
        return digest.hexdigest()[:32]


def batches(lengths: Sequence[int], most: int, enough: int = 256) -> list[int]:
    """Sizes of batches of texts sorted by length: at most `most`, and cut where the next text is longer once a batch
    has `enough` tokens to be worth a pass over the weights."""
    sizes, size = [], 0
    for i, length in enumerate(lengths):
        longer = size > 0 and length > lengths[i - 1] and size * lengths[i - 1] >= enough
        if longer or size == most:
            sizes.append(size)
            size = 0
        size += 1
    return [*sizes, size]


class EditedCLIP(CLIP):
    """What `CLIP.edited` gives: the base's parts with some towers edited."""

    def __init__(self, base: CLIP, towers: dict[str, nn.Module], edits: Edits) -> None:
        nn.Module.__init__(self)
        self.name, self.source = base.name, base.source
        self.towers = nn.ModuleDict(towers)
        self.tokenizer, self.preprocess = base.tokenizer, base.preprocess
        self.log_scale, self.logit_bias = base.log_scale, base.logit_bias
        self.cuts = base.cuts
        self.base, self.edits = [base], edits  # a list: not a submodule of its own view
        self.training = base.training

    @cached_property
    def fingerprint(self) -> str:
        spec, tensors = pack(self.edits)
        digest = hashlib.sha256(self.base[0].fingerprint.encode() + json.dumps(spec, sort_keys=True).encode())
        for name, tensor in sorted(tensors.items()):
            digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:32]
