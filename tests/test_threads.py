"""Threads: what is set, what is refused, and what is said where fewer would be faster."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from ddt_accel.cli.console import say_threads
from ddt_accel.errors import ConfigError
from ddt_accel.networks import threads
from ddt_accel.networks.threads import use_threads


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_what_is_wanted_is_set_and_said(monkeypatch) -> None:
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda process: set(range(8)))
    for wanted, said in ((3, "3 threads"), (1, "1 thread")):
        assert use_threads(wanted) == said
        assert torch.get_num_threads() == wanted
    for nonsense in (0, -1, 9):
        with pytest.raises(ConfigError, match=f"--threads is {nonsense}; give a number from 1 to 8"):
            use_threads(nonsense)
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize(("seconds", "said"), [
    ({8: 2.0, 4: 1.0, 2: 1.5, 1: 2.5}, "8 threads; a short trial just now was 2.0 times as fast with --threads 4"),
    ({8: 1.0, 4: 0.9, 2: 1.5, 1: 2.5}, "8 threads"),
])  # fmt: skip
def test_fewer_threads_are_suggested_where_they_are_faster(monkeypatch, seconds: dict[int, float], said: str) -> None:
    """A piece of work takes what the test says, by a clock of its own."""
    monkeypatch.setattr(threads, "_SECONDS", 10.0)
    now = 0.0

    def work(*_: object) -> None:
        nonlocal now
        now += seconds[torch.get_num_threads()]

    monkeypatch.setattr(threads, "_work", work)
    monkeypatch.setattr(threads.time, "perf_counter", lambda: now)
    torch.set_num_threads(8)
    assert use_threads(None) == said
    assert torch.get_num_threads() == 8  # a suggestion: other threads give other last bits
    assert use_threads(None, measure=False) == "8 threads"


def test_the_trial_runs(monkeypatch) -> None:
    monkeypatch.setattr(threads, "_SECONDS", 0.001)
    torch.set_num_threads(2)
    assert use_threads(None).startswith("2 threads")
    assert torch.get_num_threads() == 2


def test_a_gpu_that_nobody_asked_for_is_mentioned(monkeypatch, capsys) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    say_threads(1, "cpu")
    assert "There is a GPU here" in capsys.readouterr().err
    say_threads(1, "cuda")
    assert capsys.readouterr().err == ""
