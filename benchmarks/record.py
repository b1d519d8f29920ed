"""One figure, one line of JSON, on the disk before the next is measured."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def record(path: Path, part: str, name: str, value: float | str | None, **details: Any) -> None:
    """Appends a figure, or with None why there is none; whole lines, whoever else writes and whenever it is killed."""
    line = {"at": round(time.time(), 3), "part": part, "name": name, "value": value, **details}
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(file, (json.dumps(line) + "\n").encode())
        os.fsync(file)
    finally:
        os.close(file)


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a file, without one that was cut off."""
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            yield json.loads(line)
        except ValueError:
            continue
