"""Commands that share a folder do not get in each other's way.

Three locks, all the kernel's, so that they end with their process, however that ends. `making` is for as long as an
artefact is made: a second process waits, and says for whom. `joining` is for work that takes hours: nobody waits for
its end, and those who share it work beside each other. `opened` is for the moments in which the files of a folder are
read or replaced together. Where there are no locks (some network file systems, a folder that cannot be written to,
Windows) all go on without.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ddt_accel.errors import BusyError

if sys.platform != "win32":
    import fcntl

Say = Callable[[str], None]

# Seconds for which who leaves may hold a lock alone, to remove its file; and between two looks at it.
_LEAVING, _AGAIN = 0.5, 0.02


def nothing(text: str) -> None:
    """For those who do not want to know."""


@contextlib.contextmanager
def making(path: Path, say: Say = nothing) -> Iterator[bool]:
    """While the block lasts no other process makes the file or folder `path`; waits for one that does.

    Yields whether that is certain. The lock is a file beside `path` that tells who holds it, and goes with the block.
    It is not to be asked for again inside the block.
    """
    lock = _beside(path)
    handle = _acquired(lock, path, say)
    try:
        yield handle is not None
    finally:
        if handle is not None:
            with contextlib.suppress(OSError):
                lock.unlink()  # while it is held: who waits for it sees that it has gone, and begins anew
            os.close(handle)


@contextlib.contextmanager
def joining(path: Path, *, alone: bool) -> Iterator[bool]:
    """While the block lasts nobody works on the file or folder `path` but this process `alone`, or those who share it.

    Yields whether that is certain. Raises BusyError at once, naming one who is there, where it cannot be; who would
    share gives those who are leaving a moment. The lock is the file that `making` has: the last to leave removes it.
    """
    lock = _beside(path)
    handle = _joined(lock, path, alone)
    try:
        yield handle is not None
    finally:
        if handle is not None:
            with contextlib.suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails where others share it
                lock.unlink()
            os.close(handle)


@contextlib.contextmanager
def opened(folder: Path, *, alone: bool) -> Iterator[None]:
    """While the block lasts nobody is `alone` with `folder`; or this process is, where it asks for that."""
    handle = None
    try:
        with contextlib.suppress(OSError):
            handle = os.open(folder, os.O_RDONLY)
            if sys.platform != "win32":
                fcntl.flock(handle, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _beside(path: Path) -> Path:
    place = Path(os.path.realpath(path))
    return place.parent / f".{place.name}.lock"


def _joined(lock: Path, path: Path, alone: bool) -> int | None:
    """An open lock file that this process has locked, alone or with others; None where there are no locks."""
    if sys.platform == "win32":
        return None

    def take(handle: int) -> bool:
        patience = 0.0 if alone else _LEAVING
        while True:
            try:
                fcntl.flock(handle, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if patience <= 0:
                    raise BusyError(
                        f"{_holder(handle)}, is at work on {path}; wait until it is done, or stop it first."
                    ) from None
                patience -= _AGAIN
                time.sleep(_AGAIN)
        if not os.path.samestat(os.fstat(handle), os.stat(lock)):
            return False
        _write(handle, f"{_me()}\n".encode())
        return True

    return _locked(lock, take)


def _acquired(lock: Path, path: Path, say: Say) -> int | None:
    """An open lock file that this process alone has locked; None where there are no locks."""
    if sys.platform == "win32":
        return None
    token = f"{_me()}\n{secrets.token_hex(8)}\n".encode()
    told = False

    def take(handle: int) -> bool:
        nonlocal told
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not told:
                say(f"Waiting for {_holder(handle)}, to be done with {path} ...")
                told = True
            fcntl.flock(handle, fcntl.LOCK_EX)
        _write(handle, token)
        return lock.read_bytes() == token

    return _locked(lock, take)


def _locked(lock: Path, take: Callable[[int], bool]) -> int | None:
    """A handle of the lock file that `take` has locked; None where there are no locks.

    `take` says whether it is the file that others find, too: the one before may have removed it, and it is opened anew.
    """
    while (handle := _open(lock)) is not None:
        held = False
        try:
            if held := take(handle):
                return handle
        except FileNotFoundError:
            pass
        except OSError:  # no locks here
            with contextlib.suppress(OSError):
                lock.unlink()
            return None
        finally:
            if not held:
                os.close(handle)
    return None


def _write(handle: int, text: bytes) -> None:
    os.ftruncate(handle, 0)
    os.pwrite(handle, text, 0)


def _open(lock: Path) -> int | None:
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        return os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:
        return None


def _holder(handle: int) -> str:
    return os.pread(handle, 1000, 0).decode(errors="replace").partition("\n")[0] or "another process"


def _me() -> str:
    return f"{_command()}, process {os.getpid()} on {socket.gethostname()}"


def _command() -> str:
    """What this process was started as, such as `ddt-accel export`."""
    program = Path(sys.argv[0])
    if program.name == "ddt-accel" or program.parent.name == "ddt_accel":  # the latter by python -m
        return " ".join(["ddt-accel", *sys.argv[1:2]])
    return program.name if program.suffix == ".py" else "Python"
