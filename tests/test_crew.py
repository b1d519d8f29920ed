"""Workers by Ray as it is, with jobs that load no network: who dies is replaced, and each unit is done once."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from jobs import Squares

from ddt_accel.cluster.crew import MOST_BACK, Crew
from ddt_accel.cluster.instance import Site, instance
from ddt_accel.errors import ConfigError, WorkerError

pytest.importorskip("ray", reason="Ray is not installed: pip install 'ddt-accel[cluster]'")


@pytest.fixture(scope="module")
def ray() -> Iterator[object]:
    """An instance of this machine for crews of two."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
        with instance(Site(workers=2)) as found:
            yield found


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def crew(ray, said) -> Crew:
    return Crew(ray, Site(workers=2), said.append, lambda number: f"number {number}")


def squared(crew: Crew, folder: Path, numbers: range) -> Iterator[tuple[int, int]]:
    """(number, its square) as they come."""
    job = partial(Squares, folder)
    told = crew.first(job)

    def misfit(other: str) -> str | None:
        return None if other == told else f"It tells {other}."

    for member, number, (square, process) in crew.work(job, iter(numbers), len(numbers), misfit):
        assert member.process == process
        yield number, square


def test_every_unit_is_done_once_though_workers_die(crew, said, tmp_path, capfd) -> None:
    (tmp_path / "3").write_text("die once")
    (tmp_path / "7").write_text("fail once")
    (tmp_path / "8").write_text("die once")
    assert sorted(squared(crew, tmp_path, range(12))) == [(number, number**2) for number in range(12)]
    assert len(said) == 3
    assert capfd.readouterr() == ("", "")
    for number, why in ((3, "its process died"), (7, "ValueError: 7 cannot be squared"), (8, "its process died")):
        assert any(f"is gone, and another takes number {number}: {why}" in line for line in said)
    assert {member.number for member in crew.members} <= {0, 1}


def test_a_unit_that_kills_ends_the_work_after_some_times(crew, said, tmp_path) -> None:
    (tmp_path / "5").write_text("die")
    done = []
    with pytest.raises(WorkerError, match=rf"Number 5 failed {1 + MOST_BACK} times, .* its process died.* is kept"):
        done.extend(squared(crew, tmp_path, range(12)))
    assert len(said) == MOST_BACK


def test_causes_that_can_be_removed_are_told_at_once(crew, said, tmp_path) -> None:
    (tmp_path / "2").write_text("refuse")
    with pytest.raises(WorkerError, match=rf"Number 2 failed on {socket.gethostname()}: 2 is unlucky; give another\."):
        list(squared(crew, tmp_path, range(4)))
    (tmp_path / "refuse-all").write_text("")
    with pytest.raises(ConfigError, match=r"^--squares is 0; give at least 1\.$"):
        crew.first(partial(Squares, tmp_path))
    assert said == []


def test_who_would_do_something_else_does_nothing(crew, said, tmp_path) -> None:
    job = partial(Squares, tmp_path)
    told = crew.first(job)
    (tmp_path / "other").write_text("")
    working = crew.work(job, iter(range(200)), 200, lambda other: None if other == told else f"It tells {other}.")
    assert sorted(number for _, number, _ in working) == list(range(200))
    if said:  # unless the first was done before the second had begun
        assert said == ["Worker 1 cannot begin; the others go on without it: It tells cubes."]
    assert [member.number for member in crew.members] == [0]
