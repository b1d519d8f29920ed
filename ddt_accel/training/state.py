"""The state of a training run on the disk: whole or not at all, and refused by any other run.

It has the published checkpoint layout (`denoiser.*`, `ema_denoiser.*`) beside the optimiser's moments, so that
`load_model` opens it like any other checkpoint.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from ddt_accel.artifacts import write_atomic
from ddt_accel.errors import ArtifactError, MismatchError
from ddt_accel.networks.checkpoints import tensors_sha256
from ddt_accel.networks.families import as_mapping
from ddt_accel.training.train_spec import TrainSpec


@dataclass(frozen=True, kw_only=True)
class State:
    """Everything that a run needs to go on to the same bits.

    `history` has (step, mean loss) of the windows that are full, `window` the losses since the last of them.
    """

    step: int
    history: list[tuple[int, float]]
    window: list[float]
    class_names: tuple[str, ...]
    data_sha256: str
    tensors: dict[str, Tensor]


def write_state(path: Path, spec: TrainSpec, state: State, *, latent_shape: tuple[int, int, int]) -> None:
    """Writes the whole state atomically, with what it says as a checkpoint: which pictures the network is for."""
    cpu = {name: value.cpu().contiguous() for name, value in state.tensors.items()}
    metadata = {
        "config": json.dumps(as_mapping(spec.network)),
        "train_spec": json.dumps(spec.as_mapping()),
        "class_names": json.dumps(state.class_names),
        "latent_shape": json.dumps(latent_shape),
        "data_sha256": state.data_sha256,
        "step": str(state.step),
        "history": json.dumps(state.history),
        "window": json.dumps(state.window),
        "tensors_sha256": tensors_sha256(cpu),
    }
    if spec.widths:
        metadata["widths"] = json.dumps(spec.widths)
    write_atomic(path, safetensors.torch.save(cpu, metadata))


def read_state(path: Path, spec: TrainSpec) -> State:
    """Reads the state of a run with this `spec`, or with fewer images to train on.

    Raises ArtifactError where it is damaged and MismatchError where it is of another run.
    """
    check_continues(path, spec)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if metadata["tensors_sha256"] != tensors_sha256(tensors):
            raise ValueError("its tensors fail their checksum")
        return State(
            step=int(metadata["step"]),
            history=[(int(at), float(loss)) for at, loss in json.loads(metadata["history"])],
            window=[float(loss) for loss in json.loads(metadata.get("window", "[]"))],
            class_names=tuple(json.loads(metadata["class_names"])),
            data_sha256=metadata["data_sha256"],
            tensors=tensors,
        )
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise _unreadable(path, error) from None


def check_continues(path: Path, spec: TrainSpec) -> None:
    """Refuses the state of a run with other settings; it reads the header alone."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            differences = spec.differences(json.loads(file.metadata()["train_spec"]))
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise _unreadable(path, error) from None
    if differences:
        raise MismatchError(
            f"{path} was trained with {', '.join(differences)}; give the same to continue, or another --out to start "
            "anew."
        )


def _unreadable(path: Path, error: Exception) -> ArtifactError:
    return ArtifactError(f"{path} cannot be read as a training state ({error}); move it away to start anew.")
