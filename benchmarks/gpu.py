"""Everything that is to be measured on a GPU, with one command, in under eight minutes on an H200.

DDT-XL/2 with random weights, in bf16: peers at batch 32 and 1, parts, scaling, and engines where TensorRT is installed;
each in a process of its own with a limit of its own, so that one that fails takes nothing from the others. Results go
to `--folder` as JSON, what was printed beside them. `--reduced` does the same on the embedded model and a CPU.

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


def commands(published: Path, folder: Path, device: str, engines: Path, *, reduced: bool) -> dict[str, tuple[str, int]]:
    """Script and arguments of every measurement, and its limit in seconds."""
    model = "cifar10" if reduced else "xl2-256"
    both = "cifar10" if reduced else "xl2-256,xl2-512"
    small = "--steps 6 --budget 2 --rounds 1" if reduced else "--rounds 3"
    common = f"--published {published} --model {model} --device {device} {small}"
    trt = "" if reduced else f" --engines {engines / model}"
    has_trt = any(importlib.util.find_spec(name) for name in ("tensorrt", "tensorrt_rtx"))
    peers = f"peers.py {common}{trt if has_trt else ''}"
    return {
        **({"engines": (f"engines.py --models {model} --folder {engines} --batch 1:1:1,2:32:32", 120)}
           if has_trt else {}),
        "peers-32": (f"{peers} --batch {2 if reduced else 32}{'' if reduced else ' --compile'}", 150),
        "peers-1": (f"{peers} --batch 1", 60),
        "parts": (f"parts.py --model {model} --device {device} --batch {2 if reduced else 32} --backends compiled "
                  f"--seconds {1 if reduced else 10} {'--steps 6 --budget 2' if reduced else ''}", 60),
        "scaling": (f"scaling.py --models {both} --device {device} --seconds {0.1 if reduced else 2} "
                    f"{'--batches 1,2 --batch 2' if reduced else '--batches 1,4,16,64'} "
                    f"{'--steps 25' if reduced else '--steps 25,250'} --budgets 1,50", 120),
    }  # fmt: skip


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
    wanted = commands(arguments.published, arguments.folder, device, arguments.engines, reduced=arguments.reduced)
    for name, (line, limit) in wanted.items():
        limit *= 5 if arguments.reduced else 1
        started, stem = time.monotonic(), f"{device}-{name}"
        script, *given = line.split()
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
