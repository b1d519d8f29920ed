"""What a safetensors file says of itself, without its tensors, and so without PyTorch."""

from __future__ import annotations

import json
import struct
from pathlib import Path


def artefact_of(metadata: dict[str, str]) -> str | None:
    """The format of a safetensors file of ours that is no checkpoint, such as a calibration."""
    try:
        told = json.loads(metadata["document"])["format"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    return told if isinstance(told, str) and told.startswith("ddt-accel ") else None


def header_of(path: Path) -> dict[str, str]:
    """What a safetensors file says of itself, read from its first bytes; {} for any other or a damaged one."""
    try:
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            told = json.loads(file.read(min(size, 1 << 26)))["__metadata__"]
        return {str(key): str(value) for key, value in told.items()}
    except (OSError, struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
