"""The loss on pictures that were kept out, by quarter of the time, from noise (0) to picture (1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ddt_accel.networks.routes import QUARTERS
from ddt_accel.networks.split import SplitNetwork
from ddt_accel.training.images import ImageSet


@torch.inference_mode()
def held_out_loss(
    model: SplitNetwork | Sequence[SplitNetwork], data: ImageSet, *, batch_size: int, device: torch.device
) -> list[float]:
    """Mean squared error of the velocity in each quarter of t, of one network or of one for each quarter; noise and
    times are the same for all."""
    networks = [model] * QUARTERS if isinstance(model, SplitNetwork) else list(model)
    networks = [one.to(device) for one in networks]
    generator = torch.Generator().manual_seed(1)
    sums = torch.zeros(QUARTERS, dtype=torch.float64)
    for start in range(0, len(data.images), batch_size):
        images = torch.from_numpy(data.images[start : start + batch_size])
        x1 = images.permute(0, 3, 1, 2).float() / 127.5 - 1
        labels = torch.from_numpy(data.labels[start : start + batch_size])
        for quarter in range(QUARTERS):
            noise = torch.randn(x1.shape, generator=generator)
            t = (quarter + torch.rand(len(x1), generator=generator)) / QUARTERS
            sums[quarter] += _error(networks[quarter], *(value.to(device) for value in (x1, labels, noise, t)))
    return [float(total) for total in sums / len(data.images)]


def _error(model: SplitNetwork, x1: Tensor, labels: Tensor, noise: Tensor, t: Tensor) -> float:
    """The sum over samples of each one's mean squared error."""
    mix = t[:, None, None, None]
    velocity = model(mix * x1 + (1 - mix) * noise, t, labels)
    return float((velocity - (x1 - noise)).square().mean((1, 2, 3)).double().sum())
