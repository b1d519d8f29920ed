"""Which file in a folder is the checkpoint.

Candidates are the files with a suffix of checkpoints, also in folders inside. These are none: hidden files; what
ddt-accel writes into a workspace; the state of a training run of ours beside the model that came out of it; optimiser
states and the like of other tools. The shards of a checkpoint are one candidate, and so are a file and links to it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePath, PurePosixPath

from ddt_accel.errors import CheckpointError, listed
from ddt_accel.networks.headers import artefact_of, header_of
from ddt_accel.networks.shards import INDEX_SUFFIX, first_of

SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".pth.tar")
_INDICES = tuple(suffix + INDEX_SUFFIX for suffix in (".safetensors", ".bin"))
# What the Hugging Face tools and DeepSpeed write beside the weights of a training.
_OPTIMISER = re.compile(r"optimizer([_-]\d+)?\.(bin|pt|safetensors)|.*_optim_states\.pt")
_TRAINING = re.compile(r"(scheduler|scaler|training_args|rng_state|random_states)([_-]\d+)?\.(bin|pt|pth)")


def one_checkpoint(folder: Path) -> Path:
    """The one checkpoint in a folder; raises CheckpointError where there is none, or more than one."""
    found = candidates_in(folder)
    if len(found) == 1:
        return found[0]
    if not found and list(folder.glob("*.distcp")):
        raise CheckpointError(
            f"{folder} is a distributed checkpoint; write it to one file with "
            "`python -m torch.distributed.checkpoint.format_utils dcp_to_torch`."
        )
    if not found:
        raise CheckpointError(
            f"{folder} must hold a checkpoint, found none ({', '.join(SUFFIXES)}); a file of another name is read when "
            "it is given itself."
        )
    names = listed([str(path.relative_to(folder)) for path in found])
    raise CheckpointError(f"{folder} holds {len(found)} checkpoints: {names}; give one of them, such as {found[0]}.")


def named_as_checkpoints(names: Sequence[str]) -> list[str]:
    """Those of the files, by their paths in a folder or repository, that go by a checkpoint's name.

    The shards of one are its index, or the first of them.
    """
    found = [Path(name) for name in names if _is_named(PurePosixPath(name))]
    return list(dict.fromkeys(first_of(path, found).as_posix() for path in found))


def _is_named(path: PurePath) -> bool:
    suffixed = path.name.lower().endswith((*SUFFIXES, *_INDICES))
    return suffixed and not _is_hidden(path) and not _is_of_training(path.name)


def candidates_in(folder: Path) -> list[Path]:
    """The files in a folder that may be meant by it."""
    paths = sorted(path for path in folder.rglob("*") if _is_named(path.relative_to(folder)) and path.is_file())
    headers = {path: header_of(path) for path in paths if path.name.lower().endswith(".safetensors")}
    finished = {path.parent for path, header in headers.items() if "train_spec" in header and not _is_state(header)}
    whole = {}
    for path in paths:
        header = headers.get(path, {})
        if artefact_of(header) is None and not (_is_state(header) and path.parent in finished):
            # A link stands for its target: both places are searched for what says how the network is built.
            first = first_of(path)
            target = os.path.realpath(first)
            if target not in whole or first.is_symlink():
                whole[target] = first
    return list(whole.values())


def _is_of_training(name: str) -> bool:
    return bool(_OPTIMISER.fullmatch(name) or _TRAINING.fullmatch(name))


def _is_hidden(path: PurePath) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def _is_state(header: dict[str, str]) -> bool:
    """Whether it is what a training run of ours goes on from; the model that comes out of it does not know its data."""
    return "train_spec" in header and "data_sha256" in header


def training_files(folder: Path) -> tuple[str, ...]:
    """Names of optimiser states in a folder, by which the weights there are those of a training run."""
    try:
        return tuple(sorted(name for name in os.listdir(folder) if _OPTIMISER.fullmatch(name)))
    except OSError:
        return ()
