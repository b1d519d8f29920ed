"""Listens, answers, and ends in order: what has begun is answered first."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterator

import uvicorn
from fastapi import FastAPI

from ddt_accel.errors import ConfigError

_BACKLOG = 2048  # connections that wait to be accepted, as uvicorn has it


class _Quiet(uvicorn.Server):
    """Leaves signals to whoever runs it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def listening(host: str, port: int) -> socket.socket:
    """A socket at a port, or at any that is free for 0; raises ConfigError where that cannot be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        found = socket.socket(family, socket.SOCK_STREAM)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
    except (OSError, OverflowError) as error:
        raise _taken(host, port, error) from None
    return found


def _taken(host: str, port: int, error: Exception) -> ConfigError:
    return ConfigError(
        f"{host}:{port} cannot be listened at: {getattr(error, 'strerror', None) or error}; give another --port, or 0 "
        "for one that is free."
    )


def run(app: FastAPI, place: socket.socket, *, drain: float, on_stop: Callable[[str], None]) -> int:
    """Answers until SIGTERM or SIGINT; then nobody new is let in, and those who wait are answered within `drain`
    seconds. A second signal ends it at once. Returns how many were not answered.

    Raises ConfigError where another process listens at that port by now.
    """
    try:
        place.listen(_BACKLOG)
    except OSError as error:
        host, port, *_ = place.getsockname()
        raise _taken(host, port, error) from None
    config = uvicorn.Config(
        app, log_level="critical", access_log=False, lifespan="off", timeout_graceful_shutdown=int(drain) or 1
    )
    server = _Quiet(config)

    async def answer() -> int:
        loop = asyncio.get_running_loop()

        def stop(name: str) -> None:
            server.force_exit = server.should_exit
            server.should_exit = True
            on_stop(name)

        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, stop, signal.Signals(signum).name)
        await server.serve(sockets=[place])
        return len(server.server_state.tasks)  # with those that were cancelled

    return asyncio.run(answer())
