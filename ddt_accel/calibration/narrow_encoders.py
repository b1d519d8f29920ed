"""The states of narrow encoders where the complete one runs, along the trajectory of the complete network."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddt_accel.backends.pytorch import TorchBackend
from ddt_accel.calibration.inner_products import inner_products
from ddt_accel.networks.device import full_float32
from ddt_accel.networks.split import SplitNetwork
from ddt_accel.sampling.backend import Session


@torch.inference_mode()
def see_narrow(backend: TorchBackend, session: Session, out: Tensor) -> None:
    """Fills `out` [W − 1, branch, B · L, D] with the states of the latents, times and labels that `session` holds."""
    rows = slice(0, out.shape[1] * (len(session.latents) // 2))
    for width, place in zip(backend.widths[1:], out, strict=True):
        with full_float32(backend.device):
            state = backend.at(width).encode(
                session.latents[rows].to(backend.model.dtype), session.times[rows], session.labels[rows]
            )
        place.copy_(state.float().reshape(place.shape))


@torch.inference_mode()
def state_sums(model: SplitNetwork, states: Tensor, images: int) -> dict[str, NDArray[np.float64]]:
    """The sums of `WidthSums` over states [E, W, branch, B · L, D] of so many images."""
    evaluations, widths, branches, tokens, size = states.shape
    means = states[:, 1:].mean((2, 3), dtype=torch.float64)
    # The mean of affine maps of the state is the affine map of its mean.
    modulations = model.modulations(means.to(model.dtype)).double()
    gram = inner_products(states.view(evaluations * widths, branches * tokens, size)) * (images / (branches * tokens))
    sums = {"gram_sum": gram, "mean_sum": means * images, "modulation_sum": modulations * images}
    return {name: value.cpu().numpy() for name, value in sums.items()}
