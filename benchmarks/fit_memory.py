"""How much memory a fit needs on a GPU, counted: nothing is computed, tensors have shapes only.

Activations are recomputed evaluation by evaluation (fitting/trajectory.py), so that the peak is what one evaluation
saves for its backward pass, beside the weights, a latent and a velocity of each step, and the modulations of each
refresh with their gradients. Counted in bfloat16, float32 where the network keeps it; work space of kernels and the
allocator's losses come on top.

Usage: python benchmarks/fit_memory.py [--steps 12] [--budget 8] [--micro-batch 8]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from ddt_accel.networks.ddt.network import DDT
from ddt_accel.networks.locate import PUBLISHED


def saved_bytes(run: Callable[[], Tensor], weights: set[int]) -> int:
    """What autograd keeps for the backward pass of `run`, each tensor once, without the network's weights."""
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in weights:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    del result
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--budget", type=int, default=8)
    parser.add_argument("--micro-batch", type=int, default=8)
    options = parser.parse_args()
    for name, (config, shape) in PUBLISHED.items():
        with torch.device("meta"):
            model = DDT(config).bfloat16().requires_grad_(False)
            rows = 2 * options.micro_batch  # both guidance branches
            x = torch.empty((rows, *shape), dtype=torch.bfloat16, requires_grad=True)
            t = torch.empty(rows, requires_grad=True)
            y = torch.empty(rows, dtype=torch.int64)
            tokens = config.num_tokens(shape)
            modulations = torch.empty((rows, tokens, config.modulation_size), dtype=torch.bfloat16, requires_grad=True)
        weights = {value.untyped_storage()._cdata for value in model.parameters()}

        def encoded(model: DDT = model, x: Tensor = x, t: Tensor = t, y: Tensor = y) -> Tensor:
            return model.modulations(model.encode(x, t, y))

        def decoded(model: DDT = model, x: Tensor = x, m: Tensor = modulations) -> Tensor:
            return model.decode_modulated(x, m)

        parts = {
            "weights, float32 and their bfloat16 copies": 6 * sum(value.numel() for value in model.parameters()),
            "one evaluation": max(saved_bytes(encoded, weights), saved_bytes(decoded, weights)),
            f"modulations of {options.budget} refreshes and their gradients": 2 * options.budget * modulations.nbytes,
            f"latents and velocities of {options.steps} steps": 2
            * options.steps
            * options.micro_batch
            * x[0].numel()
            * 4,
        }
        print(f"{name}, {options.steps} steps, {options.budget} encoder runs, micro-batches of {options.micro_batch}")
        for part, count in (*parts.items(), ("together", sum(parts.values()))):
            print(f"  {count / 2**30:6.2f} GiB  {part}")


if __name__ == "__main__":
    main()
