"""What a safetensors file says of itself, read from its header alone: seconds less than all of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors

from ddt_accel.errors import ArtifactError


def metadata(path: Path) -> dict[str, str]:
    """The texts in the header; raises ArtifactError where there is none to read."""
    try:
        with safetensors.safe_open(path, framework="np") as file:
            return file.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise ArtifactError(f"{path} is damaged or not a safetensors file ({error}).") from None


def document(path: Path) -> dict[str, Any] | None:
    """The document that goes with the arrays in a file of ours, its checksum not looked at; None for other files."""
    text = metadata(path).get("document")
    try:
        content = json.loads(text) if text else None
    except ValueError as error:
        raise ArtifactError(f"{path} is damaged: its header is no JSON ({error}).") from None
    return content if isinstance(content, dict) and isinstance(content.get("format"), str) else None
