"""What runs in each worker's process. Knows nothing of Ray, nor of what is worked on."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from ddt_accel import __version__
from ddt_accel.errors import DDTAccelError


class Work(Protocol):
    """What a job has become in a worker that is ready: what it tells of itself, and what is called with every unit."""

    told: Any

    def __call__(self, unit: Any, /) -> Any: ...


# Called once in each worker, with the number of its cores.
Job = Callable[[int], Work]


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A worker is ready."""

    told: Any
    place: str
    process: int
    version: str = __version__


@dataclass(frozen=True, kw_only=True)
class Done:
    """A unit is done."""

    result: Any


@dataclass(frozen=True, kw_only=True)
class Failed:
    """Something did not work; where a cause is known that the user can remove, it is the `error`."""

    text: str
    error: DDTAccelError | None = None


class Worker:
    """Opens a job once, with all that takes long, and does its units one by one. Nothing is raised: what goes wrong is
    told, in a sentence."""

    def __init__(self) -> None:
        self._work: Work | None = None

    def open(self, job: Job, cpus: int) -> Opened | Failed:
        try:
            self._work = job(cpus)
            return Opened(told=self._work.told, place=_place(), process=os.getpid())
        except Exception as error:
            return _failed(error)

    def do(self, unit: Any) -> Done | Failed:
        assert self._work is not None
        try:
            return Done(result=self._work(unit))
        except Exception as error:
            return _failed(error)


def _place() -> str:
    """Where this process works, for people."""
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES")
    return socket.gethostname() + (f", GPU {gpu}" if gpu else "")


def _failed(error: Exception) -> Failed:
    if isinstance(error, DDTAccelError):
        return Failed(text=str(error), error=type(error)(str(error)))
    line = str(error).partition("\n")[0]
    return Failed(text=f"{type(error).__name__}: {line}" if line else type(error).__name__)
