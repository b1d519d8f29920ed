"""`auto`: which of several backends is the fastest here."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version

from ddt_accel.errors import ConfigError, DDTAccelError
from ddt_accel.networks.device import synchronize
from ddt_accel.sampling.backend import Backend

SECONDS = 2.0
PACKAGES = ("ddt-accel", "torch", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13")
STEPS_A_REFRESH = 5


def installed() -> dict[str, str]:
    """The versions of what runs networks, of those packages that are here."""
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def seconds_a_refresh(
    backend: Backend, latent_shape: tuple[int, int, int], batch: int, *, within: float | None = None
) -> float:
    """The least that one encoder run and five decoder runs, guided, of `batch` images were measured to take.

    Measured for `within` seconds, by default two, after a first call, in which networks may be compiled.
    """
    session, rows = backend.open(batch, latent_shape, 1), slice(0, 2 * batch)
    session.latents.normal_()
    session.times.fill_(0.5)
    session.labels.zero_()

    def once() -> float:
        synchronize(backend.device)
        started = time.perf_counter()
        session.encode(0, rows)
        for _ in range(STEPS_A_REFRESH):
            session.decode(0, rows)
        synchronize(backend.device)
        return time.perf_counter() - started

    once()
    ends = time.monotonic() + (SECONDS if within is None else within)
    least = once()
    while time.monotonic() < ends:
        least = min(least, once())
    return least


def measure_all(
    candidates: Mapping[str, Callable[[], Backend]], latent_shape: tuple[int, int, int], batch: int
) -> tuple[dict[str, float], dict[str, str]]:
    """Seconds of those that run, by name, and why the others do not; raises ConfigError where none does."""
    seconds: dict[str, float] = {}
    reasons: dict[str, str] = {}
    for name, opened in candidates.items():
        try:
            seconds[name] = seconds_a_refresh(opened(), latent_shape, batch)
        except (DDTAccelError, RuntimeError) as error:  # running out of memory is one of the latter
            reasons[name] = str(error).partition("\n")[0]
    if not seconds:
        told = " ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise ConfigError(f"No backend runs here. {told}")
    return seconds, reasons
