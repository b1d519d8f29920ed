"""Everything that is to be measured on a GPU, with one command, in under eight minutes.

DDT-XL/2 with random weights, in bf16: engines where TensorRT is installed, peers at batch 32 and 1, parts and scaling;
each in a process of its own, with a limit of its own, so that one that fails takes nothing from the others. Engines
take part in the contest where they were built. Results go to `--folder` as JSON, what was printed beside them.
`--reduced` does the same on the embedded model and a CPU, with limits five times as long.

Usage: python benchmarks/gpu.py --published CLONE [--folder benchmarks/results] [--reduced]
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent


def commands(published: Path, engines: Path, *, reduced: bool) -> dict[str, tuple[str, int]]:
    """Script and arguments of every measurement, and its limit in seconds."""
    if reduced:
        contest = f"peers.py --published {published} --steps 6 --budget 2 --rounds 1"
        found = {
            "engines": (f"engines.py --models cifar10 --folder {engines} --batch 1:1:2", 90),
            "peers-32": (f"{contest} --batch 2 --compile", 150),
            "peers-1": (f"{contest} --batch 1", 60),
            "parts": ("parts.py --batch 2 --backends compiled --seconds 1 --steps 6 --budget 2", 60),
            "scaling": ("scaling.py --seconds 0.1 --batches 1,2 --batch 2 --steps 25 --budgets 1,50", 110),
        }
    else:
        contest = f"peers.py --published {published} --model xl2-256 --device cuda --rounds 3 --compile"
        found = {
            "engines": (f"engines.py --models xl2-256 --folder {engines} --batch 1:1:1,2:32:32", 90),
            "peers-32": (f"{contest} --batch 32", 150),
            "peers-1": (f"{contest} --batch 1", 70),
            "parts": ("parts.py --model xl2-256 --device cuda --batch 32 --backends compiled", 60),
            "scaling": ("scaling.py --models xl2-256,xl2-512 --device cuda --seconds 2 --batches 1,4,16,64 "
                        "--steps 25,250 --budgets 1,50", 100),
        }  # fmt: skip
    if not any(importlib.util.find_spec(name) for name in ("tensorrt", "tensorrt_rtx")):
        del found["engines"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--published", type=Path, required=True, help="a clone of github.com/MCG-NJU/DDT")
    parser.add_argument("--folder", type=Path, default=HERE / "results")
    parser.add_argument("--engines", type=Path, default=Path("ddt-accel-run/benchmark-engines"))
    parser.add_argument("--reduced", action="store_true", help="the embedded model on a CPU, to try the command")
    arguments = parser.parse_args()

    arguments.folder.mkdir(parents=True, exist_ok=True)
    device = "cpu" if arguments.reduced else "cuda"
    began, failed = time.monotonic(), []
    wanted = commands(arguments.published, arguments.engines, reduced=arguments.reduced)
    for name, (line, limit) in wanted.items():
        limit *= 5 if arguments.reduced else 1
        started, stem = time.monotonic(), f"{device}-{name}"
        script, *given = line.split()
        if script == "peers.py" and device == "cuda" and "engines" in wanted and "engines" not in failed:
            given += ["--engines", str(arguments.engines / "xl2-256")]
        command = [sys.executable, str(HERE / script), *given, "--out", str(arguments.folder / f"{stem}.json")]
        with (arguments.folder / f"{stem}.txt").open("w") as told:
            try:
                code = subprocess.run(command, stdout=told, stderr=subprocess.STDOUT, timeout=limit).returncode
                ended = "done" if code == 0 else f"failed with {code}"
            except subprocess.TimeoutExpired:
                ended = f"stopped at its limit of {limit} s"
        if ended != "done":
            failed.append(name)
        print(f"{time.monotonic() - started:6.0f} s  {name}: {ended}", flush=True)
    print(f"{time.monotonic() - began:6.0f} s in all; results in {arguments.folder}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
