"""The network that the Fréchet Inception Distance is defined by (arXiv 1706.08500): the Inception of 2015-12-05.

It differs from later Inceptions: average pools do not count their padding, and the last block pools by maxima. Pictures
are resized as TensorFlow 1 did, with corners for the origin of pixels. Batch normalisation is part of the convolutions
here: `convolutions` has them in the order of the graph, for whoever brings weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

SIDE = 299
POOL, SPATIAL, CLASSES = 2048, 2023, 1008
_SPATIAL_CHANNELS = 7  # of the first branch of mixed_6, as ADM's evaluation has it: 7 · 17 · 17 features


@dataclass(frozen=True, kw_only=True, eq=False)
class InceptionFeatures:
    """What the network says of B pictures, float32: `pool` [B, 2048] for FID, KID, precision and recall; `spatial`
    [B, 2023] for sFID; `logits` [B, 1008], without the bias, for the Inception Score, where the weights have them."""

    pool: Tensor
    spatial: Tensor
    logits: Tensor | None


class Inception(nn.Module):
    """uint8 pictures [B, 3, H, W] of any size → InceptionFeatures. Weights are random until they are loaded."""

    def __init__(self, *, logits: bool) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            _conv(3, 32, 3, stride=2), _conv(32, 32, 3), _conv(32, 64, 3, padding=1), nn.MaxPool2d(3, stride=2),
            _conv(64, 80, 1), _conv(80, 192, 3), nn.MaxPool2d(3, stride=2),
            _block_a(192, 32), _block_a(256, 64), _block_a(288, 64),
            _block_b(288), _block_c(768, 128), _block_c(768, 160),
        )  # fmt: skip
        self.mixed_6 = _block_c(768, 160)
        self.rest = nn.Sequential(
            _block_c(768, 192), _block_d(768), _block_e(1280, _average()), _block_e(2048, nn.MaxPool2d(3, 1, 1))
        )
        self.classes = nn.Linear(POOL, CLASSES, bias=False) if logits else None

    def convolutions(self) -> Iterator[nn.Conv2d]:
        """All 94 in the order of the graph; within a block branch by branch."""
        return (module for module in self.modules() if isinstance(module, nn.Conv2d))

    def forward(self, pictures: Tensor) -> InceptionFeatures:
        x = (resized(pictures.float(), SIDE) - 128) / 128
        first, *others = self.mixed_6.of(self.stem(x.contiguous(memory_format=torch.channels_last)))
        spatial = first[:, :_SPATIAL_CHANNELS].movedim(1, -1).flatten(1)
        pool = self.rest(torch.cat([first, *others], 1)).mean((2, 3))
        return InceptionFeatures(
            pool=pool, spatial=spatial, logits=None if self.classes is None else self.classes(pool)
        )


def resized(x: Tensor, side: int) -> Tensor:
    """[B, C, H, W] → [B, C, side, side] bilinearly as TensorFlow 1 does without `align_corners`: pixel i of the result
    lies at i · H / side, where interpolation by centres (PyTorch's) has (i + ½) · H / side − ½."""
    return _along(_along(x, 3, side), 2, side)


def _along(x: Tensor, dim: int, side: int) -> Tensor:
    size = x.shape[dim]
    place = torch.arange(side, device=x.device, dtype=torch.float32) * torch.tensor(size / side, dtype=torch.float32)
    below = place.long()
    above = (below + 1).clamp_max(size - 1)
    weight = (place - below).view([-1 if one == dim else 1 for one in range(x.ndim)])
    low = x.index_select(dim, below)
    return low + (x.index_select(dim, above) - low) * weight


class _Branches(nn.Module):
    """Several ways side by side, whose channels are joined."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def of(self, x: Tensor) -> list[Tensor]:
        return [branch(x) for branch in self.branches]

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(self.of(x), 1)


def _conv(
    inputs: int, outputs: int, kernel: int | tuple[int, int], *, stride: int = 1, padding: int | tuple[int, int] = 0
) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, padding), nn.ReLU(inplace=True))


def _average() -> nn.AvgPool2d:
    return nn.AvgPool2d(3, 1, 1, count_include_pad=False)


def _block_a(inputs: int, pooled: int) -> _Branches:
    return _Branches(
        _conv(inputs, 64, 1),
        nn.Sequential(_conv(inputs, 48, 1), _conv(48, 64, 5, padding=2)),
        nn.Sequential(_conv(inputs, 64, 1), _conv(64, 96, 3, padding=1), _conv(96, 96, 3, padding=1)),
        nn.Sequential(_average(), _conv(inputs, pooled, 1)),
    )


def _block_b(inputs: int) -> _Branches:
    return _Branches(
        _conv(inputs, 384, 3, stride=2),
        nn.Sequential(_conv(inputs, 64, 1), _conv(64, 96, 3, padding=1), _conv(96, 96, 3, stride=2)),
        nn.MaxPool2d(3, stride=2),
    )


def _block_c(inputs: int, inner: int) -> _Branches:
    def row(start: int, end: int) -> nn.Sequential:
        return _conv(start, end, (1, 7), padding=(0, 3))

    def column(start: int, end: int) -> nn.Sequential:
        return _conv(start, end, (7, 1), padding=(3, 0))

    return _Branches(
        _conv(inputs, 192, 1),
        nn.Sequential(_conv(inputs, inner, 1), row(inner, inner), column(inner, 192)),
        nn.Sequential(
            _conv(inputs, inner, 1), column(inner, inner), row(inner, inner), column(inner, inner), row(inner, 192)
        ),
        nn.Sequential(_average(), _conv(inputs, 192, 1)),
    )


def _block_d(inputs: int) -> _Branches:
    return _Branches(
        nn.Sequential(_conv(inputs, 192, 1), _conv(192, 320, 3, stride=2)),
        nn.Sequential(
            _conv(inputs, 192, 1), _conv(192, 192, (1, 7), padding=(0, 3)), _conv(192, 192, (7, 1), padding=(3, 0)),
            _conv(192, 192, 3, stride=2),
        ),
        nn.MaxPool2d(3, stride=2),
    )  # fmt: skip


def _block_e(inputs: int, pool: nn.Module) -> _Branches:
    def split() -> _Branches:
        return _Branches(_conv(384, 384, (1, 3), padding=(0, 1)), _conv(384, 384, (3, 1), padding=(1, 0)))

    return _Branches(
        _conv(inputs, 320, 1),
        nn.Sequential(_conv(inputs, 384, 1), split()),
        nn.Sequential(_conv(inputs, 448, 1), _conv(448, 384, 3, padding=1), split()),
        nn.Sequential(pool, _conv(inputs, 192, 1)),
    )
