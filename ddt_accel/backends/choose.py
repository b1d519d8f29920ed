"""`auto`: which of several backends is the fastest here."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version

import torch

from ddt_accel.errors import ConfigError, DDTAccelError
from ddt_accel.networks.config import LatentShape
from ddt_accel.networks.device import fastest_precision, memory_of, synchronize
from ddt_accel.networks.split import SplitNetwork
from ddt_accel.sampling.backend import Backend
from ddt_accel.sampling.capture import captures
from ddt_accel.sampling.program import compile_program
from ddt_accel.sampling.trajectory import Trajectory
from ddt_accel.schedule import Schedule
from ddt_accel.spec import SamplingSpec

SECONDS = 2.0
PACKAGES = ("ddt-accel", "torch", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13")
STEPS_A_REFRESH = 5
SLOTS = 3  # modulations that a trajectory keeps at a time, at most
NO_MEMORY = "its buffers do not fit into memory"


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

    Measured for `within` seconds, by default two, after a first call, in which networks may be compiled. On a GPU it is
    a short trajectory, run as `Sampler` runs it: where the backend allows as a CUDA graph, which is captured before.
    """
    measured = _trajectory if captures(backend.device) else _calls
    work = measured(backend, latent_shape, batch)

    def once() -> float:
        synchronize(backend.device)
        started = time.perf_counter()
        work()
        synchronize(backend.device)
        return time.perf_counter() - started

    once()
    ends = time.monotonic() + (SECONDS if within is None else within)
    least = once()
    while time.monotonic() < ends:
        least = min(least, once())
    return least


def _calls(backend: Backend, latent_shape: LatentShape, batch: int) -> Callable[[], None]:
    """The runs of both networks, call by call."""
    session, rows = backend.open(batch, latent_shape, 1), slice(0, 2 * batch)
    session.latents.normal_()
    session.times.fill_(0.5)
    session.labels.zero_()

    def work() -> None:
        session.encode(0, rows)
        for _ in range(STEPS_A_REFRESH):
            session.decode(0, rows)

    return work


def _trajectory(backend: Backend, latent_shape: LatentShape, batch: int) -> Callable[[], None]:
    """The same runs as a trajectory of as many steps, prepared so far that it only has to be run.

    A network that nothing can guide takes as many rows in twice as many images.
    """
    guided = backend.guide is not None or backend.config.null_label is not None
    images = batch if guided else 2 * batch
    spec = SamplingSpec(
        num_steps=STEPS_A_REFRESH, guidance=2.0 if guided else 1.0, guidance_interval=(0.0, 1.0), closed_interval=guided
    )
    noise, labels = torch.randn(images, *latent_shape), torch.zeros(images, dtype=torch.int64)
    trajectory = Trajectory(backend, compile_program(Schedule(spec=spec, refresh_steps=(0,))), noise, labels)
    while not trajectory.is_settled:
        trajectory.run()
    return trajectory.run


def cache_of(network: SplitNetwork, latent_shape: LatentShape, batch: int) -> str:
    """What a compiled network keeps between refreshes of `batch` guided images: modulations, or states where those of
    a trajectory do not fit into half of the device's memory."""
    tokens, device = network.config.num_tokens(latent_shape), network.device
    itemsize = 2 if fastest_precision(device) != "fp32" else 4
    slot = 2 * batch * tokens * network.config.modulation_size * itemsize
    return "state" if SLOTS * slot > memory_of(device) / 2 else "modulations"


def measure_all(
    candidates: Mapping[str, Callable[[], Backend]], latent_shape: tuple[int, int, int], batch: int
) -> tuple[dict[str, float], dict[str, str]]:
    """Seconds of those that run, by name, and why the others do not, `NO_MEMORY` where that is it; raises ConfigError
    where none does."""
    seconds: dict[str, float] = {}
    reasons: dict[str, str] = {}
    for name, opened in candidates.items():
        try:
            seconds[name] = seconds_a_refresh(opened(), latent_shape, batch)
        except (torch.OutOfMemoryError, MemoryError):
            reasons[name] = NO_MEMORY
        except (DDTAccelError, RuntimeError) as error:
            reasons[name] = NO_MEMORY if is_no_memory(error) else str(error).partition("\n")[0]
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # what it held is for the next, which may allocate by itself
    if not seconds:
        told = " ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise ConfigError(f"No backend runs here. {told}")
    return seconds, reasons


def is_no_memory(error: Exception) -> bool:
    """Whether memory ran out, by what is said of it, for there is no one exception: PyTorch says it on a CPU in its own
    words, and so do ONNX Runtime, cuBLAS and cuDNN."""
    said = str(error)
    parts = ("out of memory", "not enough memory", "DefaultCPUAllocator", "Failed to allocate memory", "ALLOC_FAILED")
    return any(part in said for part in parts)
