"""Jobs for workers, which load no network: processes of Ray find them here by name."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from ddt_accel.errors import ConfigError


class Squares:
    """Squares numbers, and does what a file in `folder` says of one: die, fail, refuse; once, where that is said."""

    told = "squares"

    def __init__(self, folder: Path, cores: int) -> None:
        self.folder = folder
        if (folder / "refuse-all").exists():
            raise ConfigError("--squares is 0; give at least 1.")
        if (folder / "other").exists():
            self.told = "cubes"

    def __call__(self, number: int) -> tuple[int, int]:
        self._obey(number)
        return number**2, os.getpid()

    def _obey(self, number: int) -> None:
        order = self.folder / str(number)
        if not order.exists():
            return
        words = order.read_text().split()
        if "once" in words:
            order.unlink()
        if "die" in words:
            os.kill(os.getpid(), signal.SIGKILL)
        if "refuse" in words:
            raise ConfigError(f"{number} is unlucky; give another.")
        raise ValueError(f"{number} cannot be squared")
