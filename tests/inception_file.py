"""An Inception of random weights, in a file as torch-fidelity has it: what is computed is known, who made it is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ddt_accel.distribution.inception import CLASSES, POOL, Inception
from ddt_accel.distribution.inception_weights import _NAMES


def write_inception(path: Path) -> Path:
    """In float16, which halves the file; the same numbers everywhere."""
    generator, tensors = np.random.default_rng(0), {}

    def normal(shape: tuple[int, ...], deviation: float) -> torch.Tensor:
        return torch.from_numpy(deviation * generator.standard_normal(shape, np.float32)).half()

    for name, convolution in zip(_NAMES, Inception(logits=False).convolutions(), strict=True):
        shape = tuple(convolution.weight.shape)
        tensors |= {
            f"{name}.conv.weight": normal(shape, (2 / np.prod(shape[1:])) ** 0.5),
            f"{name}.bn.weight": 1 + normal(shape[:1], 0.1),
            f"{name}.bn.bias": normal(shape[:1], 0.1),
            f"{name}.bn.running_mean": normal(shape[:1], 0.1),
            f"{name}.bn.running_var": 1 + normal(shape[:1], 0.1).abs(),
            f"{name}.bn.num_batches_tracked": torch.tensor(0),
        }
    tensors |= {"fc.weight": normal((CLASSES, POOL), 0.2), "fc.bias": normal((CLASSES,), 1)}
    torch.save(tensors, path)
    return path


def pictures(seed: int, count: int = 24, size: tuple[int, int] = (16, 20)) -> np.ndarray:
    """uint8 [count, *size, 3]: coloured squares and noise, those of one seed brighter than those of another."""
    generator = np.random.default_rng(seed)
    squares = generator.integers(0, 200, (count, size[0] // 4, size[1] // 4, 3)).repeat(4, 1).repeat(4, 2)
    noise = generator.integers(0, 40, (count, *size, 3))
    return (squares + noise + 5 * (seed % 3)).astype(np.uint8)
