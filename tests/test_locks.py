"""Locks, between real processes: who comes second waits and says for whom, and nobody waits for the dead."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ddt_accel.errors import BusyError
from ddt_accel.locks import joining, making, opened

HOLD = (
    "import sys; from pathlib import Path; from ddt_accel.locks import making\n"
    "with making(Path(sys.argv[1]), print) as alone: print('held', alone, flush=True); sys.stdin.read()\n"
    "print('done', flush=True)"
)


@contextmanager
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that asks for the lock of `path` and, once it has it, holds it until its standard input ends."""
    line = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def ended(process: subprocess.Popen[str]) -> str:
    return process.communicate(timeout=60)[0].strip()


def test_the_second_waits_and_says_for_whom(tmp_path: Path) -> None:
    made = tmp_path / "export"
    with holder(made) as first:
        assert line_of(first) == "held True"
        with holder(made) as second, holder(tmp_path / "other") as other:
            assert line_of(other) == "held True"
            told = line_of(second)
            assert f"process {first.pid} on" in told
            assert str(made) in told
            assert ended(first) == "done"
            assert line_of(second) == "held True"
            assert (ended(second), ended(other)) == ("done", "done")
    assert list(tmp_path.iterdir()) == []


def test_nobody_waits_for_a_process_that_was_killed(tmp_path: Path) -> None:
    with holder(tmp_path / "x") as first:
        assert line_of(first) == "held True"
        with holder(tmp_path / "x") as second:
            assert line_of(second).startswith("Waiting for")
            first.kill()
            assert line_of(second) == "held True"
            assert ended(second) == "done"
        first.wait()
        with holder(tmp_path / "x") as third:
            assert line_of(third) == "held True"  # at once
            third.kill()
            third.wait()
        said: list[str] = []
        with making(tmp_path / "x", said.append) as alone:
            assert alone
        assert said == []
    assert list(tmp_path.iterdir()) == []


def test_never_two_at_once(tmp_path: Path) -> None:
    """Six processes add to a number by reading and writing it; the lock file comes and goes with every one."""
    count = tmp_path / "count"
    count.write_text("0")
    code = (
        "import sys; from pathlib import Path; from ddt_accel.locks import making\n"
        "path = Path(sys.argv[1])\n"
        "for _ in range(100):\n"
        "    with making(path) as alone: path.write_text(str(int(path.read_text()) + alone))"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code, str(count)]) for _ in range(6)]
    assert [process.wait(60) for process in processes] == [0] * 6
    assert count.read_text() == "600"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_without_locks_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with making(tmp_path / "x") as alone, making(tmp_path / "x"), opened(tmp_path, alone=True):
        assert not alone
    with joining(tmp_path / "x", alone=True) as alone, joining(tmp_path / "x", alone=True):
        assert not alone
    assert list(tmp_path.iterdir()) == []


def test_where_nothing_can_be_written_it_goes_on(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with making(tmp_path / "file" / "x") as alone, opened(tmp_path / "none", alone=False):
        assert not alone


def test_readers_share_and_one_who_replaces_is_alone(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from ddt_accel.locks import opened\n"
        "with opened(Path(sys.argv[1]), alone=bool(int(sys.argv[2]))): print('in', flush=True)"
    )
    line = [sys.executable, "-c", code, str(tmp_path)]
    with opened(tmp_path, alone=False), opened(tmp_path, alone=False):
        assert subprocess.run([*line, "0"], capture_output=True, text=True, timeout=60).stdout == "in\n"
        writer = subprocess.Popen([*line, "1"], stdout=subprocess.PIPE, text=True)
        time.sleep(0.5)
        assert writer.poll() is None
    assert writer.communicate(timeout=60)[0] == "in\n"


def test_who_shares_works_beside_others_and_who_is_alone_is_refused_at_once(tmp_path: Path) -> None:
    run = tmp_path / "run"
    code = (
        "import sys; from pathlib import Path; from ddt_accel.locks import joining\n"
        "with joining(Path(sys.argv[1]), alone=bool(int(sys.argv[2]))): print('in', flush=True); sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code, str(run), "0"], **pipes) as other:
        assert line_of(other) == "in"
        with joining(run, alone=False) as certain:
            assert certain
        with pytest.raises(
            BusyError, match=rf"process {os.getpid()} on .*, is at work on .*run; wait"
        ):  # the last came
            joining(run, alone=True).__enter__()
        other.kill()
    with joining(run, alone=True) as certain:  # nobody waits for the dead
        assert certain
        for alone in (False, True):
            with pytest.raises(BusyError, match=f"process {os.getpid()} on"):
                joining(run, alone=alone).__enter__()
    assert list(tmp_path.iterdir()) == []
