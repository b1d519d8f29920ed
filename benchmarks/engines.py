"""What it takes to export a network to two TensorRT engines: seconds of every stage, peak memory, and sizes.

Needs no GPU with TensorRT for RTX. Each network is exported in a process of its own, so that peak memory is its own;
that of the weights, in float32, is told apart.

Usage: python benchmarks/engines.py [--models xl2-256,xl2-512] [--engine auto] [--precision bf16] [--batch 1:8:32]
           [--folder DIR] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from setting import conditions, network

from ddt_accel import export
from ddt_accel.exporting.engines import EngineOptions

GIB = 1 << 30


def peak() -> float:
    """GiB that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


def one(name: str, engine: str, precision: str, batch: str, folder: Path) -> dict[str, Any]:
    """Exports one network; seconds by stage, GiB and bytes."""
    model = network(name, "cpu")
    weights, began = peak(), time.monotonic()
    seconds: dict[str, float] = {}
    current: list[tuple[str, float]] = []

    def ended() -> None:
        if current:
            label, started = current.pop()
            seconds[label] = seconds.get(label, 0.0) + time.monotonic() - started

    def on_stage(label: str, total: int) -> Callable[[], None]:
        ended()
        # The builder's phases are one stage.
        network_name, _, rest = label.partition(": ")
        known = rest in ("", "ONNX", "comparison with PyTorch")
        current.append((label if known else f"{network_name}: engine", time.monotonic()))
        return lambda: None

    options = EngineOptions(engine=engine, batches=EngineOptions.parse_batches(batch))
    made = export(model, folder, format="tensorrt", precision=precision, engines=options, on_stage=on_stage)
    ended()
    assert made.engine is not None
    return {
        "conditions": conditions(model, "cpu", f"{made.engine.library} {made.engine.version}, {precision}, {batch}"),
        "seconds": time.monotonic() - began,
        "stages": seconds,
        "gib_loaded": weights,
        "gib_peak": peak(),
        "bytes": {path.name: path.stat().st_size for path in sorted(folder.iterdir())},
        "parity": made.parity,
        "products": made.engine.products,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="xl2-256,xl2-512")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--batch", default="1:8:32")
    parser.add_argument("--folder", type=Path, default=Path("ddt-accel-run/benchmark-engines"))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()

    results = []
    for name in arguments.models.split(","):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            given = (name, arguments.engine, arguments.precision, arguments.batch, arguments.folder / name)
            results.append(pool.apply(one, given))
        found = results[-1]
        print(f"{found['conditions']}\n  {found['seconds']:.0f} s in all, {found['gib_peak']:.1f} GiB at most "
              f"({found['gib_loaded']:.1f} with the weights loaded)")  # fmt: skip
        for label, taken in found["stages"].items():
            print(f"  {taken:6.1f} s  {label}")
        for file, size in found["bytes"].items():
            print(f"  {size / 1e6:8.1f} MB  {file}", flush=True)
        if arguments.out:
            arguments.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
