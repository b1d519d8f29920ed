"""Work on many devices, by Ray as it is: what dies is replaced, and nothing is done twice, nor lost."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import assert_sentence
from jobs import Squares

from ddt_accel import Calibration, SamplingSpec, Schedule, calibrate, load_model
from ddt_accel.calibration.statistics import ARRAYS, COARSER, SHARED
from ddt_accel.cluster.crew import MOST_BACK, Crew
from ddt_accel.cluster.instance import Site, instance
from ddt_accel.drawing.run_folder import RunFolder
from ddt_accel.errors import ConfigError, WorkerError

pytest.importorskip("ray", reason="Ray is not installed: pip install 'ddt-accel[cluster]'")

COUNT, SIZE = 165, 33  # images, and of these in a range


def test_numbers_that_no_site_can_have_are_refused(cli) -> None:
    for options, said in (
        (["--workers", "0"], "--workers is 0; give at least 1"),
        (["--workers", "two"], "--workers is 'two'; give auto, or how many"),
        (["--cpus-per-worker", 2], "--cpus-per-worker is of --workers and --ray"),
        (["--workers", 2, "--device", "cuda:1"], "--device is cuda:1, and each worker gets a device of its own"),
        (["--workers", 2, "-n", 50], "--images is 50, and up to 100 are drawn by one process"),
    ):
        assert_sentence(cli("sample", "-n", 200, *options), said)


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
        assert said == ["Worker 1 cannot begin, and the others go on without it: It tells cubes."]
    assert [member.number for member in crew.members] == [0]


@pytest.fixture
def line(tmp_path) -> list[object]:
    """A command that draws 165 images of the embedded model in five ranges into tmp_path / "run"."""
    Schedule.uniform(SamplingSpec(num_steps=6), 3).save(tmp_path / "s.json")
    return [
        "sample", "--backend", "torch", "--model", "cifar10", "--schedule", tmp_path / "s.json", "-w", tmp_path / "w",
        "-n", COUNT, "--batch-size", SIZE, "--no-png", "--threads", 1, "--out", tmp_path / "run", "--npz",
        tmp_path / "x.npz",
    ]  # fmt: skip


def processes() -> dict[int, tuple[int, str]]:
    """Parent and command line of all processes."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                found[int(folder.name)] = parent, (folder / "cmdline").read_text().replace("\0", " ")
    return found


def below(process: int) -> dict[int, str]:
    """Command lines of the processes that a process has begun, and those that these have."""
    every, found = processes(), dict[int, str]()
    grown = {process}
    while grown:
        grown = {number for number, (parent, _) in every.items() if parent in grown}
        found |= {number: every[number][1] for number in grown}
    return found


def until(reached: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 180
    while not reached() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert reached(), process.poll()


def drawn(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("ranges/0*")}


def test_whoever_is_killed_the_run_ends_in_the_same_bytes(cli, line, tmp_path) -> None:
    """First a worker, then the driver; in between a second driver is refused. No finished range is drawn again."""
    whole = [*line, "--out", tmp_path / "whole", "--npz", tmp_path / "whole.npz"]
    assert cli(*whole).code == 0
    line += ["--workers", 2]
    run, command = tmp_path / "run", [sys.executable, "-m", "ddt_accel", *map(str, line)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as driver:
        until(lambda: len(drawn(run)) >= 1, driver)
        assert_sentence(cli(*line), f"process {driver.pid} on")
        workers = [number for number, text in below(driver.pid).items() if text.startswith("ray::Worker")]
        os.kill(workers[0], signal.SIGKILL)
        until(lambda: len(drawn(run)) >= 3, driver)
        begun = below(driver.pid)
        driver.kill()
        assert driver.stderr is not None
        told = driver.stderr.read()
    assert "is gone, and another takes images" in told
    kept = drawn(run)
    deadline = time.monotonic() + 60
    while any(text.startswith("ray::Worker") for number, (_, text) in processes().items() if number in begun):
        assert time.monotonic() < deadline, "workers outlive their driver"
        time.sleep(0.1)
    again = cli(*line, "--json")
    assert again.code == 0, again.err
    facts = json.loads(again.out)
    assert facts["drawn"] == COUNT - SIZE * len(kept)
    assert kept.items() <= drawn(run).items()
    assert sum(worker["images"] for worker in facts["workers"]) == facts["drawn"]
    made, expected = (
        {path.name: path.read_bytes() for path in (tmp_path / name / "ranges").iterdir()} for name in ("run", "whole")
    )
    assert made == expected
    assert (tmp_path / "x.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()
    for text in (told, again.err):
        lines = {one.partition(" ")[0].rstrip(":") for one in text.splitlines()}
        assert lines <= {"2", "Worker", "checking", f"{SIZE * len(kept)}", "sampling", "writing"}, (
            text
        )  # and none of Ray's


CLUSTER = """
import logging, os, sys
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
import ray
found = ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level=logging.CRITICAL)
print(found.address_info["gcs_address"], flush=True)
sys.stdin.read()
"""
# In processes of the cluster, while a file is there: as where the package is not installed.
MISSING = """
import os, sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "ddt_accel":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
if os.path.exists(FLAG):
    sys.meta_path.insert(0, Missing())
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[tuple[str, Path]]:
    """The address of a cluster of this machine, and the file that hides the package from its new processes."""
    folder = tmp_path_factory.mktemp("cluster")
    flag = folder / "hidden"
    (folder / "sitecustomize.py").write_text(MISSING.replace("FLAG", repr(str(flag))))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, sys.path)])}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    with subprocess.Popen([sys.executable, "-c", CLUSTER], **pipes) as head:
        yield head.stdout.readline().strip(), flag
        head.stdin.close()


def test_a_cluster_draws_the_same_images(cli, line, cluster, tmp_path) -> None:
    address, flag = cluster
    line[line.index(COUNT)] = 4 * SIZE
    assert cli(*line, "--out", tmp_path / "whole", "--npz", tmp_path / "whole.npz").code == 0
    line += ["--ray", address]
    flag.write_text("")
    assert_sentence(cli(*line), "ddt-accel is not installed there, or in another version; install the same as here")
    flag.unlink()
    assert_sentence(cli(*line, "--workers", 3), f"the cluster at {address} has place for 1")
    ran = cli(*line, "--json")
    assert ran.code == 0, ran.err
    assert RunFolder.load(tmp_path / "run").present() == 4 * SIZE
    assert (tmp_path / "x.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()


def test_calibration_by_workers_is_that_of_one_process(cli, tiny_model_path, tmp_path) -> None:
    """To rounding, and what one process has begun they continue; batches are the same."""
    line = ["calibrate", "--model", tiny_model_path, "--steps", 6, "--samples", 7, "--sensitivity-samples", 3,
            "--batch-size", 2, "--threads", 1]  # fmt: skip
    assert cli(*line, "-w", tmp_path / "one").code == 0
    expected = Calibration.load(tmp_path / "one" / "calibration.safetensors")
    begun, place = tmp_path / "many" / "calibration.partial.safetensors", tmp_path / "many"
    calibrate(load_model(tiny_model_path), expected.spec, 2, batch_size=2, sensitivity_samples=3).save(begun)
    ran = cli(*line, "-w", place, "--workers", 2, "--json")
    assert ran.code == 0, ran.err
    assert "Continuing an interrupted calibration: 2 of 7" in ran.err
    assert "and 1 of 2 workers has any; a smaller --batch-size" in " ".join(ran.err.split())
    assert json.loads(ran.out)["samples"] == 7
    found = Calibration.load(place / "calibration.safetensors")
    for name in ("ranges", "spec", "checkpoint_sha256", "latent_shape"):
        assert getattr(found, name) == getattr(expected, name)
    for name in (*ARRAYS, COARSER, SHARED):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-12, err_msg=name)
    assert not begun.exists()


def test_addresses_without_a_cluster_are_told(cli, line) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{free.getsockname()[1]}"
        assert_sentence(cli(*line, "--ray", nobody), f"Nobody listens at {nobody} (")
    assert_sentence(cli(*line, "--ray", "ray://head:10001"), "--ray is 'ray://head:10001'; give auto, or HOST:PORT")
    assert_sentence(cli(*line, "--ray", "auto"), "Ray could not join the cluster at auto:")


def test_without_ray_it_is_said_what_to_install(cli, line, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert_sentence(cli(*line, "--workers", 2), "pip install 'ddt-accel[cluster]'")
