"""Commands that work on many devices, by Ray as it is: whoever dies, nothing is lost, nor done twice, nor different."""

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
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from conftest import Result, assert_sentence, typed

from ddt_accel import SamplingSpec, Schedule

pytest.importorskip("ray", reason="Ray is not installed: pip install 'ddt-accel[cluster]'")

COUNT, SIZE = 165, 33  # images, and of these in a range


def drawing(tmp_path: Path) -> list[object]:
    """A command that draws 165 images of the embedded model in five ranges into tmp_path / "run"."""
    Schedule.uniform(SamplingSpec(num_steps=2), 1).save(tmp_path / "s.json")
    return [
        "sample", "--backend", "torch", "--model", "cifar10", "--schedule", tmp_path / "s.json", "-w", tmp_path / "w",
        "-n", COUNT, "--batch-size", SIZE, "--no-png", "--threads", 1, "--out", tmp_path / "run", "--npz",
        tmp_path / "x.npz",
    ]  # fmt: skip


@pytest.fixture
def line(tmp_path) -> list[object]:
    return drawing(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """What one process draws."""
    folder = tmp_path_factory.mktemp("whole")
    assert typed(*drawing(folder)) == 0
    return folder


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


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_whoever_is_killed_the_run_ends_in_the_same_bytes(cli, line, whole, tmp_path) -> None:
    """First a worker, then the driver; in between a second driver is refused. No finished range is drawn again.

    What is said of a worker that is gone is in test_crew: whether it had a range by then is chance here.
    """
    run, command = tmp_path / "run", [sys.executable, "-m", "ddt_accel", *map(str, line), "--workers", "2"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as driver:
        until(lambda: len(drawn(run)) >= 1, driver)
        assert_sentence(cli(*line, "--workers", 2), f"process {driver.pid} on")
        workers = [number for number, text in below(driver.pid).items() if text.startswith("ray::Worker")]
        os.kill(workers[0], signal.SIGKILL)
        until(lambda: len(drawn(run)) >= 3, driver)
        begun = below(driver.pid)
        driver.kill()
        assert driver.stderr is not None
        told = driver.stderr.read()
    kept = drawn(run)
    deadline = time.monotonic() + 60
    while any(text.startswith("ray::Worker") for number, (_, text) in processes().items() if number in begun):
        assert time.monotonic() < deadline, "workers outlive their driver"
        time.sleep(0.1)
    again = cli(*line, "--workers", 1, "--json")
    assert again.code == 0, again.err
    facts = json.loads(again.out)
    assert facts["drawn"] == COUNT - SIZE * len(kept)
    assert kept.items() <= drawn(run).items()
    assert sum(worker["images"] for worker in facts["workers"]) == facts["drawn"]
    assert contents(run / "ranges") == contents(whole / "run" / "ranges")
    assert (tmp_path / "x.npz").read_bytes() == (whole / "x.npz").read_bytes()
    for text in (told, again.err):
        lines = {one.partition(" ")[0].rstrip(":") for one in text.splitlines()}
        ours = {"1", "2", "Waiting", "Worker", "checking", f"{SIZE * len(kept)}", "sampling", "writing"}
        assert lines <= ours, text  # and none of Ray's


# An instance that is begun by ray.init has a token of its own, which nobody knows.
OPEN = {"RAY_AUTH_MODE": "disabled"}
CLUSTER = """
import logging, os, sys
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
import ray
found = ray.init(address="local", num_cpus=1, include_dashboard=False, logging_level=logging.CRITICAL)
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
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, sys.path)]),
        "RAY_prestart_worker_first_driver": "0",  # the file is looked at when a process begins
        **OPEN,
    }
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    with subprocess.Popen([sys.executable, "-c", CLUSTER], **pipes) as head:
        yield head.stdout.readline().strip(), flag
        head.stdin.close()


def joined(*line: object) -> Result:
    """The command in a process of its own: Ray decides once in a process whether it has a token."""
    command = [sys.executable, "-m", "ddt_accel", *map(str, line)]
    ran = subprocess.run(command, env=os.environ | OPEN, capture_output=True, text=True, check=False)
    return Result(ran.returncode, ran.stdout, ran.stderr)


def test_a_cluster_draws_the_same_images(line, whole, cluster, tmp_path) -> None:
    address, flag = cluster
    line[line.index(COUNT)] = 4 * SIZE
    line += ["--ray", address]
    flag.write_text("")
    assert_sentence(joined(*line), "ddt-accel is not installed there, or in another version; install the same as here")
    flag.unlink()
    ran = joined(*line, "--json")
    assert ran.code == 0, ran.err
    expected = contents(whole / "run" / "ranges")
    made = contents(tmp_path / "run" / "ranges")
    assert made == {name: expected[name] for name in sorted(expected)[:4]}
    assert np.load(tmp_path / "x.npz")["arr_0"].shape == (4 * SIZE, 32, 32, 3)


def test_addresses_without_a_cluster_are_told(cli, line, cluster, tmp_path, monkeypatch) -> None:
    """There is one that is nobody's but who began it: auto does not take it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{free.getsockname()[1]}"
        assert_sentence(cli(*line, "--ray", nobody), f"Nobody listens at {nobody} (")
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as dashboard:
        Thread(target=dashboard.handle_request).start()
        other = f"127.0.0.1:{dashboard.server_port}"
        assert_sentence(cli(*line, "--ray", other), f"What listens at {other} is not the head of a Ray cluster; give")
    assert_sentence(cli(*line, "--ray", "ray://head:10001"), "--ray is 'ray://head:10001'; give auto, or HOST:PORT")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))  # where `ray start` would have left an address
    assert_sentence(cli(*line, "--ray", "auto"), "--ray is auto, and no Ray cluster was begun or joined")
    monkeypatch.setenv("RAY_ADDRESS", nobody)
    assert_sentence(cli(*line, "--ray", "auto"), f"Nobody listens at {nobody} (")
