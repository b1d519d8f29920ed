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
    """A socket that listens at a port, or at any that is free for 0; raises ConfigError where that cannot be had.

    Who comes before anybody answers has to wait.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        found = socket.socket(family, socket.SOCK_STREAM)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
        found.listen(_BACKLOG)  # two processes can be bound to a port, and one of them listen
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"{host}:{port} cannot be listened at: {getattr(error, 'strerror', None) or error}; give another --port, "
            "or 0 for one that is free."
        ) from None
    return found


def run(app: FastAPI, place: socket.socket, *, drain: float, on_stop: Callable[[str], None]) -> int:
    """Answers until SIGTERM or SIGINT; then nobody new is let in, and those who wait are answered within `drain`
    seconds. A second signal ends it at once. Returns how many were not answered."""
    config = uvicorn.Config(
        app, log_level="critical", access_log=False, lifespan="off", timeout_graceful_shutdown=int(drain) or 1
    )
    server = _Quiet(config)

    async def answer() -> int:
        loop = asyncio.get_running_loop()

        def stop(name: str) -> None:
            if server.should_exit:
                server.force_exit = True
            else:
                server.should_exit = True
                on_stop(name)

        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, stop, signal.Signals(signum).name)
        await server.serve(sockets=[place])
        return len(server.server_state.tasks)  # with those that were cancelled

    return asyncio.run(answer())
