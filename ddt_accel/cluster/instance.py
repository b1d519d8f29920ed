"""Ray, on this machine or on a cluster that is running: begun or joined without a word, and left again."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddt_accel.errors import BusyError, ConfigError, DependencyError, WorkerError
from ddt_accel.locks import joining

_PREFIX = "ddt-accel-ray-"
# Results that wait to be taken: a range of pictures a worker. Nothing of it is used before.
_STORE = 512 << 20
_SILENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else it warns of what it will do in the future
    "RAY_worker_niceness": "0",  # else 15: whatever else runs on the machine would come first
}
_MODE = "RAY_AUTH_MODE"
_CORES = 4  # of a worker on a CPU, where nothing is said
_ANSWER = 5.0  # seconds that the head of a cluster may take to answer
_SETTINGS = 4  # the type of the frame that each end of HTTP/2 begins with


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where workers are: on this machine, or on the Ray cluster at an `address`.

    How many, or as many as there is place for; each has a `gpu` of its own, or so many cores. Raises ConfigError for
    numbers below 1.
    """

    address: str | None = None
    workers: int | None = None
    gpu: bool = False
    cores: int | None = None

    def __post_init__(self) -> None:
        for option, number in (("--workers", self.workers), ("--cpus-per-worker", self.cores)):
            if number is not None and number < 1:
                raise ConfigError(f"{option} is {number}; give at least 1.")

    @property
    def words(self) -> str:
        if self.address is None:
            return "on this machine"
        return "in the cluster" if self.address == "auto" else f"in the cluster at {self.address}"


@contextlib.contextmanager
def instance(site: Site, *, otherwise: str = "") -> Iterator[Any]:
    """The module `ray`, connected; an instance of this machine ends with the block, and with this process however that
    ends. `otherwise` is the sentence on what does without Ray.

    Raises DependencyError where Ray is not installed, ConfigError where no cluster answers, WorkerError where Ray does
    not begin.
    """
    os.environ.update({name: value for name, value in _SILENT.items() if name not in os.environ})
    try:
        import ray
        from ray._private import worker as rays
    except ImportError as error:
        said = f"--workers and --ray need Ray, which is not installed here ({error}): pip install 'ddt-accel[cluster]'."
        raise DependencyError(f"{said} {otherwise}".strip()) from None
    # It would print on standard output that a worker died, which is told in other words; nothing public stops it.
    rays._worker_logs_enabled = False
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL, "namespace": "ddt-accel"}
    with ExitStack() as stack:
        stack.callback(_restore, _MODE, os.environ.get(_MODE))  # Ray sets it, and would not look again at what it means
        with _handlers():  # Ray has its own, which would end this process without a word
            if site.address is None:
                folder = stack.enter_context(_folder())
                quiet |= {"num_cpus": 0, "include_dashboard": False, "object_store_memory": _STORE, "_temp_dir": folder}
            address = "local" if site.address is None else _cluster(site.address)
            try:
                stack.callback(ray.shutdown)
                ray.init(address=address, **quiet)
            except Exception as error:  # it has no one exception for this
                line = str(error).partition("\n")[0]
                if site.address is None:
                    said = f"Ray could not be started here: {line} Where the machine is busy, try again later."
                    raise WorkerError(f"{said} {otherwise}".strip()) from None
                raise ConfigError(
                    f"Ray could not join the cluster at {site.address}: {line} Run this on one of its machines, with "
                    "the versions of Ray and Python that it has."
                ) from None
        yield ray


def crew_size(ray: Any, site: Site) -> tuple[int, int]:
    """How many workers there are to be, and how many cores each has."""
    here = site.address is None
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cores = [_cores() if here else int(node.get("CPU", 0)) for node in nodes]
    if site.gpu:
        gpus = int(sum(node.get("GPU", 0) for node in nodes))
        if gpus < (site.workers or 1):
            raise ConfigError(
                f"There are to be {site.workers or 1} workers with a GPU each, and Ray finds {gpus or 'no'} GPU"
                f"{'' if gpus == 1 else 's'} {site.words}; give fewer --workers, or --device cpu."
            )
        count = site.workers or gpus
        return count, site.cores or (max(1, cores[0] // count) if here else 1)
    if here:
        count = site.workers or max(1, cores[0] // (site.cores or _CORES))
        return count, site.cores or max(1, cores[0] // count)
    each = site.cores or max(1, min(_CORES, max(cores)))
    most = sum(number // each for number in cores)
    if most < (site.workers or 1):
        cores_each = f"{each} core{'s' * (each > 1)} each"
        raise ConfigError(
            f"There are to be {site.workers or 1} workers of {cores_each}, and there is place for {most} {site.words}; "
            "give fewer --workers or --cpus-per-worker."
        )
    return site.workers or most, each


def resources(site: Site, cores: int) -> dict[str, float]:
    """What a worker asks Ray for: on this machine no cores, so that nobody waits for them."""
    return {"num_cpus": 0 if site.address is None else cores, "num_gpus": 1 if site.gpu else 0}


def _restore(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def _handlers() -> Iterator[None]:
    """Signals are handled afterwards as they were before."""
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)} if main else {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _folder() -> Iterator[str]:
    """A new folder for what Ray writes; those of processes that were killed are removed, and this one in the end.

    It has a short path: sockets lie in it, whose names the system limits.
    """
    root = Path("/tmp") if os.access("/tmp", os.W_OK) else Path(tempfile.gettempdir())
    for old in root.glob(f"{_PREFIX}*"):
        with contextlib.suppress(BusyError), joining(old, alone=True) as certain:
            if certain:
                shutil.rmtree(old, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=root))
    try:
        with joining(folder, alone=True):
            yield str(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _cluster(address: str) -> str:
    """HOST:PORT of what was given; raises ConfigError soon where there is no cluster.

    Ray's own "auto" takes any instance of this machine, also one that another command has begun for its workers.
    """
    from ray._private import services

    if address == "auto":
        address = os.environ.get("RAY_ADDRESS") or services.find_bootstrap_address(None) or "auto"
    if address == "auto":
        raise ConfigError(
            "--ray is auto, and no Ray cluster was begun or joined on this machine by `ray start`; do so, give "
            "HOST:PORT of its head, or --workers for this machine alone."
        )
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdecimal():
        raise ConfigError(
            f"--ray is {address!r}; give auto, or HOST:PORT of the cluster's head, such as 10.0.0.1:6379, on one of "
            "its machines."
        )
    _check_listens(address, host.strip("[]"), int(port))
    return address


def _check_listens(address: str, host: str, port: int) -> None:
    try:
        with socket.create_connection((host, port), timeout=_ANSWER) as connection:
            speaks = _speaks_grpc(connection)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"Nobody listens at {address} ({getattr(error, 'strerror', None) or error}); give the address of a Ray "
            "cluster that is running, as `ray start --head` prints it."
        ) from None
    if not speaks:
        raise ConfigError(
            f"What listens at {address} is not the head of a Ray cluster; give the address that `ray start --head` "
            "prints, not that of its dashboard."
        )


def _speaks_grpc(connection: socket.socket) -> bool:
    """Whether the other end answers as HTTP/2 begins (RFC 9113, 3.4); Ray waits for minutes for one that does not."""
    try:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, _SETTINGS, 0, 0, 0, 0, 0]))
        with connection.makefile("rb") as answer:
            frame = answer.read(9)  # length, type, flags, stream
    except OSError:
        return False
    return len(frame) == 9 and frame[3] == _SETTINGS and not any(frame[5:])
