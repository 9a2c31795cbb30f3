"""From the maps of a ConvNet to features of pixels: multi-scale deformable attention, and one step of a pyramid.

As in Mask2Former (arXiv 2112.01527). Zhu et al., Deformable DETR, ICLR 2021, arXiv 2010.04159, equation 3; exact and in
pure torch, by `grid_sample`. `PyramidDecoder` is the plain pyramid (FPN) instead.
Shapes: B pictures, L levels from coarse to fine, W hidden width, N = sum of the levels' h w, M heads, P points.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Sizes = Sequence[tuple[int, int]]  # (h, w) of each level


def deformable(values: Tensor, sizes: Sizes, locations: Tensor, weights: Tensor) -> Tensor:
    """Sum over levels and points of weight times the value at a location, read bilinearly, 0 outside of the map.

    values [B, N, M, d]; locations [B, Q, M, L, P, 2], x and y in 0..1; weights [B, Q, M, L, P] -> [B, Q, M * d].
    """
    batch, _, heads, width = values.shape
    queries = locations.shape[1]
    grid = (2 * locations - 1).permute(0, 2, 3, 1, 4, 5).flatten(0, 1)  # [B * M, L, Q, P, 2]
    read = []
    for level, part in enumerate(values.split([h * w for h, w in sizes], dim=1)):
        maps = part.permute(0, 2, 3, 1).reshape(batch * heads, width, *sizes[level])
        read.append(F.grid_sample(maps, grid[:, level], mode="bilinear", align_corners=False))  # [B * M, d, Q, P]
    shares = weights.permute(0, 2, 1, 3, 4).reshape(batch * heads, 1, queries, -1)
    mixed = (torch.cat(read, dim=-1) * shares).sum(-1)  # [B * M, d, Q]
    return mixed.reshape(batch, heads * width, queries).transpose(1, 2)


class DeformableAttention(nn.Module):
    """Each query looks at P points a level and head, at offsets that it chooses itself.

    It begins by looking, with equal weights, 1 to P cells away, each head in a direction of its own.
    """

    def __init__(self, width: int, heads: int, levels: int, points: int) -> None:
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.offsets = nn.Linear(width, heads * levels * points * 2)
        self.weights = nn.Linear(width, heads * levels * points)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        for layer in (self.offsets, self.weights):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        for layer in (self.value, self.out):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        angles = torch.arange(heads) * (2 * math.pi / heads)
        directions = torch.stack([angles.cos(), angles.sin()], -1)
        directions = directions / directions.abs().amax(-1, keepdim=True)  # [M, 2], on the unit square
        steps = torch.arange(1, points + 1)[None, None, :, None] * directions[:, None, None]
        with torch.no_grad():
            self.offsets.bias.copy_(steps.expand(-1, levels, -1, -1).reshape(-1))

    def forward(self, queries: Tensor, references: Tensor, values: Tensor, sizes: Sizes) -> Tensor:
        """queries [B, Q, W], references [Q, 2] (x, y in 0..1), values [B, N, W] -> [B, Q, W]."""
        shape = (self.heads, self.levels, self.points)
        cells = torch.tensor([(w, h) for h, w in sizes], device=queries.device)  # [L, 2]
        offsets = self.offsets(queries).unflatten(-1, (*shape, 2)) / cells[:, None]
        weights = self.weights(queries).unflatten(-1, (self.heads, -1)).softmax(-1).unflatten(-1, shape[1:])
        locations = references[:, None, None, None] + offsets
        parts = self.value(values).unflatten(-1, (self.heads, -1))
        return self.out(deformable(parts, sizes, locations, weights))


class DeformableLayer(nn.Module):
    """Deformable attention over all levels, and an MLP; norms after the sums; no dropout."""

    def __init__(self, width: int, heads: int, levels: int, points: int, inner: int) -> None:
        super().__init__()
        self.attention = DeformableAttention(width, heads, levels, points)
        self.mlp = nn.Sequential(nn.Linear(width, inner), nn.ReLU(), nn.Linear(inner, width))
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor, codes: Tensor, references: Tensor, sizes: Sizes) -> Tensor:
        x = self.norm1(x + self.attention(x + codes, references, x, sizes))
        return self.norm2(x + self.mlp(x))


class PixelDecoder(nn.Module):
    """Maps from fine to coarse -> (features of pixels [B, W, h, w] at the finest map, encoded maps coarse to fine).

    channels: of the maps, fine to coarse. The finest is not attended to; it comes in by one step of a pyramid.
    """

    def __init__(
        self, channels: Sequence[int], width: int = 256, layers: int = 6, heads: int = 8, points: int = 4,
        inner: int = 1024,
    ) -> None:  # fmt: skip
        super().__init__()
        coarse = list(channels[:0:-1])
        self.inputs = nn.ModuleList(nn.Sequential(nn.Conv2d(c, width, 1), norm(width)) for c in coarse)
        for layer in self.inputs:
            nn.init.xavier_uniform_(layer[0].weight)  # type: ignore[index]
            nn.init.zeros_(layer[0].bias)  # type: ignore[index]
        self.level = nn.Parameter(torch.randn(len(coarse), width))
        self.layers = nn.ModuleList(DeformableLayer(width, heads, len(coarse), points, inner) for _ in range(layers))
        self.fine = Lateral(channels[0], width)
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        coarse = [layer(x.float()) for layer, x in zip(self.inputs, maps[:0:-1], strict=True)]
        sizes = [(x.shape[2], x.shape[3]) for x in coarse]
        x = torch.cat([c.flatten(2).transpose(1, 2) for c in coarse], dim=1)  # [B, N, W]
        codes = [positions(size, x.shape[-1], x.device) + own for size, own in zip(sizes, self.level, strict=True)]
        references = torch.cat([centres(size, x.device) for size in sizes])  # [N, 2]
        with torch.autocast(x.device.type, enabled=False):  # offsets need single precision
            for layer in self.layers:
                x = layer(x, torch.cat(codes), references, sizes)
        parts = x.transpose(1, 2).split([h * w for h, w in sizes], dim=-1)
        encoded = [part.unflatten(2, size) for part, size in zip(parts, sizes, strict=True)]
        return self.out(self.fine(maps[0].float(), encoded[-1])), encoded


class PyramidDecoder(nn.Module):
    """The same by a feature pyramid alone (Lin et al. 2017, arXiv 1612.03144): convolutions, no attention; faster."""

    def __init__(self, channels: Sequence[int], width: int = 256) -> None:
        super().__init__()
        self.top = nn.Sequential(nn.Conv2d(channels[-1], width, 3, padding=1, bias=False), norm(width), nn.ReLU())
        self.steps = nn.ModuleList(Lateral(c, width) for c in channels[-2::-1])
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        found = [self.top(maps[-1].float())]
        for step, x in zip(self.steps, maps[-2::-1], strict=True):
            found.append(step(x.float(), found[-1]))
        return self.out(found[-1]), found[:-1]


class Lateral(nn.Module):
    """One step of a pyramid: the finer map plus the coarser one, enlarged, through a convolution."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.side = nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), norm(width))
        self.join = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), norm(width), nn.ReLU())

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        return self.join(self.side(fine) + F.interpolate(coarse, fine.shape[-2:], mode="bilinear", align_corners=False))


def norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(32, width), width)


def centres(size: tuple[int, int], device: torch.device) -> Tensor:
    """The middles of a map's cells [h * w, 2] as x and y in 0..1, row by row."""
    height, width = size
    y = (torch.arange(height, device=device) + 0.5) / height
    x = (torch.arange(width, device=device) + 0.5) / width
    return torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1).reshape(-1, 2)


def positions(size: tuple[int, int], width: int, device: torch.device) -> Tensor:
    """Sines and cosines of a map's cells [h * w, W]: y in the first half of the width, x in the second (as DETR)."""
    height, across = size
    y = (torch.arange(height, device=device) + 1) / height
    x = (torch.arange(across, device=device) + 1) / across
    half = torch.arange(width // 2, device=device) // 2 * 2 / (width // 2)
    turns = [2 * math.pi * at[:, None] / 10000**half for at in (y, x)]  # [h, W / 2], [w, W / 2]
    codes = [torch.stack([t[:, ::2].sin(), t[:, 1::2].cos()], -1).flatten(1) for t in turns]
    rows, columns = codes[0][:, None].expand(-1, across, -1), codes[1][None].expand(height, -1, -1)
    return torch.cat([rows, columns], -1).reshape(-1, width)
