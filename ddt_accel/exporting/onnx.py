"""One network as an ONNX file, and how far ONNX Runtime is from PyTorch with it."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ddt_accel.errors import DependencyError

OPSET = 20
# Protocol buffers end at 2 GiB; from here on the weights go into a file beside the graph.
EXTERNAL_DATA_FROM = 1 << 30


def write_network(network: nn.Module, inputs: dict[str, Tensor], output: str, path: Path) -> None:
    """Exports a network with a dynamic batch; `inputs` are an example of them, in order."""
    import onnx

    batch = torch.export.Dim("batch", min=1)
    size = sum(tensor.nbytes for tensor in network.state_dict().values())
    # By parameter: one that takes the rest of the inputs has a tuple of them.
    parameters = inspect.signature(network.forward).parameters.values()
    named = sum(parameter.kind is not inspect.Parameter.VAR_POSITIONAL for parameter in parameters)
    every = [{0: batch} for _ in inputs]
    shapes = tuple(every) if named == len(parameters) else (*every[:named], tuple(every[named:]))
    with warnings.catch_warnings():
        # The exporter warns of its own internals and of an absent torchvision.
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        torch.onnx.export(
            network.eval(),
            tuple(inputs.values()),
            path,
            input_names=list(inputs),
            output_names=[output],
            dynamic_shapes=shapes,
            opset_version=OPSET,
            dynamo=True,
            external_data=size >= EXTERNAL_DATA_FROM,
            verbose=False,
        )
    onnx.checker.check_model(path, full_check=size < EXTERNAL_DATA_FROM)


def parity(path: Path, inputs: dict[str, Tensor], expected: Tensor) -> float:
    """The largest error of ONNX Runtime against `expected`, relative to its largest value.

    Also on another batch size than the exported one, which catches a batch dimension that was baked in.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    errors = []
    for rows in (len(expected), 1):
        (got,) = session.run(None, {name: tensor[:rows].numpy() for name, tensor in inputs.items()})
        difference = torch.from_numpy(got).float() - expected[:rows]
        errors.append((difference.abs().max() / expected[:rows].abs().max().clamp_min(1e-12)).item())
    return max(errors)


def versions(packages: Sequence[str]) -> dict[str, str]:
    """The versions of the packages that an export takes, and of PyTorch."""
    import importlib

    try:
        found = {name: importlib.import_module(name) for name in packages}
    except ImportError as error:
        raise DependencyError(
            f"The export needs the package {error.name}; install ddt-accel[cpu] or ddt-accel[gpu]."
        ) from None
    return {name: str(package.__version__) for name, package in {"torch": torch, **found}.items()}
