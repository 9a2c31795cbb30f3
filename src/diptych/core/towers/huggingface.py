"""Towers of Hugging Face transformers: text encoders of the BERT family, and both halves of its CLIP.

Blocks are run one by one from their own weights, so that prompts and taps need no hooks and the attention mask is ours.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from torch import Tensor, nn

from diptych.core.tower import Projection, Prompts, Tap, Tokens, Tower, TowerOutput
from diptych.core.towers.blocks import (
    TransformerTower,
    attend,
    embed_words,
    merge_heads,
    put_patches,
    rows_at,
    split_heads,
)
from diptych.errors import Unsupported

# Encoders whose blocks are BERT's. Positions start behind the padding index in RoBERTa's kin.
BERT_KIN = ("BertModel", "RobertaModel", "XLMRobertaModel", "CamembertModel")
Pooling = Literal["mean", "cls", "cls_pooler"]


class BertText(TransformerTower):
    """A text encoder of the BERT family, pooled and mapped.

    model: BertModel, RobertaModel, XLMRobertaModel or CamembertModel. pooling: "mean" over real tokens and prompts,
    "cls" (the start token), "cls_pooler" (the start token through the model's own dense layer and tanh).
    head: maps [B, W] to [B, embed_dim]; none: embed_dim is the width. Raises Unsupported for other models.
    """

    modality = "text"

    def __init__(
        self,
        model: nn.Module,
        *,
        pooling: Pooling = "mean",
        head: nn.Module | None = None,
        embed_dim: int | None = None,
        context_length: int | None = None,
        pad_id: int | None = None,
    ) -> None:
        super().__init__()
        name = type(model).__name__
        if name not in BERT_KIN:
            raise Unsupported(f"{name} is no encoder of the BERT family; known: {', '.join(BERT_KIN)}")
        config: Any = model.config
        self.model: Any = model
        self.head = head or nn.Identity()
        self.pooling = pooling
        self.pad_id = pad_id
        self.kind = f"huggingface.{name}"
        self.width, self.depth = config.hidden_size, config.num_hidden_layers
        self.embed_dim = embed_dim or self.width
        self.first_position = 0 if name == "BertModel" else config.pad_token_id + 1
        self.context_length = context_length or config.max_position_embeddings - self.first_position

    def parts(self) -> list[nn.Module]:
        return list(self.model.encoder.layer)

    def forward(
        self, inputs: Tensor | Tokens, *, prompts: Prompts = (), taps: Sequence[Tap] = (), tokens: bool = False
    ) -> TowerOutput:
        assert isinstance(inputs, Tokens)
        self.check(prompts, taps)
        if self.pad_id is not None:  # the source library masks by id
            inputs = Tokens(inputs.ids, inputs.ids != self.pad_id, inputs.end, inputs.name_end)
        table = self.model.embeddings
        codes = table.position_embeddings.weight[self.first_position :]
        hidden, texts = embed_words(self.embed(inputs.ids), inputs, prompts, codes)
        hidden = table.dropout(table.LayerNorm(hidden + table.token_type_embeddings.weight[0]))
        hidden, texts, taken = self.run_texts(hidden, texts, prompts, taps)
        return TowerOutput(self.head(self.pool(hidden, texts)), hidden if tokens else None, taken)

    def seen(self, tokens: Tokens) -> Tensor:
        return tokens.mask[:, None, None, :]

    def block(
        self, index: int, hidden: Tensor, mask: Tensor | None, probabilities: bool
    ) -> tuple[Tensor, Tensor | None]:
        layer = self.model.encoder.layer[index]
        attention = layer.attention.self
        heads = attention.num_attention_heads
        q, k, v = (split_heads(part(hidden), heads) for part in (attention.query, attention.key, attention.value))
        mixed, probs = attend(q, k, v, mask=mask, probabilities=probabilities)
        hidden = layer.attention.output(merge_heads(mixed), hidden)
        return layer.output(layer.intermediate(hidden), hidden), probs

    def pool(self, hidden: Tensor, tokens: Tokens) -> Tensor:
        if self.pooling == "cls":
            return hidden[:, 0]
        if self.pooling == "cls_pooler":
            return self.model.pooler(hidden)
        real = tokens.mask[..., None].to(hidden.dtype)
        return (hidden * real).sum(1) / real.sum(1)

    def embed(self, ids: Tensor) -> Tensor:
        return self.model.embeddings.word_embeddings(ids)

    def projections(self) -> list[Projection]:
        places = {
            "query": "attention.self.query",
            "key": "attention.self.key",
            "value": "attention.self.value",
            "out": "attention.output.dense",
        }
        return separate_projections("model.encoder.layer", self.depth, self.width, places)


class OtherText(Tower):
    """Any other Hugging Face text encoder, run as a whole: embeddings and tokens, no prompts, taps, checkpointing."""

    modality = "text"
    transformer = False

    def __init__(
        self, model: nn.Module, *, pooling: Pooling = "mean", head: nn.Module, embed_dim: int, pad_id: int
    ) -> None:
        super().__init__()
        config: Any = model.config
        self.model, self.head, self.pooling, self.pad_id = model, head, pooling, pad_id
        self.kind = f"huggingface.{type(model).__name__}"
        self.width = config.hidden_size
        self.depth = config.num_hidden_layers
        self.embed_dim = embed_dim
        self.context_length = getattr(config, "max_position_embeddings", None) or 512

    def forward(
        self, inputs: Tensor | Tokens, *, prompts: Prompts = (), taps: Sequence[Tap] = (), tokens: bool = False
    ) -> TowerOutput:
        assert isinstance(inputs, Tokens)
        if prompts:
            raise self.refuse("prompts")
        if taps:
            raise self.refuse("taps")
        mask = (inputs.ids != self.pad_id).long()
        out = self.model(input_ids=inputs.ids, attention_mask=mask)
        hidden = out.last_hidden_state
        if self.pooling == "mean":
            pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        else:
            pooler = getattr(out, "pooler_output", None) if self.pooling == "cls_pooler" else None
            pooled = hidden[:, 0] if pooler is None else pooler
        return TowerOutput(self.head(pooled), hidden if tokens else None)

    def embed(self, ids: Tensor) -> Tensor:
        return self.model.get_input_embeddings()(ids)  # type: ignore[operator]


class _CLIPHalf(TransformerTower):
    """The blocks of Hugging Face's CLIP, the same in both halves."""

    model: Any

    def parts(self) -> list[nn.Module]:
        return list(self.model.encoder.layers)

    def block(
        self, index: int, hidden: Tensor, mask: Tensor | None, probabilities: bool
    ) -> tuple[Tensor, Tensor | None]:
        layer = self.model.encoder.layers[index]
        attention = layer.self_attn
        x = layer.layer_norm1(hidden)
        parts = (attention.q_proj, attention.k_proj, attention.v_proj)
        q, k, v = (split_heads(part(x), attention.num_heads) for part in parts)
        causal = self.causal and mask is None
        mixed, probs = attend(q, k, v, mask=mask, causal=causal, probabilities=probabilities)
        hidden = hidden + attention.out_proj(merge_heads(mixed))
        return hidden + layer.mlp(layer.layer_norm2(hidden)), probs

    def projections(self) -> list[Projection]:
        places = {role: f"self_attn.{role[0]}_proj" for role in ("query", "key", "value")}
        places["out"] = "self_attn.out_proj"
        return separate_projections("model.encoder.layers", self.depth, self.width, places)


class CLIPText(_CLIPHalf):
    """The text half of Hugging Face's CLIP: causal, the end token through the projection.

    model: CLIPModel.text_model; projection: CLIPModel.text_projection.
    """

    modality = "text"
    kind = "huggingface.CLIPTextModel"
    causal = True
    positions = "model.embeddings.position_embedding.weight"

    def __init__(self, model: nn.Module, projection: nn.Linear) -> None:
        super().__init__()
        config: Any = model.config
        self.model, self.projection = model, projection
        self.width, self.depth = config.hidden_size, config.num_hidden_layers
        self.embed_dim = projection.out_features
        self.context_length = config.max_position_embeddings
        self.eos_id = config.eos_token_id

    def forward(
        self, inputs: Tensor | Tokens, *, prompts: Prompts = (), taps: Sequence[Tap] = (), tokens: bool = False
    ) -> TowerOutput:
        assert isinstance(inputs, Tokens)
        self.check(prompts, taps)
        codes = self.model.embeddings.position_embedding.weight
        inputs = replace(inputs, end=self.find_end(inputs.ids))
        hidden, texts = embed_words(self.embed(inputs.ids), inputs, prompts, codes)
        hidden, texts, taken = self.run_texts(hidden, texts, prompts, taps)
        hidden = self.model.final_layer_norm(hidden)
        return TowerOutput(self.projection(rows_at(hidden, texts.end)), hidden if tokens else None, taken)

    def find_end(self, ids: Tensor) -> Tensor:
        """[B]; transformers keeps the older models' rule, the highest id, where their config says eos_token_id = 2."""
        if self.eos_id == 2:
            return ids.argmax(-1)
        return (ids == self.eos_id).int().argmax(-1)

    def embed(self, ids: Tensor) -> Tensor:
        return self.model.embeddings.token_embedding(ids)


class CLIPImage(_CLIPHalf):
    """The picture half of Hugging Face's CLIP: the class token through the last norm and the projection.

    model: CLIPModel.vision_model; projection: CLIPModel.visual_projection. Tokens are normed like the class token.
    """

    modality = "image"
    kind = "huggingface.CLIPVisionModel"

    def __init__(self, model: nn.Module, projection: nn.Linear) -> None:
        super().__init__()
        config: Any = model.config
        self.model, self.projection = model, projection
        self.width, self.depth = config.hidden_size, config.num_hidden_layers
        self.embed_dim = projection.out_features

    def forward(
        self, inputs: Tensor | Tokens, *, prompts: Prompts = (), taps: Sequence[Tap] = (), tokens: bool = False
    ) -> TowerOutput:
        assert isinstance(inputs, Tensor)
        self.check(prompts, taps)
        first = [p for p in prompts if not p.block]
        hidden = put_patches(self.model.embeddings(inputs), [p for p in first if p.before_norm], 1)
        hidden = self.model.pre_layrnorm(hidden)
        hidden = put_patches(hidden, [p for p in first if not p.before_norm], 1)
        hidden, taken = self.run_images(hidden, prompts, taps, 1)
        last = self.model.post_layernorm(hidden if tokens else hidden[:, :1])
        return TowerOutput(self.projection(last[:, 0]), last if tokens else None, taken)

    def finish(self, hidden: Tensor) -> Tensor:
        return self.projection(self.model.post_layernorm(hidden[:, 0]))


def separate_projections(prefix: str, depth: int, width: int, places: dict[str, str]) -> list[Projection]:
    """Projections of blocks that keep one square weight a role, at `<prefix>.<block>.<place>.weight`."""
    return [
        Projection(i, role, f"{prefix}.{i}.{place}.weight", 0, width)  # type: ignore[arg-type]
        for i in range(depth)
        for role, place in places.items()
    ]


def text_tower(
    model: nn.Module, *, pooling: Pooling, head: nn.Module, embed_dim: int, pad_id: int
) -> BertText | OtherText:
    """The tower for a Hugging Face encoder: block by block where we know its blocks, as a whole otherwise."""
    kind = BertText if type(model).__name__ in BERT_KIN else OtherText
    return kind(model, pooling=pooling, head=head, embed_dim=embed_dim, pad_id=pad_id)
