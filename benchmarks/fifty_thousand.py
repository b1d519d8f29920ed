"""How long many images take with W workers: measured with few, simulated with many, and a model between the two.

Three parts, each of which may be left out:

- `--workers 1 2`: `ddt-accel sample --workers W` of a model's images, in processes of its own, one after the other;
- `--simulate 64`: as many workers on this machine, who sleep as long as a range would take and return as many bytes:
  what is left is Ray and this process, who hands out ranges and writes them;
- the model: seconds(W) = max(⌈R / W⌉ · (t + o), R · d) for R ranges that take a worker t seconds, o more until it has
  the next one, and the driver d to write. It knows nothing of machines whose workers slow each other down.

Usage: python benchmarks/fifty_thousand.py [--images 5000] [--workers 1 2] [--simulate 64] [--out results.json]
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ddt_accel.cluster.crew import Crew
from ddt_accel.cluster.instance import Site, instance
from ddt_accel.drawing.identity import RunIdentity
from ddt_accel.drawing.images import Images
from ddt_accel.drawing.run_folder import RANGE, RunFolder

IMAGES = 50_000  # of which the model tells the time


class Sleeper:
    """A worker that draws nothing, and takes its time."""

    told = None

    def __init__(self, seconds: float, side: int, cores: int) -> None:
        self._seconds, self._side = seconds, side

    def __call__(self, indices: range) -> Images:
        time.sleep(self._seconds * (0.95 + 0.1 * (indices.start // RANGE * 0.618 % 1)))  # no two alike, the mean kept
        rows = np.zeros((len(indices), self._side, self._side, 3), np.uint8)
        rows[:] = np.random.default_rng(indices.start).integers(0, 256, (1, self._side, self._side, 3))
        return Images(first=indices.start, rows=rows, labels=np.array(indices) % 1000)


def measured(arguments: argparse.Namespace, workers: int) -> dict[str, Any]:
    """One run of `sample --workers`."""
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        line = [
            sys.executable, "-m", "ddt_accel", "sample", "--model", arguments.model, "--backend", arguments.backend,
            "--schedule", arguments.schedule, "--device", arguments.device, "--batch-size", arguments.batch_size,
            "-w", f"{folder}/w", "--images", arguments.images, "--out", f"{folder}/run", "--npz", f"{folder}/x.npz",
            "--no-png", "--workers", workers, "--json",
        ]  # fmt: skip
        started = time.perf_counter()
        ran = subprocess.run(list(map(str, line)), check=False, stdout=subprocess.PIPE, text=True)
        if ran.returncode:
            sys.exit(ran.returncode)  # it has said why
        seconds = time.perf_counter() - started
    told = json.loads(ran.stdout)
    drawing = told["seconds_per_image"] * told["images"]
    rates = [worker["images_per_second"] for worker in told["workers"]]
    return {"workers": workers, "images": told["images"], "seconds": seconds, "drawing": drawing, "rates": rates}


def simulated(arguments: argparse.Namespace, workers: int) -> dict[str, Any]:
    """All ranges of `IMAGES`, by workers who sleep; what they had to wait for in between."""
    with instance(Site(workers=workers)) as ray, tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        identity = RunIdentity(
            seed=0, labels="equal", sampling="none", schedule_sha256="0" * 64, latents="none",
            checkpoint_sha256=None, guide_sha256=None, backend="sleeping", decoder_sha256=None,
        )  # fmt: skip
        run = RunFolder.begun(Path(folder), identity, arguments.simulated_images, RANGE)
        crew = Crew(ray, Site(workers=workers), print, str)
        job = partial(Sleeper, arguments.sleep, arguments.side)
        began = time.perf_counter()
        crew.first(job)

        def until_all_are_ready() -> Iterator[range]:
            while len(crew.members) < workers:
                yield range(next(counted), next(counted))

        counted = itertools.count()
        for _ in crew.work(job, until_all_are_ready(), 10**9, lambda told: None):
            pass
        ready = time.perf_counter() - began
        ranges = list(run.ranges())
        writing, last, ended = 0.0, dict[int, float](), 0.0
        began = time.perf_counter()
        for member, _, images in crew.work(job, iter(ranges), len(ranges), lambda told: None):
            got = time.perf_counter()
            run.write(images, {})
            writing += time.perf_counter() - got
            last[member.number] = ended = got - began
            run.remove(range(images.first, images.stop))
        seconds = time.perf_counter() - began
        joined = len(crew.members)
    slept = arguments.sleep * len(ranges)
    return {
        "workers": joined, "ranges": len(ranges), "sleep": arguments.sleep, "side": arguments.side,
        "ready": ready, "seconds": seconds, "least": slept / joined,
        "writing_per_range": writing / len(ranges),
        "overhead_per_range": (sum(last.values()) - slept) / len(ranges),
        "lost_to_the_last_range": float(np.mean([ended - one for one in last.values()])),
    }  # fmt: skip


def predicted(ranges: int, workers: int, each: float, overhead: float, writing: float) -> float:
    return max(math.ceil(ranges / workers) * (each + overhead), ranges * writing)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000, help="that are drawn for each of --workers")
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--simulate", type=int, nargs="*", default=[64], help="how many workers sleep")
    parser.add_argument("--sleep", type=float, default=2.0, help="seconds that a range takes who sleeps")
    parser.add_argument("--simulated-images", type=int, default=IMAGES)
    parser.add_argument("--side", type=int, default=32, help="pixels of what they return")
    parser.add_argument("--model", default="cifar10")
    parser.add_argument("--schedule", default="cifar10-10of50")
    parser.add_argument("--backend", default="torch")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--folder", type=Path, default=None, help="on the disk that is to be written to")
    parser.add_argument("--out", type=Path, default=None, help="results as JSON")
    arguments = parser.parse_args()
    conditions = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores", "python": platform.python_version(),
        "ray": version("ray"), "torch": version("torch"), "model": arguments.model, "schedule": arguments.schedule,
        "backend": arguments.backend, "batch_size": arguments.batch_size, "range": RANGE,
        "load_before": os.getloadavg()[0],
    }  # fmt: skip
    print(json.dumps(conditions))
    runs = [measured(arguments, workers) for workers in arguments.workers]
    for run in runs:
        print(
            f"{run['workers']} workers: {run['images']} images, {run['drawing']:.1f} of {run['seconds']:.1f} s drawing"
        )
        print("  images/s of each: " + ", ".join(f"{rate:.2f}" for rate in run["rates"]))
    simulations = [simulated(arguments, workers) for workers in arguments.simulate]
    for one in simulations:
        overhead, writing = one["overhead_per_range"], one["writing_per_range"]
        one["model"] = predicted(one["ranges"], one["workers"], one["sleep"], overhead, writing)
        print(f"{one['workers']} workers who sleep, ready after {one['ready']:.0f} s: {one['ranges']} ranges")
        print(f"  {one['seconds']:.1f} s, {one['model']:.1f} s by the model, {one['least']:.1f} s at best")
        print(f"  {1e3 * overhead:.0f} ms between two ranges of a worker, {1e3 * writing:.0f} ms to write one")
        print(f"  {one['lost_to_the_last_range']:.2f} s a worker waits for the last range of others")
    if runs and simulations:
        each = RANGE / runs[0]["rates"][0]
        overhead, writing = (simulations[0][name] for name in ("overhead_per_range", "writing_per_range"))
        table = {w: predicted(math.ceil(IMAGES / RANGE), w, each, overhead, writing) for w in (1, 2, 4, 8, 16, 32, 64)}
        for workers, seconds in table.items():
            faster = table[1] / seconds
            print(f"{IMAGES} images, {workers:2} workers: {seconds / 60:7.1f} min, {faster:5.1f} times as fast")
    if arguments.out is not None:
        arguments.out.write_text(
            json.dumps({"conditions": conditions, "runs": runs, "simulations": simulations}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
